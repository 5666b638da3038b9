"""k-NN accuracy of frozen encoders on the images of a recipe; puts data, encoders and the vote together."""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.config.load import config_from_yaml
from dmt_ds.config.schema import DataConfig, KnnConfig, TeacherConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.loader import eval_batches
from dmt_ds.data.sources import ImageSource, open_source
from dmt_ds.downstream.features import extract_features, pixel_features
from dmt_ds.downstream.knn import KnnScores, knn_scores
from dmt_ds.engine.checkpoint import DONE
from dmt_ds.errors import DataError
from dmt_ds.tracking.mlflow_tracker import add_metrics

logger = logging.getLogger(__name__)

PIXELS = "pixels"
"""Source of the baseline without encoder."""

Encoder = str | TeacherConfig | nn.Module
"""A teacher's `source`, a whole teacher section, `pixels`, or a module: uint8 [B, 3, H, W] -> tokens [B, 1+N, D]."""

Log = Callable[[str, float], None]
"""Takes a metric's name and value, such as `eval/knn_top1`."""


class KnnRow(NamedTuple):
    """One encoder's result."""

    encoder: str
    scores: KnnScores


class KnnTable(NamedTuple):
    """Results of several encoders on the same images; `str` gives what the command line prints."""

    rows: tuple[KnnRow, ...]
    num_train_images: int
    num_test_images: int
    num_classes: int
    knn: KnnConfig

    def __str__(self) -> str:
        """A line on the protocol, then an encoder a line, in percent."""
        width = max(len("encoder"), *(len(row.encoder) for row in self.rows))
        lines = [
            f"k-NN (k {self.knn.k}, T {self.knn.temperature:g}, {self.knn.features} features), {self.num_train_images} "
            f"training and {self.num_test_images} test images, {self.num_classes} classes",
            f"{'encoder':{width}}  top-1 %  top-5 %",
        ]
        for name, scores in self.rows:
            lines.append(f"{name:{width}}  {100 * scores.top1:7.2f}  {100 * scores.top5:7.2f}")
        return "\n".join(lines)


def run_knn(
    data: DataConfig,
    knn: KnnConfig,
    encoders: Mapping[str, Encoder],
    device: torch.device,
    log: Log | None = None,
) -> KnnTable:
    """Evaluate encoders one after the other: training images vote, validation images are judged.

    Args:
        data: the images; all of the training split is used unless `max_train_images` says less.
        knn: the protocol.
        encoders: name for the table -> what is judged; one is in memory at a time where they are not modules.
        device: where encoders and votes are computed.
        log: called with `eval/knn_top1` and `eval/knn_top5`; with several encoders, `/NAME` follows.

    Raises:
        DataError: there are no images, no labels, or the splits have different classes.
        WeightsError: an encoder can't be loaded.
    """
    train, test = open_source(data, "train"), open_source(data, "val")
    num_classes = _common_classes(train, test)
    rows = []
    for name, encoder in encoders.items():
        scores = _evaluate(name, encoder, train, test, num_classes, data, knn, device)
        logger.info("%s: k-NN top-1 %.2f %%, top-5 %.2f %%", name, 100 * scores.top1, 100 * scores.top5)
        for metric, value in scores._asdict().items():
            if log is not None:
                log(f"eval/knn_{metric}" + (f"/{name}" if len(encoders) > 1 else ""), value)
        rows.append(KnnRow(name, scores))
    return KnnTable(tuple(rows), len(train), len(test), num_classes, knn)


def add_to_run(folder: Path, scores: KnnScores) -> None:
    """Add the scores to the MLflow run of a run's folder; anything else than such a folder is left alone."""
    if not (folder / "tracking").is_dir():
        return
    section = config_from_yaml((folder / "config.yaml").read_text()).tracking
    done = folder / DONE
    step = int(done.read_text()) if done.exists() else 0
    metrics = {f"eval/knn_{name}": value for name, value in scores._asdict().items()}
    if not add_metrics(section, folder, metrics, step):
        logger.warning("%s: the tracking store is away; the scores wait in the folder", folder)


def _evaluate(
    name: str,
    encoder: Encoder,
    train: ImageSource,
    test: ImageSource,
    num_classes: int,
    data: DataConfig,
    knn: KnnConfig,
    device: torch.device,
) -> KnnScores:
    module = _load(name, encoder, data.image_size)

    def features(source: ImageSource) -> tuple[Tensor, Tensor]:
        batches = _batches(source, data, knn)
        if module is None:
            return pixel_features(batches)
        return extract_features(module, batches, knn.features, device)

    train_features, train_labels = features(train)
    test_features, test_labels = features(test)
    return knn_scores(
        train_features.to(device), train_labels, test_features, test_labels, knn.k, knn.temperature, num_classes
    )


def _load(name: str, encoder: Encoder, image_size: int) -> nn.Module | None:
    """The encoder, or None for `pixels`."""
    if encoder == PIXELS:
        return None
    if isinstance(encoder, nn.Module):
        return encoder
    from dmt_ds.models.teachers import load_encoder, load_teacher

    if isinstance(encoder, TeacherConfig):
        return load_teacher(name, encoder, image_size)
    return load_encoder(encoder, image_size)


def _batches(source: ImageSource, data: DataConfig, knn: KnnConfig) -> Iterator[Batch]:
    return eval_batches(source, data.image_size, knn.batch_size, data.num_workers, data.interpolation)


def _common_classes(train: ImageSource, test: ImageSource) -> int:
    """Number of classes; a class number must mean the same in both splits, though one may lack the last classes."""
    fewer, more = sorted((tuple(train.class_names), tuple(test.class_names)), key=len)
    if not fewer:
        raise DataError("k-NN needs labels, but the data has none; set data.label_column")
    for number, (a, b) in enumerate(zip(fewer, more, strict=False)):
        if a != b:
            raise DataError(
                f"class {number} is '{train.class_names[number]}' in the training split and "
                f"'{test.class_names[number]}' in the validation split: both need the same classes"
            )
    return len(more)
