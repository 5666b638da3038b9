"""The door to timm: builds plain ViTs and reads their tokens; knows no weights file, no teacher, no method."""

import difflib
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.section import multiples_near
from dmt_ds.errors import ConfigError, WeightsError
from dmt_ds.models.drop_path import use_image_drop_path
from dmt_ds.models.gelu import one_exp_gelus
from dmt_ds.models.plain_vit import has_plain_attention
from dmt_ds.models.positions import check_width, sincos_positions
from dmt_ds.models.products import patches_as_product
from dmt_ds.wording import first_line

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer

SHORT_NAMES = {f"vit_{size}": f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")}
_NO_TOKENS = "timm:{}: is not a ViT with a class token and a LayerNorm over all tokens; take another tag"
_PLAIN_VIT_MODULES = ("vision_transformer", "deit")


@dataclass(frozen=True)
class VitShape:
    """What must agree between two ViTs for their tokens to stand beside each other.

    Attributes:
        embed_dim: width D.
        depth: number of blocks.
        num_heads: heads of a block.
        last_block_num_heads: heads of the last block, where TinyMIM's student has its teacher's.
        patch_size: side of a patch, in pixels.
        image_size: side of the image, in pixels.
        num_prefix_tokens: class, distillation and register tokens before the patches.
    """

    embed_dim: int
    depth: int
    num_heads: int
    last_block_num_heads: int
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
    if section.last_block_num_heads is not None:
        set_last_block_heads(vit, section.last_block_num_heads)
    _initialise(vit, section.positions)
    use_image_drop_path(vit, section.drop_path, section.drop_path_rule)
    return vit


def tokens_of(vit: nn.Module, images: Tensor) -> Tensor:
    """Class and patch tokens after the final LayerNorm, without distillation or register tokens.

    Args:
        images: [B, 3, H, W], normalised, in the parameters' dtype.

    Returns:
        [B, 1+N, D].
    """
    tokens: Tensor = vit.forward_features(images)  # type: ignore[operator]
    return class_and_patches(vit, tokens)


def class_and_patches(vit: nn.Module, tokens: Tensor) -> Tensor:
    """Leaves distillation and register tokens out: [B, prefix+N, ..] -> [B, 1+N, ..]."""
    prefix: int = vit.num_prefix_tokens  # type: ignore[assignment]
    if prefix == 1:
        return tokens
    return torch.cat([tokens[:, :1], tokens[:, prefix:]], dim=1)


def shape_of(vit: nn.Module) -> VitShape:
    """The shape of a timm ViT or BEiT."""
    any_vit: Any = vit
    return VitShape(
        embed_dim=any_vit.embed_dim,
        depth=len(any_vit.blocks),
        num_heads=any_vit.blocks[0].attn.num_heads,
        last_block_num_heads=any_vit.blocks[-1].attn.num_heads,
        patch_size=any_vit.patch_embed.patch_size[0],
        image_size=any_vit.patch_embed.img_size[0],
        num_prefix_tokens=any_vit.num_prefix_tokens,
    )


def set_last_block_heads(vit: nn.Module, num_heads: int) -> None:
    """Cuts the last block's width into so many heads; no tensor changes.

    Raises:
        ConfigError: the width is not a multiple of them, or the block's attention is not plain.
    """
    any_vit: Any = vit
    width, block = any_vit.embed_dim, any_vit.blocks[-1]
    if num_heads == block.attn.num_heads:
        return
    if width % num_heads:
        raise ConfigError(
            f"student.last_block_num_heads {num_heads} does not divide the student's width {width}: "
            f"set student.embed_dim to a multiple of {num_heads}"
        )
    if not has_plain_attention(block):
        raise ConfigError("student.last_block_num_heads: this student.arch has no plain attention; take vit_tiny")
    block.attn.num_heads, block.attn.head_dim = num_heads, width // num_heads
    block.attn.scale = block.attn.head_dim**-0.5


def prefer_written_attention(vit: nn.Module) -> None:
    """Attention as matmul, softmax, matmul: on a CPU the backward of torch's fused kernel is several times slower."""
    for module in vit.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]


def create(arch: str, **model_args: Any) -> nn.Module:
    """The only call of timm's `create_model`."""
    import timm

    return one_exp_gelus(patches_as_product(timm.create_model(arch, **model_args)))


def full_name(arch: str, setting: str) -> str:
    """The full name, in timm, of an architecture.

    Args:
        setting: dotted path of what named it, for the error.

    Raises:
        ConfigError: timm does not know it; the message has near names.
    """
    import timm

    name = SHORT_NAMES.get(arch, arch)
    if timm.is_model(name):
        return name
    near = difflib.get_close_matches(arch, [*SHORT_NAMES, *_plain_vits()], n=3) or list(SHORT_NAMES)
    raise ConfigError(f"{setting}: timm knows no '{arch}'. Did you mean {' or '.join(repr(n) for n in near)}?")


def refuse_unknown(tag: str) -> None:
    """Raises ConfigError where timm has no such tag in its list, which needs no network."""
    import timm

    known = [name for pattern in ("*vit*", "*deit*", "*eva*", "beit*") for name in timm.list_pretrained(pattern)]
    if not timm.is_model(tag.split(".")[0]) or ("." in tag and tag not in known):
        near = difflib.get_close_matches(tag, known, n=3, cutoff=0.5)
        names = f"near names: {', '.join(near)}" if near else "`dmt-ds teachers list` shows some that there are"
        raise ConfigError(f"timm:{tag}: timm {timm.__version__} has no such weights; {names}")


def pretrained(tag: str) -> tuple[nn.Module, dict[str, Any]]:
    """A model of timm's hub, `ARCH.TAG`, with the authors' weights, at its own image size, and timm's record of them.

    Raises:
        ConfigError: timm knows no such tag.
        WeightsError: the weights can't be fetched, or have no LayerNorm over all tokens.
    """
    refuse_unknown(tag)
    try:
        vit = create(tag, pretrained=True, num_classes=0, global_pool="token")
    except Exception as error:  # the hub client's errors have no common class
        raise WeightsError(_why_not_fetched(tag, error)) from error
    if not hasattr(vit, "blocks") or not getattr(vit, "num_prefix_tokens", 0) or isinstance(vit.norm, nn.Identity):
        raise WeightsError(_NO_TOKENS.format(tag))
    return vit, dict(vit.pretrained_cfg)  # type: ignore[arg-type]


def _why_not_fetched(tag: str, error: Exception) -> str:
    if isinstance(error, AssertionError | TypeError | RuntimeError) and "state_dict" in str(error):
        return (
            f"timm:{tag}: has no LayerNorm over all tokens (fine-tuned with mean pooling?); take a self-supervised tag "
            "(`dmt-ds teachers list`)"
        )
    if isinstance(error, AssertionError):  # timm's word while it builds the model, before it fetches anything
        return _NO_TOKENS.format(tag)
    return (
        f"timm:{tag}: could not be downloaded ({type(error).__name__}: {first_line(error)[:120]}); download it once "
        f"on a machine with network access (python -c \"import timm; timm.create_model('{tag}', pretrained=True)\"), "
        "with the same HF_HOME, or give a file"
    )


def _plain_vits() -> list[str]:
    import timm

    return [name for module in _PLAIN_VIT_MODULES for name in timm.list_models(module=module)]


def _known_arch(name: str) -> str:
    """The full name of a plain ViT."""
    arch = full_name(name, "student.arch")
    if arch not in _plain_vits():
        raise ConfigError(_not_plain(name))
    return arch


def _not_plain(name: str) -> str:
    return (
        f"student.arch: '{name}' is not a plain ViT (class token, absolute positions, one LayerNorm at the end); "
        f"take {', '.join(SHORT_NAMES)} or another vit_* or deit_* of timm"
    )


def _check_sizes(section: StudentConfig, arch: str, image_size: int) -> None:
    if image_size % section.patch_size:
        near = multiples_near(image_size, section.patch_size)
        raise ConfigError(
            f"data.image_size {image_size} is not a multiple of student.patch_size {section.patch_size}: take {near}"
        )
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
    projection: nn.Conv2d = vit.patch_embed.proj
    bound = math.sqrt(6 / (projection.weight[0].numel() + projection.out_channels))
    nn.init.uniform_(projection.weight, -bound, bound)
    for token in (vit.cls_token, vit.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if positions == "sincos":
        _fix_sincos(vit)


def _fix_sincos(vit: "VisionTransformer") -> None:
    assert isinstance(vit.pos_embed, nn.Parameter)
    check_width(vit.embed_dim, [block.attn.num_heads for block in vit.blocks])
    table = sincos_positions(vit.embed_dim, vit.patch_embed.grid_size[0])  # [N, D]
    with torch.no_grad():
        vit.pos_embed.zero_()  # tokens before the patches have no place
        vit.pos_embed[0, -len(table) :] = table
    vit.pos_embed.requires_grad_(False)
