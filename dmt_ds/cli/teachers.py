"""The commands on weights files: teachers list, inspect, convert."""

from pathlib import Path

import click

from dmt_ds.cli.parts import examples


@click.group(short_help="List, inspect and convert teachers.")
def teachers() -> None:
    """List teachers, inspect weights files and convert them."""


@teachers.command(
    "list", short_help="Teachers that load as they are, and where to get them.", epilog=examples("dmt-ds teachers list")
)
def teachers_list() -> None:
    """List teachers that load without further settings: where to get them, layout, licence."""
    from dmt_ds.commands import teachers as command

    click.echo(command.list_teachers())


@teachers.command(
    "inspect",
    short_help="Show what is in a weights file.",
    epilog=examples("dmt-ds teachers inspect teachers/mae_pretrain_vit_base.pth"),
)
@click.argument("source", metavar="SOURCE")
@click.option("--key", metavar="KEY", help="Part of a full checkpoint: teacher, student, base_encoder, ...")
def teachers_inspect(source: str, key: str | None) -> None:
    """Show layout, architecture, sha256 and dropped keys of a weights file, hf:ID, timm:TAG or a run's folder."""
    from dmt_ds.commands import teachers as command

    click.echo(command.inspect_file(source, key))


@teachers.command(
    "convert",
    short_help="Write a file's encoder as safetensors.",
    epilog=examples("dmt-ds teachers convert teachers/checkpoint_teacher.pth teachers/ibot_vitb.safetensors"),
)
@click.argument("source", metavar="IN")
@click.argument("target", metavar="OUT.safetensors", type=click.Path(path_type=Path))
@click.option("--key", metavar="KEY", help="Part of a full checkpoint: teacher, student, base_encoder, ...")
@click.option("--num-heads", type=click.IntRange(min=1), help="Number of attention heads, if the file does not tell.")
def teachers_convert(source: str, target: Path, key: str | None, num_heads: int | None) -> None:
    """Write the backbone of a weights file, or hf:ID, as safetensors, without unused tensors."""
    from dmt_ds.commands import teachers as command

    click.echo(command.convert(source, target, key, num_heads))
