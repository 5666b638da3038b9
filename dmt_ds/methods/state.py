"""Names of a task's tensors in its checkpoint; knows no method."""

from collections.abc import Mapping

from torch import Tensor


def with_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`{name: t}` -> `{prefix.name: t}`."""
    return {f"{prefix}.{name}": tensor for name, tensor in state.items()}


def without_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of `state` under `prefix.`, by its own names."""
    start = f"{prefix}."
    return {name.removeprefix(start): tensor for name, tensor in state.items() if name.startswith(start)}
