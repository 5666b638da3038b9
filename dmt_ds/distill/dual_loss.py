"""Eq. 4 for one target as one autograd node: the kernels' losses, and their gradient kept from the forward pass.

An op of torch's own dispatcher, so that `torch.compile` takes it as it is; knows no kernel's inside.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmt_ds.distill.choices import Direction, check_choice
from dmt_ds.distill.kernels import chunked
from dmt_ds.distill.kernels.terms import Computed, Kernel, Terms, new_gradient
from dmt_ds.distill.losses import check_tokens


class DualLoss(NamedTuple):
    """Scalars, float32 (float64 for float64 tokens)."""

    total: Tensor
    """tfd_weight * tfd + sfd_weight * sfd; the only one with a graph."""
    tfd: Tensor
    sfd: Tensor


def dual_loss(
    student_tokens: Tensor,
    fused_tokens: Tensor,
    *,
    direction: Direction = "student_teacher",
    tfd_weight: float = 1.0,
    sfd_weight: float = 1.0,
    first_row: int = 0,
    kernel: Kernel,
) -> DualLoss:
    """TFD and SFD as KL divergences, by a fused kernel; values and gradient are those of `losses.py`.

    The gradient [B, 1+N, D] is made with the losses and kept for the backward pass. It has no second derivative: under
    `create_graph=True` this term's is left out without a word. `torch.func` (`grad`, `vmap`) does not take it at all.
    For both use `losses.py`, which is kernel `eager` of `DistillationObjective`.

    Args:
        student_tokens: Z^S after the adapter, [B, 1+N, D].
        fused_tokens: Z^T, the same shape; no gradient reaches it.
        first_row: first token that TFD looks at; 1 leaves the class token out.
        kernel: `chunked` or `triton`.

    Raises:
        ValueError: no such direction.
    """
    check_tokens(student_tokens, fused_tokens)
    check_choice("direction", direction)
    needs_gradient = torch.is_grad_enabled() and student_tokens.requires_grad
    settings = (direction == "student_teacher", tfd_weight, sfd_weight, first_row, kernel, needs_gradient)
    total, tfd, sfd, _ = _op(student_tokens, fused_tokens.detach(), *settings)
    return DualLoss(total, tfd, sfd)


@torch.library.custom_op("dmt_ds::dual_loss", mutates_args=())
def _op(
    student: Tensor,
    target: Tensor,
    student_first: bool,
    tfd_weight: float,
    sfd_weight: float,
    first_row: int,
    kernel: str,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Total, TFD, SFD, and the total's gradient (empty where not needed)."""
    terms = Terms(student_first, tfd_weight, sfd_weight, first_row)
    with torch.autocast(student.device.type, enabled=False):
        tfd, sfd, gradient = _compute(student, target, terms, kernel, needs_gradient)
        total = tfd_weight * tfd + sfd_weight * sfd
    return total, tfd, sfd, student.new_empty(0) if gradient is None else gradient


def _compute(student: Tensor, target: Tensor, terms: Terms, kernel: str, needs_gradient: bool) -> Computed:
    if kernel == "chunked":
        return chunked.dual_loss(student, target, terms, needs_gradient)
    assert kernel == "triton", kernel
    from dmt_ds.distill.kernels import dual_triton  # triton is not on every platform

    return dual_triton.dual_loss(student, target, terms, needs_gradient)


@_op.register_fake
def _shapes(
    student: Tensor,
    target: Tensor,
    student_first: bool,
    tfd_weight: float,
    sfd_weight: float,
    first_row: int,
    kernel: str,
    needs_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    kind = torch.promote_types(student.dtype, torch.float32)
    total, tfd, sfd = (student.new_empty((), dtype=kind) for _ in range(3))
    return total, tfd, sfd, new_gradient(student) if needs_gradient else student.new_empty(0)


def _keep_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    _, tfd, sfd, gradient = output
    ctx.mark_non_differentiable(tfd, sfd, gradient)
    ctx.set_materialize_grads(False)  # or zeros of the gradient's own size would be made for it
    ctx.save_for_backward(gradient)
    ctx.type_of_tokens, ctx.kernel = inputs[0].dtype, inputs[6]


def _scaled_gradient(ctx: Any, total: Tensor | None, *others: None) -> tuple[Tensor | None, ...]:
    """Scaled in place where nobody needs it again, as a copy would double the memory."""
    if total is None:
        return (None,) * 8
    (gradient,) = ctx.saved_tensors
    # A compiler traces with tensors of its own kind and finds out for itself what can be overwritten.
    once = type(gradient) is Tensor and not torch._C._autograd._get_current_graph_task_keep_graph()
    # `total` keeps its float32: in bf16 1/3 is 0.2 % off.
    scaled = _scale_(gradient, total, ctx.kernel) if once else gradient * total
    return scaled.to(ctx.type_of_tokens), *[None] * 7


def _scale_(gradient: Tensor, total: Tensor, kernel: str) -> Tensor:
    if kernel != "triton":
        return gradient.mul_(total)
    from dmt_ds.distill.kernels import dual_triton

    return dual_triton.scale_(gradient, total)


_op.register_autograd(_scaled_gradient, setup_context=_keep_gradient)
