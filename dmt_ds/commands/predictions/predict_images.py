"""A person's images in a prediction: each is read, or left out and named; knows no model."""

import logging
from collections.abc import Iterator, Mapping, Sequence, Sized

from torch import Tensor

from dmt_ds.commands.image_progress import ImageProgress
from dmt_ds.data.decode import REMEDY, decode_image
from dmt_ds.data.folder import read_file
from dmt_ds.errors import DataError

logger = logging.getLogger(__name__)


def read_image(path: str) -> Tensor | str:
    """The image [3, H, W] uint8, or why it can't be read."""
    try:
        return decode_image(read_file(path), path)
    except DataError as error:
        return str(error).partition(REMEDY)[0]


def leave_out(path: str, reason: str, unreadable: dict[str, str]) -> None:
    """Note an image that can't be read, and say so in the log."""
    unreadable[path] = reason
    logger.warning("left out: %r: %s", path, reason.removeprefix(f"{path}: "))


def read_each(files: Sequence[str], unreadable: dict[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Path and image of every file that can be read, in their order; the others come into `unreadable`."""
    report = ImageProgress(len(files))
    for path in files:
        image = read_image(path)
        if isinstance(image, str):
            leave_out(path, image, unreadable)
        else:
            yield path, image
        report.advance(1)
    report.close()


def check_any(images: Sized, unreadable: Mapping[str, str]) -> None:
    """There is something to answer for.

    Raises:
        DataError: no image could be read; gives the first reason.
    """
    if len(images) == 0:
        raise DataError(
            f"none of {len(unreadable)} images can be read, the first one: {next(iter(unreadable.values()))}"
        )
