"""The forms in which a model leaves: each written, then read back by the program that it is for, and compared."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmt_ds.errors import ExportError
from dmt_ds.models.backbone_folder import CONFIG_FILE, LAST_HEADS, WEIGHTS_FILE
from dmt_ds.models.graph_files import read_onnx, read_torch_export, write_onnx, write_torch_export
from dmt_ds.models.hf_vit import read_written_hf, write_hf
from dmt_ds.models.portable import Answer, PortableModel
from dmt_ds.models.vit import class_and_patches, create
from dmt_ds.models.weights import write_safetensors

COMPARED_BATCHES = (1, 7)
"""Numbers of images for which answers are compared."""


@dataclass(frozen=True)
class Form:
    """One way to write a model.

    Attributes:
        write: puts the files into a folder, which exists.
        read: the answer of the program that the files are for.
        tolerance: largest difference from the model's own answer that rounding explains, for answers around 1.
    """

    write: Callable[[PortableModel, Path], None]
    read: Callable[[Path], Answer]
    tolerance: float = 1e-5


def write_timm(model: PortableModel, folder: Path) -> None:
    """What `timm.create_model("local-dir:FOLDER", pretrained=True)` loads, and transformers where timm is.

    Raises:
        ExportError: timm can't build this model.
    """
    if LAST_HEADS in model.config["model_args"]:
        raise ExportError(
            f"--format timm: the last block has {model.shape.last_block_num_heads} heads, the others "
            f"{model.shape.num_heads}, which timm can't build; take --format onnx or torch_export"
        )
    write_safetensors(folder / WEIGHTS_FILE, model.vit.state_dict())
    labels = {"label_names": list(model.class_names)} if model.class_names else {}
    config = model.config | {"dmt_ds": model.provenance} | labels
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def read_timm(folder: Path) -> Answer:
    """What timm makes of such a folder."""
    vit: Any = create(f"local-dir:{folder}", pretrained=True).eval()

    @torch.no_grad()
    def answer(images: Tensor) -> Tensor:
        found: Tensor = vit(images) if vit.num_classes else class_and_patches(vit, vit.forward_features(images))
        return found

    return answer


FORMS = {
    "timm": Form(write_timm, read_timm),
    "transformers": Form(write_hf, read_written_hf),
    "onnx": Form(write_onnx, read_onnx, tolerance=1e-4),
    "torch_export": Form(write_torch_export, read_torch_export),
}


def write_form(name: str, model: PortableModel, folder: Path) -> float:
    """Write a model into a folder, which exists, and read it back.

    Returns:
        Largest difference between the answers of both, over batches of 1 and 7 images.

    Raises:
        ExportError: the form can't express the model, lacks a package, or answers otherwise than the model.
    """
    FORMS[name].write(model, folder)
    difference, allowed = disagreement(name, model, folder)
    if not difference <= allowed:
        raise ExportError(
            f"--format {name}: the export's outputs differ from the model's (by {difference:.1e}, allowed "
            f"{allowed:.1e}); this format can't express {model.config['architecture']}, use another"
        )
    return difference


def disagreement(name: str, model: PortableModel, folder: Path) -> tuple[float, float]:
    """How far the answers of a form's folder are from the model's, over batches of 1 and 7 images.

    Whatever the form's library raises of damaged files is passed on.

    Returns:
        The largest difference, infinite between answers of other shapes, and the largest that rounding explains.
    """
    form = FORMS[name]
    answer = form.read(folder)
    difference, scale = 0.0, 1.0
    for count in COMPARED_BATCHES:
        images = model.sample(count)
        expected, found = model(images), answer(images)
        same_shape = found.shape == expected.shape
        difference = max(difference, (found - expected).abs().max().item() if same_shape else math.inf)
        scale = max(scale, expected.abs().max().item())
    return difference, form.tolerance * scale
