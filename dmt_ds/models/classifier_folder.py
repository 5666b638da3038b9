"""A classifier as a folder that plain timm loads: encoder and head in one model; knows no run, no engine."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.config.section import Triple
from dmt_ds.errors import WeightsError
from dmt_ds.models.backbone_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    build_described,
    read_config,
    timm_config,
    vit_without_weights,
    write_folder,
)
from dmt_ds.models.vit import shape_of
from dmt_ds.models.weights import load_strict, read_timm_names, tensors_of
from dmt_ds.wording import few

CLASSES_FILE = "classes.json"
"""Names by class number."""
_TIMM_POOLING = {"class": "token", "patch_mean": "avg"}
_SHOWN = 3


def save_classifier(
    folder: str | Path,
    state: Mapping[str, Tensor],
    section: StudentConfig,
    data: DataConfig,
    pooling: Literal["class", "patch_mean"],
    class_names: Sequence[str],
    *,
    norms_the_mean: bool,
    mean: Triple,
    std: Triple,
    provenance: Mapping[str, Any],
) -> None:
    """Writes what `timm.create_model('local-dir:FOLDER', pretrained=True)` loads, and `classes.json`; whole or not.

    Args:
        state: timm's name -> float32 tensor, with `head.*`, and `fc_norm.*` where the mean of patch tokens is normed.
        section: the encoder's shape; a last block with other heads is kept as `save_backbone` keeps it.
        data: side of the image and resampling.
        pooling: what the head sees, as `ClassifyConfig.pooling` has it.
        class_names: by class number.
        norms_the_mean: the final norm comes after the mean over patches; else before it, as in a frozen encoder.
        mean: normalisation that the classifier was trained with.
        std: the same.
        provenance: kept under the key `dmt_ds` of config.json, as `save_backbone` does.
    """
    shape = shape_of(vit_without_weights(section, data.image_size))
    config = timm_config(section, shape, mean, std, data.interpolation, provenance)
    pooled = {"global_pool": _TIMM_POOLING[pooling]}
    config |= {**pooled, "num_classes": len(class_names), "label_names": list(class_names)}
    config["model_args"] |= pooled if pooling == "class" else {**pooled, "fc_norm": norms_the_mean}
    config["pretrained_cfg"] |= {"num_classes": len(class_names)}
    write_folder(Path(folder), state, {CONFIG_FILE: config, CLASSES_FILE: list(class_names)})


class SavedClassifier(NamedTuple):
    """What such a folder holds."""

    where: Path
    state: dict[str, Tensor]
    """timm's name -> float32 tensor."""
    class_names: tuple[str, ...]
    pooling: str
    norms_the_mean: bool


def find_classifier(source: str) -> SavedClassifier | None:
    """The classifier that a source names, or None where it is another thing, such as an encoder.

    Raises:
        WeightsError: a file of it is missing or damaged.
    """
    folder = Path(source).expanduser()
    if not (folder / CLASSES_FILE).is_file():
        return None
    try:
        names = json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))
        args = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["model_args"]
        pooling = "class" if args["global_pool"] == "token" else "patch_mean"
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(
            f"{folder}: not a complete classifier ({type(error).__name__}: {error}); copy it again"
        ) from error
    state = tensors_of(folder / WEIGHTS_FILE)
    return SavedClassifier(folder, state, tuple(names), pooling, bool(args.get("fc_norm", False)))


def check_same_classes(saved: SavedClassifier, class_names: Sequence[str], pooling: str) -> None:
    """A head that goes on learning must have the data's classes, and see what it saw.

    Raises:
        WeightsError: names the first difference, and the remedy.
    """
    remedy = "for a new head take the encoder alone: the run's own folder, or a copy of this one without classes.json"
    if len(saved.class_names) != len(class_names):
        raise WeightsError(
            f"{saved.where}: its head has {len(saved.class_names)} classes ({few(saved.class_names, _SHOWN)}), "
            f"the images have {len(class_names)} ({few(class_names, _SHOWN)}): {remedy}"
        )
    for number, (theirs, ours) in enumerate(zip(saved.class_names, class_names, strict=True)):
        if theirs != ours:
            raise WeightsError(f"{saved.where}: class {number} is '{theirs}', of the images '{ours}': {remedy}")
    if saved.pooling != pooling:
        raise WeightsError(f"{saved.where}: its head is for classify.pooling={saved.pooling}: set it, or {remedy}")
    if pooling == "patch_mean" and not saved.norms_the_mean:
        raise WeightsError(f"{saved.where}: its head saw patch tokens normed before their mean: {remedy}")


def load_classifier(folder: Path) -> tuple[nn.Module, dict[str, Any], tuple[str, ...]]:
    """The whole model of such a folder, its config.json, and the names of its classes.

    Raises:
        WeightsError: a file is missing or damaged, the tensors are not the config's model, or there are not as many
            names as classes.
    """
    config = read_config(folder)
    num_classes = config.get("num_classes", 0)
    vit = build_described(folder, config, num_classes=num_classes)
    load_strict(vit, read_timm_names(folder / WEIGHTS_FILE))
    try:
        class_names = tuple(map(str, json.loads((folder / CLASSES_FILE).read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{folder / CLASSES_FILE}: no list of class names ({type(error).__name__}); copy the folder again"
        ) from error
    if len(class_names) != num_classes:
        raise WeightsError(
            f"{folder / CLASSES_FILE}: {len(class_names)} names for the {num_classes} classes that "
            f"{CONFIG_FILE} says; copy the folder again"
        )
    return vit, config, class_names
