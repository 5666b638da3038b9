"""What pretraining does between a ViT's patch embedding and its blocks: hide patches, drop them; knows no loss."""

from typing import Any

import torch
from torch import Tensor, nn

from dmt_ds.config.schema import StudentConfig
from dmt_ds.errors import ConfigError
from dmt_ds.models.start import start_from
from dmt_ds.models.vit import build_vit


def build_encoder(student: StudentConfig, image_size: int, *, any_size: bool = False) -> Any:
    """`build_vit`, for methods that reach between its parts, with the weights of `student.init_from` where it is set.

    Raises:
        ConfigError: the ViT has tokens beside patches and one class token, or positions that leave the class token out.
        WeightsError: the weights to start from are unavailable, or belong to another ViT.
    """
    vit = build_vit(student, image_size, any_size=any_size)
    if vit.num_prefix_tokens != 1 or vit.no_embed_class:
        raise ConfigError(
            f"student.arch: '{student.arch}' has register tokens, which masked and contrastive pretraining "
            "does not support: take vit_tiny, vit_small or vit_base"
        )
    if student.init_from is not None:
        start_from(vit, student.init_from, image_size)
    return vit


def patch_embeddings(vit: Any, images: Tensor) -> Tensor:
    """Patches before positions are added: [B, 3, H, W] of any float type -> [B, N, D] of the weights' type."""
    patches: Tensor = vit.patch_embed(images.to(vit.patch_embed.proj.weight.dtype))
    return patches.flatten(1, 2) if patches.ndim == 4 else patches  # a ViT of any size keeps the grid


def patch_positions(vit: Any) -> Tensor:
    """Positions of the patches, [1, N, D]."""
    table: Tensor = vit.pos_embed[:, 1:]
    return table


def encode(vit: Any, patches: Tensor) -> Tensor:
    """Blocks and final norm over the class token and patches that have their positions: [B, K, D] -> [B, 1+K, D]."""
    class_token = (vit.cls_token + vit.pos_embed[:, :1]).expand(len(patches), -1, -1)
    tokens: Tensor = vit.norm(vit.blocks(vit.norm_pre(torch.cat([class_token, patches], dim=1))))
    return tokens


def weights_type(module: nn.Module) -> torch.dtype:
    """The type in which `module` computes."""
    return next(module.parameters()).dtype
