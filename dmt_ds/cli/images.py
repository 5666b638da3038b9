"""The commands on images: shards make."""

from pathlib import Path

import click

from dmt_ds.cli.parts import examples, load_recipe, overrides_argument, recipe_option


@click.group(short_help="Make smaller copies of a data set's images.")
def shards() -> None:
    """Make files that loader processes read and decode faster than the originals."""


@shards.command(
    "make",
    epilog=examples(
        "dmt-ds shards make imagenet256 -c vit_tiny data.path=/data/imagenet",
        "dmt-ds shards make photos64 data.source=folder data.path=photos --short-side 64 --split train",
    ),
)
@click.argument("folder", metavar="OUT", type=click.Path(path_type=Path))
@recipe_option
@overrides_argument
@click.option(
    "--short-side",
    type=click.IntRange(min=8),
    default=256,
    show_default=True,
    help="Longest short side of a copy, in pixels.",
)
@click.option("--quality", type=click.IntRange(1, 100), default=95, show_default=True, help="JPEG quality.")
@click.option(
    "--split",
    "splits",
    type=click.Choice(["train", "val"]),
    multiple=True,
    default=("train", "val"),
    show_default=True,
    help="Split to copy; repeatable.",
)
@click.option("--images-a-shard", type=click.IntRange(min=1), default=4096, show_default=True, help="Images per file.")
@click.option("--workers", type=click.IntRange(min=1), help="Processes; default: one per core.")
def make(
    folder: Path,
    recipe: str | None,
    overrides: tuple[str, ...],
    short_side: int,
    quality: int,
    splits: tuple[str, ...],
    images_a_shard: int,
    workers: int | None,
) -> None:
    """Write smaller copies of a recipe's images to OUT, as parquet files with the class names.

    Use it when the loader slows training down. The copies differ from the originals: how much training crops change
    is measured and printed. Run it again to make what is missing; any number of processes gives the same bytes.
    """
    if "=" in str(folder):
        raise click.UsageError(f"OUT comes first: {folder} looks like a setting; write shards make OUT {folder} ...")
    config = load_recipe(recipe, overrides if recipe else ("task=mae", *overrides))  # the data alone need no teacher
    from dmt_ds.commands import shards as command
    from dmt_ds.data.shards import ShardSettings

    settings = ShardSettings(short_side, quality, images_a_shard, config.data.bad_images)
    command.run(config.data, folder, splits, settings, workers, say=click.echo)  # type: ignore[arg-type]
