"""What every fused kernel is held to: the losses as written, in float64; run in this process or in one of its own."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmt_ds.distill.choices import Direction
from dmt_ds.distill.dual_loss import dual_loss
from dmt_ds.distill.kernels.terms import Kernel
from dmt_ds.distill.losses import spatial_fusion_loss, token_fusion_loss

DIRECTIONS: tuple[Direction, ...] = ("student_teacher", "teacher_student")
WEIGHTS = {"tfd_weight": 0.7, "sfd_weight": 1.3}


class Compared(NamedTuple):
    """Relative errors against float64; where a value is next to nothing (a loss below 1e-3), they are of that floor."""

    total: float
    tfd: float
    sfd: float
    gradient: float
    """Norm of the difference over the norm."""


def random_tokens(seed: int, *shape: int, scale: float = 2.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def as_written(student: Tensor, fused: Tensor, direction: Direction, first_row: int) -> tuple[Tensor, Tensor, Tensor]:
    """Total, TFD and SFD by eq. 2 to 4."""
    tfd = token_fusion_loss(student[:, first_row:], fused[:, first_row:], direction=direction)
    sfd = spatial_fusion_loss(student, fused, direction=direction)
    return WEIGHTS["tfd_weight"] * tfd + WEIGHTS["sfd_weight"] * sfd, tfd, sfd


def compare(student: Tensor, fused: Tensor, kernel: Kernel, direction: Direction, first_row: int = 0) -> Compared:
    student, exact = student.clone().requires_grad_(), student.double().requires_grad_()
    found = dual_loss(student, fused, direction=direction, first_row=first_row, kernel=kernel, **WEIGHTS)
    wanted = as_written(exact, fused.double(), direction, first_row)
    found.total.backward()
    wanted[0].backward()
    assert student.grad is not None and exact.grad is not None
    assert found.total.dtype == torch.promote_types(student.dtype, torch.float32)
    assert student.grad.dtype == student.dtype
    gradient = (student.grad.double() - exact.grad).norm() / exact.grad.norm().clamp(min=1e-12)
    values = [(a.double() - b).abs() / b.clamp(min=1e-3) for a, b in zip(found, wanted, strict=True)]
    # What is no number is as wrong as can be: Python's `max` would pass over it.
    return Compared(*(error.nan_to_num(nan=torch.inf, posinf=torch.inf).item() for error in (*values, gradient)))


def all_compared(shapes: list[tuple[int, ...]], types: list[str], kernel: Kernel, device: str = "cpu") -> list[Any]:
    """One entry a case, for a process that prints them: [shape, type, direction, first row, *errors]."""
    found: list[Any] = []
    for shape in shapes:
        for name in types:
            student = random_tokens(0, *shape, dtype=getattr(torch, name)).to(device)
            fused = random_tokens(1, *shape, dtype=getattr(torch, name)).to(device)
            for direction in DIRECTIONS:
                for first_row in (0, 1):
                    errors = compare(student, fused, kernel, direction, first_row)
                    found.append([shape, name, direction, first_row, *errors])
    return found


def hard_cases() -> dict[str, tuple[Tensor, Tensor]]:
    """Tokens that overflow, underflow or cancel where a kernel is careless."""
    student, fused = random_tokens(0, 2, 6, 20), random_tokens(1, 2, 6, 20)
    far = random_tokens(2, 2, 6, 20, scale=1e4), random_tokens(3, 2, 6, 20, scale=1e4)
    one_hot = torch.full((2, 6, 20), -1e4)
    one_hot[:, :, 3] = 1e4
    outlier_channel, low_row, high_class = fused.clone(), student.clone(), student.clone()
    outlier_channel[..., 5] = 300
    low_row[:, 2] -= 500
    high_class[:, 0] += 5000
    return {
        "far apart": far,
        "one-hot student": (one_hot, fused),
        "one-hot target": (student, one_hot),
        "outlier channel": (student, outlier_channel),
        "outlier channel in both": (outlier_channel + student, outlier_channel),
        "a token far below the others": (low_row, fused),
        "a class token far above": (high_class, fused),
        "all shifted": (student + 1e4, fused - 1e4),
    }
