"""The two losses against loops written from the paper's equations."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_ds.distill.choices import Direction, Divergence
from dmt_ds.distill.dual_loss import dual_loss
from dmt_ds.distill.losses import spatial_fusion_loss, token_fusion_loss
from tests.distill.loops import kl_by_loop

Loss = Callable[..., Tensor]
LOSSES = [token_fusion_loss, spatial_fusion_loss]
DIRECTIONS = get_args(Direction)
DIVERGENCES = get_args(Divergence)


def random_tokens(seed: int, *shape: int, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def tfd_by_loop(student: Tensor, fused: Tensor, direction: Direction) -> float:
    """Eq. 2."""
    num_images, num_tokens, _ = student.shape
    total = 0.0
    for b in range(num_images):
        for n in range(num_tokens):
            s, t = student[b, n].tolist(), fused[b, n].tolist()
            total += (kl_by_loop(s, t) if direction == "student_teacher" else kl_by_loop(t, s)) / num_tokens
    return total / num_images


def sfd_by_loop(student: Tensor, fused: Tensor, direction: Direction) -> float:
    """Eq. 3."""
    num_images, _, num_channels = student.shape
    total = 0.0
    for b in range(num_images):
        for c in range(num_channels):
            s, t = student[b, 1:, c].tolist(), fused[b, 1:, c].tolist()
            total += (kl_by_loop(s, t) if direction == "student_teacher" else kl_by_loop(t, s)) / num_channels
    return total / num_images


def mse_by_loop(student: Tensor, fused: Tensor, first: int) -> float:
    num_images, num_tokens, num_channels = student.shape
    total = 0.0
    for b in range(num_images):
        for n in range(first, num_tokens):
            for c in range(num_channels):
                total += (student[b, n, c].item() - fused[b, n, c].item()) ** 2
    return total / (num_images * (num_tokens - first) * num_channels)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_tfd_is_equation_2(direction: Direction) -> None:
    student, fused = random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4)
    loss = token_fusion_loss(student, fused, direction=direction)
    assert loss.item() == pytest.approx(tfd_by_loop(student, fused, direction), rel=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_sfd_is_equation_3(direction: Direction) -> None:
    student, fused = random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4)
    loss = spatial_fusion_loss(student, fused, direction=direction)
    assert loss.item() == pytest.approx(sfd_by_loop(student, fused, direction), rel=1e-12)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_mse_compares_the_tokens_themselves_in_either_direction(direction: Direction) -> None:
    student, fused = random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4)
    tfd = token_fusion_loss(student, fused, divergence="mse", direction=direction)
    sfd = spatial_fusion_loss(student, fused, divergence="mse", direction=direction)
    assert tfd.item() == pytest.approx(mse_by_loop(student, fused, first=0), rel=1e-12)
    assert sfd.item() == pytest.approx(mse_by_loop(student, fused, first=1), rel=1e-12)


def test_printed_direction_has_the_student_first() -> None:
    student, fused = random_tokens(0, 3, 5, 7), random_tokens(1, 3, 5, 7)
    log_student, log_fused = student.log_softmax(-1), fused.log_softmax(-1)
    student_first = F.kl_div(log_fused, log_student, reduction="sum", log_target=True) / 15
    fused_first = F.kl_div(log_student, log_fused, reduction="sum", log_target=True) / 15
    assert not torch.isclose(student_first, fused_first, rtol=1e-2)
    torch.testing.assert_close(token_fusion_loss(student, fused), student_first)
    torch.testing.assert_close(token_fusion_loss(student, fused, direction="teacher_student"), fused_first)


def test_printed_direction_punishes_the_student_for_mass_where_the_target_has_none() -> None:
    flat, peaked = torch.zeros(1, 1, 4), torch.tensor([[[30.0, 0.0, 0.0, 0.0]]])
    assert token_fusion_loss(flat, peaked).item() == pytest.approx(0.75 * 30 - math.log(4), rel=1e-5)
    assert token_fusion_loss(peaked, flat).item() == pytest.approx(math.log(4), rel=1e-5)


def test_sfd_ignores_the_class_token() -> None:
    student, fused = random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4)
    other = torch.cat([random_tokens(2, 2, 1, 4), student[:, 1:]], dim=1)
    assert torch.equal(spatial_fusion_loss(student, fused), spatial_fusion_loss(other, fused))


def test_tfd_feels_the_class_token() -> None:
    student, fused = random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4)
    other = torch.cat([random_tokens(2, 2, 1, 4), student[:, 1:]], dim=1)
    assert not torch.isclose(token_fusion_loss(student, fused), token_fusion_loss(other, fused))


def test_tfd_does_not_change_when_a_token_is_shifted_by_a_constant() -> None:
    student, fused = random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4)
    shifted = student + random_tokens(2, 2, 5, 1, scale=10)
    torch.testing.assert_close(token_fusion_loss(shifted, fused), token_fusion_loss(student, fused))


def test_sfd_does_not_change_when_a_channel_is_shifted_by_a_constant() -> None:
    student, fused = random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4)
    shifted = student + random_tokens(2, 2, 1, 4, scale=10)
    torch.testing.assert_close(spatial_fusion_loss(shifted, fused), spatial_fusion_loss(student, fused))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_equal_tokens_cost_nothing_and_pull_nowhere(loss: Loss, divergence: Divergence, direction: Direction) -> None:
    fused = random_tokens(0, 2, 5, 6, dtype=torch.float32)
    student = fused.clone().requires_grad_()
    value = loss(student, fused, divergence=divergence, direction=direction)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-7)
    assert student.grad is not None and student.grad.abs().max() < 1e-7


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_different_tokens_always_cost_something(loss: Loss, direction: Direction) -> None:
    for seed in range(20):
        student, fused = random_tokens(seed, 1, 4, 3), random_tokens(seed + 100, 1, 4, 3)
        assert loss(student, fused, direction=direction) > 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_bfloat16_tokens_are_compared_in_float32(loss: Loss, divergence: Divergence, direction: Direction) -> None:
    student, fused = (random_tokens(seed, 2, 17, 96, dtype=torch.bfloat16) for seed in (0, 1))
    value = loss(student, fused, divergence=divergence, direction=direction)
    exact = loss(student.double(), fused.double(), divergence=divergence, direction=direction)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_autocast_does_not_lower_the_precision(loss: Loss) -> None:
    student, fused = (random_tokens(seed, 2, 17, 96, dtype=torch.float32) for seed in (0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = loss(student, fused)
    assert torch.equal(under_autocast, loss(student, fused))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_outlier_channels_keep_loss_and_gradient_finite(loss: Loss, direction: Direction) -> None:
    student = random_tokens(0, 2, 5, 8, dtype=torch.float32)
    fused = random_tokens(1, 2, 5, 8, dtype=torch.float32)
    fused[..., 3], student[..., 5] = 3e4, -3e4
    fused[:, 2], student[:, 4] = -3e4, 3e4
    student.requires_grad_()
    value = loss(student, fused, direction=direction)
    value.backward()
    assert value.isfinite() and student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_is_that_of_finite_differences(loss: Loss, divergence: Divergence, direction: Direction) -> None:
    student, fused = random_tokens(0, 2, 4, 3).requires_grad_(), random_tokens(1, 2, 4, 3)
    assert torch.autograd.gradcheck(lambda s: loss(s, fused, divergence=divergence, direction=direction), student)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gradient_reaches_the_student_and_never_the_target(
    loss: Loss, divergence: Divergence, direction: Direction
) -> None:
    student, fused = random_tokens(0, 2, 4, 3).requires_grad_(), random_tokens(1, 2, 4, 3).requires_grad_()
    loss(student, fused, divergence=divergence, direction=direction).backward()
    assert student.grad is not None and student.grad.abs().sum() > 0
    assert fused.grad is None


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_targets_made_in_inference_mode_can_be_learnt_from(
    loss: Loss, divergence: Divergence, direction: Direction
) -> None:
    with torch.inference_mode():
        fused = random_tokens(1, 2, 4, 3, dtype=torch.float32)
    student = random_tokens(0, 2, 4, 3, dtype=torch.float32).requires_grad_()
    loss(student, fused, divergence=divergence, direction=direction).backward()
    assert student.grad is not None


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_loss_of_a_batch_is_the_mean_over_its_halves(loss: Loss, divergence: Divergence) -> None:
    student, fused = random_tokens(0, 6, 5, 4), random_tokens(1, 6, 5, 4)
    halves = [loss(student[i : i + 3], fused[i : i + 3], divergence=divergence) for i in (0, 3)]
    torch.testing.assert_close(loss(student, fused, divergence=divergence), torch.stack(halves).mean())


@pytest.mark.parametrize("loss", LOSSES)
def test_tokens_of_another_shape_are_never_broadcast(loss: Loss) -> None:
    with pytest.raises(AssertionError, match=r"student tokens \[2, \d, 4\], target tokens \[1, \d, 4\]"):
        loss(random_tokens(0, 2, 5, 4), random_tokens(1, 1, 5, 4))


FUSED_LOSSES = [*LOSSES, partial(dual_loss, kernel="chunked")]


@pytest.mark.parametrize("loss", FUSED_LOSSES)
@pytest.mark.parametrize("shape", [(5, 4), (1, 2, 5, 4), (4,)])
def test_tokens_that_are_no_batch_of_images_are_refused(loss: Loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError, match=r"student tokens \[.*, target tokens .*: both must be \[B, 1\+N, D\]"):
        loss(random_tokens(0, *shape), random_tokens(1, *shape))


@pytest.mark.parametrize("loss", FUSED_LOSSES)
def test_whole_numbers_are_no_tokens(loss: Loss) -> None:
    with pytest.raises(AssertionError, match=r"student tokens are torch\.int64.*must be floating point"):
        loss(random_tokens(0, 2, 5, 4).long(), random_tokens(1, 2, 5, 4))


@pytest.mark.parametrize("loss", LOSSES)
def test_no_two_divergences_are_the_same(loss: Loss) -> None:
    """A name without a branch of its own would train what another name stands for."""
    student, fused = random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4)
    values = {loss(student, fused, divergence=divergence).item() for divergence in DIVERGENCES}
    assert len(values) == len(DIVERGENCES)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"divergence": "js"}, "divergence 'js' is not known: it is one of kl, mse"),
        ({"direction": "reverse"}, "direction 'reverse' is not known: it is one of student_teacher, teacher_student"),
        ({"divergence": "mse", "direction": "reverse"}, "direction 'reverse' is not known"),
    ],
)
def test_an_unknown_name_is_refused_with_those_that_are_known(loss: Loss, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        loss(random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4), **settings)


def test_a_fused_kernel_refuses_an_unknown_direction_too() -> None:
    with pytest.raises(ValueError, match="direction 'reverse' is not known"):
        dual_loss(random_tokens(0, 2, 5, 4), random_tokens(1, 2, 5, 4), direction="reverse", kernel="chunked")
