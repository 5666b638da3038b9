"""`dmt-ds predict` of a segmenter: a mask, and a picture with it drawn over, of each of a person's own images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from dmt_ds.commands.predictions.predict_images import check_any, read_each
from dmt_ds.downstream.segmenter_folder import load_segmenter
from dmt_ds.tracking import mask_pictures

PREDICTIONS_FILE, SHEET_FILE = "predictions.json", "contact_sheet.png"
MASKS_FOLDER, OVERLAYS_FOLDER = "masks", "overlays"
WRITTEN = (PREDICTIONS_FILE, SHEET_FILE, MASKS_FOLDER, OVERLAYS_FOLDER)
MAX_PICTURED = 12
"""Images on the contact sheet."""


def run(folder: Path, source: str, files: Sequence[str], out: Path, device: torch.device) -> None:
    """Answer for every image that can be read; those that can't are named in the log and in the JSON.

    Args:
        folder: of the segmenter.
        source: what the person called it.
        out: folder, empty, for what is written: `predictions.json`, `contact_sheet.png`, and of each image
            `masks/NUMBER_NAME.png` (a palette picture whose values are class numbers) and `overlays/NUMBER_NAME.png`.

    Raises:
        DataError: no image can be read.
        WeightsError: the model can't be loaded.
    """
    for name in (MASKS_FOLDER, OVERLAYS_FOLDER):
        (out / name).mkdir()
    saved = load_segmenter(folder)
    saved.model.to(device)
    colours = mask_pictures.class_colours(len(saved.class_names))
    unreadable: dict[str, str] = {}
    told: dict[str, dict[str, Any]] = {}
    pictured: list[mask_pictures.Masks] = []
    for name, image in read_each(files, unreadable):
        classes = saved.classes(image, device)  # [H, W] uint8
        file = f"{len(told):06d}_{Path(name).stem}.png"
        _write_mask(classes, colours, out / MASKS_FOLDER / file)
        overlay = mask_pictures.overlaid(image, classes, colours)
        Image.fromarray(overlay.permute(1, 2, 0).numpy()).save(out / OVERLAYS_FOLDER / file)
        told[name] = {
            "mask": f"{MASKS_FOLDER}/{file}",
            "overlay": f"{OVERLAYS_FOLDER}/{file}",
            "size": list(reversed(classes.shape)),
            "classes": _shares(classes, saved.class_names),
        }
        if len(pictured) < MAX_PICTURED:
            pictured.append((image, None, classes))
    check_any(told, unreadable)
    mask_pictures.draw_masks(pictured, saved.class_names, out / SHEET_FILE)
    contents = {"model": source, "classes": list(saved.class_names), "images": told, "unreadable": unreadable}
    (out / PREDICTIONS_FILE).write_text(json.dumps(contents, indent=1) + "\n")


def _write_mask(classes: Tensor, colours: Tensor, path: Path) -> None:
    """A palette PNG: programs read class numbers, people see colours."""
    picture = Image.fromarray(classes.numpy(), mode="P")
    picture.putpalette(colours.flatten().tolist())
    picture.save(path)


def _shares(classes: Tensor, names: Sequence[str]) -> dict[str, float]:
    """Name -> share of the pixels, the largest first, of the classes that are there."""
    counts = torch.bincount(classes.flatten().long(), minlength=len(names))
    order = counts.argsort(descending=True, stable=True).tolist()
    return {names[number]: round(int(counts[number]) / classes.numel(), 6) for number in order if counts[number]}
