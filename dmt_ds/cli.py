"""The command `dmt-ds`: arguments in, exit code out; knows no library but click, so that `--help` is there at once.

A `DmtError` becomes lines on stderr and exit code 2, never a traceback; anything else is our bug and keeps its own.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dmt_ds import __version__
from dmt_ds.errors import ConfigError, DmtError, PeerFailedError

if TYPE_CHECKING:
    from dmt_ds.config.schema import RunConfig


class _CarefulGroup(click.Group):
    """Turns what the user can mend into one line a finding."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            click.exceptions.Exit: 2 after a `DmtError`, 130 after Ctrl-C. A rank that ends because of another one gives
                1: a launcher that takes the highest code of all ranks then tells 2 only where the user can mend it.
        """
        try:
            return super().invoke(ctx)
        except OSError as error:
            if ctx.params["debug"] or error.filename is None:
                raise
            click.echo(f"dmt-ds: error: {error.filename}: {error.strerror}", err=True)
            raise click.exceptions.Exit(2) from None
        except DmtError as error:
            if ctx.params["debug"]:
                raise
            rank = _rank()
            code = 1 if isinstance(error, PeerFailedError) else 2
            if rank and isinstance(error, (PeerFailedError, ConfigError)):
                raise click.exceptions.Exit(code) from None  # rank 0, or the peer that failed, says it for all
            prefix = "dmt-ds: error: " if rank == 0 else f"dmt-ds: error: rank {rank}: "
            for line in str(error).splitlines():
                click.echo(prefix + line, err=True)
            raise click.exceptions.Exit(code) from None
        except KeyboardInterrupt:
            if ctx.params["debug"]:
                raise
            click.echo("dmt-ds: stopped", err=True)
            raise click.exceptions.Exit(130) from None


def _examples(*lines: str) -> str:
    """Lines that click leaves as they are, below the options."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


@click.group(cls=_CarefulGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="dmt-ds")
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and debug messages.")
def main(debug: bool) -> None:
    r"""Distil several self-supervised ViT teachers into one ViT student.

    \b
    First steps:
      dmt-ds quickstart                        the whole machine at work on digits, in minutes, no GPU
      dmt-ds config -c vit_tiny                what a run would do, every setting written out
      dmt-ds doctor -c vit_tiny --ranks 8      everything that can fail, before a queue does
      torchrun --nproc-per-node 8 -m dmt_ds pretrain -c vit_tiny data.path=/data/imagenet

    RECIPE is the name of a shipped recipe or the path of a YAML file. Settings follow as KEY=VALUE with a dotted key:
    field default < recipe < KEY=VALUE.
    """
    _set_up_logging(debug)


recipe_option = click.option(
    "-c", "--recipe", metavar="RECIPE", help="Shipped recipe (vit_tiny, vit_small, vit_base, mae, ...) or YAML file."
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


@main.command(
    short_help="Distil teachers into a student, or make a teacher.",
    epilog=_examples(
        "dmt-ds pretrain -c vit_tiny data.path=/data/imagenet --dry-run",
        "torchrun --nproc-per-node 8 -m dmt_ds pretrain -c vit_small optim.base_lr=1e-4",
        "dmt-ds pretrain -c mae data.path=photos train.epochs=10 train.global_batch_size=256",
    ),
)
@recipe_option
@overrides_argument
@click.option("--dry-run", is_flag=True, help="Check everything as `doctor` does, then stop.")
@click.pass_context
def pretrain(ctx: click.Context, recipe: str | None, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Distil teachers into a student, or make a teacher (task mae, moco_v3, ibot, dino).

    Run it under torchrun or srun for several processes. A second start in the same output_dir goes on where the first
    one stopped.
    """
    config = _load(recipe, overrides)
    if dry_run:
        ctx.exit(_doctor(config, ranks=None))
    from dmt_ds.commands import pretrain as command

    ctx.exit(command.run(config))


@main.command(
    short_help="k-NN accuracy of teachers, students and checkpoints.",
    epilog=_examples(
        "dmt-ds knn -e runs/vit_tiny",
        "dmt-ds knn -e runs/vit_tiny -e timm:vit_base_patch16_224.mae -e pixels data.path=/data/imagenet",
        "dmt-ds knn -e teachers/checkpoint_teacher.pth data.source=folder data.path=photos knn.features=patch_mean",
    ),
)
@click.option("-e", "--encoder", "encoders", multiple=True, metavar="SOURCE", help="Again and again for several.")
@recipe_option
@overrides_argument
def knn(encoders: tuple[str, ...], recipe: str | None, overrides: tuple[str, ...]) -> None:
    """k-NN accuracy on frozen features: images of the training split vote on those of the validation split.

    SOURCE is written as a teacher's source: timm:TAG, hf:ID, a weights file, the output folder of a run; or pixels, the
    baseline without encoder. Without -e the recipe's teachers are judged. Without -c the settings are those of the
    first run among the sources. What a run's encoder reaches is added to its MLflow run.
    """
    recipe = recipe or next(
        (f"{source}/config.yaml" for source in encoders if Path(source, "config.yaml").is_file()), None
    )
    config = _load(recipe, overrides if recipe else ("task=mae", *overrides))  # without recipe: no teachers needed
    judged = {source: source for source in encoders} or config.teachers.used()
    if not judged:
        raise click.UsageError("which encoder? Say -e SOURCE, or -c RECIPE with teachers")
    import torch

    from dmt_ds.commands import knn as command

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    table = command.run_knn(config.data, config.knn, judged, device)
    click.echo(table)
    for row in table.rows:
        command.add_to_run(Path(row.encoder), row.scores)


@main.group(short_help="List, inspect and convert teachers.")
def teachers() -> None:
    """Which teachers there are, what is in a weights file, and its conversion."""


@teachers.command("list", epilog=_examples("dmt-ds teachers list"))
def teachers_list() -> None:
    """Teachers that load without further settings: where to get them, layout, licence."""
    from dmt_ds.commands import teachers as command

    click.echo(command.list_teachers())


@teachers.command("inspect", epilog=_examples("dmt-ds teachers inspect teachers/mae_pretrain_vit_base.pth"))
@click.argument("file", metavar="FILE")
@click.option("--key", metavar="KEY", help="Part of a full checkpoint: teacher, student, base_encoder, ...")
def teachers_inspect(file: str, key: str | None) -> None:
    """Layout, architecture, sha256 and dropped keys of a weights file."""
    from dmt_ds.commands import teachers as command

    click.echo(command.inspect_file(file, key))


@teachers.command(
    "convert",
    epilog=_examples("dmt-ds teachers convert teachers/checkpoint_teacher.pth teachers/ibot_vitb.safetensors"),
)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option("--key", metavar="KEY", help="Part of a full checkpoint: teacher, student, base_encoder, ...")
@click.option("--num-heads", type=click.IntRange(min=1), help="Attention heads, where the file does not tell.")
def teachers_convert(source: str, target: Path, key: str | None, num_heads: int | None) -> None:
    """Write the backbone of a weights file as safetensors, without what is not needed."""
    from dmt_ds.commands import teachers as command

    click.echo(command.convert(source, target, key, num_heads))


@main.command(
    short_help="Print the resolved run as YAML.",
    epilog=_examples(
        "dmt-ds config --defaults",
        "dmt-ds config -c vit_tiny optim.base_lr=1e-4 > my_recipe.yaml",
        "dmt-ds config -c vit_tiny --ds --ranks 8",
        "dmt-ds config -c vit_tiny --get output_dir",
    ),
)
@recipe_option
@overrides_argument
@click.option("--ds", "show_deepspeed", is_flag=True, help="Also print the resolved DeepSpeed JSONs.")
@click.option("--ranks", type=click.IntRange(min=1), default=1, show_default=True, help="Processes, for --ds.")
@click.option("--defaults", is_flag=True, help="Print every setting with its meaning and default instead.")
@click.option("--get", "keys", multiple=True, metavar="KEY", help="Print only this value; again and again for several.")
def config(
    recipe: str | None,
    overrides: tuple[str, ...],
    show_deepspeed: bool,
    ranks: int,
    defaults: bool,
    keys: tuple[str, ...],
) -> None:
    """Print the resolved run as YAML; what is printed is itself a recipe."""
    from dmt_ds.commands import config as command

    if defaults:
        click.echo(command.render_defaults(), nl=False)
        return
    resolved = _load(recipe, overrides)
    if keys:
        click.echo(command.render_values(resolved, keys), nl=False)
        return
    click.echo(command.render(resolved), nl=False)
    if show_deepspeed:
        click.echo(command.render_deepspeed(resolved, ranks), nl=False)


@main.command(
    short_help="Check everything that can fail, before a queue does.",
    epilog=_examples("dmt-ds doctor -c vit_tiny data.path=/data/imagenet --ranks 8", "dmt-ds doctor -c my_recipe.yaml"),
)
@recipe_option
@overrides_argument
@click.option("--ranks", type=click.IntRange(min=1), help="Processes of the run to come; default: this launch's.")
@click.pass_context
def doctor(ctx: click.Context, recipe: str | None, overrides: tuple[str, ...], ranks: int | None) -> None:
    """Check everything that can fail, before a queue does; exit code 2 if something will."""
    ctx.exit(_doctor(_load(recipe, overrides), ranks))


@main.group(short_help="Copy runs between MLflow stores.")
def mlflow() -> None:
    """Runs in MLflow, where they have to move."""


@mlflow.command("sync", epilog=_examples("dmt-ds mlflow sync runs http://127.0.0.1:5000 --experiment dmt_ds"))
@click.argument("source", metavar="SRC")
@click.argument("target", metavar="DST")
@click.option("--experiment", "experiments", multiple=True, metavar="NAME", help="Again and again for several.")
def mlflow_sync(source: str, target: str, experiments: tuple[str, ...]) -> None:
    """Copy runs into a store; called again, it adds only what is new.

    SRC is a store (URI, or SQLite file) or a folder of run folders whose nodes reached no store. DST is a store.
    Parameters, tags, metrics with their times and steps, data sets, artifacts, status, parents. Deletes nothing.
    """
    from dmt_ds.commands import mlflow as command

    command.run_sync(source, target, experiments, say=click.echo)


@main.command(
    short_help="The whole machine at work on digits, in minutes.",
    epilog=_examples("dmt-ds quickstart -o my_quickstart"),
)
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("quickstart"), show_default=True)
@click.option("--processes", type=click.IntRange(min=1), default=2, show_default=True, help="For the distillation.")
def quickstart(output: Path, processes: int) -> None:
    """Make three small teachers on digits, distil them, compare all with k-NN; minutes, no GPU, no download."""
    from dmt_ds.commands import quickstart as command

    command.run(output, processes, say=click.echo)


def _load(recipe: str | None, overrides: tuple[str, ...]) -> "RunConfig":
    from dmt_ds.config.load import load_config

    return load_config(recipe, overrides)


def _doctor(config: "RunConfig", ranks: int | None) -> int:
    if _rank() != 0:
        return 0
    from dmt_ds.commands import doctor as command

    findings = command.run(config, ranks)
    click.echo(command.render(findings))
    return 2 if any(finding.status == "fail" for finding in findings) else 0


def _rank() -> int:
    """This process's number as its launcher says, before there is a process group."""
    text = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return int(text) if text.isdigit() else 0


def _set_up_logging(debug: bool) -> None:
    """Lines with the time on stderr; of the ranks only the first one tells more than warnings."""
    rank = _rank()
    where = f"rank {rank}: " if rank else ""
    logging.basicConfig(
        format=f"%(asctime)s %(levelname).1s {where}%(message)s", datefmt="%H:%M:%S", level=logging.WARNING
    )
    own_level = logging.DEBUG if debug else logging.WARNING if rank else logging.INFO
    logging.getLogger("dmt_ds").setLevel(own_level)
