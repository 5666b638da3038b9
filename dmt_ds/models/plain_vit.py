"""Whether a timm ViT is no more than the first ViTs were, so that its parts may be taken one by one."""

from typing import Any

from torch import nn


def has_plain_attention(block: nn.Module) -> bool:
    """Whether a block's attention is softmax(Q K^T / sqrt(d)) V of one linear map's output, with nothing added."""
    from timm.models.vision_transformer import Attention

    attention: Any = getattr(block, "attn", None)
    # A subclass may add positions or norms; BEiT and EVA have classes of their own.
    return type(attention) is Attention and isinstance(attention.q_norm, nn.Identity)


def has_plain_blocks(vit: nn.Module) -> bool:
    """Whether all between embedding and final LayerNorm is x + attention, then x + MLP, each with a bias at its end."""
    from timm.models.vision_transformer import VisionTransformer

    any_vit: Any = vit
    return (
        type(vit) is VisionTransformer  # a subclass may do more
        and any_vit.pos_embed is not None
        and isinstance(any_vit.norm_pre, nn.Identity)
        and _is_whole(any_vit.norm)
        and all(map(_is_plain, any_vit.blocks))
    )


def _is_plain(block: Any) -> bool:
    from timm.layers import Mlp
    from timm.models.vision_transformer import Block

    if type(block) is not Block or not has_plain_attention(block) or type(block.mlp) is not Mlp:
        return False
    nothing = nn.Identity()
    beside = (block.ls1, block.ls2, getattr(block.attn, "norm", nothing), block.mlp.norm)
    return (
        all(isinstance(layer, nn.Identity) for layer in beside)
        and getattr(block.attn, "gate", None) is None
        and all(map(_is_whole, (block.norm1, block.norm2)))
        and all(layer.bias is not None for layer in (block.attn.proj, block.mlp.fc2))
    )


def _is_whole(norm: nn.Module) -> bool:
    """Whether it is a LayerNorm with a weight and a bias."""
    return isinstance(norm, nn.LayerNorm) and norm.weight is not None and norm.bias is not None
