"""What a loader process does: rows of a source to one batch of crops; knows no order and no process.

An unreadable image is reported, not raised: an exception would cross the process border as a page of traceback.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from dmt_ds import sample_rng
from dmt_ds.config.schema import BadImages, Interpolation
from dmt_ds.data.batch import Batch
from dmt_ds.data.rand_augment import RandAugment
from dmt_ds.data.sources import ImageSource
from dmt_ds.data.views import CropSpec, center_crop, crop_numbers, cut_into
from dmt_ds.errors import DataError, DmtError

MAX_SUBSTITUTES = 100
"""Unreadable images in a row after which the data set, not an image, is at fault."""

Job = tuple[list[int], list[int]]
"""Epochs and rows of one batch."""


@dataclass(frozen=True)
class Made:
    """One batch, the unreadable images met on the way, and the error that ended the work, if anything did."""

    batch: Batch | None
    unreadable: tuple[str, ...] = ()
    failure: DmtError | None = None

    def pin_memory(self) -> "Made":
        """Called by torch's pinning thread."""
        return Made(self.batch and self.batch.pin_memory(), self.unreadable, self.failure)


class BatchMaker(Dataset[Made], ABC):
    """Job -> what was made; goes to loader processes by pickling, and raises no `DmtError`."""

    def __getitem__(self, job: Job) -> Made:
        met: dict[int, str] = {}
        try:
            return Made(self.make(job, met), tuple(met.values()))
        except DmtError as error:
            return Made(None, failure=error)

    @abstractmethod
    def make(self, job: Job, met: dict[int, str]) -> Batch:
        """The job's batch.

        Args:
            met: takes unreadable rows that others take the place of, and their messages.

        Raises:
            DmtError: an image can't be read.
        """


T = TypeVar("T")


class RowReader(Generic[T]):
    """Reads rows of a data set, where wanted another one in place of a row that can't be read.

    Args:
        read: row -> example; raises DataError naming it.
        bad_images: an unreadable one raises, or another takes its place.
    """

    def __init__(self, read: Callable[[int], T], num_images: int, bad_images: BadImages) -> None:
        self._read, self._num_images, self._bad_images = read, num_images, bad_images
        self._unreadable: dict[int, str] = {}

    def __call__(self, row: int, seed: int, met: dict[int, str]) -> tuple[T, int]:
        """The example of a row and that row, or of the row that takes its place; the place keeps its seed.

        Args:
            met: takes unreadable rows and their messages.

        Raises:
            DataError: it can't be read, or too many in a row can't.
            StorageError: the disk or file server gives no answer, also where bad images are left out: it may be sound.
        """
        if self._bad_images == "stop":
            return self._read(row), row
        for candidate in _substitutes(row, seed, self._num_images):
            if candidate not in self._unreadable:
                try:
                    return self._read(candidate), candidate
                except DataError as error:
                    self._unreadable[candidate] = str(error)
            met[candidate] = self._unreadable[candidate]
        raise DataError(
            f"{len(met)} images in a row can't be read, the last: {list(met.values())[-1]}; is the data set complete?"
        )


class TrainBatchMaker(BatchMaker):
    """Draws the crops of a batch's images.

    Args:
        crops: what to draw of each image; `Batch.crops` has their order.
        bad_images: an unreadable image stops the run, or is named in the log and another takes its place.
    """

    def __init__(self, source: ImageSource, crops: Sequence[CropSpec], run_seed: int, bad_images: BadImages) -> None:
        self._source, self._crops, self._run_seed = source, tuple(crops), run_seed
        self._read = RowReader(source.read, len(source), bad_images)

    def make(self, job: Job, met: dict[int, str]) -> Batch:
        """Read, crop and stack the job's images."""
        epochs, rows = torch.tensor(job[0]), torch.tensor(job[1])
        seeds = sample_rng.image_seeds(self._run_seed, epochs, rows)  # [B]
        numbers = [crop_numbers(seeds, view) for view in range(len(self._crops))]
        crops = tuple(empty_images(len(rows), spec.size) for spec in self._crops)
        for place, row in enumerate(job[1]):
            image, rows[place] = self._read(row, int(seeds[place]), met)
            for view, spec in enumerate(self._crops):
                cut_into(crops[view][place], image, spec, numbers[view][place])
        for view, spec in enumerate(self._crops):
            if spec.rand_augment is not None:
                _rand_augment(crops[view], spec.rand_augment, seeds, view)
        labels = torch.tensor([self._source.label(row) for row in rows.tolist()])
        return Batch(crops, seeds, rows, labels)


class EvalBatchMaker(BatchMaker):
    """Takes the middle of a batch's images.

    A row beyond the last one fills a batch up: an image that was there before, with label -1.

    Args:
        bad_images: an unreadable image ends it, as a score of part of a set misleads; or it is black, with label -1.
    """

    def __init__(
        self, source: ImageSource, size: int, interpolation: Interpolation, bad_images: BadImages = "stop"
    ) -> None:
        self._source, self._size, self._interpolation = source, size, interpolation
        self._bad_images = bad_images

    def make(self, job: Job, met: dict[int, str]) -> Batch:
        """Read, crop and stack the job's images."""
        num_images, rows = len(self._source), torch.tensor(job[1])
        images = empty_images(len(rows), self._size)
        labels = torch.tensor([self._source.label(row) if row < num_images else -1 for row in job[1]])
        for place, row in enumerate(job[1]):
            try:
                images[place] = center_crop(self._source.read(row % num_images), self._size, self._interpolation)
            except DataError as error:
                if self._bad_images == "stop":
                    raise
                met[row % num_images] = str(error)
                images[place], labels[place] = 0, -1
        return Batch((images,), torch.zeros_like(labels), rows % num_images, labels)


def _rand_augment(crops: Tensor, how: RandAugment, seeds: Tensor, view: int) -> None:
    """Change crops [B, 3, H, W] uint8 in place, each by its own seed."""
    for crop, steps in zip(crops, how.draw(seeds, view), strict=True):
        if steps:
            crop.copy_(how(crop, steps))


def _substitutes(row: int, seed: int, num_images: int) -> list[int]:
    """The row itself, then others, no row twice: strides by the seed, so that a broken folder is soon left behind."""
    stride = 1 + seed % max(1, num_images - 1)
    while math.gcd(stride, num_images) != 1:
        stride += 1
    return [(row + turn * stride) % num_images for turn in range(min(num_images, 1 + MAX_SUBSTITUTES))]


def empty_images(count: int, size: int) -> Tensor:
    """[count, 3, size, size] uint8, a pixel's colours side by side as decoders and resizers have them.

    In a loader process they lie where the training process can see them.
    """
    return in_shared_memory(torch.empty(count, 3, size, size, dtype=torch.uint8, memory_format=torch.channels_last))


def in_shared_memory(tensor: Tensor) -> Tensor:
    """The tensor; in a loader process, moved to where the training process can see it."""
    if get_worker_info() is not None:
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    return tensor
