"""What a COCO JSON must not say: each thing refused by the file's name and the entry's id; reads no file."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmt_ds.errors import DataError

_FEWEST_NUMBERS = 6  # of a polygon: three corners
# Pixels: pycocotools goes along an outline step by step, so one that is farther off fills the memory.
_FARTHEST = 100_000
_THINNEST = 1e-2  # pixels: scaled and in float32 less may be nothing, and the loss of a box of no width is no number
_TEXT_START, _TEXT_BITS, _MORE, _SIGN = 48, 5, 32, 16
_LONGEST_RUN_BITS = 30


def check_unique(path: Path, entries: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Ids are whole numbers and no two entries share one: pycocotools would quietly keep the last one.

    Raises:
        DataError: they are not, or two do.
    """
    for entry in entries:
        if not _is_id(entry["id"]):
            raise DataError(f"{path}: {kind} id {entry['id']!r} is not a 64-bit integer")
    counts = Counter(entry["id"] for entry in entries)
    if len(counts) < len(entries):
        number, times = counts.most_common(1)[0]
        raise DataError(f"{path}: {kind} id {number} occurs {times} times; give each {kind} its own id")


def check_category(path: Path, entry: Mapping[str, Any]) -> None:
    """A category is called something.

    Raises:
        DataError: its name is no text.
    """
    if not isinstance(entry["name"], str):
        raise DataError(f"{path}: category {entry['id']} has the name {entry['name']!r}, which is not text")


def check_image(path: Path, entry: Mapping[str, Any]) -> None:
    """An image is a file below the folder of images, of some size.

    Raises:
        DataError: it is not.
    """
    where, name = f"{path}: image {entry['id']}", entry["file_name"]
    if not _is_path(name) or os.path.isabs(name) or ".." in Path(name).parts:
        raise DataError(f"{where} has the file_name {name!r}, which is not a path below the image folder")
    size = [entry["height"], entry["width"]]
    if not all(type(side) is int and 0 < side <= _FARTHEST for side in size):  # nor true, which is an int too
        raise DataError(f"{where} has the height and width {size}; both must be whole numbers of pixels")


def drop_nulls(objects: Iterable[dict[str, Any]]) -> None:
    """What an object may leave out, it may also say null to, as tools for boxes alone write it; in place."""
    for entry in objects:
        for key in ("area", "iscrowd", "segmentation"):
            if entry.get(key, 0) is None:
                del entry[key]


def check_object(
    path: Path, entry: Mapping[str, Any], rows: Mapping[int, int], labels: Mapping[int, int], sizes: np.ndarray
) -> None:
    """An object belongs to an image and a category that are declared, and what it says of itself can be read.

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
    if not isinstance(box, list) or len(box) != 4 or not all(_is_coordinate(number) for number in box):
        raise DataError(
            f"{where} has the bbox {box}; it must be four numbers: x, y, width, height, in pixels, up to {_FARTHEST}"
        )
    if "area" in entry and not _is_area(entry["area"]):
        raise DataError(f"{where} has the area {entry['area']!r}; it must be a number of pixels, or be left out")
    if entry.get("iscrowd", 0) not in (0, 1):
        raise DataError(f"{where} has the iscrowd {entry['iscrowd']!r}; it must be 0 or 1, or be left out")
    if "segmentation" in entry:
        _check_outline(where, entry["segmentation"], sizes[rows[entry["image_id"]]].tolist())


def visible_box(box: Sequence[float], height: int, width: int) -> tuple[float, float, float, float] | None:
    """The part of a box that lies in its image: x, y, w, h -> x1, y1, x2, y2; None where it is next to nothing."""
    x1, y1 = max(0.0, box[0]), max(0.0, box[1])
    x2, y2 = min(float(width), box[0] + box[2]), min(float(height), box[1] + box[3])
    return (x1, y1, x2, y2) if min(x2 - x1, y2 - y1) >= _THINNEST else None


def drawable(outline: Any) -> Any:
    """An outline without polygons of less than three corners, for pycocotools boxes; None where nothing is left."""
    if not isinstance(outline, list):
        return outline
    return [polygon for polygon in outline if len(polygon) >= _FEWEST_NUMBERS] or None


def runs_of(text: str) -> list[int] | None:
    """Lengths of the runs that an RLE's text stands for; None: it stands for none.

    pycocotools' format: five bits a character from "0" on, the sixth says that more follow; the last one's highest bit
    is the sign; from the fourth run on it is the difference to the run before the last.
    """
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - _TEXT_START
        if not 0 <= bits < 2 * _MORE or shift > _LONGEST_RUN_BITS:
            return None
        value |= (bits % _MORE) << shift
        shift += _TEXT_BITS
        if bits < _MORE:
            value -= (1 << shift) if bits & _SIGN else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return None if shift else runs


def _check_outline(where: str, outline: Any, size: list[int]) -> None:
    if isinstance(outline, dict):
        _check_rle(where, outline.get("counts"), outline.get("size"), size)
    elif not isinstance(outline, list) or not all(_is_polygon(polygon) for polygon in outline):
        raise DataError(
            f"{where}: its segmentation is neither an RLE nor polygons [[x, y, x, y, x, y, ...], ...] of numbers up to "
            f"{_FARTHEST}"
        )


def _check_rle(where: str, counts: Any, told: Any, size: list[int]) -> None:
    """Runs of pixels that are exactly those of the image: pycocotools would fill up with whatever the memory holds."""
    if not isinstance(counts, (str, list)) or told != size or not all(isinstance(side, int) for side in told):
        raise DataError(f"{where}: its RLE is of size {told}, its image of {size} (height, width), or has no counts")
    runs = runs_of(counts) if isinstance(counts, str) else counts
    if runs is None or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise DataError(f"{where}: the counts of its RLE, {str(counts)[:20]!r}, are not run lengths")
    if sum(runs) != size[0] * size[1]:
        raise DataError(f"{where}: the counts of its RLE add up to {sum(runs)}, not to {size} pixels")


def _is_path(name: Any) -> bool:
    """Not so a text that no file can be called: JSON may hold halves of characters, which have no bytes."""
    try:
        return isinstance(name, str) and bool(os.fsencode(name))
    except UnicodeEncodeError:
        return False


def _is_id(number: Any) -> bool:
    return type(number) is int and -(2**63) <= number < 2**63


def _is_polygon(polygon: Any) -> bool:
    return isinstance(polygon, list) and len(polygon) % 2 == 0 and all(_is_coordinate(number) for number in polygon)


def _is_coordinate(number: Any) -> bool:
    return isinstance(number, (int, float)) and abs(number) <= _FARTHEST  # not so what is no number at all


def _is_area(number: Any) -> bool:
    return isinstance(number, (int, float)) and 0 <= number <= _FARTHEST**2
