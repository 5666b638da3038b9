"""An encoder as a folder that plain timm loads: written at a run's end, read as a teacher; knows no run, no engine."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dmt_ds.config.evaluation import eval_short_side
from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.errors import WeightsError
from dmt_ds.models.vit import VitShape, build_vit, create, full_name, set_last_block_heads, shape_of
from dmt_ds.models.weights import load_strict, read_weights, write_safetensors
from dmt_ds.models.whole_folder import whole_folder
from dmt_ds.run_files import BACKBONE_FOLDER, SETTINGS_FILE

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
LAST_HEADS = "last_block_num_heads"
"""Key among `model_args` that timm does not know."""
_SPDX_IDS = {
    "apache-2.0": "Apache-2.0",
    "bsd-3-clause": "BSD-3-Clause",
    "bsd-2-clause": "BSD-2-Clause",
}  # the others are capitals


def family_members(folder: Path) -> list[Path]:
    """Folders of the runs in a family's folder, by name; none where it is another folder, or has an encoder itself."""
    if not (folder / SETTINGS_FILE).is_file() or (folder / BACKBONE_FOLDER).exists():
        return []
    return sorted(found.parent for found in folder.glob(f"*/{SETTINGS_FILE}"))


def save_backbone(
    folder: str | Path,
    state: Mapping[str, Tensor],
    section: StudentConfig,
    image_size: int,
    *,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
    interpolation: str = "bicubic",
    provenance: Mapping[str, Any],
) -> None:
    """Writes what `timm.create_model('local-dir:FOLDER', pretrained=True)` loads; whole or not at all.

    Where the last block has other heads than the rest (TinyMIM), which timm can't build, `model_args` says so by
    `last_block_num_heads`: `load_backbone` gives the same tokens, and plain timm refuses instead of giving others.

    Args:
        state: timm's name -> float32 tensor, of a ViT that `build_vit(section, image_size)` builds.
        mean: normalisation that the encoder was trained with.
        std: the same.
        interpolation: of its images, `bicubic` or `bilinear`.
        provenance: kept under the key `dmt_ds` of config.json; `teachers` maps names to records with their `licence`.
    """
    vit = vit_without_weights(section, image_size)
    expected = {key: value.shape for key, value in vit.state_dict().items()}
    assert {key: value.shape for key, value in state.items()} == expected, "not this ViT's state"
    config = timm_config(section, shape_of(vit), mean, std, interpolation, provenance)
    write_folder(Path(folder), state, {CONFIG_FILE: config})


def vit_without_weights(section: StudentConfig, image_size: int) -> nn.Module:
    """What `build_vit` builds, for its shapes alone: takes no memory, and draws from no generator of a run."""
    full_name(section.arch, "student.arch")  # imports timm, which torch 2.8 can't do under a device
    with torch.device("meta"):
        vit: nn.Module = build_vit(section, image_size)
    return vit


def write_folder(folder: Path, state: Mapping[str, Tensor], described: Mapping[str, Any]) -> None:
    """Weights in float32, and JSON files beside them; whole or not at all.

    Args:
        described: file name -> what it holds.
    """
    with whole_folder(folder) as partial:
        write_safetensors(partial / WEIGHTS_FILE, state)
        for name, content in described.items():
            (partial / name).write_text(json.dumps(content, indent=2) + "\n")


class StoredBackbone(NamedTuple):
    """What such a folder holds."""

    vit: nn.Module
    config: dict[str, Any]
    """Its config.json."""
    sha256: str
    """Of the weights file."""


def load_backbone(folder: str | Path) -> StoredBackbone:
    """The ViT of such a folder, or of a classifier's.

    Raises:
        WeightsError: a file is missing or damaged, or the tensors are not the config's model.
    """
    folder = Path(folder)
    config = read_config(folder)
    weights = read_weights(folder / WEIGHTS_FILE)
    changes: dict[str, Any] = {"num_classes": 0}
    if config.get("num_classes"):  # a classifier's folder; reading has left the head out already
        changes |= {"global_pool": "token", "fc_norm": None}
        weights = replace(weights, state={key.replace("fc_norm.", "norm."): t for key, t in weights.state.items()})
    vit = build_described(folder, config, **changes)
    load_strict(vit, weights)
    return StoredBackbone(vit, config, weights.sha256)


def read_config(folder: Path) -> dict[str, Any]:
    """The config.json of a folder in timm's form.

    Raises:
        WeightsError: it is missing, damaged, or another program's.
    """
    try:
        config = json.loads((folder / CONFIG_FILE).read_text())
        config["architecture"], config.setdefault("model_args", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise WeightsError(
            f"{folder / CONFIG_FILE}: not the config of a timm model ({reason}); copy the folder again"
        ) from error
    return dict(config)


def build_described(folder: Path, config: Mapping[str, Any], **changes: Any) -> nn.Module:
    """The model that a folder's config.json describes, with random weights.

    Args:
        changes: of its `model_args`.
    """
    model_args = dict(config["model_args"]) | changes
    last_block_num_heads = model_args.pop(LAST_HEADS, None)
    vit = create(full_name(config["architecture"], f"architecture in {folder / CONFIG_FILE}"), **model_args)
    if last_block_num_heads is not None:
        set_last_block_heads(vit, last_block_num_heads)
    return vit


def needs_dmt_ds(folder: str | Path) -> bool:
    """Whether plain timm refuses the folder: no model of timm, or its last block has other heads than the rest."""
    file = Path(folder) / CONFIG_FILE
    return not file.is_file() or LAST_HEADS in json.loads(file.read_text())["model_args"]


def strictest_licence(licences: Iterable[str | None]) -> str | None:
    """Licence of what derives from several weights: a non-commercial one binds all; None where one is unknown."""
    all_of_them = list(licences)
    for licence in all_of_them:
        if is_non_commercial(licence):
            return licence
    return None if None in all_of_them or not all_of_them else " AND ".join(sorted(set(map(str, all_of_them))))


def spdx_id(licence: str | None) -> str | None:
    """The SPDX id of a licence, or of several that bind together, from the small letters of timm's configs.

    What has no id there stays as its name in capitals; None where nobody said.
    """
    if not licence or licence.lower() == "unknown":
        return None
    return " AND ".join(_SPDX_IDS.get(part, part.upper()) for part in licence.lower().split(" and "))


def provenance_of(source: str | Path) -> dict[str, Any]:
    """What an encoder of this package says of how it was made; empty for all others.

    Args:
        source: a run's folder, or the encoder's own.
    """
    for folder in (Path(source).expanduser() / BACKBONE_FOLDER, Path(source).expanduser()):
        if (folder / CONFIG_FILE).is_file():
            return dict(json.loads((folder / CONFIG_FILE).read_text()).get("dmt_ds") or {})
    return {}


def is_non_commercial(licence: str | None) -> bool:
    """Whether a licence, by its SPDX id or its name in timm's configs, forbids commercial use."""
    name = (licence or "").upper()
    return "-NC" in name or "NONCOMMERCIAL" in name or "APPLE-AMLR" in name  # the last is for research alone


def timm_config(
    section: StudentConfig,
    shape: VitShape,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    interpolation: str,
    provenance: Mapping[str, Any],
) -> dict[str, Any]:
    """What config.json of an encoder without head says; arguments as `save_backbone` has them."""
    sizes = {key: getattr(section, key) for key in ("embed_dim", "depth", "num_heads")}
    model_args = {key: value for key, value in sizes.items() if value is not None}
    model_args |= {
        "patch_size": shape.patch_size,
        "img_size": shape.image_size,
        "class_token": True,
        "global_pool": "token",
    }
    if shape.last_block_num_heads != shape.num_heads:
        model_args[LAST_HEADS] = shape.last_block_num_heads
    short_side = eval_short_side(shape.image_size)
    teachers = dict(provenance.get("teachers", {}))
    licence = strictest_licence(record.get("licence") for record in teachers.values())
    return {
        "architecture": full_name(section.arch, "student.arch"),
        "num_classes": 0,
        "num_features": shape.embed_dim,
        "global_pool": "token",
        "model_args": model_args,
        "pretrained_cfg": {
            "num_classes": 0,
            "input_size": [3, shape.image_size, shape.image_size],
            "fixed_input_size": True,
            "interpolation": interpolation,
            "crop_pct": _crop_share(shape.image_size, short_side),
            "crop_mode": "center" if short_side > shape.image_size else "squash",
            "mean": list(mean),
            "std": list(std),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            **({"license": licence.lower()} if licence else {}),
        },
        "dmt_ds": dict(provenance),
    }


def _crop_share(image_size: int, short_side: int) -> float:
    """The share from which timm, which rounds down, gets this short side."""
    share = image_size / short_side
    return share if int(image_size / share) == short_side else image_size / (short_side + 0.5)
