"""Which timm model a set of weights belongs to, read off the tensors' shapes; knows no file format."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Tensor, nn

from dmt_ds.errors import WeightsError
from dmt_ds.models.layouts import LICENCES
from dmt_ds.models.vit import create, full_name, shape_of
from dmt_ds.models.weights import Weights, check_keys, load_strict

_ARCH_OF_WIDTH = {192: "vit_tiny_patch16_224", 384: "vit_small_patch16_224"}
_UNUSUAL_HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}  # ViTs of these widths don't have heads 64 wide
_PUBLISHED_WIDTHS = (192, 384, 768, 1024, 1280, 1536)  # by authors whose layouts are known: ViT-Ti, S, B, L, H, g
_MOCO_V3_SMALL = (384, 12)
_MODERN = "rotary positions, gated MLPs and convolution stems are not read from files; take its timm tag (timm:TAG)"


@dataclass(frozen=True)
class Blueprint:
    """What `timm.create_model(arch, num_classes=0, **model_args)` needs to hold the weights.

    Attributes:
        arch: timm's architecture.
        model_args: what differs from it; plain values.
        norm_eps: of all LayerNorms.
    """

    arch: str
    model_args: dict[str, Any] = field(default_factory=dict)
    norm_eps: float = 1e-6

    def build(self) -> nn.Module:
        """The model, with random weights."""
        norm = {} if self.norm_eps == 1e-6 else {"norm_layer": partial(nn.LayerNorm, eps=self.norm_eps)}
        return create(self.arch, num_classes=0, global_pool="token", **self.model_args, **norm)


def blueprint_of(weights: Weights, num_heads: int | None = None) -> Blueprint:
    """Infers width, depth, patch, grid, registers and scales from the shapes, and heads from what else is known.

    Args:
        num_heads: heads asked for; None takes the file's, the layout's, else width / 64.

    Raises:
        WeightsError: a key is missing that the shape is read from, or the heads contradict the file.
    """
    state = weights.state
    for key in ("cls_token", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight"):
        if key not in state:
            named = ", ".join(f"'{name}'" for name in list(weights.file_keys.values())[:4]) or "no tensor of an encoder"
            raise WeightsError(f"{weights.where}: missing '{weights.key_in_file(key)}'; it has {named}. {_MODERN}")
    projection, width = state["patch_embed.proj.weight"], width_of(state)
    if projection.ndim != 4:
        raise WeightsError(f"{weights.where}: 'patch_embed.proj.weight' is {list(projection.shape)}. {_MODERN}")
    heads = heads_of(weights, num_heads)
    if heads is None:
        raise WeightsError(
            f"{weights.where}: a file does not tell its number of heads, and {width} channels are not a usual width: "
            "set num_heads"
        )
    args: dict[str, Any] = {
        "embed_dim": width,
        "depth": 1 + max(int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))),
        "num_heads": heads,
        "mlp_ratio": _usual(tensor.shape[0] for name, tensor in state.items() if ".mlp.fc1." in name) / width,
        "patch_size": projection.shape[-1],
    }
    if weights.layout == "beit" or any("relative_position_bias_table" in name for name in state):
        return _beit(weights, args)
    if "pos_embed" not in state:
        raise WeightsError(f"{weights.where}: missing '{weights.key_in_file('pos_embed')}'. {_MODERN}")
    return _plain_vit(weights, args)


def build_from(
    weights: Weights, arch: str | None = None, num_heads: int | None = None, *, load: bool = True
) -> nn.Module:
    """The model with these weights, loaded strictly.

    Args:
        arch: timm architecture that the weights must have; None takes what the shapes say.
        load: False checks keys and shapes only.

    Raises:
        WeightsError: the weights are not of that architecture, or not complete.
    """
    plan = blueprint_of(weights, num_heads)
    if arch is not None:
        plan = _as_arch(weights, plan, arch, num_heads)
    vit = plan.build()
    (load_strict if load else check_keys)(vit, weights)
    return vit


def _plain_vit(weights: Weights, args: dict[str, Any]) -> Blueprint:
    state, width = weights.state, args["embed_dim"]
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    prefix = 1 + registers + ("dist_token" in state)
    positions = state["pos_embed"].shape[1]
    outside = math.isqrt(positions) ** 2 == positions  # positions of patches only: DeiT III, DINOv2 with registers
    num_patches = positions if outside else positions - prefix
    grid = math.isqrt(max(num_patches, 0))
    if grid == 0 or grid**2 != num_patches:
        raise WeightsError(
            f"{weights.where}: '{weights.key_in_file('pos_embed')}' has {positions} positions, not a square grid and "
            f"{prefix} tokens before it; only square images are supported"
        )
    args |= {"img_size": grid * args["patch_size"], "qkv_bias": _any(state, "attn.qkv.bias")}
    if _any(state, "ls1.gamma"):
        args["init_values"] = 1e-5
    if registers:
        args["reg_tokens"] = registers
    if outside:
        args["no_embed_class"] = True
    arch = "deit_base_distilled_patch16_224" if "dist_token" in state else _ARCH_OF_WIDTH.get(width)
    return Blueprint(arch or "vit_base_patch16_224", args, weights.norm_eps)


def _beit(weights: Weights, args: dict[str, Any]) -> Blueprint:
    if "norm.weight" not in weights.state and "fc_norm.weight" in weights.state:
        raise WeightsError(
            f"{weights.where}: missing '{weights.key_in_file('norm.weight')}': a BEiT fine-tuned with mean pooling has "
            "no LayerNorm over its tokens; take the self-supervised file (beit_base_patch16_224_pt22k)"
        )
    table = next(tensor for name, tensor in weights.state.items() if name.endswith("relative_position_bias_table"))
    side = math.isqrt(table.shape[0] - 3)  # (2 g - 1)^2 offsets, and three for the class token
    shared = "rel_pos_bias.relative_position_bias_table" in weights.state
    args |= {
        "img_size": (side + 1) // 2 * args["patch_size"],
        "use_abs_pos_emb": "pos_embed" in weights.state,
        "use_rel_pos_bias": not shared,
        "use_shared_rel_pos_bias": shared,
        "init_values": 0.1 if _any(weights.state, "gamma_1") else None,
        "qkv_bias": _any(weights.state, "attn.q_bias"),
    }
    return Blueprint("beit_base_patch16_224", args, weights.norm_eps)


def width_of(state: Mapping[str, Tensor]) -> int:
    """Width of most of the tensors: one of a wrong shape must not decide what all others are held against."""
    return _usual(tensor.shape[-1] for name, tensor in state.items() if re.search(r"norm\d?\.|^cls_token$", name))


def _usual(sizes: Iterable[int]) -> int:
    return Counter(sizes).most_common(1)[0][0]


def heads_of(weights: Weights, asked: int | None = None) -> int | None:
    """Heads asked for, else the file's, else the layout's, else those that the width usually has; None where none is.

    Raises:
        WeightsError: what is asked for contradicts the file, or does not divide the width.
    """
    width, known = width_of(weights.state), _known_heads(weights)
    if known and asked and known != asked:
        raise WeightsError(
            f"{weights.where}: num_heads {asked} is asked for, the weights ({weights.layout} layout, {width} wide) "
            f"have {known} heads: set num_heads={known} or leave it out"
        )
    heads = asked or known or _UNUSUAL_HEADS.get(width) or (width // 64 if width % 64 == 0 else None)
    if heads and width % heads:
        raise WeightsError(f"{weights.where}: width {width} is not a multiple of num_heads {heads}; set num_heads")
    return heads


def heads_are_guessed(weights: Weights, arch: str | None = None, asked: int | None = None) -> bool:
    """Whether nothing but the width speaks for the heads that `build_from` takes.

    In its authors' own layout a file of a width that they publish has their heads, 64 wide but for those that
    `heads_of` knows; a file in timm's or transformers' names may be anybody's.
    """
    is_published = weights.layout in LICENCES and width_of(weights.state) in _PUBLISHED_WIDTHS
    return asked is None and arch is None and _known_heads(weights) is None and not is_published


def _known_heads(weights: Weights) -> int | None:
    """Heads that the file or its layout settles."""
    for name, tensor in weights.state.items():
        if name.endswith("relative_position_bias_table"):
            return tensor.shape[1]
    if weights.layout == "moco_v3" and width_of(weights.state) == _MOCO_V3_SMALL[0]:
        return _MOCO_V3_SMALL[1]  # its own vits.py; timm's ViT-S has 6 and gives wrong tokens without complaint
    return weights.num_heads


def _as_arch(weights: Weights, plan: Blueprint, arch: str, num_heads: int | None) -> Blueprint:
    """The blueprint as the named architecture; heads are its own where neither file nor user says them."""
    name = full_name(arch, f"arch of {weights.where}")
    named = shape_of(create(name, num_classes=0, device="meta"))
    asked = {"embed_dim": named.embed_dim, "depth": named.depth, "patch_size": named.patch_size}
    if num_heads is None and _known_heads(weights) is None:
        plan = replace(plan, model_args=plan.model_args | {"num_heads": named.num_heads})
    differing = [f"{key} {value} against {plan.model_args[key]}" for key, value in asked.items()]
    differing = [text for text, key in zip(differing, asked, strict=True) if asked[key] != plan.model_args[key]]
    if differing or (plan.arch.startswith("beit") != name.startswith("beit")):
        raise WeightsError(
            f"{weights.where}: arch '{arch}' does not match the weights ({plan.arch}-like): "
            f"{', '.join(differing) or 'other keys'} in the file; leave arch out, or fix it"
        )
    return replace(plan, arch=name)


def _any(state: Mapping[str, Tensor], ending: str) -> bool:
    return any(name.startswith("blocks.") and name.endswith(ending) for name in state)
