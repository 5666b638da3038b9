"""What the commands of the line share: how errors are told, how a recipe is named; knows no command.

A `DmtError` becomes lines on stderr and an exit code, never a traceback; anything else is our bug and keeps its own.
"""

import errno
import os
from typing import TYPE_CHECKING, Any

import click

from dmt_ds.errors import ConfigError, DmtError, PeerFailedError, StorageError
from dmt_ds.redact import masked
from dmt_ds.storage import is_away

if TYPE_CHECKING:
    import torch

    from dmt_ds.config.schema import RunConfig, TaskName


_NAMELESS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EROFS), "a file of the run's folder can't be written")
"""What the kernel says of a write without the file's name."""


class CarefulGroup(click.Group):
    """Turns what the user can fix into one line per finding."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            click.exceptions.Exit: a `DmtError`'s code, 2 if the user can fix it, 75 if a file server does not
                answer, 130 after Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except OSError as error:
            where = error.filename or _NAMELESS.get(error.errno or 0)
            if ctx.params["debug"] or where is None:
                raise
            click.echo(masked(f"dmt-ds: error: {where}: {error.strerror}"), err=True)
            raise click.exceptions.Exit(StorageError.exit_code if is_away(error) else 2) from None
        except DmtError as error:
            if ctx.params["debug"]:
                raise
            rank = launch_rank()
            code = error.exit_code
            if rank and isinstance(error, (PeerFailedError, ConfigError)):
                raise click.exceptions.Exit(code) from None  # rank 0, or the peer that failed, says it for all
            prefix = "dmt-ds: error: " if rank == 0 else f"dmt-ds: error: rank {rank}: "
            for line in str(error).splitlines():
                click.echo(masked(prefix + line), err=True)
            raise click.exceptions.Exit(code) from None
        except KeyboardInterrupt:
            if ctx.params["debug"]:
                raise
            click.echo("dmt-ds: stopped", err=True)
            raise click.exceptions.Exit(130) from None


def examples(*lines: str, title: str = "Examples") -> str:
    """Lines that click leaves as they are, below the options."""
    return "\b\n" + "\n".join([f"{title}:", *(f"  {line}" for line in lines)])


recipe_option = click.option(
    "-c", "--recipe", metavar="RECIPE", help="Shipped recipe (vit_tiny, vit_small, vit_base, mae, ...) or YAML file."
)
encoder_option = click.option(
    "-e",
    "--encoder",
    metavar="SOURCE",
    help="Encoder: take the run that `dmt-ds finetune` (segment or detect, by -c) would start from it.",
)
overrides_argument = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def load_recipe(
    recipe: str | None, overrides: tuple[str, ...], encoder: str | None = None, task: "TaskName | None" = None
) -> "RunConfig":
    """The run that was asked for; pydantic is imported only now.

    Args:
        encoder: what is fine-tuned, for the commands that have `encoder_option`.
        task: of that run; None takes the recipe's.
    """
    if encoder is not None:
        from dmt_ds.commands.training.finetune import resolve

        return resolve(encoder, recipe, overrides, task)
    from dmt_ds.config.load import load_config

    return load_config(recipe, overrides)


def own_device() -> "torch.device":
    """A GPU of this machine where there is one; torch is imported only now."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def launch_rank() -> int:
    """This process's number as its launcher says, before there is a process group."""
    text = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return int(text) if text.isdigit() else 0
