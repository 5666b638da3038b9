"""Blocks of a frozen plain ViT whose residual sums are part of their products; knows no teacher."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dmt_ds.triton_support import obstacle_to_triton


class ProductBlock(nn.Module):
    """A block that adds to its input in place, with half of the bytes that pass through memory between its products.

    After attention and MLP stands x + W h + b, which takes a pass over memory. cuBLAS adds W h to an x that is there
    at the speed at which it would write W h; what it does not add as well is b. So x goes without the biases, and each
    LayerNorm adds those that it should have by then, in float32 and in a kernel of its own. Nothing is left for a
    compiler; torch's own kernels add up several W h + b before they write x.

    Args:
        block: timm's, a plain one (`has_plain_blocks`); its layers keep their names.
        shifts: what x lacks at each of its two LayerNorms: [D] each, in float32.
    """

    shift1: Tensor
    shift2: Tensor

    def __init__(self, block: Any, shifts: tuple[Tensor, Tensor]) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        for number, shift in enumerate(shifts, start=1):
            self.register_buffer(f"shift{number}", shift, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] without the biases of the blocks before -> the same tensor, without this one's either."""
        x = x.contiguous()
        _add_product(x, self._heads(_shifted_norm(x, self.shift1, self.norm1)), self.attn.proj)
        _add_product(x, self.mlp.act(self.mlp.fc1(_shifted_norm(x, self.shift2, self.norm2))), self.mlp.fc2)
        return x

    def _heads(self, x: Tensor) -> Tensor:
        """Attention up to its last product: [B, T, D] -> [B, T, D]."""
        batch, tokens, _ = x.shape
        qkv = self.attn.qkv(x).view(batch, tokens, 3, self.attn.num_heads, self.attn.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, D / heads]
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class ShiftedNorm(nn.LayerNorm):
    """LayerNorm of what `ProductBlock` gives, with the biases of all blocks."""

    shift: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> the same."""
        return _shifted_norm(x, self.shift, self)


def adding_in_products_pays(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether weights of that type, there, are quicker by `ProductBlock`: bf16 on a GPU for which Triton compiles."""
    return dtype is torch.bfloat16 and obstacle_to_triton(device) is None


@torch.no_grad()
def add_in_products(vit: nn.Module) -> None:
    """Change a frozen ViT's blocks to `ProductBlock`; it gives the same tokens, and nothing else of it may be read.

    Args:
        vit: of plain blocks (`has_plain_blocks`), with its weights.
    """
    any_vit: Any = vit
    shifts = _biases_so_far(any_vit.blocks)
    for number, block in enumerate(any_vit.blocks):
        any_vit.blocks[number] = ProductBlock(block, (next(shifts), next(shifts)))
    any_vit.norm.__class__ = ShiftedNorm
    any_vit.norm.register_buffer("shift", next(shifts), persistent=False)


def _biases_so_far(blocks: Any) -> Iterator[Tensor]:
    """What x lacks at each LayerNorm, in their order, the last one's included: [D] each, in float32."""
    biases = [bias.float() for block in blocks for bias in (block.attn.proj.bias, block.mlp.fc2.bias)]
    so_far = torch.zeros_like(biases[0])
    yield so_far
    for bias in biases:
        so_far = so_far + bias
        yield so_far


def _shifted_norm(x: Tensor, shift: Tensor, norm: nn.LayerNorm) -> Tensor:
    if x.is_cuda:
        from dmt_ds.models.norm_triton import shifted_norm

        return shifted_norm(x, shift, norm.weight, norm.bias, norm.eps)
    return F.layer_norm(x + shift, norm.normalized_shape, norm.weight, norm.bias, norm.eps)


def _add_product(x: Tensor, h: Tensor, linear: nn.Linear) -> None:
    """In place: x += W h."""
    x.flatten(0, 1).addmm_(h.flatten(0, 1), linear.weight.t())
