"""The commands that take a model elsewhere and put it to use: export, predict."""

from pathlib import Path

import click

from dmt_ds.cli.parts import examples


@click.command(
    short_help="Write a run's model for timm, transformers, ONNX, torch.export.",
    epilog=examples(
        "dmt-ds export runs/vit_tiny --format timm --format transformers",
        "dmt-ds export runs/vit_tiny --format onnx -o my_student",
        "dmt-ds export runs/vit_tiny/checkpoints/step00010000 --format timm -o early",
    ),
)
@click.argument("source", metavar="RUN")
@click.option(
    "-f",
    "--format",
    "forms",
    multiple=True,
    required=True,
    type=click.Choice(["timm", "transformers", "onnx", "torch_export"]),
    help="Again and again for several.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Each format gets a folder in this one; default: RUN/export.",
)
def export(source: str, forms: tuple[str, ...], output: Path | None) -> None:
    """Write a model so that it loads without dmt_ds: float32 weights, no adapter, no teacher, and a card.

    RUN is a finished run's output folder, a checkpoint of any run, or a folder with config.json and model.safetensors.
    What is written is read back by the library that it is for, and must give the trainer's own answers.
    """
    from dmt_ds.commands import export as command

    for written in command.run(source, forms, output):
        click.echo(written)
