"""Append-only JSON lines on disk that outlive the process, and a lock between processes; knows nothing of tracking.

Appending is one `write`, so that a process killed a moment later loses nothing; a node that loses its power loses what
was appended since the last `sync`.
"""

import fcntl
import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from dmt_ds.errors import TrackingError

logger = logging.getLogger(__name__)

Record = dict[str, Any]

_UNWRITTEN_LIMIT = 1 << 20  # bytes kept in memory while the disk takes none
_LEFTOVER_SECONDS = 30.0
_TAIL = 1 << 16  # bytes searched for the last line


class Journal:
    """One JSON object a line; safe for several threads, and for a process that is killed at any moment."""

    def __init__(self, path: Path) -> None:
        """Open for appending; made with its folder where missing.

        Raises:
            TrackingError: the file can't be opened for writing.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise TrackingError(
                f"{path}: can't be written ({error.strerror}); set output_dir to a folder of yours"
            ) from error
        self._lock = threading.Lock()
        self._failing = False
        self.num_lost = 0
        # A line torn by a power cut gets its end here, so that it spoils no other.
        self._unwritten = bytearray() if _ends_with_newline(path) else bytearray(b"\n")

    def append(self, record: Mapping[str, object]) -> None:
        """Write one line now; never raises: while the disk is full a bounded number of lines wait in memory.

        Ignored once the journal is closed.
        """
        line = json.dumps(record, separators=(",", ":"), default=str).encode() + b"\n"
        with self._lock:
            if self._file < 0:
                return
            if len(self._unwritten) + len(line) <= _UNWRITTEN_LIMIT:
                self._unwritten += line
            else:
                self._count_lost()
            try:
                self._write()
            except OSError as error:
                self._warn_once(error)

    def sync(self) -> None:
        """Have the kernel write out what was appended; never raises: where the disk fails, a warning is given."""
        with self._lock:
            if self._file < 0:
                return
            try:
                os.fsync(self._file)
            except OSError as error:
                self._warn_once(error)

    def read(self, offset: int, max_lines: int = 1000) -> tuple[list[Record], int]:
        """The next complete lines from byte `offset`, and the offset behind them; unreadable lines are left out."""
        records: list[Record] = []
        if not self.path.exists():
            return records, offset
        with self.path.open("rb") as file:
            file.seek(offset if offset <= self.num_bytes else 0)
            offset = file.tell()
            for line in file:
                if len(records) == max_lines or not line.endswith(b"\n"):
                    break
                offset += len(line)
                if (record := _parse(line)) is not None:
                    records.append(record)
        return records, offset

    def last(self) -> Record | None:
        """The last complete line; None where there is none."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            file.seek(max(0, self.num_bytes - _TAIL))
            lines = file.read().splitlines(keepends=True)
        found = (_parse(line) for line in reversed(lines) if line.endswith(b"\n"))
        return next((record for record in found if record is not None), None)

    @property
    def num_bytes(self) -> int:
        """Length of the file; 0 where someone has removed it."""
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """Say what was lost, and let go of the file."""
        with self._lock:
            num_lost = self.num_lost + self._unwritten.count(b"\n")
            if num_lost and self._failing:
                logger.error("%s: the disk is full, %d lines are lost for good", self.path, num_lost)
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def _write(self) -> None:
        while self._unwritten:
            written = os.write(self._file, self._unwritten)
            del self._unwritten[:written]
        if self._failing:
            logger.warning("%s: can be written again; %d lines were lost", self.path, self.num_lost)
        self._failing = False

    def _count_lost(self) -> None:
        if self.num_lost == 0:
            logger.error(
                "%s: still can't be written, and %d KiB wait in memory: further lines are lost until it can",
                self.path,
                _UNWRITTEN_LIMIT >> 10,
            )
        self.num_lost += 1

    def _warn_once(self, error: OSError) -> None:
        if not self._failing:
            logger.error("%s: can't be written (%s): free some space; training goes on", self.path, error.strerror)
        self._failing = True


def read_lines(path: Path) -> Iterator[Record]:
    """All readable lines of a journal, without opening it for writing; none where the file is missing."""
    if path.exists():
        with path.open("rb") as file:
            yield from (record for record in map(_parse, file) if record is not None)


def write_atomically(path: Path, text: str, temporary: Path | None = None) -> None:
    """Replace a small file in one step: a reader, or a start after a power cut, finds the old text or the new one.

    Args:
        path: the file.
        text: all of it.
        temporary: its path until then, where a kill may leave it; `remove_leftovers` finds the usual `NAME.PID.tmp`.

    Raises:
        OSError: it can't be written; what was there still is.
    """
    temporary = temporary or path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def remove_leftovers(folder: Path, pattern: str) -> None:
    """Small files that a kill left unfinished; one that is being written now is seconds old, and stays."""
    for path in folder.glob(pattern):
        with suppress(OSError):  # somebody else was first
            if time.time() - path.stat().st_mtime > _LEFTOVER_SECONDS:
                path.unlink()


class FileLock:
    """A lock between processes that ends with its holder, however that dies.

    It is a POSIX lock, which belongs to one process: forked loader workers don't keep a dead run's lock. So within one
    process there must be one object a path.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: int | None = None

    def acquire(self, wait: bool) -> bool:
        """Take or keep it; False where another process has it and `wait` is off.

        Where the file system knows no locks, everyone gets it.
        """
        if self._file is not None:
            return True
        path_file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(path_file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(path_file)
            return False
        except OSError as error:
            logger.debug("%s: no locks on this file system (%s)", self._path, error)
        self._file = path_file
        return True

    def release(self) -> None:
        """Give it back; nothing where it was not taken."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def __enter__(self) -> "FileLock":
        self.acquire(wait=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _ends_with_newline(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return True
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
