"""What a task keeps beside the weights that an optimizer holds; knows no method.

A checkpoint that is loaded on another number of ranks comes back from the optimizer's float32 weights alone: frozen
parameters (a random patch projection) and buffers (running statistics) would silently stay as they were built.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def fixed_state(module: nn.Module) -> dict[str, Tensor]:
    """Frozen parameters and persistent buffers of `module`, by name."""
    trained = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in module.state_dict().items() if name not in trained}


@torch.no_grad()
def load_fixed_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Inverse of `fixed_state`.

    Raises:
        KeyError: `state` lacks one of the tensors.
    """
    for name, tensor in fixed_state(module).items():
        tensor.copy_(state[name])


def with_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`{name: t}` -> `{prefix.name: t}`."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def without_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of `state` under `prefix.`, by its own names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
