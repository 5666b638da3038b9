"""What of a run has to reach its tracking store, and how far that has got: a few files; knows nothing of MLflow.

<output_dir>/metrics.jsonl             every point, for people too
<output_dir>/tracking/records.jsonl    params, tags, files, data sets, changes of status
<output_dir>/tracking/system.jsonl     points of system metrics
<output_dir>/tracking/shipped.json     up to which byte of each the store has it
<output_dir>/tracking/mlflow_run_id    the store's name of the run
"""

import errno
import json
import logging
import shutil
import threading
import time
import uuid
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

from dmt_ds.run_files import METRICS_FILE, RECORDS_FILE, RUN_ID_FILE, SHIPPED_FILE, SYSTEM_FILE, TRACKING_FOLDER
from dmt_ds.tracking.journal import FileLock, Journal, Record, read_lines, remove_leftovers, write_atomically

logger = logging.getLogger(__name__)

_MAY_PASS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What the kernel says of a write that may succeed later."""


class Copy(NamedTuple):
    """A file or folder from elsewhere that is still to be taken into the run's folder."""

    source: Path
    target: Path
    folder: str | None


class Spool:
    """The queues of one run's folder. What was put in outlives this process, and after `sync` the node too."""

    def __init__(self, output_dir: Path, run_name: str) -> None:
        """Open what is there, or begin.

        Raises:
            TrackingError: the folder can't be written.
        """
        self.output_dir = output_dir.resolve()
        self.folder = self.output_dir / TRACKING_FOLDER
        self.metrics = Journal(self.output_dir / METRICS_FILE)
        self.records = Journal(self.output_dir / RECORDS_FILE)
        self.system = Journal(self.output_dir / SYSTEM_FILE)
        self.lock = FileLock(self.folder / "lock")
        self.run_id = known_run(output_dir)
        self._shipped = Shipped(self.output_dir / SHIPPED_FILE)
        for journal in self._journals:
            self._shipped.go_back_to_end(journal)
        self._copies: deque[Copy] = deque()
        self._copying = threading.Lock()
        remove_leftovers(self.folder, "*.tmp")
        if self.records.num_bytes == 0:
            self.put("begin", run_name=run_name, key=uuid.uuid4().hex)

    def beginning(self) -> Record:
        """The first record: `time_ms` of the run's start, its `run_name`, and the `key` by which its run is known."""
        return next(iter(self.records.read(0, max_lines=1)[0]), {})

    def adopt(self, run_id: str) -> None:
        """Note the store's name of the run; under a new name nothing has been shipped yet."""
        self.run_id = run_id
        self._shipped.begin(run_id)
        try:
            write_atomically(self.output_dir / RUN_ID_FILE, run_id + "\n")
        except OSError as error:
            logger.debug("%s: %s", self.folder, error)

    def put(self, kind: str, **content: object) -> None:
        """Queue a record, stamped with the present time."""
        self.records.append({"kind": kind, "time_ms": time.time_ns() // 1_000_000, **content})

    def put_artifact(self, path: Path, folder: str | None) -> None:
        """Queue a file or folder: its path where it belongs to the run, else a copy of it."""
        path = path.resolve()
        if path.is_relative_to(self.output_dir):
            self._put_artifact(path, folder)
            return
        copy = Copy(path, self.folder / "artifacts" / (folder or "") / path.name, folder)
        if not self._made(copy):
            logger.error("%s: there is no room for a copy in %s yet: free some space", path, self.output_dir)
            self._copies.append(copy)

    def copy_again(self) -> None:
        """Try once more what a full disk didn't take; silent while it still doesn't."""
        with self._copying:  # at its end a run may do so beside the thread that ships
            for _ in range(len(self._copies)):
                copy = self._copies.popleft()
                if not self._made(copy):
                    self._copies.append(copy)

    def unshipped(self, journal: Journal, max_lines: int) -> tuple[list[Record], int]:
        """The next lines of a journal that have not arrived, and the offset to confirm once they have."""
        return journal.read(self._shipped.offset(journal), max_lines)

    def confirm(self, journal: Journal, offset: int) -> None:
        """Everything before `offset` has arrived."""
        self._shipped.note(journal, offset)

    def is_empty(self) -> bool:
        """Whether everything has arrived."""
        return not self._copies and not any(self.unshipped(journal, 1)[0] for journal in self._journals)

    def sync(self) -> None:
        """Have the kernel write out all that was put in."""
        for journal in self._journals:
            journal.sync()

    def close(self) -> None:
        """Let go of files and lock; what has not arrived stays."""
        self.copy_again()
        for copy in self._copies:
            logger.error("%s: not kept with the run: the disk is full", copy.source)
        for journal in self._journals:
            journal.close()
        self.lock.release()

    @property
    def _journals(self) -> tuple[Journal, ...]:
        return self.metrics, self.records, self.system

    def _made(self, copy: Copy) -> bool:
        """Copy and queue it; False where it is worth another try."""
        try:
            copy.target.parent.mkdir(parents=True, exist_ok=True)
            if copy.source.is_dir():
                shutil.copytree(copy.source, copy.target, dirs_exist_ok=True)
            else:
                shutil.copyfile(copy.source, copy.target)
        except (OSError, shutil.Error) as error:
            if _may_pass(error):
                return False
            logger.error("%s: not kept with the run: %s", copy.source, error)
        else:
            self._put_artifact(copy.target, copy.folder)
        return True

    def _put_artifact(self, path: Path, folder: str | None) -> None:
        self.put("artifact", path=str(path.relative_to(self.output_dir)), folder=folder)


def _may_pass(error: OSError) -> bool:
    """Whether a full disk is all that is wrong; of a folder's copy only the files' words are known."""
    if isinstance(error, shutil.Error):
        return any(f"[Errno {number}]" in str(error) for number in _MAY_PASS)
    return error.errno in _MAY_PASS


def known_run(output_dir: Path) -> str | None:
    """The store's name of the run of a folder, where it has one; nothing is made."""
    return _read(output_dir / RUN_ID_FILE).strip() or None


def is_at_rest(output_dir: Path) -> bool:
    """Whether a folder's run is FINISHED, and all that was kept of it has arrived; nothing is made."""
    shipped = _json(output_dir / SHIPPED_FILE)
    files = [output_dir / name for name in (METRICS_FILE, RECORDS_FILE, SYSTEM_FILE)]
    arrived = all(int(shipped.get(path.name, 0)) == path.stat().st_size for path in files if path.exists())
    states = [
        record.get("status") for record in read_lines(output_dir / RECORDS_FILE) if record.get("kind") == "status"
    ]
    return arrived and states[-1:] == ["FINISHED"]


class Shipped:
    """How far each journal has been taken by the store: one small file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = _json(path)

    def begin(self, run_id: str) -> None:
        """The offsets are those of this run; of another one nothing has been shipped."""
        if self._state.get("run_id") != run_id:
            self._state = {"run_id": run_id}

    def go_back_to_end(self, journal: Journal) -> None:
        """A node that lost its power may have lost lines that were sent: those that take their place were not.

        To be called before anything is added.
        """
        if int(self._state.get(journal.path.name, 0)) > journal.num_bytes:
            self.note(journal, journal.num_bytes)  # at once: the store may be away until the next start

    def offset(self, journal: Journal) -> int:
        """First byte of a journal that is still to ship; 0 where the file has become shorter than that."""
        offset = int(self._state.get(journal.path.name, 0))
        return offset if offset <= journal.num_bytes else 0

    def note(self, journal: Journal, offset: int) -> None:
        """Everything before `offset` has arrived. Losing this on a full disk costs a second sending, not a point."""
        self._state[journal.path.name] = offset
        try:
            write_atomically(self._path, json.dumps(self._state))
        except OSError as error:
            logger.debug("%s: %s", self._path, error)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
