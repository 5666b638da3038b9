"""A detector as a folder: encoder, pyramid and heads, and all that is needed to build them again; knows no run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from dmt_ds.config.detection import DetectConfig
from dmt_ds.config.schema import DataConfig, Interpolation, StudentConfig
from dmt_ds.config.section import Triple
from dmt_ds.data.coco import Category
from dmt_ds.errors import ConfigError, WeightsError
from dmt_ds.models.backbone_folder import WEIGHTS_FILE, write_folder
from dmt_ds.models.vit import build_vit
from dmt_ds.models.weights import tensors_of
from dmt_ds.wording import one_line

if TYPE_CHECKING:
    from dmt_ds.downstream.detection.detector import Detector

DETECTOR_FILE = "detector.json"
"""Says how the model is built, how images are prepared for it, and what its categories are called."""

_ROI_ALIGN = "aligned"
"""How weights were taught to see boxes; where it does not stand, it was half a cell off, and masks half a pixel."""


class SavedDetector(NamedTuple):
    """What such a folder holds."""

    detector: "Detector"
    """In evaluation, on the CPU, in float32."""
    section: DetectConfig
    categories: tuple[Category, ...]
    interpolation: Interpolation
    mean: Triple
    std: Triple


def save_detector(
    folder: Path,
    state: Mapping[str, Tensor],
    student: StudentConfig,
    section: DetectConfig,
    data: DataConfig,
    categories: Sequence[Category],
    *,
    mean: Triple,
    std: Triple,
    provenance: Mapping[str, Any],
) -> None:
    """Writes what `load_detector` reads; whole or not at all.

    Args:
        state: of a `Detector` of these sections, float32.
        data: side of the images that positions are of, and resampling.
        categories: by label.
        mean: normalisation that it was trained with.
        std: the same.
        provenance: kept under the key `dmt_ds`.
    """
    described = {
        "student": student.model_copy(update={"init_from": None}).model_dump(mode="json"),
        "detect": section.model_dump(mode="json"),
        "image_size": data.image_size,
        "interpolation": data.interpolation,
        "roi_align": _ROI_ALIGN,
        "mean": list(mean),
        "std": list(std),
        "categories": [category._asdict() for category in categories],
        "dmt_ds": dict(provenance),
    }
    write_folder(folder, state, {DETECTOR_FILE: described})


def load_detector(folder: Path) -> SavedDetector:
    """The detector of a folder, strictly.

    Raises:
        WeightsError: a file of it is missing or damaged, or of another version; or it was trained unaligned.
    """
    from dmt_ds.downstream.detection.detector import Detector

    try:
        described = json.loads((folder / DETECTOR_FILE).read_text())
        student, section = StudentConfig(**described["student"]), DetectConfig(**described["detect"])
        if described.get("roi_align") != _ROI_ALIGN:
            raise WeightsError(
                f"{folder}: its detector was trained with ROIAlign half a cell off, as in early versions, and would "
                "find less with this one's: train it again, or use it with the version that wrote it"
            )
        categories = tuple(Category(entry["id"], entry["name"]) for entry in described["categories"])
        with torch.random.fork_rng(devices=()):
            detector = Detector(build_vit(student, described["image_size"], any_size=True), section, len(categories))
        detector.load_state_dict(tensors_of(folder / WEIGHTS_FILE), strict=True)
        told = described["interpolation"], tuple(described["mean"]), tuple(described["std"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, ConfigError) as error:
        reason = one_line(str(error))[:160]
        raise WeightsError(f"{folder}: holds no detector of this version ({reason}); copy the folder again") from error
    return SavedDetector(detector.eval(), section, categories, *told)
