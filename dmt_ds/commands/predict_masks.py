"""`dmt-ds predict` of a segmenter: a mask, and a picture with it drawn over, of each of a person's own images."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from dmt_ds.commands.predict_progress import PredictProgress
from dmt_ds.data.decode import decode_image
from dmt_ds.data.folder import read_file
from dmt_ds.downstream.segmenter_folder import load_segmenter
from dmt_ds.errors import DataError, ExportError
from dmt_ds.tracking import mask_pictures

logger = logging.getLogger(__name__)

PREDICTIONS_FILE, SHEET_FILE = "predictions.json", "contact_sheet.png"
MASKS_FOLDER, OVERLAYS_FOLDER = "masks", "overlays"
MAX_PICTURED = 12
"""Images on the contact sheet."""


class _Answered(NamedTuple):
    name: str
    image: Tensor
    """[3, H, W] uint8."""
    classes: Tensor
    """[H, W] uint8."""


def run(folder: Path, source: str, files: Sequence[str], out: Path, device: torch.device) -> list[Path]:
    """Answer for every image that can be read; those that can't are named in the log and in the JSON.

    Args:
        folder: of the segmenter.
        source: what the person called it.
        out: folder for what is written: `predictions.json`, `contact_sheet.png`, and of each image
            `masks/NUMBER_NAME.png` (a palette picture whose values are class numbers) and `overlays/NUMBER_NAME.png`.

    Returns:
        What was written.

    Raises:
        DataError: no image can be read.
        ExportError: `out` has predictions already.
        WeightsError: the model can't be loaded.
    """
    wanted = [out / name for name in (PREDICTIONS_FILE, SHEET_FILE, MASKS_FOLDER, OVERLAYS_FOLDER)]
    for path in wanted:
        if path.exists():
            raise ExportError(f"{path}: is there already; remove it, or take another folder by -o")
    saved = load_segmenter(folder)
    saved.model.to(device)
    colours = mask_pictures.class_colours(len(saved.class_names))
    unreadable: dict[str, str] = {}
    told: dict[str, dict[str, Any]] = {}
    pictured: list[mask_pictures.Masks] = []
    for answered in _answers(lambda image: saved.classes(image, device), files, unreadable):
        if not told:
            for path in wanted[2:]:
                path.mkdir(parents=True)
        file = f"{len(told):06d}_{Path(answered.name).stem}.png"
        _write_mask(answered.classes, colours, out / MASKS_FOLDER / file)
        overlay = mask_pictures.overlaid(answered.image, answered.classes, colours)
        Image.fromarray(overlay.permute(1, 2, 0).numpy()).save(out / OVERLAYS_FOLDER / file)
        told[answered.name] = {
            "mask": f"{MASKS_FOLDER}/{file}",
            "overlay": f"{OVERLAYS_FOLDER}/{file}",
            "size": list(reversed(answered.classes.shape)),
            "classes": _shares(answered.classes, saved.class_names),
        }
        if len(pictured) < MAX_PICTURED:
            pictured.append((answered.image, None, answered.classes))
    if not told:
        first = next(iter(unreadable.values()))
        raise DataError(f"none of {len(unreadable)} images can be read, the first one: {first}")
    mask_pictures.draw_masks(pictured, saved.class_names, wanted[1])
    contents = {"model": source, "classes": list(saved.class_names), "images": told, "unreadable": unreadable}
    wanted[0].write_text(json.dumps(contents, indent=1) + "\n")
    return wanted


def _answers(classes_of: Any, files: Sequence[str], unreadable: dict[str, str]) -> Iterator[_Answered]:
    report = PredictProgress(len(files))
    for path in files:
        try:
            image = decode_image(read_file(path), path)
        except DataError as error:
            unreadable[path] = str(error).partition("; fetch it again")[0]
            logger.warning("left out: %r: %s", path, unreadable[path].removeprefix(f"{path}: "))
        else:
            yield _Answered(path, image, classes_of(image))
        report.advance(1)
    report.close()


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
