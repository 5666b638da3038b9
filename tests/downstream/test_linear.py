"""The linear probe against scikit-learn's logistic regression on digits, and what must not move it."""

import logging

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from dmt_ds.data.digits import DigitsSource
from dmt_ds.downstream import linear
from dmt_ds.downstream.linear import fit_softmax, linear_scores, mean_and_scale, softmax_loss
from dmt_ds.errors import DataError

WEIGHT_DECAY = 1e-3


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Pixels in 0..255, [n, 64] float32, of which some are always 0; labels [n]."""
    source = DigitsSource(split)  # type: ignore[arg-type]
    pixels = torch.stack([source.read(index)[0].flatten() for index in range(len(source))]).float()
    return pixels, torch.tensor([source.label(index) for index in range(len(source))])


TRAIN, TRAIN_LABELS = digits("train")
TEST, TEST_LABELS = digits("val")


def scores(train: Tensor = TRAIN, test: Tensor = TEST) -> tuple[float, float]:
    return linear_scores(train, TRAIN_LABELS, test, TEST_LABELS, WEIGHT_DECAY, 300, 10)


def standardised(features: Tensor) -> Tensor:
    """By the training images' statistics, in float64."""
    std = TRAIN.double().std(dim=0, correction=0)
    return (features.double() - TRAIN.double().mean(dim=0)) / torch.where(std > 0, std, 1.0)


@pytest.mark.parametrize("weight_decay", [1e-1, 1e-3])
def test_the_minimum_is_scikit_learns(weight_decay: float) -> None:
    features = standardised(TRAIN)
    weight, bias = fit_softmax(features, TRAIN_LABELS, weight_decay, 1000, 10)
    peer = LogisticRegression(C=1 / (len(TRAIN) * weight_decay), tol=1e-8, max_iter=10_000)
    peer.fit(features.numpy(), TRAIN_LABELS.numpy())
    peers = torch.from_numpy(peer.coef_), torch.from_numpy(peer.intercept_)
    own_loss = softmax_loss(features, TRAIN_LABELS, weight, bias, weight_decay)[0].item()
    peer_loss = softmax_loss(features, TRAIN_LABELS, *peers, weight_decay)[0].item()
    assert own_loss == pytest.approx(peer_loss, abs=1e-6)
    probabilities = (standardised(TEST) @ weight.T + bias).softmax(dim=1)
    torch.testing.assert_close(probabilities.numpy(), peer.predict_proba(standardised(TEST).numpy()), atol=5e-3, rtol=0)


def test_the_accuracy_is_scikit_learns() -> None:
    peer = LogisticRegression(C=1 / (len(TRAIN) * WEIGHT_DECAY), tol=1e-8, max_iter=10_000)
    peer.fit(standardised(TRAIN).numpy(), TRAIN_LABELS.numpy())
    top1 = peer.score(standardised(TEST).numpy(), TEST_LABELS.numpy())
    ranked = torch.from_numpy(peer.decision_function(standardised(TEST).numpy())).argsort(dim=1, descending=True)
    top5 = (ranked[:, :5] == TEST_LABELS[:, None]).any(dim=1).double().mean().item()
    assert scores() == (pytest.approx(top1), pytest.approx(top5))
    assert 0.9 < top1 < top5


@pytest.mark.parametrize(("max_iterations", "ended_early"), [(5, True), (300, False)])
def test_a_fit_that_its_limit_ends_says_so(
    max_iterations: int, ended_early: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        linear_scores(TRAIN, TRAIN_LABELS, TEST, TEST_LABELS, WEIGHT_DECAY, max_iterations, 10)
    said = [message.startswith("linear.max_iterations=5 ended the linear probe before") for message in caplog.messages]
    assert said == ([True] if ended_early else [])


def test_loss_and_gradients_are_those_of_autograd(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    features = standardised(TRAIN[:50])
    weight = torch.randn(10, 64, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(10, generator=generator, dtype=torch.float64, requires_grad=True)
    loss = F.cross_entropy(features @ weight.T + bias, TRAIN_LABELS[:50]) + 0.05 * weight.square().sum()
    expected = (loss, *torch.autograd.grad(loss, (weight, bias)))
    for logits_at_once in (2**26, 70):
        monkeypatch.setattr(linear, "_LOGITS_AT_ONCE", logits_at_once)
        found = softmax_loss(features, TRAIN_LABELS[:50], weight.detach(), bias.detach(), 0.1)
        torch.testing.assert_close(found, tuple(value.detach() for value in expected))


def test_scale_and_shift_of_a_feature_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    scale, shift = torch.rand(64, generator=generator) * 100 + 0.01, torch.randn(64, generator=generator) * 1000
    assert scores(TRAIN * scale + shift, TEST * scale + shift) == scores()


def test_names_of_the_classes_and_order_of_the_images_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    renamed, order = torch.randperm(10, generator=generator), torch.randperm(len(TRAIN), generator=generator)
    found = linear_scores(TRAIN[order], renamed[TRAIN_LABELS[order]], TEST, renamed[TEST_LABELS], WEIGHT_DECAY, 300, 10)
    assert found == scores()


def test_a_test_image_is_judged_alone_as_among_others() -> None:
    alone = [
        linear_scores(TRAIN, TRAIN_LABELS, TEST[[i]], TEST_LABELS[[i]], WEIGHT_DECAY, 300, 10).top1 for i in range(5)
    ]
    among = linear_scores(TRAIN, TRAIN_LABELS, TEST[:5], TEST_LABELS[:5], WEIGHT_DECAY, 300, 10).top1
    assert sum(alone) / 5 == pytest.approx(among)


def test_a_constant_feature_is_left_out_however_it_is_rounded() -> None:
    wobble = 1 + 1e-7 * torch.randint(-1, 2, (len(TRAIN), 1), generator=torch.Generator().manual_seed(0))
    constant = 300 * wobble  # as one token looks after matrix products of differing order
    _, scale = mean_and_scale(torch.cat([TRAIN, constant], dim=1))
    assert scale[-1] == 0
    assert (scale[:-1] > 0).equal(TRAIN.amax(dim=0) > TRAIN.amin(dim=0))
    with_it = scores(torch.cat([TRAIN, constant], dim=1), torch.cat([TEST, torch.full((len(TEST), 1), 9e9)], dim=1))
    assert with_it == scores()


def test_features_that_know_nothing_give_the_most_frequent_class() -> None:
    labels = torch.tensor([0, 1, 1, 2])
    found = linear_scores(torch.ones(4, 3), labels, torch.ones(4, 3), labels, WEIGHT_DECAY, 300, 3)
    assert found == (0.5, 1.0)


def test_images_without_label_are_refused() -> None:
    unlabelled = torch.full_like(TEST_LABELS, -1)
    with pytest.raises(DataError, match=r"360 of 360 test images have none; set data.label_column"):
        linear_scores(TRAIN, TRAIN_LABELS, TEST, unlabelled, WEIGHT_DECAY, 300, 10)
