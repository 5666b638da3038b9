"""The paper's objective (eq. 4): TFD and SFD over all targets; knows nothing of how targets and tokens are made."""

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from dmt_ds.distill.choices import Direction, Divergence, check_choice
from dmt_ds.distill.dual_loss import DualLoss, dual_loss
from dmt_ds.distill.kernels.terms import Kernel
from dmt_ds.distill.losses import spatial_fusion_loss, token_fusion_loss

_Tokens = Mapping[str, Tensor]


class DistillationLosses(NamedTuple):
    """Scalars, float32."""

    total: Tensor
    """tfd_weight * tfd + sfd_weight * sfd, with its graph."""
    tfd: Tensor
    """Token fusion distillation, before its weight; 0 where it is not computed. A fused kernel's has no graph."""
    sfd: Tensor
    """Spatial fusion distillation, before its weight; 0 where it is not computed. A fused kernel's has no graph."""


class DistillationObjective:
    """L = tfd_weight * TFD + sfd_weight * SFD, summed over targets (one, unless teachers are kept apart)."""

    def __init__(
        self,
        divergence: Divergence = "kl",
        direction: Direction = "student_teacher",
        tfd_weight: float = 1.0,
        sfd_weight: float = 1.0,
        *,
        target_weights: Mapping[str, float] | None = None,
        without_class_token: Collection[str] = (),
        kernel: Kernel = "eager",
    ) -> None:
        """Settings of the objective; a loss of weight 0 is not computed.

        Args:
            divergence: `kl` of softmaxed tokens, or `mse` of the tokens.
            direction: of the KL divergence.
            tfd_weight: weight of TFD.
            sfd_weight: weight of SFD.
            target_weights: target -> weight of its losses; missing means 1.
            without_class_token: targets whose class token has no part in TFD.
            kernel: how both KL divergences are computed; the numbers are the same.

        Raises:
            ValueError: no such divergence or direction, or neither loss has a weight.
        """
        check_choice("divergence", divergence)
        check_choice("direction", direction)
        if not (tfd_weight or sfd_weight):
            raise ValueError("tfd_weight and sfd_weight are both 0: there is nothing to learn; set one above 0")
        assert kernel == "eager" or (divergence == "kl" and tfd_weight and sfd_weight), "no fused form of this"
        self._divergence = divergence
        self._direction = direction
        self._tfd_weight = tfd_weight
        self._sfd_weight = sfd_weight
        self._target_weights = dict(target_weights or {})
        self._without_class_token = frozenset(without_class_token)
        self._kernel: Kernel = kernel

    def __call__(self, student_tokens: _Tokens, targets: _Tokens) -> DistillationLosses:
        """Losses of one micro-batch.

        Args:
            student_tokens: target -> Z^S after the adapter of that target, [B, 1+N, D].
            targets: target -> Z^T, [B, 1+N, D]; no gradient reaches it.
        """
        assert targets, "there are no targets to learn from"
        if self._kernel != "eager":
            return self._fused(student_tokens, targets, self._direction)
        zero = next(iter(student_tokens.values())).new_zeros((), dtype=torch.float32)
        kind = (self._divergence, self._direction)
        tfd = self._tfd(student_tokens, targets, *kind) if self._tfd_weight else zero
        sfd = self._sfd(student_tokens, targets, *kind) if self._sfd_weight else zero
        return DistillationLosses(self._tfd_weight * tfd + self._sfd_weight * sfd, tfd, sfd)

    def _fused(self, student_tokens: _Tokens, targets: _Tokens, direction: Direction) -> DistillationLosses:
        losses = []
        for student, target, weight, first in self._pairs(student_tokens, targets):
            loss = dual_loss(
                student,
                target,
                direction=direction,
                tfd_weight=weight * self._tfd_weight,
                sfd_weight=weight * self._sfd_weight,
                first_row=first,
                kernel=self._kernel,
            )
            losses.append(DualLoss(loss.total, weight * loss.tfd, weight * loss.sfd))
        total, tfd, sfd = (torch.stack(scalars).sum() for scalars in zip(*losses, strict=True))
        return DistillationLosses(total, tfd, sfd)

    @torch.no_grad()
    def both_directions(self, student_tokens: _Tokens, targets: _Tokens) -> dict[str, Tensor]:
        """Both losses as KL in both directions, whatever is trained: `train/kl_{tfd,sfd}_{DIRECTION}`, in nats."""
        metrics: dict[str, Tensor] = {}
        for direction in get_args(Direction):
            if self._kernel != "eager":  # as written they would take more memory than the step around them
                _, tfd, sfd = self._fused(student_tokens, targets, direction)
            else:
                tfd = self._tfd(student_tokens, targets, "kl", direction)
                sfd = self._sfd(student_tokens, targets, "kl", direction)
            metrics |= {f"train/kl_tfd_{direction}": tfd, f"train/kl_sfd_{direction}": sfd}
        return metrics

    def _tfd(self, student_tokens: _Tokens, targets: _Tokens, divergence: Divergence, direction: Direction) -> Tensor:
        losses = [
            weight
            * token_fusion_loss(student[:, first:], target[:, first:], divergence=divergence, direction=direction)
            for student, target, weight, first in self._pairs(student_tokens, targets)
        ]
        return torch.stack(losses).sum()

    def _sfd(self, student_tokens: _Tokens, targets: _Tokens, divergence: Divergence, direction: Direction) -> Tensor:
        losses = [
            weight * spatial_fusion_loss(student, target, divergence=divergence, direction=direction)
            for student, target, weight, _ in self._pairs(student_tokens, targets)
        ]
        return torch.stack(losses).sum()

    def _pairs(self, student_tokens: _Tokens, targets: _Tokens) -> Iterator[tuple[Tensor, Tensor, float, int]]:
        """For each target: student tokens, target tokens, weight, first row that TFD looks at."""
        assert student_tokens.keys() == targets.keys(), f"student {list(student_tokens)}, targets {list(targets)}"
        strangers = (self._target_weights.keys() | self._without_class_token) - targets.keys()
        assert not strangers, f"settings of targets {sorted(strangers)}, which are not among {list(targets)}"
        for name, target in targets.items():
            first = 1 if name in self._without_class_token else 0
            yield student_tokens[name], target, self._target_weights.get(name, 1.0), first
