"""The door to transformers: reads its ViTs from a folder or the hub into timm's names; builds no model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dmt_ds.errors import WeightsError
from dmt_ds.models.weights import Weights, read_weights

_MODEL_TYPES = ("vit", "vit_mae", "deit", "beit", "dinov2", "dinov2_with_registers")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


def read_hf(source: str) -> Weights:
    """Weights, heads, LayerNorm epsilon and normalisation of a transformers ViT, ViTMAE, DeiT, BEiT or DINOv2.

    Args:
        source: folder with config.json, or id on the hub.

    Raises:
        WeightsError: it can't be had, or is none of these models.
    """
    config = _config(source)
    if config.model_type not in _MODEL_TYPES:
        raise WeightsError(f"hf:{source}: model_type '{config.model_type}' is none of {', '.join(_MODEL_TYPES)}")
    if config.hidden_act != "gelu":
        raise WeightsError(f"hf:{source}: hidden_act '{config.hidden_act}' is not supported, only gelu is")
    weights = read_weights(_weights_file(source))
    if weights.layout not in ("hf", "beit"):
        raise WeightsError(
            f"hf:{source}: its tensors have {weights.layout} names, not transformers'; give the file itself"
        )
    processor = _json(source, "preprocessor_config.json")
    unchanged = processor.get("do_normalize", True) is False
    return replace(
        weights,
        where=f"hf:{source}",
        num_heads=config.num_attention_heads,
        norm_eps=config.layer_norm_eps,
        mean=(0.0, 0.0, 0.0) if unchanged else _triple(processor.get("image_mean")) or weights.mean,
        std=(1.0, 1.0, 1.0) if unchanged else _triple(processor.get("image_std")) or weights.std,
    )


def _config(source: str) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError, KeyError) as error:
        raise WeightsError(_why_not_had(source, "config.json")) from error


def _weights_file(source: str) -> Path:
    for name in _WEIGHT_FILES:
        path = _file(source, name)
        if path is not None:
            return path
    raise WeightsError(_why_not_had(source, " or ".join(_WEIGHT_FILES)))


def _file(source: str, name: str) -> Path | None:
    """A file of the folder, of the local cache, or of the hub."""
    if Path(source).is_dir():
        return path if (path := Path(source, name)).is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(source, name, _raise_exceptions_for_missing_entries=False)
    except OSError:  # no network and not in the cache
        return None
    return Path(found) if found else None


def _json(source: str, name: str) -> dict[str, Any]:
    path = _file(source, name)
    return {} if path is None else dict(json.loads(path.read_text()))


def _triple(values: list[float] | None) -> tuple[float, float, float] | None:
    return None if values is None else (values[0], values[1], values[2])


def _why_not_had(source: str, name: str) -> str:
    if Path(source).is_dir():
        return f"hf:{source}: the folder has no readable {name} of a transformers model; save it with save_pretrained"
    return (
        f"hf:{source}: {name} can't be had: no such folder or hub id, or no network; fetch it once where there is one "
        f"(hf download {source}), with the same HF_HOME, or give a folder"
    )
