"""k-nearest-neighbour classification on frozen features, DINO's protocol; knows no encoder.

Top-5 asks for a vote: in DINO's code classes without any fill the five, and which of them do hangs on their numbers.
"""

import logging
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_ds.downstream.accuracy import Accuracy, check_labels, num_right
from dmt_ds.engine import dist

logger = logging.getLogger(__name__)

_SIMILARITIES_AT_ONCE = 2**26  # 256 MiB of float32


class Share(NamedTuple):
    """What a rank has of a split; every rank has as many rows, and what only fills them up has label -1."""

    features: Tensor
    """[n, D], of any length: only the direction counts. Its device does the work."""
    labels: Tensor
    """[n] int64 on the same device."""


class _Neighbours(NamedTuple):
    """The k most similar training images of r test images."""

    cosine: Tensor
    """[r, k]."""
    labels: Tensor
    """[r, k] int64."""


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
    k = _at_most(k, len(train_features))
    device = train_features.device
    voters = _Voters(Share(train_features, train_labels.to(device)))
    test_labels = test_labels.to(device)
    right = torch.zeros(2, dtype=torch.int64, device=device)
    for rows in torch.split(torch.arange(len(test_features)), voters.questions_at_once):
        votes = _votes(voters.nearest(test_features[rows].to(device), k), temperature, num_classes)
        right += num_right(votes, test_labels[rows.to(device)], above=0.0)
    top1, top5 = (right.double() / len(test_features)).tolist()
    return Accuracy(top1, top5)


def knn_scores_of_shares(train: Share, test: Share, k: int, temperature: float, num_classes: int) -> Accuracy:
    """`knn_scores` of images that lie on several ranks; all call, and all get the result.

    Each rank looks for neighbours among its own training images: what travels is test features and neighbours.
    """
    k = _at_most(k, int(dist.sum_over_ranks((train.labels >= 0).sum())))
    voters = _Voters(train)
    counts = torch.zeros(3, dtype=torch.int64, device=test.labels.device)  # right, right in five, all
    for rows in torch.split(torch.arange(len(test.labels)), max(1, voters.questions_at_once // dist.world_size())):
        questions, labels = dist.gather_rows(test.features[rows]), dist.gather_rows(test.labels[rows])  # [W*r, D]
        neighbours = _nearest_of_ranks(voters.nearest(questions, min(k, len(train.labels))), k)
        votes, is_asked = _votes(neighbours, temperature, num_classes), labels >= 0
        counts[:2] += num_right(votes[is_asked], labels[is_asked], above=0.0)
        counts[2] += is_asked.sum()
    top1, top5 = (counts[:2].double() / counts[2]).tolist()
    return Accuracy(top1, top5)


def _at_most(k: int, num_voters: int) -> int:
    if k > num_voters:
        logger.warning("knn.k=%d, but there are only %d training images: all of them vote", k, num_voters)
    return min(k, num_voters)


class _Voters:
    """Training images, ready to be compared with."""

    def __init__(self, share: Share) -> None:
        self._directions = F.normalize(share.features.float(), dim=1).T  # [D, n]
        self._labels = share.labels.clamp(min=0)
        self._fills_up = share.labels < 0  # [n]

    @property
    def questions_at_once(self) -> int:
        """Test images whose similarities fit into memory."""
        return max(1, _SIMILARITIES_AT_ONCE // len(self._labels))

    def nearest(self, features: Tensor, k: int) -> _Neighbours:
        """Of test images [r, D]; what only fills up is infinitely unlike."""
        similar = F.normalize(features.float(), dim=1) @ self._directions  # [r, n]
        cosine, rows = similar.masked_fill_(self._fills_up, -math.inf).topk(k, dim=1)
        return _Neighbours(cosine, self._labels[rows])


def _nearest_of_ranks(own: _Neighbours, k: int) -> _Neighbours:
    """The nearest k of what W ranks found for the same r images: [r, k'] on each -> [r, k] on all."""
    cosine, labels = (
        dist.gather_rows(found).view(dist.world_size(), *found.shape).transpose(0, 1).flatten(1) for found in own
    )  # [r, W*k']
    cosine, places = cosine.topk(k, dim=1)
    return _Neighbours(cosine, labels.gather(1, places))


def _votes(neighbours: _Neighbours, temperature: float, num_classes: int) -> Tensor:
    """Votes of k neighbours of r images: [r, num_classes]."""
    # The softmax is exp(cosine / T) up to a factor per image, which moves no rank and overflows at no T.
    weights = (neighbours.cosine.double() / temperature).softmax(dim=1)
    return weights.new_zeros(len(weights), num_classes).scatter_add_(1, neighbours.labels, weights)
