"""Disks and file servers: what one without an answer means, asking again, writing out and hashing; knows no run."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeGuard, TypeVar

from dmt_ds.errors import CheckpointError, StorageError

T = TypeVar("T")

WAITS_SECONDS = (0.25, 1.0, 4.0)
"""Between tries: a server fails over, or another node has just renamed what is read."""
# The last two: a Lustre client that the server has put out, and a FUSE mount whose server ended.
_AWAY = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO, errno.ESHUTDOWN, errno.ENOTCONN})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_PROBE_BYTES = 1 << 20
_READ_AT_ONCE = 1 << 22


def is_away(error: BaseException) -> TypeGuard[OSError]:
    """Whether the kernel says that what holds a file gave no answer, rather than what there is or who may have it."""
    return isinstance(error, OSError) and error.errno in _AWAY


def patiently(read: Callable[[], T]) -> T:
    """What a look at files gives; one that gets no answer is repeated a few times.

    Raises:
        OSError: there is still none, or the answer is an error.
    """
    for seconds in WAITS_SECONDS:
        try:
            return read()
        except OSError as error:
            if not is_away(error):
                raise
        time.sleep(seconds)
    return read()


def holds(path: Path, text: str) -> bool:
    """Whether a file says just this; one that can't be read does not."""
    try:
        return path.read_text(errors="replace") == text
    except OSError:
        return False


def sync(path: Path) -> None:
    """Have the kernel write a file or folder out, so that what says it is there can't reach the disk before it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_AT_ONCE):
            digest.update(block)
    return digest.hexdigest()


def unwritten(told: str, error: OSError) -> CheckpointError:
    """What to raise where a run's folder can't be written: worth another try, or with the remedy.

    Args:
        told: which file, and what became of it.
        error: why.
    """
    if is_away(error):
        return StorageError(f"{told}; look at the disk or file server, then start again")
    if error.errno in _FULL:
        return CheckpointError(f"{told}; make room, then start again")
    return CheckpointError(f"{told}; make it writable, or set output_dir to a folder of yours")


def why_unwritable(path: Path) -> OSError | None:
    """What the kernel says of a file there that does not stay, None where it takes it: torch keeps that to itself."""
    try:
        with path.open("wb") as file:
            file.write(bytes(_PROBE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error
    finally:
        with suppress(OSError):
            path.unlink()
    return None
