"""Whether images decode: a few from first to last, or all; knows no run."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

from dmt_ds.data.sampling import spread
from dmt_ds.data.sources import ImageSource
from dmt_ds.errors import DataError, DmtError, StorageError

IMAGES_TO_DECODE = 8
SHOWN = 20
_AT_ONCE = 4096


@runtime_checkable
class Annotated(Protocol):
    """A source whose rows hold more than an image."""

    def look(self, index: int) -> None:
        """Reads all of a row; raises DataError naming what can't be read."""
        ...


def look_at_images(source: ImageSource, every_image: bool) -> tuple[int, list[DmtError]]:
    """How many images were decoded, and an error for each that can't be; of many the first, and how many there are."""
    chosen = list(range(len(source))) if every_image else spread(len(source), IMAGES_TO_DECODE)
    broken = list(_unreadable(source, chosen))
    if len(broken) > SHOWN:
        kind = DataError if any(isinstance(error, DataError) for error in broken) else StorageError
        broken[SHOWN:] = [kind(f"and {len(broken) - SHOWN} images more can't be read")]
    return len(chosen), broken


def _unreadable(source: ImageSource, rows: list[int]) -> Iterator[DmtError]:
    """What is wrong with them, in order; a thread a core, as decoding runs outside of Python's lock."""

    def problem(row: int) -> DmtError | None:
        try:
            (source.look if isinstance(source, Annotated) else source.read)(row)
        except (DataError, StorageError) as error:
            return error
        return None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        for start in range(0, len(rows), _AT_ONCE):  # a queue of a million would be all memory
            yield from filter(None, threads.map(problem, rows[start : start + _AT_ONCE]))
