"""Frozen encoders as the readouts ask for them: by source, the images, their features, and the run they belong to."""

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from dmt_ds.commands.run_folder import is_run, settings_of
from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.config.images import WHERE_IMAGES_ARE
from dmt_ds.config.schema import DataConfig
from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.data.batch_maker import EvalBatchMaker
from dmt_ds.data.labels import LabelledImages, empty_classes, open_labelled
from dmt_ds.data.loader import every_image
from dmt_ds.data.sources import ImageSource
from dmt_ds.downstream.features import Features, extract_features, pixel_features
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from dmt_ds.models.encoders import load_encoder, load_teacher
from dmt_ds.models.vit import refuse_unknown
from dmt_ds.run_files import CHECKPOINTS_FOLDER, RECORDS_FILE
from dmt_ds.tracking.journal import read_lines

logger = logging.getLogger(__name__)

PIXELS = "pixels"
"""Source of the baseline without encoder."""

_MOVE_SCORES: dict[str, tuple[str, ...]] = {
    "data": (*WHERE_IMAGES_ARE, "image_size", "interpolation", "max_train_images"),
    "knn": ("k", "temperature"),
    "linear": ("weight_decay", "max_iterations"),
}
"""Settings, by section, that a frozen encoder's scores depend on."""

Encoder = str | TeacherConfig | nn.Module
"""A teacher's `source`, a whole teacher section, `pixels`, or a module: uint8 [B, 3, H, W] -> tokens [B, 1+N, D]."""


def load_for_readout(name: str, encoder: Encoder, image_size: int) -> nn.Module | None:
    """The encoder, or None for `pixels`.

    Raises:
        WeightsError: it can't be loaded.
    """
    if encoder == PIXELS:
        return None
    if isinstance(encoder, nn.Module):
        return encoder
    if isinstance(encoder, TeacherConfig):
        return load_teacher(name, encoder, image_size)
    return load_encoder(encoder, image_size)


def check_sources_exist(encoders: Mapping[str, Encoder], image_size: int) -> None:
    """A mistyped source among several is told before the first is judged, as loading tells it; asks no network.

    Raises:
        WeightsError: there is no such file.
        ConfigError: timm knows no such tag.
    """
    for name, encoder in encoders.items():
        source = encoder.source if isinstance(encoder, TeacherConfig) else encoder
        if not isinstance(source, str) or source == PIXELS:
            continue
        if source.startswith("timm:"):
            refuse_unknown(source.removeprefix("timm:"))
        elif _is_missing(source):
            load_for_readout(name, encoder, image_size)


def _is_missing(source: str) -> bool:
    """Whether a path leads nowhere; what may be an id on the hub is none."""
    if source.startswith("hf:"):
        path = source.removeprefix("hf:")
        return path.startswith(("./", "../", "/", "~")) and not Path(path).exists()
    return not Path(source).expanduser().exists()


def open_readout_images(data: DataConfig) -> LabelledImages:
    """Both splits; classes without images are named, as scores that lack them are of little worth.

    Raises:
        DataError: as `open_labelled`.
    """
    images = open_labelled(data)
    for line in empty_classes(images):
        logger.warning("%s", line)
    return images


def named_images(data: DataConfig) -> str:
    """Kind of source, and place, as a table's heading has it."""
    return data.source if data.source == "digits" else f"{data.source} {data.path}"


def features_of(
    module: nn.Module | None, source: ImageSource, data: DataConfig, batch_size: int, device: torch.device
) -> Features:
    """Features of every image of a split, on the CPU; of None, the pixels."""
    maker = EvalBatchMaker(source, data.image_size, data.interpolation)
    batches = every_image(maker, len(source), batch_size, data.num_workers)
    return pixel_features(batches) if module is None else extract_features(module, batches, device)


def named_run(encoder: Encoder) -> Path | None:
    """The output folder of a run, where an encoder is named by that; None for others."""
    folder = Path(encoder).expanduser() if isinstance(encoder, str) else None
    return folder if folder is not None and is_run(folder) else None


def matches_run_settings(
    folder: Path, train_fingerprint: str, data: DataConfig, knn: KnnConfig, linear: LinearConfig | None = None
) -> bool:
    """Whether images and settings are those of the run itself; what differs is named in the log.

    Scores of other images under the same name would pass for the run's own in every comparison.

    Args:
        train_fingerprint: of the training images; where the run's newest checkpoint or record has it, they only moved.
        linear: None where no probe is fitted.
    """
    config = settings_of(folder)
    pairs = {"data": (data, config.data), "knn": (knn, config.knn), "linear": (linear or config.linear, config.linear)}
    others = [
        f"{section}.{key}={shown_value(value)} (the run has {shown_value(getattr(own, key))})"
        for section, (given, own) in pairs.items()
        for key in _MOVE_SCORES[section]
        if (value := getattr(given, key)) != getattr(own, key)
        and not (key == "path" and _are_its_images(folder, train_fingerprint, data, config.data))
    ]
    if others:
        logger.warning(
            "%s: scores are not added to the run, because it was trained with different settings: %s",
            folder,
            ", ".join(others),
        )
    return not others


def _are_its_images(folder: Path, train_fingerprint: str, given: DataConfig, own: DataConfig) -> bool:
    """Whether another path leads to a run's images: it is the same written otherwise, or they have moved."""
    if given.path and own.path and Path(given.path).expanduser().resolve() == Path(own.path).expanduser().resolve():
        return True
    newest = CheckpointFolder(folder / CHECKPOINTS_FOLDER, keep=1).newest()
    recorded = (line for line in read_lines(folder / RECORDS_FILE) if line.get("kind") == "dataset")
    known = [line["fingerprint"] for line in recorded if line["context"] == "training"]
    return train_fingerprint in [*known, *([] if newest is None else [newest.state.data_fingerprint])]


def shown_value(value: object) -> str:
    """A setting's value as the command line has it."""
    return "null" if value is None else str(value)
