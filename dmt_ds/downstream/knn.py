"""k-nearest-neighbour classification on frozen features, DINO's protocol; knows no encoder.

Top-5 asks for a vote: in DINO's code classes without any fill the five, and which of them do hangs on their numbers.
"""

import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_ds.downstream.accuracy import Accuracy, check_labels, num_right

logger = logging.getLogger(__name__)

_SIMILARITIES_AT_ONCE = 2**26  # 256 MiB of float32


def knn_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    k: int,
    temperature: float,
    num_classes: int,
) -> Accuracy:
    """Each test image's k most similar training images vote for their class with weight exp(cosine / temperature).

    Args:
        train_features: [n, D], of any length: only the direction counts. Its device does the work.
        train_labels: [n] int64, 0 to num_classes - 1.
        test_features: [m, D].
        test_labels: [m] int64, 0 to num_classes - 1.
        k: neighbours that vote; more than there are training images means all of them.
        temperature: of the votes.
        num_classes: number of classes.

    Raises:
        DataError: an image has no label.
    """
    check_labels(train_labels, num_classes, "training")
    check_labels(test_labels, num_classes, "test")
    if k > len(train_features):
        logger.warning("knn.k=%d, but there are only %d training images: all of them vote", k, len(train_features))
        k = len(train_features)
    device = train_features.device
    train = F.normalize(train_features.float(), dim=1).T  # [D, n]
    train_labels, test_labels = train_labels.to(device), test_labels.to(device)
    right = torch.zeros(2, dtype=torch.int64, device=device)
    rows_at_once = max(1, _SIMILARITIES_AT_ONCE // len(train_features))
    for rows in torch.split(torch.arange(len(test_features)), rows_at_once):
        test = F.normalize(test_features[rows].to(device).float(), dim=1)  # [r, D]
        cosine, neighbours = (test @ train).topk(k, dim=1)  # [r, k] each
        votes = _votes(cosine, train_labels[neighbours], temperature, num_classes)
        right += num_right(votes, test_labels[rows.to(device)], above=0.0)
    top1, top5 = (right.double() / len(test_features)).tolist()
    return Accuracy(top1, top5)


def _votes(cosine: Tensor, labels: Tensor, temperature: float, num_classes: int) -> Tensor:
    """Votes of k neighbours: [r, k] and [r, k] -> [r, num_classes]."""
    # The softmax is exp(cosine / T) up to a factor per image, which moves no rank and overflows at no T.
    weights = (cosine.double() / temperature).softmax(dim=1)
    return weights.new_zeros(len(cosine), num_classes).scatter_add_(1, labels, weights)
