"""Batch norm over the images of all ranks, on any device; knows no model."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dmt_ds.engine import dist


class SharedBatchNorm(nn.Module):
    """Batch norm without gain and bias, whose statistics are those of all ranks' images; for inputs without gradient.

    Torch's own needs CUDA to share them. In evaluation it uses running means, kept in float32 beside weights of any
    type.

    Args:
        width: of the features.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum, eps = 0.1, 1e-6  # eps as in MAE's probe

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, D] float32, each feature of mean 0 and variance 1."""
        features = features.float()
        mean, variance = self._of_batch(features.detach()) if self.training else (self.running_mean, self.running_var)
        return (features - mean) * (variance + self.eps).rsqrt()

    def _of_batch(self, features: Tensor) -> tuple[Tensor, Tensor]:
        total, mean, variance = _moments_over_ranks(features.double())
        self.running_mean.lerp_(mean.float(), self.momentum)
        self.running_var.lerp_((variance * total / (total - 1).clamp(min=1)).float(), self.momentum)
        return mean.float(), variance.float()

    def _apply(self, fn: Any, recurse: bool = True) -> "SharedBatchNorm":
        """Moves with the weights, but stays in float32: a cast comes before any statistics, when nothing is lost."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.running_mean, self.running_var = self.running_mean.float(), self.running_var.float()
        return self


class SharedBatchNorm2d(nn.SyncBatchNorm):
    """Torch's SyncBatchNorm on CUDA; where torch has none, on CPU ranks, the same sums over gloo.

    So the statistics, and the running means that evaluation uses, are the same on all ranks. Running means stay in
    float32 beside weights of any type: in bf16 a tenth of a small change would be lost. Weights compute in float32.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape and type."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        alone = dist.world_size() == 1
        if self.training and maps.is_cuda and not alone:
            return super().forward(maps)
        if self.training:
            self.num_batches_tracked.add_(1)
        if not self.training or alone:
            weight, bias = self.weight.float(), self.bias.float()
            return functional.batch_norm(
                maps, self.running_mean, self.running_var, weight, bias, self.training, self.momentum, self.eps
            )
        normed, mean, variance, count = _OverRanks.apply(maps, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), self.momentum)
        output: Tensor = normed
        return output

    def _apply(self, fn: Any, recurse: bool = True) -> "SharedBatchNorm2d":
        """Moves with the weights, but the statistics stay in float32: a cast comes before any, when nothing is lost."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        assert self.running_mean is not None
        assert self.running_var is not None
        self.running_mean, self.running_var = self.running_mean.float(), self.running_var.float()
        return self


class _OverRanks(torch.autograd.Function):
    """The batch norm of the images of all ranks, whose sums pass through `dist.sum_over_ranks` both ways."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        wide = maps.float()
        total, mean, variance = _moments_over_ranks(wide)
        mean, variance = mean.float(), variance.float()
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(maps, weight, mean, scale, total.float())
        ctx.mark_non_differentiable(mean, variance, total)
        normed = (wide - _plane(mean)) * _plane(scale * weight.float()) + _plane(bias.float())
        return normed.to(maps.dtype), mean, variance, total.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        maps, weight, mean, scale, total = ctx.saved_tensors
        wide, unit = gradient.float(), (maps.float() - _plane(mean)) * _plane(scale)
        of_bias, of_weight = wide.sum((0, 2, 3)), (wide * unit).sum((0, 2, 3))  # this rank's, as its loss has them
        means = dist.sum_over_ranks(torch.stack([of_bias, of_weight])) / total
        of_maps = (wide - _plane(means[0]) - unit * _plane(means[1])) * _plane(scale * weight.float())
        return of_maps.to(maps.dtype), of_weight.to(weight.dtype), of_bias.to(weight.dtype), None


def _moments_over_ranks(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count [1], mean [C] and variance [C] of each channel, over all ranks, in float64: [B, C, ...] of this one's."""
    count = values.new_full((1,), values.numel() / values.shape[1], dtype=torch.float64)
    others = (0, *range(2, values.dim()))
    own = [part.sum(others, dtype=torch.float64) for part in (values, values.square())]
    sums = dist.sum_over_ranks(torch.cat([count, *own]))
    total, (mean, square) = sums[:1], (sums[1:] / sums[:1]).chunk(2)
    return total, mean, (square - mean.square()).clamp(min=0)


def _plane(values: Tensor) -> Tensor:
    """[C] -> [1, C, 1, 1]."""
    return values[None, :, None, None]
