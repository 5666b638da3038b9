"""A frozen plain ViT whose residual sums are part of its products; knows no teacher."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_ds.models.vit import class_and_patches
from dmt_ds.triton_support import obstacle_to_triton


class ProductSums:
    """Tokens of a frozen ViT, with half of the bytes that pass through memory between its products.

    After each attention and each MLP stands x + W h + b, which takes a pass over memory. cuBLAS adds W h to an x that
    is there at the speed at which it would write W h; what it does not add as well is b. So x goes without the biases,
    and each LayerNorm adds those that it should have by then, in float32 and in a kernel of its own. Nothing is
    compiled by torch, whose own kernels add up several W h + b before they write x.

    Args:
        vit: of plain blocks (`has_plain_blocks`), its weights on the device where they stay.
    """

    def __init__(self, vit: nn.Module) -> None:
        self._vit: Any = vit
        self._shifts = _biases_so_far(self._vit.blocks)

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W], normalised, in the weights' type -> tokens [B, 1+N, D], as `tokens_of` has them."""
        vit, shifts = self._vit, iter(self._shifts)
        x: Tensor = vit._pos_embed(vit.patch_embed(images)).contiguous()  # [B, prefix+N, D]
        for block in vit.blocks:
            _add_product(x, _heads(block.attn, _norm(x, next(shifts), block.norm1)), block.attn.proj)
            hidden = block.mlp.act(block.mlp.fc1(_norm(x, next(shifts), block.norm2)))
            _add_product(x, hidden, block.mlp.fc2)
            del hidden  # the largest there is
        return class_and_patches(vit, _norm(x, next(shifts), vit.norm))


def adding_in_products_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of that type, there, are quicker by `ProductSums`: in bf16 on a GPU for which Triton compiles."""
    return dtype is torch.bfloat16 and obstacle_to_triton(device) is None


@torch.no_grad()
def _biases_so_far(blocks: Any) -> list[Tensor]:
    """What x lacks at each LayerNorm, in their order, the last one's included: [D] each, in float32."""
    biases = [bias.float() for block in blocks for bias in (block.attn.proj.bias, block.mlp.fc2.bias)]
    so_far = [torch.zeros_like(biases[0])]
    for bias in biases:
        so_far.append(so_far[-1] + bias)
    return so_far


def _norm(x: Tensor, shift: Tensor, norm: nn.LayerNorm) -> Tensor:
    if x.is_cuda:
        from dmt_ds.models.norm_triton import shifted_norm

        return shifted_norm(x, shift, norm.weight, norm.bias, norm.eps)
    return F.layer_norm(x + shift, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _heads(attention: Any, x: Tensor) -> Tensor:
    """Plain attention up to its last product: [B, T, D] -> [B, T, D]."""
    batch, tokens, _ = x.shape
    qkv = attention.qkv(x).view(batch, tokens, 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)  # [B, heads, T, D / heads]
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, -1)


def _add_product(x: Tensor, h: Tensor, linear: nn.Linear) -> None:
    """In place: x += W h."""
    x.flatten(0, 1).addmm_(h.flatten(0, 1), linear.weight.t())
