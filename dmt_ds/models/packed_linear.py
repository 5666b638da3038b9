"""Frozen weights that MKL keeps laid out for its product, instead of doing so at every call; on a CPU, in float32."""

import torch
from torch import Tensor, nn


class PackedLinear(nn.Linear):
    """A frozen linear map, quicker by a twentieth or so for one number of rows; another takes the usual way.

    The laid-out copy takes the weight's memory once more, and is no part of the state dict.
    """

    packed: Tensor
    rows: int

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        made: Tensor = torch.ops.mkl._mkl_linear(x, self.packed, self.weight, self.bias, self.rows)
        return made


def packing_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of that type, there, can be laid out ahead: in float32 on a CPU, with a torch that has MKL."""
    return device.type == "cpu" and dtype is torch.float32 and hasattr(torch.ops.mkl, "_mkl_linear")


def pack_linear(module: nn.Module, rows: int) -> None:
    """Changes the frozen linear maps inside to `PackedLinear`.

    Args:
        rows: of the products to come: images at once times tokens.
    """
    for layer in module.modules():
        if type(layer) is nn.Linear and not layer.weight.requires_grad:
            layer.__class__ = PackedLinear
            assert isinstance(layer, PackedLinear)
            layer.packed = torch.ops.mkl._mkl_reorder_linear_weight(layer.weight, rows)
            layer.rows = rows
