"""The door to timm: builds plain ViTs and reads their tokens; knows no weights file, no teacher, no method."""

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmt_ds.config.schema import StudentConfig
from dmt_ds.errors import ConfigError
from dmt_ds.models.drop_path import use_image_drop_path

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

SHORT_NAMES = {f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")}
_PLAIN_VIT_MODULES = ("vision_transformer", "deit")


@dataclass(frozen=True)
class VitShape:
    """What must agree between two ViTs for their tokens to stand beside each other.

    Attributes:
        embed_dim: width D.
        depth: number of blocks.
        num_heads: heads of a block.
        patch_size: side of a patch, in pixels.
        image_size: side of the image, in pixels.
        num_prefix_tokens: class, distillation and register tokens before the patches.
    """

    embed_dim: int
    depth: int
    num_heads: int
    patch_size: int
    image_size: int
    num_prefix_tokens: int

    @property
    def num_tokens(self) -> int:
        """1 + N: the class token and the patches; what `tokens_of` gives."""
        return 1 + (self.image_size // self.patch_size) ** 2


def build_vit(section: StudentConfig, image_size: int, *, any_size: bool = False) -> "VisionTransformer":
    """A ViT with fresh weights (MAE's initialisation), class token, final LayerNorm and no head.

    Args:
        image_size: side of the image, in pixels.
        any_size: also take images of other sizes, with interpolated positions (small crops of DINO and iBOT).

    Raises:
        ConfigError: the architecture is unknown or no plain ViT, or its sizes do not fit each other.
    """
    from timm.models.vision_transformer import VisionTransformer

    arch = _known_arch(section.arch)
    _check_sizes(section, arch, image_size)
    overrides = {key: getattr(section, key) for key in ("embed_dim", "depth", "num_heads")}
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        vit = create(
            arch,
            num_classes=0,
            class_token=True,
            global_pool="token",
            img_size=image_size,
            patch_size=section.patch_size,
            dynamic_img_size=any_size,
            **given,
        )
    except (AssertionError, TypeError, ValueError) as error:
        sizes = ", ".join(f"student.{key}={value}" for key, value in given.items()) or "its own sizes"
        raise ConfigError(f"student.arch: '{section.arch}' with {sizes} cannot be built ({error})") from error
    if not isinstance(vit, VisionTransformer) or not isinstance(vit.pos_embed, nn.Parameter):
        raise ConfigError(_not_plain(section.arch))
    _initialise(vit, section.positions)
    use_image_drop_path(vit, section.drop_path)
    if not torch.cuda.is_available():
        prefer_written_attention(vit)
    return vit


def tokens_of(vit: nn.Module, images: Tensor) -> Tensor:
    """Class and patch tokens after the final LayerNorm, without distillation or register tokens.

    Args:
        images: [B, 3, H, W], normalised, in the parameters' dtype.

    Returns:
        [B, 1+N, D].
    """
    tokens: Tensor = vit.forward_features(images)  # type: ignore[operator]
    prefix: int = vit.num_prefix_tokens  # type: ignore[assignment]
    if prefix == 1:
        return tokens
    return torch.cat([tokens[:, :1], tokens[:, prefix:]], dim=1)


def describe(vit: nn.Module) -> VitShape:
    """The shape of a timm ViT or BEiT."""
    any_vit: Any = vit
    return VitShape(
        embed_dim=any_vit.embed_dim,
        depth=len(any_vit.blocks),
        num_heads=any_vit.blocks[0].attn.num_heads,
        patch_size=any_vit.patch_embed.patch_size[0],
        image_size=any_vit.patch_embed.img_size[0],
        num_prefix_tokens=any_vit.num_prefix_tokens,
    )


def prefer_written_attention(vit: nn.Module) -> None:
    """Attention as matmul, softmax, matmul: on a CPU torch's fused kernel has a backward that is several times slower."""
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False


def sincos_positions(embed_dim: int, grid_size: int) -> Tensor:
    """MAE's fixed 2-D table (its `get_2d_sincos_pos_embed`): [N, D] float32, row by row.

    The first half of the channels holds the column, the second the row; each half is sines, then cosines, of the
    coordinate times 10000^(-k / (D/4)).
    """
    quarter = embed_dim // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)  # [D/4]
    coordinates = torch.arange(grid_size, dtype=torch.float64)
    rows, columns = torch.meshgrid(coordinates, coordinates, indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (columns, rows)]  # each [N, D/4]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1).float()


def create(arch: str, **model_args: Any) -> nn.Module:
    """timm's `create_model`, the only call of it."""
    import timm

    model: nn.Module = timm.create_model(arch, **model_args)
    return model


def _known_arch(name: str) -> str:
    """timm's full name of a plain ViT."""
    import timm

    arch = SHORT_NAMES.get(name, name)
    plain = [known for module in _PLAIN_VIT_MODULES for known in timm.list_models(module=module)]
    if arch in plain:
        return arch
    if timm.is_model(arch):
        raise ConfigError(_not_plain(name))
    near = difflib.get_close_matches(name, [*SHORT_NAMES, *plain], n=3)
    raise ConfigError(
        f"student.arch: timm knows no '{name}'. Did you mean {' or '.join(repr(n) for n in near or SHORT_NAMES)}?"
    )


def _not_plain(name: str) -> str:
    return (
        f"student.arch: '{name}' is no plain ViT (class token, absolute positions, one LayerNorm at the end); "
        f"take {', '.join(SHORT_NAMES)} or another vit_* or deit_* of timm"
    )


def _check_sizes(section: StudentConfig, arch: str, image_size: int) -> None:
    if image_size % section.patch_size:
        raise ConfigError(f"data.image_size {image_size} is not a multiple of student.patch_size {section.patch_size}")
    named = re.search(r"patch(\d+)", arch)
    if section.arch not in SHORT_NAMES and named and int(named[1]) != section.patch_size:
        raise ConfigError(
            f"student.arch '{arch}' has patches of {named[1]} pixels, but student.patch_size is {section.patch_size}: "
            f"set student.patch_size={named[1]}, or take one of {', '.join(SHORT_NAMES)}, which fit any patch size"
        )
    width = section.embed_dim
    if width and section.num_heads and width % section.num_heads:
        raise ConfigError(f"student.embed_dim {width} is not a multiple of student.num_heads {section.num_heads}")


def _initialise(vit: "VisionTransformer", positions: str) -> None:
    """MAE's initialisation: xavier for all linear maps (the patch embedding as one), 0.02 for tokens."""
    for module in vit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    projection: nn.Conv2d = vit.patch_embed.proj  # type: ignore[assignment]
    bound = math.sqrt(6 / (projection.weight[0].numel() + projection.out_channels))
    nn.init.uniform_(projection.weight, -bound, bound)
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if positions == "sincos":
        _fix_sincos(vit)


def _fix_sincos(vit: "VisionTransformer") -> None:
    assert isinstance(vit.pos_embed, nn.Parameter)
    if vit.embed_dim % 4:
        raise ConfigError(
            f"student.embed_dim {vit.embed_dim} is not a multiple of 4, as student.positions=sincos needs: "
            f"take {vit.embed_dim // 4 * 4} or student.positions=learned"
        )
    table = sincos_positions(vit.embed_dim, vit.patch_embed.grid_size[0])  # [N, D]
    with torch.no_grad():
        vit.pos_embed.zero_()  # tokens before the patches have no place
        vit.pos_embed[0, -len(table) :] = table
    vit.pos_embed.requires_grad_(False)
