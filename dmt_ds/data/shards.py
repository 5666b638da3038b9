"""Smaller copies of a data set's images, in parquet files that a run reads like any others; knows no recipe.

A shard is made by one process, whole or not at all, and depends on nothing but its images and the settings: making goes
on where it was stopped, and any number of processes gives the same bytes.
"""

import io
import logging
import math
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from dmt_ds.config.schema import BadImages
from dmt_ds.data.decode import decode_image
from dmt_ds.data.sampling import spread
from dmt_ds.data.sources import ImageSource, write_parquet
from dmt_ds.data.views import CropSpec, crop_box, crop_numbers, cut, resize_into
from dmt_ds.data.worker_processes import obey_trainer, start_server
from dmt_ds.errors import DataError

logger = logging.getLogger(__name__)

_NUM_COMPARED = 64
"""Images, from the first to the last, that are held against their copies."""


@dataclass(frozen=True)
class ShardSettings:
    """How images are made smaller.

    Attributes:
        short_side: at most so many pixels; a smaller image keeps its size.
        quality: of the JPEG files, 1 to 100.
        images_a_shard: rows of a parquet file.
        bad_images: an unreadable image ends the work, or is named in the log and left out.
    """

    short_side: int
    quality: int
    images_a_shard: int = 4096
    bad_images: BadImages = "stop"


@dataclass(frozen=True)
class Change:
    """What a smaller copy does to training crops, over a sample of images; differences are of 255.

    Attributes:
        mean_difference: between the crop of the copy and that of the image, over all pixels.
        enlarged_before: share of crops that had fewer pixels than the crop's side, either way.
        enlarged_after: the same of the copies.
        bytes_an_image: mean size of a copy.
    """

    mean_difference: float
    enlarged_before: float
    enlarged_after: float
    bytes_an_image: float


def shrink(image: Tensor, settings: ShardSettings) -> bytes:
    """A JPEG of the image, antialiased bicubic: [3, h, w] uint8 -> file."""
    height, width = image.shape[-2:]
    factor = min(1.0, settings.short_side / min(height, width))
    small = torch.empty(3, round(height * factor), round(width * factor), dtype=torch.uint8)
    resize_into(small, image, "bicubic")
    file = io.BytesIO()
    Image.fromarray(small.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=settings.quality)
    return file.getvalue()


def measure_change(source: ImageSource, settings: ShardSettings, crop: CropSpec) -> Change:
    """Draw the same crops of some images and of their copies.

    Raises:
        DataError: one of these images, or where bad ones are left out all of them, can't be read.
    """
    rows = spread(len(source), _NUM_COMPARED)
    difference, enlarged, size, total = 0.0, [0, 0], 0, 0
    for row, numbers in zip(rows, crop_numbers(torch.tensor(rows), 0), strict=True):
        try:
            image = source.read(row)
        except DataError:
            if settings.bad_images == "stop" or (row == rows[-1] and not total):
                raise
            continue
        file = shrink(image, settings)
        copy = decode_image(file, source.name(row))
        difference += float((cut(image, crop, numbers).float() - cut(copy, crop, numbers)).abs().mean())
        for place, picture in enumerate((image, copy)):
            _, _, height, width = crop_box(picture.shape[-2], picture.shape[-1], crop, numbers)
            enlarged[place] += min(height, width) < crop.size
        size += len(file)
        total += 1
    return Change(difference / total, enlarged[0] / total, enlarged[1] / total, size / total)


def shard_paths(folder: Path, split: str, num_images: int, images_a_shard: int) -> list[Path]:
    """The files that a split becomes, named as on the Hugging Face hub."""
    count = math.ceil(num_images / images_a_shard)
    return [folder / f"{split}-{number:05d}-of-{count:05d}.parquet" for number in range(count)]


def make_shards(
    source: ImageSource, folder: Path, split: str, settings: ShardSettings, num_workers: int
) -> Iterator[tuple[int, int]]:
    """Make the missing shards of a split; gives (shards that are there, all of them) after each.

    Raises:
        DataError: an image can't be read (named), or a process was killed.
    """
    paths = shard_paths(folder, split, len(source), settings.images_a_shard)
    missing = [number for number, path in enumerate(paths) if not path.exists()]
    there = len(paths) - len(missing)
    yield there, len(paths)
    processes = min(num_workers, len(missing))
    done = _in_processes if processes > 1 else _in_this_process
    for count, messages in enumerate(done(missing, (source, settings, paths), processes), start=1):
        for message in messages:
            logger.warning("left out: %s", message)
        yield there + count, len(paths)


_Task = tuple[ImageSource, ShardSettings, list[Path]]
_task: _Task
"""What a worker process works on."""


def _in_this_process(missing: list[int], task: _Task, _processes: int) -> Iterator[list[str]]:
    for number in missing:
        yield _make_shard(number, task)


def _in_processes(missing: list[int], task: _Task, processes: int) -> Iterator[list[str]]:
    """What was left out of each shard, as they get ready."""
    pool = ProcessPoolExecutor(processes, start_server(), _start_worker, (task,))
    try:
        for future in as_completed([pool.submit(_make_shard, number) for number in missing]):
            yield future.result()
    except BrokenProcessPool:
        raise DataError(
            "a process that made shards was killed, most likely because memory ran out; start again with fewer "
            "--workers: finished shards are kept"
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(task: _Task) -> None:
    global _task
    _task = task
    torch.set_num_threads(1)
    obey_trainer(0)


def _make_shard(number: int, task: _Task | None = None) -> list[str]:
    """Make one shard; gives the messages of images that were left out."""
    source, settings, paths = task or _task
    start = number * settings.images_a_shard
    files, rows, messages = [], [], []
    for row in range(start, min(start + settings.images_a_shard, len(source))):
        try:
            files.append(shrink(source.read(row), settings))
            rows.append(row)
        except DataError as error:
            if settings.bad_images == "stop":
                raise
            messages.append(str(error))
    names = [Path(source.name(row)).name for row in rows]
    write_parquet(paths[number], files, names, [source.label(row) for row in rows], source.class_names)
    return messages
