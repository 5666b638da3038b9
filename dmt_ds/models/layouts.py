"""The key names of published checkpoints, and their translation to timm's; knows no file and no model."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD, Triple
from dmt_ds.errors import WeightsError
from dmt_ds.models.positions import is_moco_v3_table

LICENCES = {
    "mae": "CC-BY-NC-4.0",
    "moco_v3": "CC-BY-NC-4.0",
    "ibot": "Apache-2.0",
    "dino": "Apache-2.0",
    "dinov2": "Apache-2.0",
    "deit": "Apache-2.0",
    "beit": "Apache-2.0",
}
"""SPDX ids, by layout, of what the layouts' authors publish; layouts that many use (`timm`, `hf`) have none."""

_HALF: Triple = (0.5, 0.5, 0.5)
NORMALISATION: dict[str, tuple[Triple, Triple]] = {
    **dict.fromkeys(LICENCES, (IMAGENET_MEAN, IMAGENET_STD)),
    "beit": (_HALF, _HALF),
}
"""Mean and std, by layout, of the pixels in 0..1 that the authors train with. `beit` is BEiT v1: pretrained weights of
v2, which has ImageNet's, are refused for the extra blocks in their files, fine-tuned ones for their missing norm."""

MOCO_ENCODERS = ("base_encoder", "momentum_encoder")
"""The two encoders of a MoCo v3 checkpoint."""
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")
_CHUNK = re.compile(r"(^|\.)blocks\.\d+\.(?=\d+\.)")
"""DINOv2's training for FSDP has its blocks in chunks, `blocks.CHUNK.BLOCK.*`, and numbers them throughout."""
_NOT_THE_ENCODER = re.compile(
    r"^(head|head_dist|lm_head|projector|predictor)\.|^decoder_|^(mask_token|masked_embed)$|relative_position_index$"
)
_HF_NOT_THE_ENCODER = re.compile(
    r"^(pooler|classifier|cls_classifier|distillation_classifier|lm_head|decoder)\.|"
    r"^embeddings\.mask_token$|relative_position_index$"
)
_HF_PREFIX = re.compile(r"^(vit|deit|beit|dinov2|dinov2_with_registers)\.")
_HF_NAMES = (  # transformers' names on disk, and those that 5.x has in memory
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.register_tokens$", "register_tokens"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^layernorm\.", "norm."),
    (r"^encoder\.relative_position_bias\.", "rel_pos_bias."),
    (r"^(?:encoder\.)?layers?\.(\d+)\.", r"blocks.\1."),
    (r"(blocks\.\d+\.)(?:attention\.output\.dense|attention\.o_proj)\.", r"\1attn.proj."),
    (r"(blocks\.\d+\.)intermediate\.dense\.", r"\1mlp.fc1."),
    (r"(blocks\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
    (r"(blocks\.\d+\.)layernorm_before\.", r"\1norm1."),
    (r"(blocks\.\d+\.)layernorm_after\.", r"\1norm2."),
    (r"(blocks\.\d+\.)layer_scale(\d)\.lambda1$", r"\1ls\2.gamma"),
    (r"(blocks\.\d+\.)lambda_(\d)$", r"\1gamma_\2"),
    (r"(blocks\.\d+\.)(?:attention\.attention\.)?relative_position_bias\.", r"\1attn."),
    (r"(blocks\.\d+\.)attention\.attention\.(q|k|v)(?:uery|ey|alue)\.", r"\1attn.\2."),
    (r"(blocks\.\d+\.)attention\.(q|k|v)_proj\.", r"\1attn.\2."),
)

_HF_TOP_KEYS = {
    "cls_token": "embeddings.cls_token",
    "dist_token": "embeddings.distillation_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
    "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
    "norm.weight": "layernorm.weight",
    "norm.bias": "layernorm.bias",
}


@dataclass(frozen=True)
class Translated:
    """An encoder's tensors in timm's names.

    Attributes:
        layout: `mae`, `moco_v3`, `ibot`, `dino`, `dinov2`, `deit`, `beit`, `hf` or `timm`.
        state: timm's name -> tensor.
        file_keys: timm's name -> the name in the file (of its first part, where several became one).
        dropped: names in the file that are not the encoder's.
    """

    layout: str
    state: dict[str, Tensor]
    file_keys: dict[str, str]
    dropped: tuple[str, ...]


def to_timm_names(
    state: Mapping[str, Tensor], where: str, part: str | None = None, siblings: Collection[str] = ()
) -> Translated:
    """Finds the encoder in a state dict of any known layout.

    Args:
        where: the file, for error messages.
        part: `base_encoder` or `momentum_encoder` of a MoCo v3 checkpoint, or the top-level key that `state` lay under.
        siblings: all top-level keys of the checkpoint; they tell iBOT's from DINO's.

    MoCo v3's own script (`convert_to_deit.py`) leaves timm's names: its fixed positions tell such a file from MAE's.
    """
    names = _without_chunks({key: _WRAPPERS.sub("", key) for key in state})  # file's key -> without wrappers
    bare = set(names.values())
    if any(name.startswith(tuple(f"{encoder}." for encoder in MOCO_ENCODERS)) for name in bare):
        encoder = part if part in MOCO_ENCODERS else "base_encoder"
        return _plain(state, _with_prefix(names, f"{encoder}."), "moco_v3")
    if part in MOCO_ENCODERS:
        raise WeightsError(f"{where}: checkpoint_key '{part}' is for MoCo v3's layout, and this file has no '{part}.*'")
    if any(name.startswith("backbone.") for name in bare):
        names = _with_prefix(names, "backbone.")
        masked = "ibot_loss" in siblings or "masked_embed" in names.values()
        others = "dinov2" if _is_dinov2(names.values()) else "dino"
        return _plain(state, names, "ibot" if masked else others)
    if any(re.search(r"(^|\.)embeddings\.(cls_token$|patch_embeddings\.)", name) for name in bare):
        return _transformers(state, names, where)
    moco = any(name == "pos_embed" and is_moco_v3_table(state[key]) for key, name in names.items())
    return _plain(state, names, "moco_v3" if moco else _layout_of_timm_names(bare, part))


def _layout_of_timm_names(bare: Collection[str], part: str | None) -> str:
    """Whose file it is, as far as its keys tell."""
    if any("relative_position_bias_table" in name for name in bare):
        return "beit"
    if _is_dinov2(bare):
        return "dinov2"
    if part == "model":  # MAE's releases are {'model': encoder}, DeiT's {'model': encoder and head}
        return "deit" if any(name.startswith(("head.", "head_dist.")) for name in bare) else "mae"
    if part == "state_dict" and not any(name.startswith("head.") for name in bare):
        return "ibot"
    return "timm"


def _is_dinov2(names: Collection[str]) -> bool:
    return "register_tokens" in names or ("mask_token" in names and "blocks.0.ls1.gamma" in names)


def _without_chunks(names: dict[str, str]) -> dict[str, str]:
    """`blocks.BLOCK.*` for `blocks.CHUNK.BLOCK.*`, unless two would get one name: then BLOCK counts within a chunk."""
    found = {key: _CHUNK.sub(r"\1blocks.", name) for key, name in names.items()}
    return found if len(set(found.values())) == len(set(names.values())) else names


def _with_prefix(names: Mapping[str, str], prefix: str) -> dict[str, str]:
    """Names without `prefix`; those of other networks become '', which is dropped."""
    return {key: name[len(prefix) :] if name.startswith(prefix) else "" for key, name in names.items()}


def _plain(state: Mapping[str, Tensor], names: Mapping[str, str], layout: str) -> Translated:
    kept = {key: name for key, name in names.items() if name and not _NOT_THE_ENCODER.search(name)}
    file_keys = {name: key for key, name in kept.items()}
    tensors = {name: state[key] for name, key in file_keys.items()}
    return _timm_variants(Translated(layout, tensors, file_keys, tuple(key for key in names if key not in kept)))


def _transformers(state: Mapping[str, Tensor], names: Mapping[str, str], where: str) -> Translated:
    tensors: dict[str, Tensor] = {}
    file_keys: dict[str, str] = {}
    dropped = []
    for key, wrapped in names.items():
        name = _HF_PREFIX.sub("", wrapped)
        if _HF_NOT_THE_ENCODER.search(name):
            dropped.append(key)
            continue
        for pattern, replacement in _HF_NAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name], file_keys[name] = state[key], key
    _join_qkv(tensors, file_keys, where)
    layout = "beit" if any("relative_position_bias_table" in name for name in tensors) else "hf"
    return _timm_variants(Translated(layout, tensors, file_keys, tuple(dropped)))


def _join_qkv(tensors: dict[str, Tensor], file_keys: dict[str, str], where: str) -> None:
    """Query, key and value become timm's `qkv`; BEiT, whose keys have no bias, keeps `q_bias` and `v_bias`."""
    keys_have_bias = any(name.endswith(".attn.k.bias") for name in tensors)
    attentions = {match[1] for name in tensors if (match := re.match(r"(blocks\.\d+\.attn\.)[qkv]\.", name))}
    for attention in sorted(attentions):
        for kind in ("weight", "bias"):
            parts = [f"{attention}{letter}.{kind}" for letter in "qkv"]
            there = [part for part in parts if part in tensors]
            if kind == "bias" and not keys_have_bias:
                for part in there:
                    _move(tensors, file_keys, part, part.replace(".bias", "_bias"))
            elif there:
                _check_siblings(tensors, file_keys, parts, where)
                keys = [file_keys.pop(part) for part in parts]
                tensors[f"{attention}qkv.{kind}"] = torch.cat([tensors.pop(part) for part in parts])
                file_keys[f"{attention}qkv.{kind}"] = keys[0]


def _check_siblings(tensors: Mapping[str, Tensor], file_keys: Mapping[str, str], parts: list[str], where: str) -> None:
    """Query, key and value must all be there, and of one shape."""
    there = {part: file_keys[part] for part in parts if part in tensors}
    missing = [part for part in parts if part not in there]
    if missing:
        have, key = next(iter(there.items()))
        old, new = have.split(".")[-2], missing[0].split(".")[-2]
        words = {"q": "query", "k": "key", "v": "value"}
        lost = key.replace(f".{words[old]}.", f".{words[new]}.").replace(f".{old}_proj.", f".{new}_proj.")
        raise WeightsError(f"{where}: missing '{lost}' beside {list(there.values())}; fetch the file again")
    if len({tensors[part].shape for part in parts}) > 1:
        shapes = ", ".join(f"'{there[part]}' {list(tensors[part].shape)}" for part in parts)
        raise WeightsError(f"{where}: query, key and value differ in shape: {shapes}; fetch the file again")


def _move(tensors: dict[str, Tensor], file_keys: dict[str, str], old: str, new: str) -> None:
    tensors[new], file_keys[new] = tensors.pop(old), file_keys.pop(old)


def _timm_variants(found: Translated) -> Translated:
    """Renames what authors and timm call differently; in place."""
    tensors, file_keys = found.state, found.file_keys
    if found.layout != "beit":
        for name in [name for name in tensors if re.search(r"\.gamma_[12]$", name)]:
            _move(tensors, file_keys, name, re.sub(r"gamma_([12])$", r"ls\1.gamma", name))
    if "register_tokens" in tensors:
        _move(tensors, file_keys, "register_tokens", "reg_token")
        if "pos_embed" in tensors and "cls_token" in tensors:
            # DINOv2 adds positions before it inserts registers; timm keeps the class token's own in the token.
            tensors["cls_token"] = tensors["cls_token"] + tensors["pos_embed"][:, :1]
            tensors["pos_embed"] = tensors["pos_embed"][:, 1:]
    return found


def file_key(file_keys: Mapping[str, str], name: str) -> str:
    """The file's own name of a timm key, also of one that is missing: as its sibling in another block is called."""
    if name in file_keys:
        return file_keys[name]
    block = re.match(r"blocks\.(\d+)\.", name)
    for other, key in file_keys.items():
        sibling = re.match(r"blocks\.(\d+)\.", other)
        if block and sibling and other[sibling.end() :] == name[block.end() :]:
            of_sibling = rf"(layers?|blocks)\.(\d+\.)?{sibling[1]}\."
            return re.sub(of_sibling, rf"\g<1>.\g<2>{block[1]}.", key, count=1)
    of_transformers = next((key for key in file_keys.values() if "embeddings." in key), None)
    if of_transformers:
        return of_transformers.split("embeddings.")[0] + _HF_TOP_KEYS.get(name, name)
    prefixes = {key.removesuffix(other) for other, key in file_keys.items() if key.endswith(other)}
    return prefixes.pop() + name if len(prefixes) == 1 else name
