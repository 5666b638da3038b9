"""Both losses and their gradient in plain torch, a few images at a time, so that all of it stays in the cache.

The quick form takes one exponential of each tensor, shared by both axes: exp(s - its image's maximum) divided by the
sum over channels, or over positions. A row or a column that lies far below that maximum would vanish in float32; such
images (and any device where looking at the sums would make the host wait) go the way of two log-softmaxes. Below some
50,000 elements the losses as written are quicker, by a third of a millisecond at most.
"""

import torch
from torch import Tensor

from dmt_ds.distill.kernels.terms import Computed, Terms, new_gradient
from dmt_ds.distill.losses import at_least_float32

_ELEMENTS_AT_ONCE = 1 << 18
"""Elements of one tensor in a chunk (1 MiB in float32): the five tensors that are alive fit a core's caches."""
_LIFT = 4.0
"""The largest exponential is e^4, which leaves 59 nats down to `_SMALLEST_SUM`. A larger one would leave more, but
logarithms near 60 are rounded to 4e-6: too coarse for the small differences of a student that has nearly arrived."""
_SMALLEST_SUM = 1e-24
"""A smaller sum may have lost what is below float32's 1e-38."""


def dual_loss(student: Tensor, target: Tensor, terms: Terms, needs_gradient: bool) -> Computed:
    """Both losses, and the gradient of their weighted sum: [B, 1+N, D] twice -> see `Computed`."""
    images = max(1, _ELEMENTS_AT_ONCE // student[0].numel())
    gradient = new_gradient(student) if needs_gradient else None
    tfd = sfd = torch.zeros((), dtype=torch.float64, device=student.device)
    weights = terms.row_weight(student), terms.column_weight(student)
    for first in range(0, len(student), images):
        part = slice(first, first + images)
        s, t = at_least_float32(student[part]), at_least_float32(target[part])  # [C, 1+N, D]
        out = None if gradient is None else gradient[part]
        sums = _by_shared_exponentials(s, t, terms, weights, out) if s.device.type == "cpu" else None
        if sums is None:
            sums = _by_log_softmax(s, t, terms, weights, out)
        rows, columns = sums
        tfd = tfd + rows[:, terms.first_row :].sum(dtype=tfd.dtype)
        sfd = sfd + columns.sum(dtype=sfd.dtype)
    batch, num_tokens, channels = student.shape
    kind = torch.promote_types(student.dtype, torch.float32)
    tfd, sfd = tfd / (batch * (num_tokens - terms.first_row)), sfd / (batch * channels)
    return Computed(tfd.to(kind), sfd.to(kind), gradient)


def _by_shared_exponentials(
    s: Tensor, t: Tensor, terms: Terms, weights: tuple[float, float], gradient: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Divergences of rows [C, 1+N] and of columns [C, D], gradient written; None where sums are too small.

    At most five tensors of the chunk's size are alive; the names of those that are overwritten say what they hold now.
    """
    e, f = _lifted(s), _lifted(t)
    product = e - f  # d
    e.exp_()
    f.exp_()
    product.mul_(e if terms.student_first else f)
    sums_e, sums_f, sums_d = _sums(e), _sums(f), _sums(product)
    if not all(sums.min() > _SMALLEST_SUM for sums in (*sums_e, *sums_f)):
        return None
    log_ratios = [(z_s / z_t).log_() for z_s, z_t in zip(sums_e, sums_f, strict=True)]
    base = sums_e if terms.student_first else sums_f
    means = [total / z for total, z in zip(sums_d, base, strict=True)]  # of d, under p or q
    sign = 1 if terms.student_first else -1
    rows, columns = (sign * (mean - ratio) for mean, ratio in zip(means, log_ratios, strict=True))
    if gradient is None:
        return rows, columns
    factors = [weight / z for weight, z in zip(weights, sums_e, strict=True)]
    if terms.student_first:  # e d (a + b) - e (a mean + b mean)
        positive, negative, spare = product, e, f
        others = [factor * mean for factor, mean in zip(factors, means, strict=True)]
    else:  # e (a + b) - f (a' + b')
        positive, negative, spare = e, f, product
        others = [weight / z for weight, z in zip(weights, sums_f, strict=True)]
    positive.mul_(_outer_sum(factors, terms.first_row, out=spare))
    positive.addcmul_(negative, _outer_sum(others, terms.first_row, out=spare), value=-1)
    gradient.copy_(positive)
    return rows, columns


def _lifted(x: Tensor) -> Tensor:
    """Logarithms of the exponentials: each image's maximum is `_LIFT`; [C, 1+N, D] -> the same."""
    return x - (x.flatten(1).amax(dim=1) - _LIFT)[:, None, None]


def _sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Over channels [C, 1+N], and over patches [C, D]."""
    return x.sum(dim=2), x[:, 1:].sum(dim=1)


def _outer_sum(factors: list[Tensor], first_row: int, out: Tensor) -> Tensor:
    """Rows' factors [C, 1+N] plus columns' [C, D] for each element; the class token has its row's alone, or none."""
    rows, columns = factors
    torch.add(rows.unsqueeze(2), columns.unsqueeze(1), out=out)
    out[:, 0] = 0 if first_row else rows[:, :1]
    return out


def _by_log_softmax(
    s: Tensor, t: Tensor, terms: Terms, weights: tuple[float, float], gradient: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same for any range of values: each axis has its own maxima."""
    if gradient is not None:
        gradient.zero_()
    divergences = []
    for dim, first, weight in ((2, terms.first_row, weights[0]), (1, 1, weights[1])):
        log_p, log_q = s[:, first:].log_softmax(dim), t[:, first:].log_softmax(dim)
        p, log_ratio = log_p.exp(), log_p - log_q
        ahead, sign = (p, 1) if terms.student_first else (log_q.exp(), -1)
        divergence = sign * (ahead * log_ratio).sum(dim, keepdim=True)
        divergences.append(divergence.squeeze(dim))
        if gradient is not None:
            slope = p * (log_ratio - divergence) if terms.student_first else p - ahead
            gradient[:, first:].add_(slope, alpha=weight)
    rows, columns = divergences
    return torch.nn.functional.pad(rows, [terms.first_row, 0]), columns
