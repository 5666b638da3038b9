"""Images with a class for each pixel, from folders as ADE20K has them or from tables; knows no crop and no model."""

import hashlib
import io
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dmt_ds.config.schema import DataConfig
from dmt_ds.config.segmentation import IGNORED, SegmentConfig
from dmt_ds.data.class_values import ClassValues, class_values
from dmt_ds.data.folder import LISTING_THREADS, FolderSource, existing, files_below, read_file
from dmt_ds.data.sources import ImageSource, SpacedImages, left_out, open_source, open_table
from dmt_ds.data.splits import Split, split_files, split_names
from dmt_ds.errors import DataError
from dmt_ds.storage import patiently
from dmt_ds.wording import first_line

IMAGES, ANNOTATIONS = "images", "annotations"
"""Folders of `data.path`, each with a folder a split."""


class AnnotationFiles(Protocol):
    """Files of annotations by row number."""

    @property
    def fingerprint(self) -> str:
        """Changes when their names or sizes do."""
        ...

    def file(self, index: int) -> bytes:
        """The whole file; raises DataError naming it when it can't be read."""
        ...

    def name(self, index: int) -> str:
        """File path or row, for messages."""
        ...


class LabelMapSource:
    """Images and label maps, row by row; as an `ImageSource` it gives the images alone."""

    def __init__(self, images: ImageSource, annotations: AnnotationFiles, values: ClassValues) -> None:
        self._images, self._annotations, self.values = images, annotations, values
        self.class_names = values.names

    @cached_property
    def fingerprint(self) -> str:
        """Changes when images, annotations or the meaning of their values do; made when first asked for."""
        parts = (self._images.fingerprint, self._annotations.fingerprint, self.values.fingerprint)
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]

    def __len__(self) -> int:
        """Number of images."""
        return len(self._images)

    @property
    def left_out(self) -> str | None:
        """What the images' folder has beside them."""
        return left_out(self._images)

    def read(self, index: int) -> Tensor:
        """[3, H, W] uint8."""
        return self._images.read(index)

    def read_pair(self, index: int) -> tuple[Tensor, Tensor]:
        """Image [3, H, W] uint8 and label map [H, W] uint8, class numbers and 255.

        Raises:
            DataError: either can't be read, they differ in size, or a pixel is of no class; names the file or row.
        """
        image, name = self._images.read(index), self._annotations.name(index)
        raw = decode_annotation(self._annotations.file(index), name)
        height, width = image.shape[-2:]
        if raw.shape != (height, width):
            turned = ", perhaps turned upright by its EXIF data" if raw.shape == (width, height) else ""
            raise DataError(
                f"{name}: is {raw.shape[1]} x {raw.shape[0]} pixels, its image {self.name(index)} {width} x "
                f"{height}{turned}: recreate the annotation from that image, or remove both"
            )
        return image, self.values.classes_of(raw, name)

    def pixels_of(self, rows: Iterable[int]) -> Tensor:
        """How many pixels of these rows' maps have a class number, and 255: [256] int64.

        Raises:
            DataError: a map can't be read, or a pixel is of no class.
        """
        pixels = torch.zeros(IGNORED + 1, dtype=torch.int64)
        for row in rows:
            name = self._annotations.name(row)
            pixels += count_pixels(self.values.classes_of(decode_annotation(self._annotations.file(row), name), name))
        return pixels

    def look(self, index: int) -> None:
        """Reads a pair and forgets it; raises what `read_pair` does."""
        self.read_pair(index)

    def label(self, index: int) -> int:
        """-1: the image as a whole has no class."""
        return -1

    def name(self, index: int) -> str:
        """File path or row, for messages."""
        return self._images.name(index)


class SegmentedImages(NamedTuple):
    """Both splits of a data set with label maps."""

    train: LabelMapSource
    test: LabelMapSource

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class number."""
        return self.train.class_names


def open_segmented(data: DataConfig, section: SegmentConfig) -> SegmentedImages:
    """Both splits of a recipe, all of training unless `max_train_images` says less.

    Raises:
        DataError: images, annotations or the list of classes are not there, or not what the recipe says.
    """
    values = _values(data, section, "train")
    return SegmentedImages(
        open_label_maps(data, section, "train", values), open_label_maps(data, section, "val", values)
    )


def open_label_maps(
    data: DataConfig, section: SegmentConfig, split: Split, values: ClassValues | None = None
) -> LabelMapSource:
    """One split with its label maps.

    Raises:
        DataError: as `open_segmented`.
    """
    values = values or _values(data, section, split)
    if data.source == "folder":
        return _of_folder(data, split, values)
    images = open_source(data.model_copy(update={"label_column": None}), split)
    maps = data.model_copy(update={"label_column": None, "image_column": section.annotation_column})
    try:
        annotations: AnnotationFiles = open_table(maps, split)
    except DataError as error:
        raise DataError(str(error).replace("data.image_column", "segment.annotation_column")) from None
    if isinstance(images, SpacedImages):
        annotations = _FilesOfSpaced(images, annotations)
    return LabelMapSource(images, annotations, values)


def _values(data: DataConfig, section: SegmentConfig, split: Split) -> ClassValues:
    """The classes, looked for where the images are once these are known to be there."""
    if data.source == "digits":
        raise DataError(
            "data.source=digits has no annotations: set data.source=folder or parquet, and data.path to where they are"
        )
    if data.source == "folder":
        existing(Path(data.path or "").expanduser().absolute(), "data.path")
    elif data.source in ("parquet", "webdataset"):
        split_files(data, split)
    return class_values(section, data.path)


def _of_folder(data: DataConfig, split: Split, values: ClassValues) -> LabelMapSource:
    root = existing(Path(data.path or "").expanduser().absolute(), "data.path")
    names = split_names(data, split)
    folder = next((name for name in names if (root / IMAGES / name).is_dir()), names[0])
    pictures = existing(root / IMAGES / folder, f"data.{split}_split")
    images: ImageSource = FolderSource(pictures)
    maps = existing(root / ANNOTATIONS / folder, f"data.{split}_split")
    if split == "train" and data.max_train_images is not None:
        images = SpacedImages(images, data.max_train_images)
    annotations = _FilesBeside(images, pictures, maps)
    annotations.check()
    return LabelMapSource(images, annotations, values)


class _FilesOfSpaced:
    """A table's annotations of the images that are taken."""

    def __init__(self, images: SpacedImages, annotations: AnnotationFiles) -> None:
        self._images, self._annotations = images, annotations

    @property
    def fingerprint(self) -> str:
        """The table's; which rows are taken, the images' own says."""
        return self._annotations.fingerprint

    def file(self, index: int) -> bytes:
        """The row's annotation."""
        return self._annotations.file(self._images.row(index))

    def name(self, index: int) -> str:
        """Data set, split and row."""
        return self._annotations.name(self._images.row(index))


class _FilesBeside:
    """An image's annotation has its name, ending in .png, in another folder."""

    def __init__(self, images: ImageSource, pictures: Path, maps: Path) -> None:
        self._images, self._pictures, self._maps = images, pictures, maps

    def check(self) -> None:
        """Whether all of them are there."""
        there = {str(self._maps / name) for name in files_below(self._maps, suffixes=(".png",))}
        missing = [index for index in range(len(self._images)) if self.name(index) not in there]
        if missing:
            more = f"; so are {len(missing) - 1} more" if len(missing) > 1 else ""
            raise DataError(
                f"{self.name(missing[0])}: the annotation of {self._images.name(missing[0])} is missing{more}: add it, "
                "or remove the image"
            )

    @property
    def fingerprint(self) -> str:
        """Hash of their sizes; their names are the images'."""
        rows = range(len(self._images))
        with ThreadPoolExecutor(LISTING_THREADS) as threads:
            sizes = threads.map(lambda index: patiently(Path(self.name(index)).stat).st_size, rows)
            return hashlib.sha256(" ".join(map(str, sizes)).encode()).hexdigest()[:16]

    def file(self, index: int) -> bytes:
        """The PNG."""
        return read_file(self.name(index))

    def name(self, index: int) -> str:
        """Path of the PNG."""
        relative = Path(self._images.name(index)).relative_to(self._pictures)
        return str((self._maps / relative).with_suffix(".png"))


def count_pixels(maps: Tensor) -> Tensor:
    """Number of pixels of each class number, and of 255, in uint8 maps of any shape: [256] int64."""
    return torch.bincount(maps.flatten().int(), minlength=IGNORED + 1)


def decode_annotation(data: bytes, name: str) -> np.ndarray:
    """Raw values of a grey, palette or one-bit picture, [H, W]: a palette's numbers, as its colours are for people.

    Raises:
        DataError: it can't be read, or has colours in place of numbers.
    """
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.mode not in ("1", "L", "P", "I", "I;16"):
                raise DataError(
                    f"{name}: is a picture of mode {picture.mode}, but an annotation has one number per pixel: save it "
                    "as grey or palette PNG whose values are the classes"
                )
            numbers = np.array(picture)
            return numbers.astype(np.uint8) if numbers.dtype == bool else numbers  # of one bit: 0 and 1
    except DataError:
        raise
    except Exception as error:  # a broken file makes decoders raise whatever they like
        raise DataError(
            f"{name}: not a readable annotation ({first_line(error)[:120]}); recreate it or remove it"
        ) from None
