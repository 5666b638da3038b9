"""The paper's two losses (eq. 2 and 3) and their variants; knows nothing of teachers, adapters or weights.

Letters: B images, N patches, D channels. Token 0 is the class token. The fused tokens are a fixed target: no gradient
reaches them. Everything is computed in float32 (float64 stays float64), also for bfloat16 inputs and under autocast.
"""

import torch
from torch import Tensor

from dmt_ds.distill.choices import Direction, Divergence, check_choice, no_branch


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

    Raises:
        ValueError: no such divergence or direction.
    """
    check_tokens(student_tokens, fused_tokens)
    return _mean_divergence(student_tokens, fused_tokens, divergence, direction, dim=2)


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

    Raises:
        ValueError: no such divergence or direction.
    """
    check_tokens(student_tokens, fused_tokens)
    return _mean_divergence(student_tokens[:, 1:], fused_tokens[:, 1:], divergence, direction, dim=1)


def at_least_float32(tokens: Tensor) -> Tensor:
    """The same numbers in float32, or in float64 where they are."""
    return tokens.to(torch.promote_types(tokens.dtype, torch.float32))


def check_tokens(student: Tensor, fused: Tensor) -> None:
    """Both must be [B, 1+N, D] floats of one shape: of others a softmax gives a number too, and a wrong one."""
    assert student.shape == fused.shape and student.ndim == 3, (
        f"student tokens {list(student.shape)}, target tokens {list(fused.shape)}: both must be [B, 1+N, D], alike"
    )
    assert student.is_floating_point() and fused.is_floating_point(), (
        f"student tokens are {student.dtype}, target tokens {fused.dtype}: both must be floating point"
    )


def _mean_divergence(student: Tensor, fused: Tensor, divergence: Divergence, direction: Direction, dim: int) -> Tensor:
    """Of the tokens (`dim` 2, the channels) or of the channels (`dim` 1, the positions), the mean over all of them."""
    check_choice("divergence", divergence)
    check_choice("direction", direction)
    student, fused = at_least_float32(student), at_least_float32(fused.detach())
    if divergence == "mse":
        return (student - fused).square().mean()
    if divergence == "kl":
        return _kl(student, fused, direction, dim).mean()  # [B, 1+N] or [B, D] -> []
    no_branch(divergence)


def _kl(student: Tensor, fused: Tensor, direction: Direction, dim: int) -> Tensor:
    """KL divergence of the two softmaxes over `dim`, which is summed away."""
    log_student, log_fused = student.log_softmax(dim), fused.log_softmax(dim)
    if direction == "student_teacher":
        log_p, log_q = log_student, log_fused
    elif direction == "teacher_student":
        log_p, log_q = log_fused, log_student
    else:
        no_branch(direction)
    return (log_p.exp() * (log_p - log_q)).sum(dim)  # KL(p || q)
