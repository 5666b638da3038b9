"""The last tokens of a ViT as a feature map, with attention in windows where images are large; knows no head."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def feature_map(vit: nn.Module, images: Tensor, window_size: int = 0, num_global_blocks: int = 4) -> Tensor:
    """Patch tokens after the final LayerNorm: [B, 3, H, W] -> [B, D, H/p, W/p].

    Positions are interpolated to the images' grid by timm. Without windows the class token goes along, as in
    pretraining. With windows there is none, as in ViTDet (Li et al., 2022): most blocks then attend within windows, and
    a few, evenly spaced, over the whole image.

    Args:
        vit: a plain ViT that takes any size (`build_vit(..., any_size=True)`).
        images: normalised, in the parameters' type; H and W are multiples of the patch.
        window_size: side of a window, in patches; 0 attends globally in all blocks.
        num_global_blocks: blocks that see the whole image where the others have windows; the last is one of them.
    """
    any_vit: Any = vit
    patches: Tensor = any_vit.patch_embed(images)  # [B, h, w, D]
    height, width = patches.shape[1:3]
    tokens = any_vit.norm_pre(any_vit._pos_embed(patches))  # [B, prefix + h w, D]
    num_prefix: int = any_vit.num_prefix_tokens
    if window_size:
        tokens, num_prefix = tokens[:, num_prefix:], 0
    whole = global_blocks(len(any_vit.blocks), num_global_blocks)
    for number, block in enumerate(any_vit.blocks):
        if window_size and number not in whole:
            tokens = _block_in_windows(block, tokens, height, width, window_size)
        else:
            tokens = block(tokens)
    normed: Tensor = any_vit.norm(tokens)[:, num_prefix:]
    return normed.transpose(1, 2).reshape(len(normed), -1, height, width)


def global_blocks(depth: int, count: int) -> set[int]:
    """Numbers of the blocks that end each of `count` equal parts of the ViT: 2, 5, 8, 11 of twelve in four."""
    count = min(count, depth)
    return {depth * part // count - 1 for part in range(1, count + 1)}


def in_windows(tokens: Tensor, height: int, width: int, size: int) -> Tensor:
    """Cut a map into windows, with zeros beyond its edge: [B, h w, D] -> [B windows, size size, D]."""
    batch, _, dim = tokens.shape
    grid = tokens.view(batch, height, width, dim)
    grid = F.pad(grid, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = grid.shape[1] // size, grid.shape[2] // size
    windows = grid.view(batch, rows, size, columns, size, dim).transpose(2, 3)
    return windows.reshape(-1, size * size, dim)


def from_windows(windows: Tensor, height: int, width: int, size: int) -> Tensor:
    """Inverse of `in_windows`: [B windows, size size, D] -> [B, h w, D]."""
    rows, columns = -(-height // size), -(-width // size)
    dim = windows.shape[-1]
    grid = windows.view(-1, rows, columns, size, size, dim).transpose(2, 3)
    grid = grid.reshape(-1, rows * size, columns * size, dim)[:, :height, :width]
    return grid.reshape(len(grid), -1, dim)


def _block_in_windows(block: Any, tokens: Tensor, height: int, width: int, size: int) -> Tensor:
    """A plain block of timm's with its attention cut up: drop path, per image, and the MLP see no windows."""
    attended = block.attn(in_windows(block.norm1(tokens), height, width, size))
    tokens = tokens + block.drop_path1(block.ls1(from_windows(attended, height, width, size)))
    mixed: Tensor = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return mixed
