"""k-NN accuracy of frozen encoders on the images of a recipe; puts data, encoders and the vote together."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import torch

from dmt_ds.commands.readouts.judging import (
    Encoder,
    features_of,
    is_judged_as_run,
    load_judged,
    named_images,
    named_run,
    open_judged,
    refuse_missing,
)
from dmt_ds.commands.run_folder import add_to_run
from dmt_ds.config.evaluation import KnnConfig
from dmt_ds.config.schema import DataConfig
from dmt_ds.downstream.accuracy import Accuracy
from dmt_ds.downstream.knn import knn_scores
from dmt_ds.downstream.readouts import Scores, metrics_of

logger = logging.getLogger(__name__)


class KnnRow(NamedTuple):
    """One encoder's result."""

    encoder: str
    scores: Accuracy


class KnnTable(NamedTuple):
    """Results of several encoders on the same images; `str` gives what the command line prints."""

    rows: tuple[KnnRow, ...]
    num_train_images: int
    num_test_images: int
    num_classes: int
    knn: KnnConfig
    images: str
    """What they are: kind of source, and place."""

    def metrics(self, row: KnnRow) -> Scores:
        """A row under the names that the features have everywhere: `eval/knn_top1` or `eval/knn_patch_top1`, ..."""
        return metrics_of("knn", self.knn.features, row.scores)

    def __str__(self) -> str:
        """A line on the protocol, then an encoder a line, in percent."""
        width = max(len("encoder"), *(len(row.encoder) for row in self.rows))
        lines = [
            f"k-NN (k {self.knn.k}, T {self.knn.temperature:g}, {self.knn.features} features) on {self.images}: "
            f"{self.num_train_images} training and {self.num_test_images} test images, {self.num_classes} classes",
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
) -> KnnTable:
    """Evaluate encoders one after the other: training images vote, validation images are judged.

    Scores of a run's folder are added to its MLflow run, if images and settings are the run's own.

    Args:
        data: the images; all of the training split is used unless `max_train_images` says less.
        knn: the protocol.
        encoders: name for the table -> what is judged; one is in memory at a time where they are not modules.
        device: where encoders and votes are computed.

    Raises:
        DataError: there are no images, no labels, or the splits have different classes.
        WeightsError: an encoder can't be loaded.
    """
    refuse_missing(encoders, data.image_size)
    images = open_judged(data)
    sizes = len(images.train), len(images.test), images.num_classes
    table = KnnTable((), *sizes, knn, named_images(data))
    for name, encoder in encoders.items():
        module = load_judged(name, encoder, data.image_size)
        run = named_run(encoder)
        is_own = run is not None and is_judged_as_run(run, images.train.fingerprint, data, knn)
        train = features_of(module, images.train, data, knn.batch_size, device)
        test = features_of(module, images.test, data, knn.batch_size, device)
        voting, judged = train.of(knn.features).to(device), test.of(knn.features)
        scores = knn_scores(voting, train.labels, judged, test.labels, knn.k, knn.temperature, images.num_classes)
        logger.info("%s: k-NN top-1 %.2f %%, top-5 %.2f %%", name, 100 * scores.top1, 100 * scores.top5)
        table = table._replace(rows=(*table.rows, KnnRow(name, scores)))
        if run is not None and is_own:
            add_to_run(run, table.metrics(table.rows[-1]))
    return table
