"""Which layer of a ViT each weight stands in, for learning rates that differ by depth; knows no optimizer."""

import re
from typing import Any

from torch import nn

_BEFORE_BLOCKS = ("patch_embed.", "cls_token", "dist_token", "reg_token", "mask_token", "pos_embed", "norm_pre.")


def layer_numbers(module: nn.Module, vit: nn.Module) -> dict[str, int]:
    """Name of each parameter of `module` -> its layer, as BEiT and MAE number them.

    Layer 0 is the embedding (patches, tokens, positions), layer n the n-th block, and the last one, depth + 1, all
    that follows: the final norm, and whatever `module` has beside the ViT (a head).

    Args:
        module: what is trained.
        vit: a ViT inside it.
    """
    any_vit: Any = vit
    last = len(any_vit.blocks) + 1
    prefix = next(f"{name}." if name else "" for name, child in module.named_modules() if child is vit)
    numbers = {}
    for name, _ in module.named_parameters():
        numbers[name] = _layer_of(name[len(prefix) :], last) if name.startswith(prefix) else last
    return numbers


def _layer_of(name: str, last: int) -> int:
    """Layer of a parameter by its name within the ViT."""
    if block := re.match(r"blocks\.(\d+)\.", name):
        return int(block[1]) + 1
    return 0 if name.startswith(_BEFORE_BLOCKS) else last
