"""Reads weights files without running code from them, and loads them strictly; knows no teacher and no network."""

import argparse
import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dmt_ds.config.section import Triple
from dmt_ds.errors import WeightsError
from dmt_ds.models.layouts import LICENCES, MOCO_ENCODERS, NORMALISATION, file_key, to_timm_names
from dmt_ds.storage import sha256_of
from dmt_ds.wording import few_counted, first_line

_WRAPPED_IN = ("teacher", "model", "state_dict", "module")
_SHOWN_KEYS = 3
METADATA_KEY = "dmt_ds"
"""Entry of a safetensors header in which `dmt-ds teachers convert` keeps what tensors alone don't tell."""


@dataclass(frozen=True)
class Weights:
    """An encoder's tensors in timm's names, and where they come from.

    Attributes:
        where: the file, or hub id.
        state: timm's name -> tensor.
        layout: whose names the file uses, as `dmt_ds.models.layouts` calls them.
        part: top-level key or encoder of a full checkpoint; None for a flat file.
        file_keys: timm's name -> the name in the file.
        dropped: names in the file that are not the encoder's.
        sha256: of the file's bytes.
        licence: SPDX id, None where the layout does not tell.
        num_heads: None where the file does not tell, as nearly all don't.
        norm_eps: of all LayerNorms.
        mean: of the input's pixels in 0..1; None where neither file nor layout tells.
        std: the same.
    """

    where: str
    state: dict[str, Tensor]
    layout: str
    part: str | None
    file_keys: dict[str, str]
    dropped: tuple[str, ...]
    sha256: str
    licence: str | None
    num_heads: int | None = None
    norm_eps: float = 1e-6
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def key_in_file(self, name: str) -> str:
        """What the file calls, or would call, a timm key."""
        return file_key(self.file_keys, name)


def read_weights(path: str | Path, checkpoint_key: str | None = None) -> Weights:
    """Reads an official checkpoint of MAE, MoCo v3, iBOT, DINO, DeiT, BEiT, transformers or timm.

    Args:
        checkpoint_key: which part of a full checkpoint; None takes `teacher`, `model`, `state_dict` or `module`.

    Raises:
        WeightsError: the file is missing, damaged, would run code, or holds no known layout.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    raw: Mapping[str, Any]
    if path.suffix == ".safetensors":
        raw, metadata = _read_safetensors(path)
    else:
        raw, metadata = _read_torch(path), {}
    state, part = _unwrap(raw, path, checkpoint_key)
    found = to_timm_names(state, str(path), part, siblings=list(raw))
    layout = metadata.get("layout", found.layout)
    mean, std = NORMALISATION.get(layout, (None, None))
    return Weights(
        where=str(path),
        state=found.state,
        layout=layout,
        part=part,
        file_keys=found.file_keys,
        dropped=found.dropped,
        sha256=sha256_of(path),
        licence=metadata.get("licence", LICENCES.get(found.layout)),
        num_heads=metadata.get("num_heads"),
        norm_eps=metadata.get("norm_eps", 1e-6),
        mean=triple(metadata.get("mean")) or mean,
        std=triple(metadata.get("std")) or std,
    )


def read_timm_names(path: Path) -> Weights:
    """Reads a safetensors file whose names are timm's, and leaves nothing of it out, such as a classifier's head.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such file")
    state, _ = _read_safetensors(path)
    return Weights(str(path), state, "timm", None, {name: name for name in state}, (), sha256_of(path), None)


def load_strict(vit: nn.Module, weights: Weights) -> None:
    """Copies the tensors into the model; every key must be there, wanted and of the right shape.

    Raises:
        WeightsError: names the file, the first keys that don't fit, both shapes and the remedy.
    """
    check_keys(vit, weights)
    vit.load_state_dict(weights.state, strict=True)


def check_keys(vit: nn.Module, weights: Weights) -> None:
    """`load_strict`'s comparison without its copy."""
    expected = {name: list(tensor.shape) for name, tensor in vit.state_dict().items()}
    found = {name: list(tensor.shape) for name, tensor in weights.state.items()}
    missing = [f"'{weights.key_in_file(name)}'" for name in expected if name not in found]
    unexpected = [f"'{weights.key_in_file(name)}'" for name in found if name not in expected]
    reshaped = [
        f"'{weights.key_in_file(name)}' (file {found[name]}, model {shape})"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "wrong shape of": reshaped}
    findings = [f"{kind} {few_counted(items, _SHOWN_KEYS)}" for kind, items in kinds.items() if items]
    if findings:
        raise WeightsError(
            f"{weights.where} ({weights.layout} layout): {'; '.join(findings)}. It must be the whole encoder of the "
            "architecture asked for: check arch, checkpoint_key and the download (`dmt-ds teachers inspect`)"
        )


def write_safetensors(path: Path, state: Mapping[str, Tensor]) -> None:
    """Writes tensors as float32, readable for whom the umask lets; safetensors' own file is its owner's alone."""
    from safetensors.torch import save

    plain = {key: tensor.detach().float().contiguous().cpu() for key, tensor in state.items()}
    path.write_bytes(save(plain, {"format": "pt"}))


def hash_of_tensors(module: nn.Module) -> str:
    """SHA-256 of a model's tensors by name, for where there is no file of them."""
    digest = hashlib.sha256()
    for key, tensor in sorted(module.state_dict().items()):
        digest.update(key.encode() + tensor.detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tensors_of(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file under their own names.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    return _read_safetensors(path)[0]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA_KEY, "{}"))
            return {key: file.get_tensor(key) for key in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path}: damaged or not a safetensors file ({first_line(error).rstrip('.')}); fetch it again"
        ) from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        with _allowed_globals():
            raw = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        offenders = _offenders(path) or re.findall(r"GLOBAL ([\w.]+)", str(error))
        if offenders:
            raise WeightsError(
                f"{path}: refused, loading it would run {', '.join(offenders)}; only tensors, argparse.Namespace and "
                "numpy scalars are read: where you trust the file, save its state dict alone, as safetensors"
            ) from error
        raise WeightsError(f"{path}: damaged or not a PyTorch file; fetch it again") from error
    except Exception as error:  # what torch raises for a damaged file has no common class
        raise WeightsError(
            f"{path}: damaged or not a PyTorch file ({first_line(error).rstrip('.')}); fetch it again"
        ) from error
    if not isinstance(raw, Mapping):
        raise WeightsError(f"{path}: holds a {type(raw).__name__}, not a dict of tensors; save its state dict")
    return raw


@contextmanager
def _allowed_globals() -> Iterator[None]:
    """What official checkpoints hold besides tensors: their arguments, and numpy scalars such as a best accuracy."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    numpy_names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    dtypes = [type(np.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")]
    with torch.serialization.safe_globals([argparse.Namespace, *numpy_names, np.dtype, *dtypes]):
        yield


def _offenders(path: Path) -> list[str]:
    try:
        with _allowed_globals():
            return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # it reads only zip files; the load itself has already refused this one
        return []


def _unwrap(raw: Mapping[str, Any], path: Path, key: str | None) -> tuple[dict[str, Tensor], str | None]:
    """The state dict inside a checkpoint, and the top-level key it lay under."""
    wrapped = [name for name, value in raw.items() if isinstance(value, Mapping) and _tensors(value)]
    if key is not None and key not in MOCO_ENCODERS:
        if key not in wrapped:
            there = ", ".join(f"'{name}'" for name in wrapped) or "none: it is a flat state dict; leave the key out"
            raise WeightsError(f"{path}: no state dict under checkpoint_key '{key}'; the file has {there}")
        return _tensors(raw[key]), key
    for name in _WRAPPED_IN:
        if name in wrapped:
            return _tensors(raw[name]), key or name
    flat = _tensors(raw)
    if flat:
        return flat, key
    if len(wrapped) == 1:
        return _tensors(raw[wrapped[0]]), key or wrapped[0]
    keys = ", ".join(f"'{name}'" for name in list(raw)[:8]) or "nothing"
    raise WeightsError(f"{path}: no state dict found, the file holds {keys}; name one with checkpoint_key")


def _tensors(mapping: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in mapping.items() if isinstance(value, Tensor)}


def triple(values: Sequence[float] | None) -> Triple | None:
    """Three numbers, a colour each, as a file's JSON or metadata has them; None where it has none."""
    return None if values is None else (values[0], values[1], values[2])
