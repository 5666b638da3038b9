"""k-NN against a loop written from DINO's protocol, and against scikit-learn where both vote alike."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from dmt_ds.downstream import knn
from dmt_ds.downstream.knn import Share, knn_scores, knn_scores_of_shares
from dmt_ds.engine import dist
from dmt_ds.errors import DataError
from tests import on_ranks


def clusters(seed: int, num_images: int, num_classes: int = 7, spread: float = 1.2) -> tuple[Tensor, Tensor]:
    """Overlapping clouds around one direction a class: features [n, 12], labels [n]."""
    centres = torch.randn(num_classes, 12, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    return centres[labels] + spread * torch.randn(num_images, 12, generator=generator), labels


def ranking_by_loop(train: Tensor, labels: Tensor, image: Tensor, k: int, temperature: float) -> list[int]:
    """Classes of one test image by falling votes, in plain Python."""
    similar = []
    for row, label in zip(train.double().tolist(), labels.tolist(), strict=True):
        dot = sum(a * b for a, b in zip(row, image.double().tolist(), strict=True))
        similar.append((dot / math.hypot(*row) / math.hypot(*image.double().tolist()), label))
    votes: dict[int, float] = {}
    for cosine, label in sorted(similar, reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + math.exp(cosine / temperature)
    return sorted(votes, key=lambda label: votes[label], reverse=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (60, 0.2)])
def test_scores_are_those_of_the_loop(k: int, temperature: float) -> None:
    train, train_labels = clusters(0, 60)
    test, test_labels = clusters(1, 40)
    rankings = [ranking_by_loop(train, train_labels, image, k, temperature) for image in test]
    hits_1 = sum(ranking[0] == label for ranking, label in zip(rankings, test_labels.tolist(), strict=True))
    scores = knn_scores(train, train_labels, test, test_labels, k, temperature, 7)
    assert scores.top1 == pytest.approx(hits_1 / 40)
    assert 0.3 < scores.top1 < 1
    hits_5 = sum(label in ranking[:5] for ranking, label in zip(rankings, test_labels.tolist(), strict=True))
    assert scores.top5 == pytest.approx(hits_5 / 40)


def test_scores_are_scikit_learns_with_the_same_votes() -> None:
    train, train_labels = clusters(0, 400)
    test, test_labels = clusters(1, 300)
    peer = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07))
    peer.fit(train, train_labels)
    assert knn_scores(train, train_labels, test, test_labels, 20, 0.07, 7).top1 == pytest.approx(
        peer.score(test, test_labels), abs=1e-9
    )


def test_a_small_test_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    train, train_labels = clusters(0, 60)
    test, test_labels = clusters(1, 41)
    whole = knn_scores(train, train_labels, test, test_labels, 20, 0.07, 7)
    monkeypatch.setattr(knn, "_SIMILARITIES_AT_ONCE", 60 * 4)
    assert knn_scores(train, train_labels, test, test_labels, 20, 0.07, 7) == whole


PROTOCOLS = (1, 0.07), (20, 0.07), (61, 0.5)
"""Neighbours and temperature; 61 neighbours are all that there are."""


def share_of_rank(features: Tensor, labels: Tensor) -> Share:
    """Every W-th row from the rank's on, as loaders give them; what fills up was there before, and has no label."""
    rows = torch.arange(dist.rank(), math.ceil(len(labels) / dist.world_size()) * dist.world_size(), dist.world_size())
    known = torch.where(rows < len(labels), labels[rows % len(labels)], -1)
    return Share(features[rows % len(labels)], known)


def scores_of_ranks() -> list[tuple[float, float]]:
    """61 voters and 41 questions, which no two or three ranks share evenly."""
    knn._SIMILARITIES_AT_ONCE = 61 * 6  # several rounds
    shares = share_of_rank(*clusters(0, 61)), share_of_rank(*clusters(1, 41))
    return [tuple(knn_scores_of_shares(*shares, k, temperature, 7)) for k, temperature in PROTOCOLS]


@pytest.mark.distributed
def test_ranks_that_share_the_images_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "_SIMILARITIES_AT_ONCE", knn._SIMILARITIES_AT_ONCE)  # put back what comes
    images = *clusters(0, 61), *clusters(1, 41)
    alone = [tuple(knn_scores(*images, k, temperature, 7)) for k, temperature in PROTOCOLS]
    assert len(set(alone)) == 3
    assert scores_of_ranks() == alone
    for num_ranks in (2, 3):
        (out := tmp_path / str(num_ranks)).mkdir()
        assert on_ranks.answers(scores_of_ranks, out, num_ranks=num_ranks) == [alone] * num_ranks


def test_the_length_of_features_does_not_matter() -> None:
    train, train_labels = clusters(0, 60)
    test, test_labels = clusters(1, 40)
    lengths = torch.rand(60, 1, generator=torch.Generator().manual_seed(2)) * 100 + 0.01
    stretched = knn_scores(train * lengths, train_labels, test * 1e-3, test_labels, 20, 0.07, 7)
    assert stretched == knn_scores(train, train_labels, test, test_labels, 20, 0.07, 7)


def test_an_image_finds_itself() -> None:
    features, labels = clusters(0, 60)
    assert knn_scores(features, labels, features, labels, 1, 0.07, 7).top1 == 1


def test_a_tiny_temperature_lets_the_nearest_neighbour_decide_without_overflow() -> None:
    train, train_labels = clusters(0, 60)
    test, test_labels = clusters(1, 40)
    nearest = knn_scores(train, train_labels, test, test_labels, 1, 0.07, 7).top1
    assert knn_scores(train, train_labels, test, test_labels, 60, 1e-6, 7).top1 == nearest


def test_top5_is_certain_with_five_classes_or_fewer() -> None:
    train, train_labels = clusters(0, 60, num_classes=4)
    test, test_labels = clusters(1, 40, num_classes=4)
    scores = knn_scores(train, train_labels, test, test_labels, 20, 0.07, 4)
    assert scores.top1 < 1 and scores.top5 == 1


@pytest.mark.parametrize("label", range(10))
def test_a_class_without_a_vote_is_not_among_the_five_whatever_its_number(label: int) -> None:
    train = torch.cat([torch.eye(10)[:1].repeat(20, 1), -torch.eye(10)])  # all near images are of class 9
    train_labels = torch.cat([torch.full((20,), 9), torch.arange(10)])
    scores = knn_scores(train, train_labels, torch.eye(10)[:1], torch.tensor([label]), 20, 0.07, 10)
    assert scores == ((1, 1) if label == 9 else (0, 0))


def test_more_neighbours_than_training_images_are_all_of_them_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    train, train_labels = clusters(0, 15)
    test, test_labels = clusters(1, 40)
    with caplog.at_level(logging.WARNING):
        scores = knn_scores(train, train_labels, test, test_labels, 20, 0.07, 7)
    assert caplog.messages == ["knn.k=20, but there are only 15 training images: all of them vote"]
    assert scores == knn_scores(train, train_labels, test, test_labels, 15, 0.07, 7)


def test_images_without_label_are_refused() -> None:
    features, labels = clusters(0, 60)
    unlabelled = labels.clone()
    unlabelled[:3] = -1
    with pytest.raises(DataError, match=r"3 of 60 training images have none; set data.label_column"):
        knn_scores(features, unlabelled, features, labels, 20, 0.07, 7)
    with pytest.raises(DataError, match="3 of 60 test images have none"):
        knn_scores(features, labels, features, unlabelled, 20, 0.07, 7)


def test_no_images_are_refused() -> None:
    features, labels = clusters(0, 60)
    with pytest.raises(DataError, match="there is no test image to evaluate features with"):
        knn_scores(features, labels, features[:0], labels[:0], 20, 0.07, 7)
