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

from typing import Literal

import torch

from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.downstream.accuracy import Accuracy
from dmt_ds.downstream.features import FeatureKind, Features
from dmt_ds.downstream.knn import knn_scores
from dmt_ds.downstream.linear import linear_scores
from dmt_ds.errors import DataError

Scores = dict[str, float]
"""Metric name -> share of images, 0 to 1."""


def frozen_readouts(
    train: Features, test: Features, num_classes: int, knn: KnnConfig, linear: LinearConfig, device: torch.device
) -> Scores:
    """All of the module's table; votes and fits are made on `device`, and `knn.features` does not matter.

    Raises:
        DataError: an image has no label, or there is one training image alone.
    """
    if len(train.labels) == 1:
        raise DataError(
            "there is 1 training image, but one half is evaluated with the other: use 2 or more "
            "(data.max_train_images, or the training split of data.path)"
        )

    def judged_by(kind: FeatureKind) -> tuple[Accuracy, Accuracy]:
        features = train.of(kind).to(device), train.labels, test.of(kind), test.labels
        votes = knn_scores(*features, knn.k, knn.temperature, num_classes)
        return votes, linear_scores(*features, linear.weight_decay, linear.max_iterations, num_classes)

    by_class = judged_by("class")
    is_pixels = train.patch_mean is train.class_token  # the same twice: once is enough
    by_patches = by_class if is_pixels else judged_by("patch_mean")
    scores = metrics_of("knn", "class", by_class[0]) | metrics_of("knn", "patch_mean", by_patches[0])
    scores |= metrics_of("linear", "class", by_class[1]) | metrics_of("linear", "patch_mean", by_patches[1])
    return scores | {"eval/select_knn_top1": _on_training_halves(train, num_classes, knn, device).top1}


def metrics_of(readout: Literal["knn", "linear"], kind: FeatureKind, accuracy: Accuracy) -> Scores:
    """A readout's result under the names of the module's table."""
    name = readout if kind == "class" else f"{readout}_patch"
    return {f"eval/{name}_top1": accuracy.top1, f"eval/{name}_top5": accuracy.top5}


def _on_training_halves(train: Features, num_classes: int, knn: KnnConfig, device: torch.device) -> Accuracy:
    """Images 0, 2, 4, ... vote on images 1, 3, 5, ...: where classes follow each other, both halves have them all."""
    tokens, labels = train.class_token, train.labels
    return knn_scores(
        tokens[::2].to(device), labels[::2], tokens[1::2], labels[1::2], knn.k, knn.temperature, num_classes
    )
