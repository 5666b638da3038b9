"""The paper's two losses (eq. 2 and 3) and their variants; knows nothing of teachers, adapters or weights.

Letters: B images, N patches, D channels. Token 0 is the class token. The fused tokens are a fixed target: no gradient
reaches them. Everything is computed in float32 (float64 stays float64), also for bfloat16 inputs and under autocast.
"""

from typing import Literal

import torch
from torch import Tensor

Divergence = Literal["kl", "mse"]
Direction = Literal["student_teacher", "teacher_student"]


def token_fusion_loss(
    student_tokens: Tensor,
    fused_tokens: Tensor,
    *,
    divergence: Divergence = "kl",
    direction: Direction = "student_teacher",
) -> Tensor:
    """TFD, eq. 2: each token's divergence over channels; sum over D, mean over tokens, mean over B.

    Args:
        student_tokens: Z^S after the adapter, [B, 1+N, D]; without the class token [B, N, D] works as well.
        fused_tokens: Z^T, the same shape.
        divergence: `kl` of the tokens' softmax over D; `mse` of the tokens themselves, mean over D.
        direction: `student_teacher` is KL(student || fused), as printed; `teacher_student` is KL(fused || student).

    Returns:
        Scalar; in nats for `kl`.
    """
    student, fused = _comparable(student_tokens, fused_tokens)
    if divergence == "mse":
        return (student - fused).square().mean()
    return _kl(student, fused, direction, dim=-1).mean()  # [B, 1+N] -> []


def spatial_fusion_loss(
    student_tokens: Tensor,
    fused_tokens: Tensor,
    *,
    divergence: Divergence = "kl",
    direction: Direction = "student_teacher",
) -> Tensor:
    """SFD, eq. 3: each channel's divergence over positions, class token excluded; sum over N, mean over D, mean over B.

    Args:
        student_tokens: Z^S after the adapter, [B, 1+N, D].
        fused_tokens: Z^T, [B, 1+N, D].
        divergence: `kl` of the channels' softmax over N; `mse` of the patch tokens themselves, mean over N.
        direction: `student_teacher` is KL(student || fused), as printed; `teacher_student` is KL(fused || student).

    Returns:
        Scalar; in nats for `kl`.
    """
    student, fused = _comparable(student_tokens[:, 1:], fused_tokens[:, 1:])
    if divergence == "mse":
        return (student - fused).square().mean()
    return _kl(student, fused, direction, dim=1).mean()  # [B, D] -> []


def at_least_float32(tokens: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 where they are."""
    return tokens.to(torch.promote_types(tokens.dtype, torch.float32))


def _comparable(student: Tensor, fused: Tensor) -> tuple[Tensor, Tensor]:
    assert student.shape == fused.shape, f"student tokens {list(student.shape)}, target tokens {list(fused.shape)}"
    return at_least_float32(student), at_least_float32(fused.detach())


def _kl(student: Tensor, fused: Tensor, direction: Direction, dim: int) -> Tensor:
    """KL divergence of the two softmaxes over `dim`, which is summed away."""
    log_student, log_fused = student.log_softmax(dim), fused.log_softmax(dim)
    log_p, log_q = (log_student, log_fused) if direction == "student_teacher" else (log_fused, log_student)
    return (log_p.exp() * (log_p - log_q)).sum(dim)  # KL(p || q)
