"""Layers that on CUDA are quicker as plain matrix products; names and values of weights stay as they are."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchProduct(nn.Conv2d):
    """A convolution whose windows neither overlap nor leave a gap: one product of all patches with the weight.

    cuDNN takes several times as long for it (ViT-B, bf16, an H200), and changes the layout of images first.
    """

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, D, H/P, W/P], on CUDA a view of [B, N, D]."""
        if not images.is_cuda:
            return super().forward(images)
        return self.product(images)

    def product(self, images: Tensor) -> Tensor:
        """The same on any device."""
        batch, channels, height, width = images.shape
        (high, wide), width_out = self.kernel_size, len(self.weight)
        down, across = height // high, width // wide
        windows = images[:, :, : down * high, : across * wide].reshape(batch, channels, down, high, across, wide)
        patches = windows.permute(0, 2, 4, 1, 3, 5).reshape(batch, down * across, channels * high * wide)
        tokens = F.linear(patches, self.weight.view(width_out, -1), self.bias)  # [B, N, D]
        return tokens.transpose(1, 2).view(batch, width_out, down, across)


class GeluLinear(nn.Linear):
    """A linear map with GELU at its end; without gradient.

    By itself the GELU of an MLP reads and writes the widest tensor of its block once more. cuBLAS applies it to the
    sums that it is about to write, before they are rounded to bfloat16. It takes the tanh form, which differs from the
    exact one by 5e-4 at most: less than the rounding that is saved, so that tokens come nearer to float32's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        if not torch.compiler.is_compiling():
            return _with_gelu(x, self.weight, self.bias)  # an op of one's own costs the host more than the launch
        made: Tensor = _linear_gelu(x, self.weight, self.bias)
        return made


def patches_as_product(vit: nn.Module) -> nn.Module:
    """Changes a ViT's patch embedding to `PatchProduct`, if it is a plain one; gives the ViT."""
    convolution = getattr(getattr(vit, "patch_embed", None), "proj", None)
    if type(convolution) is nn.Conv2d and _cuts_patches(convolution):
        convolution.__class__ = PatchProduct
    return vit


def _cuts_patches(convolution: nn.Conv2d) -> bool:
    return (
        convolution.stride == convolution.kernel_size
        and convolution.padding == (0, 0)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )


def fusing_gelu_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether frozen weights of that type, there, are quicker by `fuse_gelu` and not less exact."""
    return device.type == "cuda" and dtype is torch.bfloat16


def fuse_gelu(module: nn.Module) -> int:
    """Have the frozen MLPs inside take GELU with their first product; gives how many do."""
    found = 0
    for mlp in module.modules():
        linear, activation = getattr(mlp, "fc1", None), getattr(mlp, "act", None)
        if type(mlp).__name__ == "Mlp" and type(linear) is nn.Linear and isinstance(activation, nn.GELU):
            if linear.bias is None or linear.weight.requires_grad:
                continue
            linear.__class__ = GeluLinear
            mlp.act = nn.Identity()
            found += 1
    return found


@torch.library.custom_op("dmt_ds::linear_gelu", mutates_args=())
def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """An op of our own, as a compiler would take torch's apart again."""
    return _with_gelu(x, weight, bias)


@_linear_gelu.register_fake
def _shape(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], len(weight))


def _with_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    rows = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return rows.view(*x.shape[:-1], len(weight))
