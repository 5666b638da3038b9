"""`dmt-ds finetune` and its like: from an encoder and a recipe to a run with annotations that starts from it.

The student's shape, the images' normalisation and, where positions are not resized, their size are the encoder's; what
a recipe says of them gives way. Precedence: field default < recipe < encoder < KEY=VALUE.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from dmt_ds.commands.annotations.annotated_tasks import KINDS
from dmt_ds.commands.run_folder import run_of, settings_of
from dmt_ds.config.images import LEARN_IMAGES_OF_ORIGIN, RESIZE_POSITIONS, WHERE_IMAGES_ARE
from dmt_ds.config.load import COMMAND_LINE, flatten, load_layers, task_of_recipe
from dmt_ds.config.schema import ANNOTATED_TASKS, RunConfig, TaskName
from dmt_ds.errors import ConfigError
from dmt_ds.models.encoders import EncoderRecord, load_encoder

_WIDTHS = {192: "tiny", 384: "small"}
"""The widest encoder that a size stands for; all wider ones are `base`."""
_OF_ITS_IMAGES = (
    *(f"data.{key}" for key in WHERE_IMAGES_ARE),
    *(f"data.{key}" for key in ("interpolation", "horizontal_flip", "rotation_degrees")),
    *(f"data.{key}" for key in ("num_workers", "bad_images", "max_train_images")),
)
_OF_THE_RUN = (
    *(f"tracking.{key}" for key in ("enabled", "uri", "experiment", "parent", "system_metrics_seconds")),
    "train.deepspeed",
)
"""Settings that a run which is fine-tuned without a recipe of one's own hands on, the ones of its images where they are
learned from again."""
_OF_A_SUITE = ("tracking.experiment", "tracking.parent")
"""Of a suite's run they stay behind: what is made of it is no variant of the comparison."""


def resolve(source: str, recipe: str | None, overrides: Sequence[str], task: TaskName | None = None) -> RunConfig:
    """The run that fine-tunes an encoder.

    Args:
        source: written as a teacher's: a run's folder, a checkpoint, a weights file, timm:TAG, hf:ID.
        recipe: None takes the shipped one of the encoder's width; for `classify` on the data of the run that `source`
            lies in.
        overrides: KEY=VALUE of the command line.
        task: with annotations; None takes that of `task=...` among the overrides, else the recipe's, else `classify`.

    Raises:
        ConfigError: the settings don't fit each other.
        WeightsError: the encoder can't be loaded.
    """
    record, task = load_encoder(source).record, _task_of(recipe, task or _asked_for(overrides))
    kind = KINDS[task]
    encoder = [f"task={task}", f"student.init_from={_quoted(source)}", *_shape_of(record)]
    if task not in RESIZE_POSITIONS:
        encoder.append(f"data.image_size={record.shape.image_size}")
    layers: list[tuple[str, Sequence[str]]] = [(f"encoder {source}", encoder), (COMMAND_LINE, overrides)]
    if recipe is None:
        recipe = kind.recipe_of(_size_of(record))
        handed_on = (*_OF_ITS_IMAGES, *_OF_THE_RUN) if task in LEARN_IMAGES_OF_ORIGIN else _OF_THE_RUN
        layers.insert(0, (f"run of {source}", _handed_on(source, handed_on)))
    config = load_layers(recipe, layers)
    if any(override.partition("=")[0].strip() == "name" for override in overrides):
        return config
    layers.insert(-1, (f"encoder {source}", [f"name={_quoted(f'{name_of(source)}_{kind.suffix(config)}')}"]))
    return load_layers(recipe, layers)


def _task_of(recipe: str | None, task: TaskName | None) -> TaskName:
    """The task that is asked for, or else the recipe's; a recipe for another one with annotations is a mistake."""
    says = None if recipe is None else task_of_recipe(recipe)
    of_recipe = next((known for known in ANNOTATED_TASKS if known == says), None)
    if task is not None and of_recipe not in (None, task):
        raise ConfigError(
            f"recipe {recipe}: is of task {of_recipe}, not {task}: take another recipe, or another command"
        )
    return task or of_recipe or "classify"


def _asked_for(overrides: Sequence[str]) -> TaskName | None:
    """What the command line says: so a job's script has `config` and `doctor` look at the run that it will train."""
    said = [value.strip() for key, _, value in (text.partition("=") for text in overrides) if key.strip() == "task"]
    return next((known for known in ANNOTATED_TASKS if said and known == said[-1]), None)


def name_of(source: str) -> str:
    """What an encoder is called in the name of a run: its own run's name, or the file's without ending."""
    run = run_of(source)
    if run is not None:
        return settings_of(run).name
    text = source.partition(":")[2] if source.startswith(("timm:", "hf:")) else Path(source).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "_", text).strip("._-") or "encoder"


def _size_of(record: EncoderRecord) -> str:
    return next((size for width, size in _WIDTHS.items() if record.shape.embed_dim <= width), "base")


def _shape_of(record: EncoderRecord) -> Iterator[str]:
    """The student that takes these weights, and the colours that they know."""
    shape = record.shape
    yield f"student.arch=vit_{_size_of(record)}"
    yield f"student.patch_size={shape.patch_size}"
    yield f"student.embed_dim={shape.embed_dim}"
    yield f"student.depth={shape.depth}"
    yield f"student.num_heads={shape.num_heads}"
    if shape.last_block_num_heads != shape.num_heads:
        yield f"student.last_block_num_heads={shape.last_block_num_heads}"
    yield f"augment.mean={list(record.mean)}"
    yield f"augment.std={list(record.std)}"


def _handed_on(source: str, keys: Sequence[str]) -> list[str]:
    run = run_of(source)
    if run is None:
        return []
    config = settings_of(run)
    settings = flatten(config)
    own = _OF_A_SUITE if "suite" in config.tracking.tags else ()
    return [f"{key}={_quoted(settings[key])}" for key in keys if settings[key] is not None and key not in own]


def _quoted(value: object) -> str:
    """A plain value as YAML on one line."""
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else str(value)
