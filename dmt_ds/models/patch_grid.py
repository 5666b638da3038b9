"""The grid of patches that an encoder's positions belong to, and how it gets another; knows no weights file."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmt_ds.config.section import multiples_near
from dmt_ds.errors import WeightsError
from dmt_ds.models.vit import VitShape


def check_image_size(where: str, shape: VitShape, image_size: int) -> None:
    """The weights' patch grid against the run's.

    Raises:
        WeightsError: names both grids and the remedy.
    """
    if shape.image_size == image_size:
        return
    own, asked = shape.image_size // shape.patch_size, image_size / shape.patch_size
    raise WeightsError(
        f"{where}: its positions are a {own} x {own} grid (image {shape.image_size}, patch {shape.patch_size}), "
        f"data.image_size {image_size} gives {asked:g} x {asked:g}: set data.image_size={shape.image_size}, "
        "or take other weights; a teacher's positions are interpolated by teachers.models.NAME.resize_positions=true"
    )


def move_to_image_size(where: str, vit: nn.Module, image_size: int) -> None:
    """Interpolates a ViT's positions, in place, so that it takes images of another size; bicubic, antialiased (timm's).

    Raises:
        WeightsError: it has no table of positions, or the size is no multiple of its patches.
    """
    any_vit: Any = vit
    patch_size = int(any_vit.patch_embed.patch_size[0])
    if getattr(vit, "pos_embed", None) is None:
        raise WeightsError(f"{where}: resize_positions: it has no table of positions to interpolate; leave it out")
    if image_size % patch_size:
        raise WeightsError(
            f"{where}: resize_positions: data.image_size {image_size} is not a multiple of its patches of {patch_size} "
            f"pixels: take {multiples_near(image_size, patch_size)}"
        )
    any_vit.set_input_size(img_size=(image_size, image_size))


def resized_positions(table: Tensor, num_prefix_tokens: int, grid: int) -> Tensor:
    """Positions of the patches on another square grid, bicubic, as MAE and iBOT do; those before them stay.

    Args:
        table: [1, P + N, D] float, N a square number.
        num_prefix_tokens: P.

    Returns:
        [1, P + grid * grid, D].
    """
    prefix, patches = table[:, :num_prefix_tokens], table[:, num_prefix_tokens:]
    side = round(patches.shape[1] ** 0.5)
    if side == grid:
        return table
    planes = patches.transpose(1, 2).reshape(1, -1, side, side).float()  # [1, D, side, side]
    resized = functional.interpolate(planes, (grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([prefix, resized.flatten(2).transpose(1, 2).to(table.dtype)], dim=1)
