"""The commands that judge encoders: knn."""

from pathlib import Path

import click

from dmt_ds.cli.parts import examples, load_recipe, overrides_argument, recipe_option


@click.command(
    short_help="k-NN accuracy of teachers, students and checkpoints.",
    epilog=examples(
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
    config = load_recipe(
        recipe, overrides if recipe else ("task=mae", *overrides)
    )  # without recipe: no teachers needed
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
