"""A classifier as a folder that plain timm loads: encoder and head in one model; knows no run, no engine."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from dmt_ds.config.schema import DataConfig, StudentConfig
from dmt_ds.config.section import Triple
from dmt_ds.models.backbone_folder import CONFIG_FILE, timm_config, write_folder
from dmt_ds.models.vit import build_vit, describe

CLASSES_FILE = "classes.json"
"""Names by class number."""
_TIMM_POOLING = {"class": "token", "patch_mean": "avg"}
_SMALLEST_WITH_MARGIN = 64  # pixels; below, evaluation makes the whole image a square


def save_classifier(
    folder: str | Path,
    state: Mapping[str, Tensor],
    section: StudentConfig,
    data: DataConfig,
    pooling: Literal["class", "patch_mean"],
    class_names: Sequence[str],
    *,
    mean: Triple,
    std: Triple,
    provenance: Mapping[str, Any],
) -> None:
    """Writes what `timm.create_model('local-dir:FOLDER', pretrained=True)` loads, and `classes.json`; whole or not.

    Args:
        state: timm's name -> float32 tensor, with `head.*`, and `fc_norm.*` where the mean of patch tokens is normed.
        section: the encoder's shape; a last block with other heads is kept as `save_backbone` keeps it.
        data: side of the image and resampling; its middle is cut out as evaluation does (`center_crop`).
        pooling: what the head sees, as `ClassifyConfig.pooling` has it.
        class_names: by class number.
        mean: normalisation that the classifier was trained with.
        std: the same.
        provenance: kept under the key `dmt_ds` of config.json, as `save_backbone` does.
    """
    config = timm_config(section, describe(build_vit(section, data.image_size)), mean, std, provenance)
    whole_image = data.image_size < _SMALLEST_WITH_MARGIN
    pooled = {"global_pool": _TIMM_POOLING[pooling]}
    config |= {**pooled, "num_classes": len(class_names), "label_names": list(class_names)}
    config["model_args"] |= pooled
    config["pretrained_cfg"] |= {
        "num_classes": len(class_names),
        "interpolation": data.interpolation,
        "crop_pct": 1.0 if whole_image else _crop_pct(data.image_size),
        "crop_mode": "squash" if whole_image else "center",
    }
    write_folder(Path(folder), state, {CONFIG_FILE: config, CLASSES_FILE: list(class_names)})


def _crop_pct(image_size: int) -> float:
    """0.875, or the share that timm, which rounds down, turns into the same short side as evaluation's."""
    short_side = round(image_size * 256 / 224)
    return 224 / 256 if int(image_size / (224 / 256)) == short_side else image_size / (short_side + 0.5)
