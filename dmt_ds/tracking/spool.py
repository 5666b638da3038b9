"""What of a run has to reach its tracking store, and how far that has got: a few files; knows nothing of MLflow.

<output_dir>/metrics.jsonl             every point, for people too
<output_dir>/tracking/records.jsonl    params, tags, files, data sets, changes of status
<output_dir>/tracking/system.jsonl     points of system metrics
<output_dir>/tracking/shipped.json     up to which byte of each the store has it
<output_dir>/tracking/mlflow_run_id    the store's name of the run
"""

import json
import logging
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from dmt_ds.tracking.journal import FileLock, Journal, Record, remove_leftovers, write_atomically
from dmt_ds.tracking.tracker import METRICS_FILE

logger = logging.getLogger(__name__)


class Spool:
    """The queues of one run's folder. Everything put in is on disk when the call returns."""

    def __init__(self, output_dir: Path, run_name: str) -> None:
        """Open what is there, or begin.

        Raises:
            TrackingError: the folder can't be written.
        """
        self.output_dir = output_dir.resolve()
        self.folder = self.output_dir / "tracking"
        self.metrics = Journal(self.output_dir / METRICS_FILE)
        self.records = Journal(self.folder / "records.jsonl")
        self.system = Journal(self.folder / "system.jsonl")
        self.lock = FileLock(self.folder / "lock")
        self.run_id = known_run(output_dir)
        self._shipped = Shipped(self.folder / "shipped.json")
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
            write_atomically(self.folder / "mlflow_run_id", run_id + "\n")
        except OSError as error:
            logger.debug("%s: %s", self.folder, error)

    def put(self, kind: str, **content: object) -> None:
        """Queue a record, stamped with the present time."""
        self.records.append({"kind": kind, "time_ms": time.time_ns() // 1_000_000, **content})

    def put_artifact(self, path: Path, folder: str | None) -> None:
        """Queue a file or folder: its path where it belongs to the run, else a copy of it."""
        path = path.resolve()
        if not path.is_relative_to(self.output_dir):
            path = self._copy(path, self.folder / "artifacts" / (folder or "") / path.name)
        self.put("artifact", path=str(path.relative_to(self.output_dir)), folder=folder)

    def unshipped(self, journal: Journal, max_lines: int) -> tuple[list[Record], int]:
        """The next lines of a journal that have not arrived, and the offset to confirm once they have."""
        return journal.read(self._shipped.offset(journal), max_lines)

    def confirm(self, journal: Journal, offset: int) -> None:
        """Everything before `offset` has arrived."""
        self._shipped.advance(journal, offset)

    def is_empty(self) -> bool:
        """Whether everything has arrived."""
        return not any(self.unshipped(journal, 1)[0] for journal in (self.metrics, self.records, self.system))

    def close(self) -> None:
        """Let go of files and lock; what has not arrived stays."""
        for journal in (self.metrics, self.records, self.system):
            journal.close()
        self.lock.release()

    def _copy(self, source: Path, target: Path) -> Path:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, dirs_exist_ok=True)
            else:
                shutil.copyfile(source, target)
        except OSError as error:
            logger.error("%s: not kept with the run: %s", source, error)
        return target


def known_run(output_dir: Path) -> str | None:
    """The store's name of the run of a folder, where it has one; nothing is made."""
    return _read(output_dir / "tracking" / "mlflow_run_id").strip() or None


class Shipped:
    """How far each journal has been taken by the store: one small file, replaced atomically."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._state: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError):
            self._state = {}

    def begin(self, run_id: str) -> None:
        """The offsets are those of this run; of another one nothing has been shipped."""
        if self._state.get("run_id") != run_id:
            self._state = {"run_id": run_id}

    def offset(self, journal: Journal) -> int:
        """First byte of a journal that is still to ship; 0 where the file has become shorter than that."""
        offset = int(self._state.get(journal.path.name, 0))
        return offset if offset <= journal.num_bytes else 0

    def advance(self, journal: Journal, offset: int) -> None:
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
