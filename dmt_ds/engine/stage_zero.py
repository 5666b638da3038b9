"""What DeepSpeed leaves to others at ZeRO stage 0 in float32: masters and the gradient's norm; knows no engine."""

import torch
from torch import Tensor, nn


def own_master(name: str, parameter: nn.Parameter) -> Tensor:
    """The master of a weight that no engine keeps one of: itself."""
    assert parameter.dtype == torch.float32, f"{name} has no master"
    return parameter


def norm_of_gradients(module: nn.Module) -> Tensor:
    """Norm of all averaged gradients together: scalar, on the device."""
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    norm: Tensor = torch.stack(torch._foreach_norm(gradients)).norm()
    return norm
