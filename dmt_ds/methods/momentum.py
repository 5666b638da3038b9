"""A running mean of a trained network, in float32; knows no method.

The mean lies outside of the trained module, so that no engine shards, averages or clips it: each rank holds the same
copy and makes the same update from the same weights.
"""

import copy
import math
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from dmt_ds.engine.task import Progress
from dmt_ds.models.vit import prefer_written_attention
from dmt_ds.tracking.spans import span

M = TypeVar("M", bound=nn.Module)


def momentum_at(start: float, progress: Progress) -> float:
    """Momentum of the update that `progress.step` counts: from `start` up to 1 by a half cosine (MoCo v3, iBOT)."""
    done = (progress.step - 1) / progress.total_steps
    return 1.0 - (1.0 - start) * 0.5 * (1.0 + math.cos(math.pi * done))


class MomentumNetwork(Generic[M]):
    """average <- m * average + (1 - m) * weights, kept in float32 beside weights of any type.

    Attributes:
        network: the average, without gradients; a copy of the trained network at the start.
    """

    def __init__(self, trained: M) -> None:
        self.network: M = copy.deepcopy(trained).float().requires_grad_(False).eval()  # no drop path
        for module in self.network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.train()  # statistics of the batch, and of all ranks where they are shared

    def to(self, device: torch.device) -> None:
        """Move to `device`, and take the attention that is fast there."""
        self.network.to(device)
        if device.type == "cpu":
            prefer_written_attention(self.network)

    @torch.no_grad()
    def update(self, trained: nn.Module, momentum: float) -> None:
        """One step towards the weights of `trained`, which has the same layout as `network`."""
        average = tuple(self.network.parameters())
        current = [parameter.float() for parameter in trained.parameters()]
        torch._foreach_lerp_(average, current, 1 - momentum)

    def __call__(self, trained: nn.Module, *inputs: object) -> Any:
        """Forward without gradients; the float32 weights compute in bf16 where those of `trained` do."""
        parameter = next(trained.parameters())
        half = parameter.dtype == torch.bfloat16
        autocast = torch.autocast(parameter.device.type, dtype=torch.bfloat16, enabled=half)
        with torch.no_grad(), autocast, span("teachers"):
            return self.network(*inputs)
