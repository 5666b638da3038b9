"""What a module holds beside the weights that an optimizer knows; knows no task.

A checkpoint that is loaded on another number of ranks comes back from the optimizer's float32 weights alone: frozen
parameters (a random patch projection) and buffers (running statistics) would silently stay as they were built.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def untrained_state(module: nn.Module) -> dict[str, Tensor]:
    """Frozen parameters and buffers, by name."""
    frozen = {
        name: parameter.detach()
        for name, parameter in module.named_parameters()
        if not parameter.requires_grad and not hasattr(parameter, "ds_id")  # one cut by ZeRO-3 is not whole here
    }
    return {**frozen, **{name: buffer.detach() for name, buffer in module.named_buffers()}}


@torch.no_grad()
def restore_untrained(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Inverse of `untrained_state`, in place."""
    now = untrained_state(module)
    assert now.keys() == state.keys(), f"frozen parameters and buffers changed: {now.keys() ^ state.keys()}"
    for name, value in state.items():
        now[name].copy_(value)
