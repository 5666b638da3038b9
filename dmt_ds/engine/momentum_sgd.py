"""SGD with momentum for engines whose checkpoints change their number of ranks; knows no schedule."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class MomentumSgd(Optimizer):
    """buffer <- m * buffer + gradient + weight_decay * weight; weight <- weight - lr * buffer: torch's SGD.

    DeepSpeed's universal checkpoints carry Adam's two moments over and nothing else. So the buffer goes by the name of
    the first, and a second of zeros is kept: little for a head, which this is for.

    Args:
        groups: each with `params`, and its own `lr` and `weight_decay`.
        momentum: m, in [0, 1).
    """

    def __init__(self, groups: Iterable[dict[str, Any]], momentum: float) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One update of all weights that have a gradient; there is no closure."""
        assert closure is None
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    gradient = weight.grad.add(weight, alpha=group["weight_decay"])
                    buffer = self._buffer_of(weight).mul_(group["momentum"]).add_(gradient)
                    weight.add_(buffer, alpha=-group["lr"])

    def _buffer_of(self, weight: nn.Parameter) -> Tensor:
        state = self.state[weight]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        buffer: Tensor = state["exp_avg"]
        return buffer
