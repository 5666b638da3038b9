"""The commands that train and what is looked at before: pretrain, quickstart, doctor, config."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmt_ds.cli.parts import encoder_option, examples, launch_rank, load_recipe, overrides_argument, recipe_option

if TYPE_CHECKING:
    from dmt_ds.config.schema import RunConfig

_start_option = click.option("-e", "--encoder", required=True, metavar="SOURCE", help="Encoder to start from.")
_dry_run_option = click.option("--dry-run", is_flag=True, help="Check everything as `doctor` does, then stop.")


@click.command(
    short_help="Distil teachers into a student, or make a teacher.",
    epilog=examples(
        "dmt-ds pretrain -c vit_tiny data.path=/data/imagenet --dry-run",
        "torchrun --nproc-per-node 8 -m dmt_ds pretrain -c vit_small optim.base_lr=1e-4",
        "torchrun --nproc-per-node 8 -m dmt_ds pretrain -c vit_family data.path=/data/imagenet",
        "dmt-ds pretrain -c mae data.path=photos train.epochs=10 train.global_batch_size=256",
    ),
)
@recipe_option
@overrides_argument
@_dry_run_option
@click.pass_context
def pretrain(ctx: click.Context, recipe: str | None, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Distil teachers into a student, or make a teacher (task mae, moco_v3, ibot, dino).

    Run it under torchrun or srun for several processes. Started again with the same output_dir, it resumes where it
    stopped.
    """
    _train(ctx, load_recipe(recipe, overrides), dry_run)


@click.command(
    short_help="Train an encoder for classification: fine-tuning, or a linear probe.",
    epilog=examples(
        "dmt-ds finetune -e runs/vit_small --dry-run",
        "torchrun --nproc-per-node 8 -m dmt_ds finetune -e runs/vit_small data.path=/data/imagenet",
        "dmt-ds finetune -e teachers/mae_pretrain_vit_base.pth -c linear_probe data.path=/data/imagenet",
    ),
)
@_start_option
@recipe_option
@overrides_argument
@_dry_run_option
@click.pass_context
def finetune(ctx: click.Context, encoder: str, recipe: str | None, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train an encoder with a head on labels, or only the head, and evaluate it on the validation split.

    SOURCE has the form of a teacher's source: the output folder of a run, a checkpoint in it, a weights file, timm:TAG
    or hf:ID; RUN/classifier keeps its head. The student takes the encoder's shape, image size and normalisation.
    Without -c the recipe is finetune_vit_tiny, _small or _base by width, on the data of the run that SOURCE comes from.
    It is started under torchrun or srun and resumed like `dmt-ds pretrain`.
    """
    _train(ctx, load_recipe(recipe, overrides, encoder, "classify"), dry_run)


@click.command(
    short_help="Train an encoder for semantic segmentation: UPerNet.",
    epilog=examples(
        "dmt-ds segment -e runs/vit_small data.path=/data/ADEChallengeData2016 --dry-run",
        "torchrun --nproc-per-node 8 -m dmt_ds segment -e runs/vit_small data.path=/data/ADEChallengeData2016",
        "dmt-ds segment -e runs/small_dmt -c small_segment data.path=data/camvid",
    ),
)
@_start_option
@recipe_option
@overrides_argument
@_dry_run_option
@click.pass_context
def segment(ctx: click.Context, encoder: str, recipe: str | None, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train an encoder under UPerNet on images whose pixels have classes, and evaluate it: mIoU, aAcc, mAcc.

    SOURCE has the same form as for `dmt-ds finetune`; its positions are interpolated to the crop, data.image_size.
    Images and annotations come from data.path: ADE20K's folder, one with the same layout, or a table with columns
    `image` and `annotation`. Without -c the recipe is segment_ade20k_vit_tiny, _small or _base by width. It is started
    under torchrun or srun and resumed like `dmt-ds pretrain`.
    """
    _train(ctx, load_recipe(recipe, overrides, encoder, "segment"), dry_run)


@click.command(
    short_help="Train an encoder for detection: boxes and masks, on COCO or similar data.",
    epilog=examples(
        "dmt-ds detect -e runs/vit_small data.path=/data/coco --dry-run",
        "torchrun --nproc-per-node 8 -m dmt_ds detect -e runs/vit_small data.path=/data/coco",
        "torchrun --nproc-per-node 8 -m dmt_ds detect -e runs/vit_base data.path=/data/coco detect.heads=cascade",
        "dmt-ds detect -e runs/vit_tiny data.path=own data.train_split=train data.val_split=val train.epochs=36",
    ),
)
@_start_option
@recipe_option
@overrides_argument
@_dry_run_option
@click.pass_context
def detect(ctx: click.Context, encoder: str, recipe: str | None, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Train Mask R-CNN, or Cascade Mask R-CNN, on an encoder, and evaluate it by COCO's average precision.

    SOURCE has the same form as for `dmt-ds finetune`. data.path is a folder with annotations/instances_SPLIT.json and
    the images in SPLIT/, for SPLIT data.train_split and data.val_split; detect.annotations and detect.images name other
    places. Without -c the recipe is detect_coco_mask_rcnn_vit_tiny, _small or _base by width. It is started under
    torchrun or srun and resumed like `dmt-ds pretrain`. `dmt-ds predict` draws what the model finds in other images.
    """
    _train(ctx, load_recipe(recipe, overrides, encoder, "detect"), dry_run)


@click.command(
    short_help="Run everything once on digits, in minutes.",
    epilog=examples("dmt-ds quickstart -o my_quickstart"),
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("quickstart"),
    show_default=True,
    help="Folder for runs, store and table.",
)
@click.option(
    "--processes", type=click.IntRange(min=1), default=2, show_default=True, help="Processes of the distillation."
)
def quickstart(output: Path, processes: int) -> None:
    """Train three small teachers on digits, distil them, and compare all with k-NN; in minutes, no GPU, no download."""
    from dmt_ds.commands import quickstart as command

    command.run(output, processes, say=click.echo)


@click.command(
    short_help="Check everything that can fail, before you queue for GPUs.",
    epilog=examples("dmt-ds doctor -c vit_tiny data.path=/data/imagenet --ranks 8", "dmt-ds doctor -c my_recipe.yaml"),
)
@recipe_option
@encoder_option
@overrides_argument
@click.option(
    "--ranks", type=click.IntRange(min=1), help="Processes of the planned run; default: those of this launch."
)
@click.option(
    "--all-images", is_flag=True, help="Decode every image of both splits, not just eight; takes minutes to hours."
)
@click.pass_context
def doctor(
    ctx: click.Context,
    recipe: str | None,
    encoder: str | None,
    overrides: tuple[str, ...],
    ranks: int | None,
    all_images: bool,
) -> None:
    """Check everything that can fail, before you queue for GPUs; exit code 2 if something would fail."""
    ctx.exit(_doctor(load_recipe(recipe, overrides, encoder), ranks, all_images))


@click.command(
    short_help="Print the resolved run as YAML.",
    epilog=examples(
        "dmt-ds config --defaults",
        "dmt-ds config -c vit_tiny optim.base_lr=1e-4 > my_recipe.yaml",
        "dmt-ds config -c vit_tiny --ds --ranks 8",
        "dmt-ds config -c vit_tiny --get output_dir",
    ),
)
@recipe_option
@encoder_option
@overrides_argument
@click.option("--ds", "show_deepspeed", is_flag=True, help="Also print the resolved DeepSpeed JSONs.")
@click.option(
    "--ranks", type=click.IntRange(min=1), default=1, show_default=True, help="Number of processes, for --ds."
)
@click.option("--defaults", is_flag=True, help="Print every setting with its meaning and default instead.")
@click.option("--get", "keys", multiple=True, metavar="KEY", help="Print only this value; repeatable.")
@click.option("--script", type=click.Path(path_type=Path), hidden=True)
@click.option("--sbatch", "options", multiple=True, hidden=True)
def config(
    recipe: str | None,
    encoder: str | None,
    overrides: tuple[str, ...],
    show_deepspeed: bool,
    ranks: int,
    defaults: bool,
    keys: tuple[str, ...],
    script: Path | None,
    options: tuple[str, ...],
) -> None:
    """Print the resolved run as YAML, which is itself a recipe."""
    from dmt_ds.commands import config as command
    from dmt_ds.commands.suites.sbatch_ranks import ranks_of
    from dmt_ds.config.load import to_yaml

    if defaults:
        click.echo(command.render_defaults(), nl=False)
        return
    resolved = load_recipe(recipe, overrides, encoder)
    if keys:
        click.echo(command.render_values(resolved, keys), nl=False)
        return
    click.echo(to_yaml(resolved), nl=False)
    known = ranks if script is None else ranks_of(script, options)  # of a chain's job, before it is submitted
    if show_deepspeed and known is not None:
        click.echo(command.render_deepspeed(resolved, known), nl=False)


def _train(ctx: click.Context, config: "RunConfig", dry_run: bool) -> None:
    if dry_run:
        ctx.exit(_doctor(config, ranks=None))
    from dmt_ds.commands.training import pretrain as command

    ctx.exit(command.run(config))


def _doctor(config: "RunConfig", ranks: int | None, all_images: bool = False) -> int:
    if launch_rank() != 0:
        return 0
    from dmt_ds.commands.checks import doctor as command
    from dmt_ds.commands.checks.findings import exit_code, render

    findings = command.run(config, ranks, all_images)
    click.echo(render(findings))
    return exit_code(findings)
