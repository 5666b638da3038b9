"""What each teacher contributes to the target, as scalars for log steps; knows no loss and no tracker.

The sum of teachers is sensitive to scale: a teacher with large channels dominates it, and one outlier channel makes the
softmax nearly one-hot. The raw numbers hide a constant part that the adapter's bias can carry, so each is also given
after centring (a running mean per channel, class and patch tokens apart).

| metric | meaning |
| --- | --- |
| `teachers/TEACHER/std`, `std_centred` | standard deviation over channels of a patch token, mean over tokens |
| `teachers/TEACHER/moving` | share of the patch tokens' energy that centring leaves: 0 is a constant teacher |
| `teachers/TEACHER/cosine`, `cosine_centred` | mean cosine of its patch tokens to the teachers' weighted sum |
| `teachers/TEACHER/share`, `share_centred` | length of its projection on that sum's patch tokens; adds up to 1 |
| `teachers/TEACHER/class_share`, `class_share_centred` | the same for class tokens, left out of the target or not |
| `teachers/agreement/A-B`, `teachers/agreement_centred/A-B` | mean cosine of two teachers' patch tokens |
| `teachers/cka/A-B` | linear CKA of their patch tokens: how alike they order images and places, in whatever basis |
| `teachers/TARGET/tfd_entropy` | entropy of the target's softmax over channels, over log D: 0 one-hot, 1 flat |
| `teachers/TARGET/sfd_entropy` | entropy of its softmax over positions, over log N |
| `teachers/TARGET/student_cosine` | mean cosine of the student's tokens to the target, class token included |

The sum is the plain one of weighted tokens, whatever `distill.fusion` and the teachers' `class_token` make of them.
TARGET is `fused`, or each teacher's name where they are kept apart (`concat`); the cosine to a class token that nobody
teaches is 0.
"""

import math
from collections.abc import Mapping
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_ds.distill.centring import RunningMeans, per_image_means, subtract_means
from dmt_ds.distill.losses import at_least_float32

_Tokens = Mapping[str, Tensor]


class TeacherDiagnostics:
    """Scalars of the module's table, from one micro-batch; called on log steps only, on all ranks alike."""

    def __init__(
        self, weights: Mapping[str, float] | None = None, momentum: float = 0.99, max_images: int = 64
    ) -> None:
        """Settings of the diagnostics.

        Args:
            weights: teacher -> factor of its tokens in the sum; missing means 1.
            momentum: per log step, of the means used for centring; before the first, a batch's own mean is used.
            max_images: only the first so many images of a micro-batch are looked at, which bounds the memory.
        """
        self._weights = dict(weights or {})
        self._means = RunningMeans(momentum)
        self._max_images = max_images

    @torch.no_grad()
    def __call__(self, teacher_tokens: _Tokens, targets: _Tokens) -> dict[str, Tensor]:
        """What no student has a part in, of one micro-batch, as scalars on the tokens' device.

        Args:
            teacher_tokens: teacher -> Z^(m), [B, 1+N, D]; all of one shape for shares and agreements, which are left
                out where widths differ; CKA needs the same number of tokens only.
            targets: target -> Z^T, [B, 1+N, D].
        """
        raw = {name: at_least_float32(tokens[: self._max_images]) for name, tokens in teacher_tokens.items()}
        centred = {name: self._centred(name, tokens) for name, tokens in raw.items()}
        metrics: dict[str, Tensor] = {}
        for name in raw:
            metrics[f"teachers/{name}/std"] = _channel_std(raw[name][:, 1:])
            metrics[f"teachers/{name}/std_centred"] = _channel_std(centred[name][:, 1:])
            metrics[f"teachers/{name}/moving"] = _ratio(_energy(centred[name][:, 1:]), _energy(raw[name][:, 1:]))
        if len({tokens.shape for tokens in raw.values()}) == 1:
            metrics |= self._relations(raw, "") | self._relations(centred, "_centred")
        for a, b in combinations(raw, 2):
            metrics[f"teachers/cka/{a}-{b}"] = linear_cka(raw[a][:, 1:].flatten(0, 1), raw[b][:, 1:].flatten(0, 1))
        for name, target in targets.items():
            looked_at = target[: self._max_images]
            metrics[f"teachers/{name}/tfd_entropy"] = relative_entropy(looked_at, dim=-1)
            metrics[f"teachers/{name}/sfd_entropy"] = relative_entropy(looked_at[:, 1:], dim=1)
        return metrics

    @torch.no_grad()
    def of_student(self, student_tokens: _Tokens, targets: _Tokens) -> dict[str, Tensor]:
        """How near a student is to its targets, both as name -> [B, 1+N, D], after that target's adapter."""
        return {
            f"teachers/{name}/student_cosine": _mean_cosine(
                at_least_float32(student_tokens[name][: self._max_images]), at_least_float32(target[: self._max_images])
            )
            for name, target in targets.items()
        }

    def after_step(self) -> None:
        """Move the means if the update was a log step; all ranks call, after each update."""
        self._means.after_step()

    def state_dict(self) -> dict[str, Tensor]:
        """Running means; the same on every rank."""
        return self._means.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self._means.load_state_dict(state)

    def _centred(self, name: str, tokens: Tensor) -> Tensor:
        self._means.observe(name, tokens)
        means = self._means.of(name, tokens.device)
        return subtract_means(tokens, per_image_means(tokens).mean(dim=0) if means is None else means)

    def _relations(self, tokens: _Tokens, suffix: str) -> dict[str, Tensor]:
        """Each teacher against the sum, and against each other."""
        weighted = {name: self._weights.get(name, 1.0) * tokens[name] for name in tokens}
        fused = torch.stack(list(weighted.values())).sum(dim=0)  # [B, 1+N, D]
        metrics = {}
        for name in tokens:
            metrics[f"teachers/{name}/cosine{suffix}"] = _mean_cosine(tokens[name][:, 1:], fused[:, 1:])
            metrics[f"teachers/{name}/share{suffix}"] = _share(weighted[name][:, 1:], fused[:, 1:])
            metrics[f"teachers/{name}/class_share{suffix}"] = _share(weighted[name][:, :1], fused[:, :1])
        for a, b in combinations(tokens, 2):
            metrics[f"teachers/agreement{suffix}/{a}-{b}"] = _mean_cosine(tokens[a][:, 1:], tokens[b][:, 1:])
        return metrics


def relative_entropy(logits: Tensor, dim: int) -> Tensor:
    """Mean entropy of the softmax over `dim`, as a share of the largest possible: 0 one-hot, 1 flat. Scalar."""
    log_p = at_least_float32(logits).log_softmax(dim)
    return -(log_p.exp() * log_p).sum(dim).mean() / math.log(logits.shape[dim])


def linear_cka(a: Tensor, b: Tensor) -> Tensor:
    """Linear centred kernel alignment of two descriptions of n things: [n, D] and [n, D'] -> scalar, 0 to 1.

    Kornblith et al., 2019, eq. 4 with linear kernels; turning, shifting and scaling either one changes nothing.
    """
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    return _ratio((a.T @ b).square().sum(), torch.linalg.norm(a.T @ a) * torch.linalg.norm(b.T @ b))


def _channel_std(tokens: Tensor) -> Tensor:
    return tokens.std(dim=-1, correction=0).mean()


def _energy(tokens: Tensor) -> Tensor:
    return tokens.square().mean()


def _mean_cosine(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a, b, dim=-1).mean()


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """<part, whole> / <whole, whole> over all tokens: the parts of a sum add up to 1."""
    return _ratio((part * whole).sum(), whole.square().sum())


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    return part / whole.clamp_min(torch.finfo(whole.dtype).tiny)  # 0 of 0 is 0: one image minus its own mean
