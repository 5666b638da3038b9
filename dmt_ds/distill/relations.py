"""TinyMIM's losses between the relations of a teacher's and a student's last block; knows nothing of models.

Letters: B images, H heads, T tokens with the class token, d width of a head. Teachers are a fixed target: no gradient
reaches them. Everything is computed in float32 (float64 stays float64), also for bfloat16 inputs and under autocast.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from dmt_ds.distill.losses import at_least_float32

Relation = Literal["qk", "vv"]


def relation_loss(
    relation: Relation,
    student_qkv: Tensor,
    teacher_qkvs: Mapping[str, Tensor],
    weights: Mapping[str, float] | None = None,
) -> Tensor:
    """KL(teacher || student) of the relation's rows, mean over B, heads and tokens (Ren et al., 2023, section 3.1).

    With several teachers it is the weighted mean of their losses (m-TinyMIM).

    Args:
        relation: `qk` is softmax(Q K^T / sqrt(d)), `vv` is softmax(V V^T / sqrt(d)), each head by itself.
        student_qkv: queries, keys and values, [B, 3, H, T, d].
        teacher_qkvs: name -> the same of a teacher, [B, 3, H, T, d'] with its own d'.
        weights: name -> weight in the mean; missing means 1.

    Returns:
        Scalar, in nats.
    """
    log_student = _log_relation(relation, student_qkv)
    target, target_log_target = _mean_relation(relation, log_student, teacher_qkvs, weights or {})
    # Only the mean target is kept for the backward, however many teachers there are.
    return (target_log_target - target * log_student).sum(-1).mean()


@torch.no_grad()
def _mean_relation(
    relation: Relation, like: Tensor, teacher_qkvs: Mapping[str, Tensor], weights: Mapping[str, float]
) -> tuple[Tensor, Tensor]:
    """Weighted means over teachers of p and of p log p, where p is their relation; [B, H, T, T] each, as `like` is."""
    mean_p, mean_p_log_p = torch.zeros_like(like), torch.zeros_like(like)
    total = sum(weights.get(name, 1.0) for name in teacher_qkvs)
    for name, qkv in teacher_qkvs.items():
        log_p = _log_relation(relation, qkv)
        assert log_p.shape == like.shape, f"relations: teacher '{name}' {list(log_p.shape)}, student {list(like.shape)}"
        p, share = log_p.exp(), weights.get(name, 1.0) / total
        mean_p.add_(p, alpha=share)
        mean_p_log_p.addcmul_(p, log_p, value=share)
    return mean_p, mean_p_log_p


def _log_relation(relation: Relation, qkv: Tensor) -> Tensor:
    """[B, 3, H, T, d] -> [B, H, T, T], log of the softmax over the last dimension."""
    with torch.autocast(qkv.device.type, enabled=False):
        queries, keys, values = at_least_float32(qkv).unbind(1)
        rows, columns = (queries, keys) if relation == "qk" else (values, values)
        products: Tensor = rows * qkv.shape[-1] ** -0.5 @ columns.transpose(-2, -1)
        return products.log_softmax(-1)
