"""What a COCO JSON must not say: each thing refused by the file's name and the entry's id; reads no file."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmt_ds.errors import DataError

_FEWEST_NUMBERS = 6  # of a polygon: three corners


def check_unique(path: Path, entries: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Ids are whole numbers and no two entries share one: pycocotools would quietly keep the last one.

    Raises:
        DataError: they are not, or two do.
    """
    for entry in entries:
        if not isinstance(entry["id"], int):
            raise DataError(f"{path}: {kind} id {entry['id']!r} is no whole number")
    counts = Counter(entry["id"] for entry in entries)
    if len(counts) < len(entries):
        number, times = counts.most_common(1)[0]
        raise DataError(f"{path}: {kind} id {number} stands there {times} times; give each {kind} an id of its own")


def check_image(path: Path, entry: Mapping[str, Any]) -> None:
    """An image is a file below the folder of images, of some size.

    Raises:
        DataError: it is not.
    """
    where, name = f"{path}: image {entry['id']}", entry["file_name"]
    if not isinstance(name, str) or os.path.isabs(name) or ".." in Path(name).parts:
        raise DataError(f"{where} has the file_name {name!r}, which is not below the folder of images")
    size = [entry["height"], entry["width"]]
    if not all(isinstance(side, int) and side > 0 for side in size):
        raise DataError(f"{where} has the height and width {size}; both must be whole numbers of pixels")


def check_object(
    path: Path, entry: Mapping[str, Any], rows: Mapping[int, int], labels: Mapping[int, int], sizes: np.ndarray
) -> None:
    """An object belongs to an image and a category that are declared, and its box and outline can be read.

    Args:
        path: the JSON, for messages.
        entry: of its `annotations`.
        rows: image id -> row of `sizes`.
        labels: category id -> label.
        sizes: [N, 2], heights and widths.

    Raises:
        DataError: it does not.
    """
    where = f"{path}: annotation {entry['id']}"
    if not isinstance(entry["image_id"], int) or entry["image_id"] not in rows:
        raise DataError(f"{where} is of image {entry['image_id']}, which `images` does not declare")
    if not isinstance(entry["category_id"], int) or entry["category_id"] not in labels:
        raise DataError(f"{where} is of category {entry['category_id']}, which `categories` does not declare")
    box = entry["bbox"]
    if not isinstance(box, list) or len(box) != 4 or not all(_is_finite(number) for number in box):
        raise DataError(f"{where} has the bbox {box}; it must be four numbers: x, y, width, height")
    if "segmentation" in entry:
        _check_outline(where, entry["segmentation"], sizes[rows[entry["image_id"]]].tolist())


def visible_box(box: Sequence[float], height: int, width: int) -> tuple[float, float, float, float] | None:
    """The part of a box that lies in its image: x, y, w, h -> x1, y1, x2, y2; None where there is none."""
    x1, y1 = max(0.0, box[0]), max(0.0, box[1])
    x2, y2 = min(float(width), box[0] + box[2]), min(float(height), box[1] + box[3])
    return (x1, y1, x2, y2) if x2 > x1 and y2 > y1 else None


def drawable(outline: Any) -> Any:
    """An outline without polygons of less than three corners, for pycocotools boxes; None where nothing is left."""
    if not isinstance(outline, list):
        return outline
    return [polygon for polygon in outline if len(polygon) >= _FEWEST_NUMBERS] or None


def _check_outline(where: str, outline: Any, size: list[int]) -> None:
    if isinstance(outline, dict):
        if not isinstance(outline.get("counts"), (str, list)) or outline.get("size") != size:
            told = outline.get("size")
            raise DataError(
                f"{where}: its RLE is of size {told}, its image of {size} (height, width), or has no counts"
            )
        if isinstance(outline["counts"], list) and sum(outline["counts"]) != size[0] * size[1]:
            raise DataError(f"{where}: the counts of its RLE add up to {sum(outline['counts'])}, not to {size} pixels")
        return
    if not isinstance(outline, list) or not all(_is_polygon(polygon) for polygon in outline):
        raise DataError(f"{where}: its segmentation is neither an RLE nor polygons [[x, y, x, y, x, y, ...], ...]")


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and all(_is_finite(number) for number in polygon)


def _is_finite(number: Any) -> bool:
    return isinstance(number, (int, float)) and math.isfinite(number)
