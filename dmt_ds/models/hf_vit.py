"""The door to transformers: reads its ViTs from a folder or the hub into timm's names, and writes them."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmt_ds.errors import ExportError, WeightsError
from dmt_ds.models.blueprint import width_of
from dmt_ds.models.portable import Answer, PortableModel, Preprocessing
from dmt_ds.models.weights import Weights, read_weights, triple, write_safetensors

_MODEL_TYPES = ("vit", "vit_mae", "deit", "beit", "dinov2", "dinov2_with_registers")
_LAYOUTS = ("hf", "beit")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_TO_HF_NAMES = (  # those on disk, which transformers 4 and 5 both read
    (r"^cls_token$", "embeddings.cls_token"),
    (r"^pos_embed$", "embeddings.position_embeddings"),
    (r"^patch_embed\.proj\.(weight|bias)$", r"embeddings.patch_embeddings.projection.\1"),
    (r"^blocks\.(\d+)\.attn\.([qkv])\.", r"encoder.layer.\1.attention.attention.\2."),
    (r"^blocks\.(\d+)\.attn\.proj\.", r"encoder.layer.\1.attention.output.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc1\.", r"encoder.layer.\1.intermediate.dense."),
    (r"^blocks\.(\d+)\.mlp\.fc2\.", r"encoder.layer.\1.output.dense."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.layer.\1.layernorm_before."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.layer.\1.layernorm_after."),
    (r"^norm\.(weight|bias)$", r"layernorm.\1"),
    (r"^head\.(weight|bias)$", r"classifier.\1"),
)
_LETTERS = {"q": "query", "k": "key", "v": "value"}
_PILLOW_FILTERS = {"bilinear": 2, "bicubic": 3}


def read_hf(source: str) -> Weights:
    """Weights, heads, LayerNorm epsilon and normalisation of a transformers ViT, ViTMAE, DeiT, BEiT or DINOv2.

    Args:
        source: folder with config.json, or id on the hub.

    Raises:
        WeightsError: it is unavailable, or none of these models.
    """
    config = _config(source)
    if config.model_type not in _MODEL_TYPES:
        raise WeightsError(f"hf:{source}: model_type '{config.model_type}' is none of {', '.join(_MODEL_TYPES)}")
    _check_activation(config, f"hf:{source}")
    weights = read_weights(_weights_file(source))
    if weights.layout not in _LAYOUTS:
        raise WeightsError(
            f"hf:{source}: its tensors have {weights.layout} names, not transformers'; give the file itself"
        )
    return replace(_described(weights, config, source), where=f"hf:{source}")


def read_file(path: str | Path, checkpoint_key: str | None = None) -> Weights:
    """Reads a weights file as `read_weights` does; of transformers' own name, with the config.json that lies beside it.

    Args:
        checkpoint_key: which part of a full checkpoint.

    Raises:
        WeightsError: as `read_weights`; or the config is of these weights, and asks for what is not supported.
    """
    path = Path(path)
    weights = read_weights(path, checkpoint_key)
    config = _config_beside(path, weights)
    if config is None:
        return weights
    _check_activation(config, str(path))
    return _described(weights, config, str(path.parent))


def _config_beside(path: Path, weights: Weights) -> Any:
    """What is said of the file where it lies; None where nothing is, or of a model of other sizes."""
    if path.name not in _WEIGHT_FILES or weights.layout not in _LAYOUTS or weights.num_heads is not None:
        return None
    if not path.with_name("config.json").is_file():
        return None
    try:
        config = _config(str(path.parent))
    except WeightsError:
        return None
    if config.model_type not in _MODEL_TYPES:
        return None
    depth = sum(name.endswith(".norm1.weight") for name in weights.state)
    return config if (config.hidden_size, config.num_hidden_layers) == (width_of(weights.state), depth) else None


def _check_activation(config: Any, where: str) -> None:
    if config.hidden_act != "gelu":
        raise WeightsError(f"{where}: hidden_act '{config.hidden_act}' is not supported, only gelu is")


def _described(weights: Weights, config: Any, source: str) -> Weights:
    """With the heads, epsilon and normalisation of the files beside them."""
    processor = _json(source, "preprocessor_config.json")
    unchanged = processor.get("do_normalize", True) is False
    return replace(
        weights,
        num_heads=config.num_attention_heads,
        norm_eps=config.layer_norm_eps,
        mean=(0.0, 0.0, 0.0) if unchanged else triple(processor.get("image_mean")) or weights.mean,
        std=(1.0, 1.0, 1.0) if unchanged else triple(processor.get("image_std")) or weights.std,
    )


def write_hf(model: PortableModel, folder: Path) -> None:
    """`AutoModel` (or `AutoModelForImageClassification`) and `AutoImageProcessor` load what this puts into the folder.

    Raises:
        ExportError: transformers' ViT does not compute what this model does.
    """
    reason = _why_no_hf_vit(model)
    if reason is not None:
        raise ExportError(f"--format transformers: {reason}; take --format timm, which AutoModel loads where timm is")
    write_safetensors(folder / "model.safetensors", _hf_state(model))
    for name, content in {
        "config.json": _hf_config(model),
        "preprocessor_config.json": _hf_processor(model.preprocessing),
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")


def read_written_hf(folder: Path) -> Answer:
    """What transformers makes of a folder of `write_hf`."""
    from transformers import ViTForImageClassification, ViTModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    config = json.loads((folder / "config.json").read_text())
    model: nn.Module
    if config["architectures"] == ["ViTForImageClassification"]:
        model = ViTForImageClassification.from_pretrained(folder)
    else:
        model = ViTModel.from_pretrained(folder, add_pooling_layer=False)
    model.eval()

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        out: Any = model(images)
        tensor: Tensor = out.logits if "logits" in out else out.last_hidden_state
        return tensor

    return answer


def _why_no_hf_vit(model: PortableModel) -> str | None:
    """What of this model transformers' ViT does not have."""
    vit: Any = model.vit
    shape = model.shape
    if shape.last_block_num_heads != shape.num_heads:
        return f"its last block has {shape.last_block_num_heads} heads, the others {shape.num_heads}"
    if shape.num_prefix_tokens != 1:
        return f"it has {shape.num_prefix_tokens} tokens before the patches, ViTModel has one"
    if model.class_names and vit.global_pool != "token":
        return "it classifies from the mean patch token, ViTForImageClassification reads the class token"
    foreign = [name for name in vit.state_dict() if _hf_name(name.replace("attn.qkv.", "attn.q.")) is None]
    if foreign:
        return f"'{foreign[0]}' has no place in it"
    if not isinstance(vit.blocks[0].mlp.act, nn.GELU) or vit.pos_embed.shape[1] != shape.num_tokens:
        return f"{model.config['architecture']} has another activation or other positions"
    return None


def _hf_state(model: PortableModel) -> dict[str, Tensor]:
    """The weights under transformers' names on disk."""
    state: dict[str, Tensor] = {}
    for name, tensor in model.vit.state_dict().items():
        if ".attn.qkv." in name:
            parts = {
                name.replace(".qkv.", f".{letter}."): part for letter, part in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            parts = {name: tensor}
        for part_name, part in parts.items():
            found = _hf_name(part_name)
            assert found is not None, part_name
            prefix = "vit." if model.class_names and not found.startswith("classifier.") else ""
            state[prefix + found] = part
    return state


def _hf_name(name: str) -> str | None:
    """A name of timm's, with q, k and v apart, as transformers has it."""
    for pattern, replacement in _TO_HF_NAMES:
        if re.match(pattern, name):
            renamed = re.sub(pattern, replacement, name)
            return re.sub(r"\.attention\.([qkv])\.", lambda match: f".attention.{_LETTERS[match[1]]}.", renamed)
    return None


def _hf_config(model: PortableModel) -> dict[str, Any]:
    vit: Any = model.vit
    shape = model.shape
    labels = {str(number): name for number, name in enumerate(model.class_names)}
    return {
        "architectures": ["ViTForImageClassification" if model.class_names else "ViTModel"],
        "model_type": "vit",
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.num_heads,
        "intermediate_size": vit.blocks[0].mlp.fc1.out_features,
        "hidden_act": "gelu",
        "layer_norm_eps": vit.norm.eps,
        "qkv_bias": vit.blocks[0].attn.qkv.bias is not None,
        "image_size": shape.image_size,
        "patch_size": shape.patch_size,
        "num_channels": 3,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        **({"id2label": labels, "label2id": _numbers_of(model.class_names)} if labels else {}),
    }


def _numbers_of(class_names: tuple[str, ...]) -> Mapping[str, int]:
    """Name -> number; of two classes with one name the first."""
    return {name: number for number, name in reversed(list(enumerate(class_names)))}


def _hf_processor(preprocessing: Preprocessing) -> dict[str, Any]:
    """BiT's processor, since ViT's own can't scale by the short side and cut the middle out."""
    size = preprocessing.image_size
    square = {"height": size, "width": size}
    cut = preprocessing.short_side > size
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": preprocessing.short_side} if cut else square,
        "resample": _PILLOW_FILTERS[preprocessing.interpolation],
        "do_center_crop": cut,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocessing.mean),
        "image_std": list(preprocessing.std),
    }


def _config(source: str) -> Any:
    from transformers import AutoConfig

    try:
        # Code that lies beside the weights is never run; unless told so, transformers asks on the terminal.
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise WeightsError(
                f"hf:{source}: its config.json asks for code of its own, which is never run; take a model whose "
                f"model_type is one of {', '.join(_MODEL_TYPES)}"
            ) from error
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


def _why_not_had(source: str, name: str) -> str:
    if Path(source).is_dir():
        return f"hf:{source}: the folder has no readable {name} of a transformers model; save it with save_pretrained"
    return (
        f"hf:{source}: {name} is unavailable: no such folder or hub id, or no network; download it once on a machine "
        f"with network access (hf download {source}), with the same HF_HOME, or give a folder"
    )
