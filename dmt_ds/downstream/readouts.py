"""The readouts of one frozen encoder, fixed beforehand, under the names they have everywhere; knows no source, no run.

| metric | what judges | on |
| --- | --- | --- |
| `eval/knn_top1`, `eval/knn_top5` | k-NN | class token |
| `eval/knn_patch_top1`, `eval/knn_patch_top5` | k-NN | mean of the patch tokens |
| `eval/linear_top1`, `eval/linear_top5` | linear probe | class token |
| `eval/linear_patch_top1`, `eval/linear_patch_top5` | linear probe | mean of the patch tokens |
| `eval/select_knn_top1` | k-NN, one half of the training images on the other | class token |

The last is for choosing settings (a learning rate): the validation images stay unseen.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.downstream.accuracy import Accuracy
from dmt_ds.downstream.features import FEATURE_KINDS, FeatureKind, Features
from dmt_ds.downstream.knn import Share, knn_scores, knn_scores_of_shares
from dmt_ds.downstream.linear import linear_scores
from dmt_ds.errors import DataError

Readout = Literal["knn", "linear"]

Scores = dict[str, float]
"""Metric name -> share of images, 0 to 1."""


def metric_name(readout: Readout, kind: FeatureKind, top: Literal[1, 5]) -> str:
    """What the module's table calls it."""
    return f"eval/{readout}{'' if kind == 'class' else '_patch'}_top{top}"


@dataclass(frozen=True)
class FrozenReadouts:
    """Which of the module's table judge an encoder.

    Attributes:
        num_classes: of the images.
        knn: its protocol; `knn.features` does not matter here.
        linear: the probe's; None for k-NN of the test images alone, without the line for choosing settings.
        kinds: of features.
    """

    num_classes: int
    knn: KnnConfig
    linear: LinearConfig | None = None
    kinds: tuple[FeatureKind, ...] = FEATURE_KINDS

    def scores(self, train: Features, test: Features, device: torch.device) -> Scores:
        """Votes and fits are made on `device`.

        Raises:
            DataError: an image has no label, or settings would be chosen with one training image alone.
        """
        if self.linear is not None and len(train.labels) == 1:
            raise DataError(
                "there is 1 training image, but one half is evaluated with the other: use 2 or more "
                "(data.max_train_images, or the training split of data.path)"
            )
        if train.patch_mean is train.class_token:  # pixels, the same twice: once is enough
            judged = dict.fromkeys(self.kinds, self._judged_by(self.kinds[0], train, test, device))
        else:
            judged = {kind: self._judged_by(kind, train, test, device) for kind in self.kinds}
        scores: Scores = {}
        for readout in judged[self.kinds[0]]:
            for kind in self.kinds:
                scores |= _metrics_of(readout, kind, judged[kind][readout])
        if self.linear is None:
            return scores
        return scores | {"eval/select_knn_top1": self._on_training_halves(train, device).top1}

    def knn_of_shares(
        self, train: Features, test: Features, device: torch.device, after_each: Callable[[], None]
    ) -> Scores:
        """The k-NN of `scores` where each rank has the features of its share of the images; all ranks call."""
        scores: Scores = {}
        for kind in self.kinds:
            scores |= _metrics_of("knn", kind, self._knn_of_shares(kind, train, test, device))
            after_each()
        return scores

    def _knn_of_shares(self, kind: FeatureKind, train: Features, test: Features, device: torch.device) -> Accuracy:
        voting, judged = (Share(part.of(kind).to(device), part.labels.to(device)) for part in (train, test))
        return knn_scores_of_shares(voting, judged, self.knn.k, self.knn.temperature, self.num_classes)

    def _judged_by(
        self, kind: FeatureKind, train: Features, test: Features, device: torch.device
    ) -> dict[Readout, Accuracy]:
        features = train.of(kind).to(device), train.labels, test.of(kind), test.labels
        judged: dict[Readout, Accuracy] = {
            "knn": knn_scores(*features, self.knn.k, self.knn.temperature, self.num_classes)
        }
        if (linear := self.linear) is not None:
            judged["linear"] = linear_scores(*features, linear.weight_decay, linear.max_iterations, self.num_classes)
        return judged

    def _on_training_halves(self, train: Features, device: torch.device) -> Accuracy:
        """Images 0, 2, 4, ... vote on 1, 3, 5, ...: where classes follow each other, both halves have them all."""
        tokens, labels = train.class_token, train.labels
        halves = tokens[::2].to(device), labels[::2], tokens[1::2], labels[1::2]
        return knn_scores(*halves, self.knn.k, self.knn.temperature, self.num_classes)


def _metrics_of(readout: Readout, kind: FeatureKind, accuracy: Accuracy) -> Scores:
    return {metric_name(readout, kind, 1): accuracy.top1, metric_name(readout, kind, 5): accuracy.top5}
