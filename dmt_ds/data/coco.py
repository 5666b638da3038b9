"""Images with boxes and masks, described by one COCO JSON a split; knows no crop, no model and no metric."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dmt_ds.data.coco_checks import (
    check_category,
    check_image,
    check_object,
    check_unique,
    drawable,
    drop_nulls,
    visible_box,
)
from dmt_ds.data.coco_library import Segmentation, area_of, mask_of
from dmt_ds.data.decode import decode_image, is_turned
from dmt_ds.data.folder import PackedNames, existing, listed, read_file
from dmt_ds.data.packed_records import PackedRecords
from dmt_ds.data.uncollected import uncollected
from dmt_ds.errors import DataError
from dmt_ds.storage import patiently
from dmt_ds.wording import few

logger = logging.getLogger(__name__)

_SHOWN = 3


class CocoObject(NamedTuple):
    """One object that a detector learns from."""

    box: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the image, within it and of some area."""
    label: int
    """Number of its category, from 0, in the order of the JSON's ids."""
    segmentation: Segmentation | None


class Category(NamedTuple):
    """What the JSON calls a class; ids may have gaps."""

    id: int
    name: str


class CocoSource:
    """The images of a split, in the order of their ids; an `ImageSource` whose images have objects instead of a label.

    Crowds, and boxes that show nothing of their object, are not learned from; what a detector is judged by is
    the whole JSON (`truth`), as COCO judges.

    Args:
        annotations: the JSON.
        images: folder that its file names are in.
        max_images: take only the first so many.
        masks: whether masks are learned: then an object without outline is left out.

    Attributes:
        file: the JSON.
        num_judged: objects that are no crowd: what a detector is judged by.

    Raises:
        DataError: the JSON is damaged or contradicts itself or the folder; names the file and the entry.
        StorageError: the disk or file server gives no answer.
    """

    @uncollected()
    def __init__(self, annotations: Path, images: Path, max_images: int | None = None, masks: bool = True) -> None:
        self.file, self._folder, self._masks = annotations, images, masks
        content, self.fingerprint = _read(annotations)
        self.categories = tuple(sorted(Category(entry["id"], entry["name"]) for entry in content["categories"]))
        self.class_names = tuple(category.name for category in self.categories)
        entries = sorted(content["images"], key=lambda entry: int(entry["id"]))
        for entry in entries:
            check_image(annotations, entry)
        self.ids = np.array([entry["id"] for entry in entries], dtype=np.int64)
        self._names = PackedNames([entry["file_name"] for entry in entries])
        self._sizes = np.array([(entry["height"], entry["width"]) for entry in entries], dtype=np.int64)
        _check_files(annotations, images, entries)
        self.num_judged = sum(not entry.get("iscrowd") for entry in content["annotations"])
        self._objects = PackedRecords(self._learned(content["annotations"], entries))
        self._length = min(len(entries), max_images or len(entries))
        if max_images is not None:
            self.fingerprint += f"[:{self._length}]"

    def __len__(self) -> int:
        """Number of images, with and without objects."""
        return self._length

    def read(self, index: int) -> Tensor:
        """[3, H, W] uint8; raises DataError for a file that is no image, or has another size than the JSON says."""
        path = self.name(index)
        data = read_file(path)
        image = decode_image(data, path)
        if tuple(image.shape[1:]) != self.size(index):
            (height, width), (told_height, told_width) = image.shape[1:], self.size(index)
            turned = "upright, as its EXIF data turn it, " if is_turned(data) else ""
            raise DataError(
                f"{path}: is {turned}{width} x {height} pixels, but {self.file} says {told_width} x {told_height}: its "
                "boxes and masks belong to another image; fix the JSON or the file"
            )
        return image

    def look(self, index: int) -> None:
        """Reads an image and draws its outlines; raises what `read` does, or DataError for one that can't be drawn."""
        self.read(index)
        for thing in self.objects(index):
            if thing.segmentation is not None:
                mask_of(thing.segmentation, *self.size(index))

    def label(self, index: int) -> int:
        """-1: an image has objects, not one label."""
        return -1

    def name(self, index: int) -> str:
        """Path of the file."""
        return str(self._folder / self._names[index])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self._sizes[index].tolist()
        return height, width

    def objects(self, index: int) -> list[CocoObject]:
        """What is to be found in the image; none is fine, all of it is background then."""
        return [CocoObject(tuple(box), label, outline) for box, label, outline in self._objects[index]]

    def unseen_categories(self) -> list[str]:
        """A line that names the categories of which there is nothing to learn; none where there is something of all."""
        seen = {thing.label for index in range(len(self)) for thing in self.objects(index)}
        unseen = [name for label, name in enumerate(self.class_names) if label not in seen]
        return [f"no object of category {few(unseen, _SHOWN)} in {self.file}"] if unseen else []

    def truth(self) -> dict[str, Any]:
        """The JSON as COCO's evaluation wants it; read again, as it is large and seldom wanted.

        What an object does not say is filled in: it is no crowd, its outline is its box's, its area its outline's.
        """
        content, _ = _read(self.file)
        sizes = {entry["id"]: (entry["height"], entry["width"]) for entry in content["images"]}
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            entry.setdefault("iscrowd", 0)
            outline = drawable(entry.get("segmentation"))
            if "area" not in entry:
                entry["area"] = area_of(outline, *sizes[entry["image_id"]]) if outline else width * height
            entry["segmentation"] = outline or [[x, y, x + width, y, x + width, y + height, x, y + height]]
        return content

    def _learned(
        self, annotations: Iterable[Mapping[str, Any]], entries: Sequence[Mapping[str, Any]]
    ) -> list[list[CocoObject]]:
        """Objects to learn, an image a list; what is left out is said once."""
        rows = {entry["id"]: row for row, entry in enumerate(entries)}
        labels = {category.id: number for number, category in enumerate(self.categories)}
        found: list[list[CocoObject]] = [[] for _ in entries]
        invisible, num_outlines = [], 0
        for entry in annotations:
            check_object(self.file, entry, rows, labels, self._sizes)
            if entry.get("iscrowd"):
                continue
            row = rows[entry["image_id"]]
            box, outline = visible_box(entry["bbox"], *self.size(row)), drawable(entry.get("segmentation"))
            num_outlines += bool(outline)
            if box is None or (self._masks and not outline):
                invisible.append(f"{entry['id']} ({self._names[row]}: {entry['bbox']})")
            else:
                found[row].append(CocoObject(box, labels[entry["category_id"]], outline))
        if self._masks and invisible and not num_outlines:
            raise DataError(f"{self.file}: no object has a segmentation: detect.masks=false learns boxes alone")
        if invisible:
            logger.warning(
                "%s: %d objects show nothing (a box without area or outside of its image, an outline of "
                "less than three corners) and are left out of training: annotation %s",
                self.file,
                len(invisible),
                few(invisible, _SHOWN),
            )
        return found


def open_coco(
    root: str, split: str, annotations: str, images: str, max_images: int | None = None, masks: bool = True
) -> CocoSource:
    """One split below a folder.

    Args:
        root: `data.path`.
        split: name of the split.
        annotations: the JSON, relative to it; `{split}` stands for the name.
        images: folder of the images, the same.
        max_images: as `CocoSource` has it.
        masks: the same.

    Raises:
        DataError: a file is missing, or as `CocoSource` says.
    """
    folder = existing(Path(root).expanduser().absolute(), "data.path")
    places = [folder / pattern.replace("{split}", split) for pattern in (annotations, images)]
    for place, key in zip(places, ("detect.annotations", "detect.images"), strict=True):
        existing(place, key)
    changed = patiently(places[0].stat).st_mtime_ns
    return _read_once(*places, max_images, masks, changed)


@lru_cache(maxsize=2)
def _read_once(annotations: Path, images: Path, max_images: int | None, masks: bool, changed: int) -> CocoSource:
    """COCO's own JSON takes a process most of a minute: a run that opens its splits again has them."""
    return CocoSource(annotations, images, max_images, masks)


def check_same_categories(train: CocoSource, test: CocoSource) -> None:
    """A detector answers in the categories it was taught: both splits must mean the same by an id.

    Raises:
        DataError: they differ; names the first difference.
    """
    if train.categories == test.categories:
        return
    first = sorted(set(train.categories) ^ set(test.categories))[0]
    raise DataError(
        f"category {first.id} '{first.name}' is not the same in {train.file} and in {test.file}: both need the same "
        "`categories`"
    )


def check_judged(test: CocoSource) -> None:
    """There is something that a detector can be judged by.

    Raises:
        DataError: all objects are crowds, or there is none; names the JSON.
    """
    if not test.num_judged:
        raise DataError(
            f"{test.file}: has no object besides crowds, so there is no average precision; use images with objects"
        )


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """The JSON, with the keys that all that follows relies on, and what its bytes are known by."""
    data = read_file(str(path), "detect.annotations must name a file you may read")
    try:
        content = json.loads(data)
        lists = [content[key] for key in ("images", "annotations", "categories")]
        asked = (("id", "file_name", "height", "width"), ("id", "image_id", "category_id", "bbox"), ("id", "name"))
        for entries, keys in zip(lists, asked, strict=True):
            for entry in entries:
                _ = [entry[key] for key in keys]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no key {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise DataError(f"{path}: is not a COCO JSON of images, annotations and categories ({reason})") from None
    if not content["images"]:
        raise DataError(f"{path}: names no image")
    for entries, kind in zip(lists, ("image", "annotation", "category"), strict=True):
        check_unique(path, entries, kind)
    for entry in content["categories"]:
        check_category(path, entry)
    drop_nulls(content["annotations"])
    return dict(content), hashlib.sha256(data).hexdigest()[:16]


def _check_files(path: Path, folder: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Every file that the JSON names is there; folders are listed once, which is quick over a network too."""
    there: Callable[[str], set[str]] = _Listing(folder)
    names = [entry["file_name"] for entry in entries]
    missing = [name for name in names if os.path.basename(name) not in there(os.path.dirname(name))]
    if missing:
        raise DataError(f"{path}: {len(missing)} of {len(names)} images are not in {folder}: {few(missing, _SHOWN)}")


class _Listing:
    """Names in each folder that is asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, set[str]] = {}

    def __call__(self, folder: str) -> set[str]:
        if folder not in self._known:
            place = self._root / folder
            self._known[folder] = set(listed(partial(os.listdir, place))) if place.is_dir() else set()
        return self._known[folder]
