"""A step of a batch norm whose output, gradients and statistics tests compare."""

import torch
from torch import Tensor, nn

from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm2d

SIZE = 6


def given() -> tuple[Tensor, Tensor]:
    """Inputs far from mean 0, and the gradient that comes back: [B, C, H, W] each."""
    generator = torch.Generator().manual_seed(0)
    return 3 + 2 * torch.randn(SIZE, 5, 3, 4, generator=generator), torch.randn(SIZE, 5, 3, 4, generator=generator)


def normed(norm: nn.BatchNorm2d | SharedBatchNorm2d, rows: slice) -> dict[str, Tensor]:
    """Output, gradients and statistics after a step with weights that are no ones, on the norm's device in its type."""
    inputs, gradient = (whole[rows].clone().to(norm.weight) for whole in given())
    with torch.no_grad():
        norm.weight.copy_(torch.arange(5) - 1.5)
        norm.bias.copy_(torch.arange(5) / 3)
    inputs.requires_grad_()
    out = norm(inputs)
    out.backward(gradient)
    found = {"out": out.detach(), "inputs": inputs.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return {**found, "mean": norm.running_mean, "variance": norm.running_var, "judged": norm.eval()(inputs).detach()}
