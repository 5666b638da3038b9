"""The commands that take a model elsewhere and put it to use: export, predict."""

from pathlib import Path

import click

from dmt_ds.cli.parts import examples, own_device


@click.command(
    short_help="Write a run's model for timm, transformers, ONNX, torch.export.",
    epilog=examples(
        "dmt-ds export runs/vit_tiny --format timm --format transformers",
        "dmt-ds export runs/vit_tiny --format onnx -o my_student",
        "dmt-ds export runs/vit_tiny --format timm --register vit_tiny_dmt --alias champion",
        "dmt-ds export runs/vit_tiny --register vit_tiny_dmt",
        "dmt-ds export runs/vit_tiny/checkpoints/step00010000 --format timm -o early",
    ),
)
@click.argument("source", metavar="RUN")
@click.option(
    "-f",
    "--format",
    "forms",
    multiple=True,
    type=click.Choice(["timm", "transformers", "onnx", "torch_export"]),
    help="Repeatable; with --register the default is all formats that were exported before.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Each format gets a folder in this one; default: RUN/export.",
)
@click.option(
    "--register",
    metavar="NAME",
    help="Also register this model in MLflow's registry, as a new version; existing exports are not written again.",
)
@click.option("--alias", metavar="ALIAS", help="Alias of that version, such as champion.")
def export(source: str, forms: tuple[str, ...], output: Path | None, register: str | None, alias: str | None) -> None:
    """Write a model so that it loads without dmt_ds: float32 weights, no adapter, no teacher, and a card.

    RUN is a finished run's output folder, a checkpoint of any run, or a folder with config.json and model.safetensors.
    Each export is read back by the library that it is for, and must reproduce the trainer's outputs.
    """
    if alias is not None and register is None:
        raise click.UsageError("--alias needs --register NAME")
    if not forms and register is None:
        raise click.UsageError("give a --format, or --register NAME for what was exported before")
    from dmt_ds.commands import export as command

    registration = None if register is None else command.Registration(register, alias)
    for written in command.run(source, forms, output, registration):
        click.echo(written)


@click.command(
    short_help="Predict labels, masks, objects or features of your own images.",
    epilog=examples(
        "dmt-ds predict -e runs/vit_small_finetune photos -o answers",
        "dmt-ds predict -e runs/vit_small_finetune cat.jpg dog.jpg -o answers --top-k 3",
        "dmt-ds predict -e runs/vit_small_segment photos -o masks",
        "dmt-ds predict -e runs/vit_small_detect photos -o objects --score-threshold 0.3",
        "dmt-ds predict -e runs/vit_tiny photos -o features",
    ),
)
@click.option("-e", "--encoder", "source", required=True, metavar="SOURCE", help="Run, checkpoint or exported folder.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="Output folder; nothing in it is overwritten.",
)
@click.option("--top-k", type=click.IntRange(min=1), help="For a classifier: classes per image; default: 5.")
@click.option(
    "--batch-size", type=click.IntRange(min=1), help="For a classifier or an encoder: images per batch; default: 64."
)
@click.option(
    "--score-threshold",
    type=click.FloatRange(0, 1),
    help="For a detector: lowest score of an object drawn in its pictures; default: 0.5.",
)
@click.argument("paths", nargs=-1, required=True, metavar="FOLDER_OR_FILE...")
def predict(
    source: str,
    output: Path,
    top_k: int | None,
    batch_size: int | None,
    score_threshold: float | None,
    paths: tuple[str, ...],
) -> None:
    """Apply a model to images in files and folders of any depth.

    A classifier writes predictions.json (path -> labels with probabilities) and contact_sheet.png; a segmenter writes
    both, masks/*.png (values are class numbers) and overlays/*.png; a detector writes predictions.json (COCO's results
    format), images.json (which image has which id) and pictures/; an encoder writes features.npz (names, class_token,
    patch_mean), and SOURCE may then have any form of a teacher's source. Unreadable images are named and left out.
    """
    from dmt_ds.commands.predictions import predict as command

    options = command.Options(top_k, batch_size, score_threshold)
    for path in command.run(source, paths, output, options, own_device()):
        click.echo(path)
