"""The commands that judge: encoders by knn and evaluate, whole models by judge."""

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dmt_ds.cli.parts import examples, overrides_argument, own_device, recipe_option
from dmt_ds.run_files import SETTINGS_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dmt_ds.commands.readouts.frozen_encoders import Encoder
    from dmt_ds.config.schema import RunConfig

logger = logging.getLogger(__name__)

_ANNOTATED_BY = {"segment": "class maps", "detect": "boxes and masks"}
"""Tasks whose images have no class each, so that frozen features can't be judged on them."""

encoders_option = click.option(
    "-e", "--encoder", "encoders", multiple=True, metavar="SOURCE", help="Encoder to evaluate; repeatable."
)


@click.command(
    short_help="Measure k-NN accuracy of teachers, students and checkpoints.",
    epilog=examples(
        "dmt-ds knn -e runs/vit_tiny",
        "dmt-ds knn -e runs/vit_tiny -e timm:vit_base_patch16_224.mae -e pixels data.path=/data/imagenet",
        "dmt-ds knn -e teachers/checkpoint_teacher.pth data.source=folder data.path=photos knn.features=patch_mean",
    ),
)
@encoders_option
@recipe_option
@overrides_argument
def knn(encoders: tuple[str, ...], recipe: str | None, overrides: tuple[str, ...]) -> None:
    """k-NN accuracy on frozen features: images of the training split vote on those of the validation split.

    SOURCE has the form of a teacher's source: timm:TAG, hf:ID, a weights file, or the output folder of a run; or it is
    `pixels`, the baseline without an encoder. Without -e the recipe's teachers are evaluated. Without -c the settings
    are those of the first run among the sources. A run's scores are added to its MLflow run if images and settings
    are the run's own.
    """
    config, judged = _settings_and_encoders(encoders, recipe, overrides)
    from dmt_ds.commands.readouts import knn as command

    click.echo(command.run_knn(config.data, config.knn, judged, own_device()))


@click.command(
    short_help="Measure frozen features: k-NN and linear probe.",
    epilog=examples(
        "dmt-ds evaluate -e runs/vit_tiny",
        "dmt-ds evaluate -e runs/vit_tiny -e runs/vit_tiny_mse -e pixels",
        "dmt-ds evaluate -c vit_tiny data.path=/data/imagenet",
    ),
)
@encoders_option
@recipe_option
@overrides_argument
@click.option("--again", is_flag=True, help="Evaluate again even if the run's folder already has these scores.")
def evaluate(encoders: tuple[str, ...], recipe: str | None, overrides: tuple[str, ...], again: bool) -> None:
    """k-NN and linear probe on class token and mean patch token, from one pass over the images.

    SOURCE, -c and the settings are as for `dmt-ds knn`. If images and settings are the run's own, a run's scores are
    added to its MLflow run and kept in evaluation.json in its folder; called again, the command only prints them.
    """
    config, judged = _settings_and_encoders(encoders, recipe, overrides)
    from dmt_ds.commands.readouts import evaluate as command

    click.echo(command.run(config.data, config.knn, config.linear, judged, own_device(), again))


@click.command(
    short_help="Score a run's classifier, segmenter or detector on any images.",
    epilog=examples(
        "dmt-ds judge -e runs/vit_small_finetune data.val_split=test",
        "torchrun --nproc-per-node 8 -m dmt_ds judge -e runs/vit_small_segment data.path=/data/ADE20K -o scores",
        "dmt-ds judge -e runs/vit_small_finetune data.path=/data/imagenet_v2 --log-as v2",
        "dmt-ds judge -e runs/vit_small_detect/checkpoints/step00010000 --json",
    ),
)
@click.option(
    "-e", "--encoder", "source", required=True, metavar="SOURCE", help="Run with a head, checkpoint, or model folder."
)
@overrides_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder for scores.json and pictures; nothing in it is overwritten.",
)
@click.option("--log-as", metavar="NAME", help="Also add the scores to the run's record, as NAME/top1 and so on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs: shares, model, images, versions.")
def judge(source: str, overrides: tuple[str, ...], output: Path | None, log_as: str | None, as_json: bool) -> None:
    """Score what `dmt-ds finetune`, `segment` or `detect` has trained, on another split or on other images.

    SOURCE is a run's folder, a checkpoint in it, or its folder classifier, segmenter or detector. KEY=VALUE overrides
    the run's settings, except those of the model itself. Each image of data.val_split counts once, on any number of
    processes, and is evaluated as the run evaluates its own. Nothing is trained, and only --log-as changes the run's
    folder.
    """
    from dmt_ds.commands.readouts import judge as command

    if log_as is not None:
        command.check_log_name(log_as)
    report = command.run(source, overrides, output)
    if report is None:
        return  # rank 0 tells it
    click.echo(json.dumps(report.as_record(), indent=1) if as_json else report)
    if log_as is not None:
        command.log(report, log_as)


def _settings_and_encoders(
    encoders: tuple[str, ...], recipe: str | None, overrides: tuple[str, ...]
) -> "tuple[RunConfig, Mapping[str, Encoder]]":
    """The settings, and what is judged with them by its name in the table."""
    from dmt_ds.config.load import COMMAND_LINE, load_layers

    runs = (source for source in encoders if (Path(source).expanduser() / SETTINGS_FILE).is_file())
    run = None if recipe else next(runs, None)
    # Without any recipe the task is one that needs no teachers.
    given = recipe or (run and str(Path(run).expanduser() / SETTINGS_FILE))
    layers = [(COMMAND_LINE, overrides if given else ("task=mae", *overrides))]
    config = load_layers(given, layers, new=False)  # nothing is trained
    _check_images_are_named(config, given, run, overrides)
    judged = {source: source for source in encoders} or config.teachers.used()
    if not judged:
        raise click.UsageError("which encoder? Give -e SOURCE, or -c RECIPE with teachers")
    return config, judged


def _check_images_are_named(
    config: "RunConfig", recipe: str | None, run: str | None, overrides: tuple[str, ...]
) -> None:
    """Whether there are images to judge on, where nobody named any; those of digits are said to be taken.

    Args:
        recipe: a run's too; None where there is none.
        run: the one whose settings are taken.

    Raises:
        ConfigError: those of the run have annotations, and no classes.
    """
    from dmt_ds.errors import ConfigError

    if any(override.partition("=")[0].strip() in ("data.path", "data.source") for override in overrides):
        return
    if run is not None and config.task in _ANNOTATED_BY:
        raise ConfigError(
            f"{run}: its images have {_ANNOTATED_BY[config.task]}, but no class per image to evaluate with: "
            "name images that have one with data.source=folder data.path=... data.train_split=train "
            "data.val_split=val, or with -c RECIPE"
        )
    if recipe is None:
        logger.warning(
            "no images are given: using scikit-learn's digits; for others set data.source=folder data.path=..."
        )
