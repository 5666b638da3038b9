"""Softmax regression on frozen features: a linear probe without seed and learning rate; knows no encoder.

It minimises mean cross-entropy + weight_decay / 2 * |W|^2 over standardised features, which has one minimum: the result
depends neither on the order of the images nor on how a feature is scaled or shifted, only on how near L-BFGS comes.
"""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from dmt_ds.downstream.accuracy import Accuracy, check_labels, num_right

logger = logging.getLogger(__name__)

_LOGITS_AT_ONCE = 2**26  # 256 MiB of float32
_SMALL_GRADIENT = 1e-5  # largest entry; more decides no image
_CONSTANT = 1e-6  # a feature whose deviation is this share of its mean tells no images apart: it is rounding


def linear_scores(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    weight_decay: float,
    max_iterations: int,
    num_classes: int,
) -> Accuracy:
    """Fit on the training images, judge on the test images.

    Args:
        train_features: [n, D]; its device does the work, and holds a float32 copy.
        train_labels: [n] int64, 0 to num_classes - 1.
        test_features: [m, D].
        test_labels: [m] int64, 0 to num_classes - 1.
        weight_decay: of the weights; the bias has none.
        max_iterations: steps of L-BFGS at most.
        num_classes: number of classes.

    Raises:
        DataError: an image has no label.
    """
    check_labels(train_labels, num_classes, "training")
    check_labels(test_labels, num_classes, "test")
    device = train_features.device
    mean, scale = mean_and_scale(train_features)
    standardised = (train_features.float() - mean) * scale
    weight, bias = fit_softmax(standardised, train_labels.to(device), weight_decay, max_iterations, num_classes)
    right = torch.zeros(2, dtype=torch.int64, device=device)
    for rows in _row_chunks(len(test_features), num_classes):
        features = (test_features[rows].to(device).float() - mean) * scale
        right += num_right(features @ weight.T + bias, test_labels[rows].to(device))
    top1, top5 = (right.double() / len(test_features)).tolist()
    return Accuracy(top1, top5)


def mean_and_scale(features: Tensor) -> tuple[Tensor, Tensor]:
    """What standardises features: [n, D] -> mean [D] and 1 / standard deviation [D], 0 for a constant feature."""
    std, mean = torch.std_mean(features.float(), dim=0, correction=0)
    return mean, torch.where(std > _CONSTANT * mean.abs(), 1 / std, 0.0)


def fit_softmax(
    features: Tensor, labels: Tensor, weight_decay: float, max_iterations: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    """The minimum of the regularised loss, by L-BFGS over all images from zero weights.

    Args:
        features: [n, D] float32 or float64, standardised.
        labels: [n] int64, on the same device.
        weight_decay: of the weights; the bias has none.
        max_iterations: steps at most.
        num_classes: number of classes.

    Returns:
        Weight [C, D] and bias [C].
    """
    weight = features.new_zeros(num_classes, features.shape[1])
    bias = features.new_zeros(num_classes)
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=max_iterations,
        tolerance_grad=_SMALL_GRADIENT,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss_with_gradient() -> Tensor:
        loss, weight.grad, bias.grad = softmax_loss(features, labels, weight, bias, weight_decay)
        return loss

    optimizer.step(loss_with_gradient)  # type: ignore[no-untyped-call]
    state = optimizer.state[weight]
    logger.debug("linear probe: %d steps of L-BFGS", state["n_iter"])
    if state["n_iter"] >= max_iterations or state["func_evals"] >= optimizer.param_groups[0]["max_eval"]:
        _, *gradients = softmax_loss(features, labels, weight, bias, weight_decay)
        _warn_before_minimum(max(gradient.abs().max().item() for gradient in gradients), max_iterations)
    return weight, bias


def _warn_before_minimum(largest_gradient: float, max_iterations: int) -> None:
    if largest_gradient > _SMALL_GRADIENT:
        logger.warning(
            "linear.max_iterations=%d ended the linear probe before its minimum: the largest gradient is %.1e, at the "
            "minimum %.0e or less; set it higher",
            max_iterations,
            largest_gradient,
            _SMALL_GRADIENT,
        )


def softmax_loss(
    features: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, weight_decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy + weight_decay / 2 * |weight|^2, a scalar, with its gradients [C, D] and [C]."""
    loss = weight_decay / 2 * weight.square().sum()
    weight_gradient, bias_gradient = weight_decay * weight, torch.zeros_like(bias)
    for rows in _row_chunks(len(features), len(bias)):
        log_p = (features[rows] @ weight.T + bias).log_softmax(dim=1)  # [r, C]
        own_class = labels[rows, None]
        loss -= log_p.gather(1, own_class).sum() / len(features)
        error = log_p.exp().scatter_add_(1, own_class, -torch.ones_like(log_p[:, :1]))  # probabilities - one-hot
        weight_gradient += error.T @ features[rows] / len(features)
        bias_gradient += error.sum(dim=0) / len(features)
    return loss, weight_gradient, bias_gradient


def _row_chunks(num_rows: int, num_classes: int) -> Iterator[slice]:
    """Consecutive rows, as many at once as their logits leave room for."""
    step = max(1, _LOGITS_AT_ONCE // num_classes)
    return (slice(start, start + step) for start in range(0, num_rows, step))
