"""`dmt-ds predict` of a detector: COCO's results, and a picture with boxes and masks, of a person's own images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dmt_ds.commands.annotations.detect import pictured
from dmt_ds.commands.predictions.predict_images import check_any, read_each
from dmt_ds.data.augment import blank_beyond, normalize
from dmt_ds.data.coco_library import Result, check_installed
from dmt_ds.data.detection_maker import size_of
from dmt_ds.data.detection_views import Draw, ScaleSpec, padded, scaled_image
from dmt_ds.downstream.detection.folder import SavedDetector, load_detector
from dmt_ds.downstream.detection.results import results_of
from dmt_ds.tracking.object_pictures import draw_objects

WRITTEN = RESULTS_FILE, IMAGES_FILE, PICTURES_FOLDER = "predictions.json", "images.json", "pictures"


class _Answered(NamedTuple):
    name: str
    image_id: int
    image: Tensor
    """[3, H, W] uint8."""
    results: list[Result]


def run(folder: Path, source: str, files: Sequence[str], out: Path, device: torch.device, shown_from: float) -> None:
    """Answer for every image that can be read; those that can't are named in the log and in `images.json`.

    Args:
        folder: of the detector.
        source: what the person called it.
        out: folder, empty, for what is written: `predictions.json` in COCO's results format, `images.json` with the
            ids of images and categories, and `pictures/NUMBER_NAME.png`.
        shown_from: lowest score of an object in the pictures.

    Raises:
        DataError: no image can be read, or pycocotools is not there.
        WeightsError: the model can't be loaded.
    """
    check_installed()
    (out / PICTURES_FOLDER).mkdir()
    saved = load_detector(folder)
    saved.detector.to(device)
    results: list[Result] = []
    images: list[dict[str, Any]] = []
    unreadable: dict[str, str] = {}
    ids = dict(zip(files, image_ids(files), strict=True))
    for name, image in read_each(files, unreadable):
        answered = _Answered(name, ids[name], image, _found(saved, image, ids[name], device))
        results += answered.results
        height, width = size_of(answered.image)
        picture = f"{PICTURES_FOLDER}/{len(images):06d}_{Path(answered.name).stem}.png"
        told = {"file_name": answered.name, "height": height, "width": width, "picture": picture}
        images.append({"id": answered.image_id, **told})
        _draw(answered, saved, shown_from, out / picture)
    check_any(images, unreadable)
    categories = [category._asdict() for category in saved.categories]
    contents = {"model": source, "images": images, "categories": categories, "unreadable": unreadable}
    (out / RESULTS_FILE).write_text(json.dumps(results) + "\n")
    (out / IMAGES_FILE).write_text(json.dumps(contents, indent=1) + "\n")


def image_ids(files: Sequence[str]) -> list[int]:
    """Ids of images: the numbers that all of them are called, as COCO's own are, else 1, 2, 3, ..."""
    stems = [Path(name).stem for name in files]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len(set(map(int, stems))) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(files) + 1))


@torch.no_grad()
def _found(saved: SavedDetector, image: Tensor, image_id: int, device: torch.device) -> list[Result]:
    """What is found in an image [3, H, W] uint8 of any size, looked at as in evaluation."""
    section = saved.section
    spec = ScaleSpec((section.eval_short_side,), section.max_side, 0.0, saved.interpolation)
    scaled = scaled_image(image, spec, Draw(section.eval_short_side, False))
    size = size_of(scaled)
    pixels = normalize(padded([scaled], saved.detector.size_multiple).to(device), saved.mean, saved.std)
    (found,) = saved.detector(blank_beyond(pixels, [size]), torch.zeros(1, dtype=torch.int64, device=device), [size])
    return results_of(found, size, size_of(image), image_id, [category.id for category in saved.categories])


def _draw(answered: _Answered, saved: SavedDetector, shown_from: float, path: Path) -> None:
    """Those objects that are sure enough."""
    labels = {category.id: label for label, category in enumerate(saved.categories)}
    likely = [result for result in answered.results if result["score"] >= shown_from]
    objects = [pictured(result, labels, *size_of(answered.image)) for result in likely]
    draw_objects(answered.image, objects, [category.name for category in saved.categories], path)
