"""A whole segmentation model as a folder of this package's form: weights, and what is needed to build and ask it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from dmt_ds.config.methods import AugmentConfig
from dmt_ds.config.schema import DataConfig, Interpolation, StudentConfig
from dmt_ds.config.segmentation import SegmentConfig
from dmt_ds.data.joint_crop import resized
from dmt_ds.downstream.segmenter import Segmenter, View
from dmt_ds.errors import ConfigError, WeightsError
from dmt_ds.models.backbone_folder import WEIGHTS_FILE, write_folder
from dmt_ds.models.vit import build_vit
from dmt_ds.models.weights import tensors_of
from dmt_ds.wording import first_line

SEGMENTER_FILE = "segmenter.json"
"""Says how the model is built, and how images are prepared for it."""


@dataclass(frozen=True)
class SavedSegmenter:
    """A model of such a folder, in evaluation.

    Attributes:
        class_names: by class number.
        view: how it sees whole images.
        short_side: what an image's short side is scaled to before, in pixels; None leaves it.
    """

    model: Segmenter
    class_names: tuple[str, ...]
    view: View
    short_side: int | None
    interpolation: Interpolation

    def classes(self, image: Tensor, device: torch.device) -> Tensor:
        """Class of each pixel: [3, H, W] uint8 of any size -> [H, W] uint8, on the CPU."""
        scaled = resized(image, self.short_side, interpolation=self.interpolation)
        answer = self.view.classes(self.model, self.model.patch_size, scaled[None].to(device), image.shape[-2:])
        return answer.cpu()


def save_segmenter(
    folder: Path,
    state: Mapping[str, Tensor],
    student: StudentConfig,
    section: SegmentConfig,
    data: DataConfig,
    augment: AugmentConfig,
    class_names: Sequence[str],
    provenance: Mapping[str, Any],
) -> None:
    """Writes weights and `segmenter.json`; whole or not at all.

    Args:
        state: `Segmenter`'s name -> float32 tensor.
        student: the encoder's shape.
        data: side of the crop and resampling.
        augment: normalisation.
        class_names: by class number.
        provenance: kept under the key `dmt_ds`.
    """
    told = {
        "student": student.model_copy(update={"init_from": None}).model_dump(mode="json"),
        "segment": section.model_copy(update={"classes": tuple(class_names)}).model_dump(mode="json"),
        "image_size": data.image_size,
        "interpolation": data.interpolation,
        "mean": augment.mean,
        "std": augment.std,
        "dmt_ds": dict(provenance),
    }
    write_folder(folder, state, {SEGMENTER_FILE: told})


def load_segmenter(folder: Path) -> SavedSegmenter:
    """The model of such a folder.

    Raises:
        WeightsError: a file is missing or damaged, or the tensors are not the described model's.
    """
    file = folder / SEGMENTER_FILE
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        student, section = StudentConfig.model_validate(told["student"]), SegmentConfig.model_validate(told["segment"])
        image_size, mean, std = told["image_size"], tuple(told["mean"]), tuple(told["std"])
        names = tuple(told["segment"]["classes"])
        view = View.from_sections(section, image_size, mean, std)
        interpolation: Interpolation = told["interpolation"]
        with torch.random.fork_rng(devices=()):
            model = Segmenter(build_vit(student, image_size, any_size=True), len(names), section)
    except (OSError, ValueError, KeyError, TypeError, ValidationError, ConfigError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise WeightsError(f"{file}: no description of a segmenter ({reason}); copy the folder again") from None
    state = tensors_of(folder / WEIGHTS_FILE)
    own = {key: list(value.shape) for key, value in model.state_dict().items()}
    theirs = {key: list(value.shape) for key, value in state.items()}
    if own != theirs:
        wrong = sorted(key for key in {*own, *theirs} if own.get(key) != theirs.get(key))[0]
        raise WeightsError(
            f"{folder / WEIGHTS_FILE}: '{wrong}' is {theirs.get(wrong, 'missing')}, {SEGMENTER_FILE} says "
            f"{own.get(wrong, 'there is none')}: copy the folder again"
        )
    model.load_state_dict(state, strict=True)
    return SavedSegmenter(model.eval(), names, view, section.short_side, interpolation)
