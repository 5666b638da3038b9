"""What `dmt-ds knn` and `dmt-ds evaluate` have in common: one protocol for all encoders of a call, and its table."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from dmt_ds.commands.readouts.frozen_encoders import (
    Encoder,
    check_sources_exist,
    features_of,
    matches_run_settings,
    named_images,
    open_readout_images,
)
from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.labels import LabelledImages
from dmt_ds.downstream.features import FEATURE_KINDS, FeatureKind
from dmt_ds.downstream.readouts import FrozenReadouts, Scores


class EncoderScores(NamedTuple):
    """One encoder's result."""

    encoder: str
    scores: Scores


class ReadoutTable(NamedTuple):
    """Results of several encoders on the same images; `str` gives what the command line prints.

    Attributes:
        heading: readouts and images, in a line.
        columns: title -> metric of the rows' scores.
    """

    heading: str
    columns: Mapping[str, str]
    rows: tuple[EncoderScores, ...]

    def __str__(self) -> str:
        """The heading, then an encoder a line, in percent."""
        width = max(len("encoder"), *(len(row.encoder) for row in self.rows))
        lines = [self.heading, "  ".join([f"{'encoder':{width}}", *self.columns])]
        for name, scores in self.rows:
            numbers = [f"{100 * scores[metric]:{len(title)}.2f}" for title, metric in self.columns.items()]
            lines.append("  ".join([f"{name:{width}}", *numbers]))
        return "\n".join(lines)


@dataclass(frozen=True)
class FrozenProtocol:
    """On what encoders are judged, by which readouts, and where that is computed."""

    images: LabelledImages
    data: DataConfig
    readouts: FrozenReadouts
    device: torch.device

    def judge(self, module: nn.Module | None) -> Scores:
        """All of the readouts, from one pass over the images; of None, those of the pixels."""
        train, test = (
            features_of(module, source, self.data, self.readouts.knn.batch_size, self.device)
            for source in (self.images.train, self.images.test)
        )
        return self.readouts.scores(train, test, self.device)

    def is_of_run(self, folder: Path) -> bool:
        """Whether images and settings are those of the run itself; what differs is named in the log."""
        fingerprint, readouts = self.images.train.fingerprint, self.readouts
        return matches_run_settings(folder, fingerprint, self.data, readouts.knn, readouts.linear)

    def table(self, readouts: str, columns: Mapping[str, str], rows: Iterable[EncoderScores]) -> ReadoutTable:
        """The results; `readouts` are named in the heading, before the images."""
        train, test, num_classes = self.images
        images = f"{len(train)} training and {len(test)} test images, {num_classes} classes"
        return ReadoutTable(f"{readouts} on {named_images(self.data)}: {images}", columns, tuple(rows))


def open_protocol(
    encoders: Mapping[str, Encoder],
    data: DataConfig,
    device: torch.device,
    knn: KnnConfig,
    linear: LinearConfig | None = None,
    kinds: tuple[FeatureKind, ...] = FEATURE_KINDS,
) -> FrozenProtocol:
    """The images are opened, once it is known that no encoder is missing.

    Raises:
        DataError: there are no images, no labels, or the splits have different classes.
        WeightsError: an encoder is not there.
        ConfigError: timm knows no such tag.
    """
    check_sources_exist(encoders, data.image_size)
    images = open_readout_images(data)
    return FrozenProtocol(images, data, FrozenReadouts(images.num_classes, knn, linear, kinds), device)
