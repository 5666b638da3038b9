"""Checkpoint folders that are complete or not there: hidden name, manifest, rename; knows no engine and no method."""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.fence import Fence
from dmt_ds.engine.checkpoints.manifest import (
    answering,
    hashes_of,
    incompleteness,
    num_bytes,
    saved_in,
    seal,
    sizes_in,
    write_json,
    write_manifest,
)
from dmt_ds.errors import CheckpointError, DmtError, StorageError
from dmt_ds.run_files import LATEST_FILE
from dmt_ds.storage import is_away, patiently, sync, unwritten, why_unwritable
from dmt_ds.tracking.journal import write_atomically

T = TypeVar("T")

logger = logging.getLogger(__name__)

RUN_STATE = "run_state.json"
_TAG = re.compile(r"step\d{8,}")
_TEMPORARY = ".tmp-"
_FILE_WRITER = "inline_container"
"""In what torch.save says, as a RuntimeError, of a disk that takes no more."""


@dataclass(frozen=True)
class RunState:
    """Where a run stood, and what it was: enough to go on, and to refuse to go on with something else."""

    step: int
    images_seen: int
    world_size: int
    zero_stage: int
    precision: str
    config: dict[str, Any]
    teachers: dict[str, str] = field(default_factory=dict)
    """Teacher name -> sha256 of its weights."""
    data_fingerprint: str = ""
    parameters: str = ""
    """Hash of the trained parameters' names and shapes."""
    code: dict[str, str] = field(default_factory=dict)
    """File of the package that makes losses -> hash; empty in checkpoints of early versions."""
    libraries: dict[str, str] = field(default_factory=dict)
    """Library whose arithmetic is in the losses -> version; empty in checkpoints of early versions."""
    mlflow_run_id: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    state: RunState

    @property
    def tag(self) -> str:
        """Name of the folder, DeepSpeed's tag."""
        return self.folder.name


class CheckpointFolder:
    """The checkpoints of one run.

    A save goes to a hidden name on all ranks, then rank 0 writes the manifest, renames, and points `latest` at it. A
    kill at any moment leaves at most a hidden folder, which the next save removes. Older ones stay until `prune`.
    """

    def __init__(self, folder: Path, keep: int, fence: Fence | None = None) -> None:
        """Nothing is touched yet.

        Args:
            keep: complete checkpoints that stay.
            fence: rank 0's claim on the run, which all ranks may look at; without it nothing guards against a second
                writer.
        """
        self.folder = folder
        self._keep = keep
        self._fence = fence
        self._mark = "" if fence is None else f"-{fence.mark}"  # no two attempts give a hidden thing the same name

    def save(self, state: RunState, write: Callable[[Path, str], None]) -> Path:
        """Save on all ranks.

        Args:
            write: called on every rank with (folder, tag): puts this rank's files into folder/tag, which exists.

        Raises:
            CheckpointError: the disk is full or can't be written; earlier checkpoints are as they were.
            StorageError: the disk or file server does not answer, or does not show what another node wrote.
        """
        tag = tag_of(state.step)
        hidden = self._make_room(tag)
        try:
            write(self.folder, hidden.name)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and _FILE_WRITER not in str(error):
                self._check_fence()
                raise  # a peer has left in the middle of a collective: the disk is not at fault
            raise self._failure(tag, error) from error
        dist.barrier()  # no rank looks while another one still writes
        hashes = self._seal(hidden, tag)
        self._on_main(lambda: self._publish(hidden, tag, state, hashes), tag)
        return self.folder / tag

    def _seal(self, hidden: Path, tag: str) -> dict[str, str]:
        try:
            return seal(hidden)
        except OSError as error:
            raise self._failure(tag, error) from error

    def newest(self) -> Checkpoint | None:
        """The newest complete checkpoint, or None; incomplete ones are named in the log and skipped."""
        return next((Checkpoint(folder, read_run_state(folder)) for folder in self.complete()), None)

    def complete(self) -> Iterator[Path]:
        """Folders of complete checkpoints, the newest first; incomplete ones are named in the log and skipped.

        Raises:
            StorageError: the disk or file server does not say what is there, or whether it is complete.
        """
        for folder in reversed(saved_in(self.folder)):
            if problem := unusable(folder):
                logger.warning("%s: skipped: %s", folder, problem)
            else:
                yield folder

    def prune(self, step: int) -> None:
        """On rank 0, after a save: only the newest complete checkpoints up to `step` stay.

        A later one can only be from a superseded attempt and would be taken for the newest. A damaged one is useless
        once a newer one is complete.

        Raises:
            CheckpointError: the folder can't be changed, or a newer attempt has taken the run over.
            StorageError: its disk or file server does not answer.
        """
        try:
            self._prune(step)
        except OSError as error:
            self._check_fence()  # a newer attempt removes too, and then the disk is not at fault
            raise (StorageError if is_away(error) else CheckpointError)(
                f"{self.folder}: {tag_of(step)} is saved, but older checkpoints can't be removed ({error.strerror}): "
                "look at the disk, then start again"
            ) from error

    def _prune(self, step: int) -> None:
        folders = [folder for folder in saved_in(self.folder) if _TAG.fullmatch(folder.name)]
        complete = [folder for folder in folders if unusable(folder) is None]
        self._check_fence()  # after the look: what a newer attempt saves is never seen here
        kept = [folder for folder in complete if folder.name <= tag_of(step)][-self._keep :]
        useless = [folder for folder in folders if kept and folder not in complete and folder < max(kept)]
        for folder in [*complete, *useless]:
            if folder not in kept:
                self._remove(folder)

    def _make_room(self, tag: str) -> Path:
        """Remove what a kill left, and fail at once if the disk is too full for a checkpoint like the last.

        The hidden folder is this attempt's alone: another one that was cut off during a save may still write.
        """

        def prepare() -> str:
            hidden = self.folder / f"{_TEMPORARY}{tag}{self._mark}"
            universal, leftovers = [*self.folder.glob("*_universal")], [*self.folder.glob(f"{_TEMPORARY}*")]
            self._check_fence()  # after the look: what a newer attempt is writing is never seen here
            self.folder.mkdir(parents=True, exist_ok=True)
            for folder in universal:
                self._remove(folder)
            for leftover in leftovers:
                _remove_leftover(leftover)
            hidden.mkdir()
            newest = max(self.folder.glob("step*"), default=None)
            needed = sum(sizes_in(newest).values()) if newest else 0
            free = shutil.disk_usage(self.folder).free
            if free < needed:
                hidden.rmdir()
                told = f"No space left on device: {free / 2**20:.0f} MiB free, {needed / 2**20:.0f} needed"
                raise OSError(errno.ENOSPC, told)

            return hidden.name

        return self.folder / self._on_main(prepare, tag)

    def _publish(self, hidden: Path, tag: str, state: RunState, hashes: Mapping[str, str]) -> None:
        write_json(hidden / RUN_STATE, asdict(state))
        write_manifest(hidden, {**hashes, **hashes_of(hidden, [RUN_STATE])})
        self._check_fence()
        final = self.folder / tag
        if final.exists():
            self._remove(final)
        os.replace(hidden, final)
        for folder in (self.folder, self.folder.parent):
            sync(folder)
        self._check_fence()
        write_atomically(self.folder / LATEST_FILE, tag, self.folder / f"{_TEMPORARY}{LATEST_FILE}{self._mark}")

    def _remove(self, folder: Path) -> None:
        """Rename first, so that a kill never leaves half a checkpoint under a valid name.

        Then check the claim again: a process that was suspended may have hidden what a newer attempt needs.
        """
        hidden = self.folder / f"{_TEMPORARY}old-{folder.name}{self._mark}"
        with suppress(FileNotFoundError):  # a newer attempt was first
            os.replace(folder, hidden)
        try:
            self._check_fence()
        except DmtError:
            with suppress(OSError):
                os.replace(hidden, folder)
            raise
        _remove_leftover(hidden)

    def _check_fence(self) -> None:
        if self._fence is not None:
            self._fence.check()

    def _on_main(self, act: Callable[[], T], tag: str) -> T:
        """Do it on rank 0, its result on all; if that fails, all ranks end instead of waiting for each other."""

        def attempt() -> T:
            try:
                return act()
            except OSError as error:
                raise self._failure(tag, error) from error

        return dist.decided_by_main(attempt)

    def _failure(self, tag: str, error: OSError | RuntimeError) -> CheckpointError:
        """On any rank: a newer attempt takes away what this one writes, and then the disk is not at fault."""
        self._check_fence()
        cause = error if isinstance(error, OSError) else why_unwritable(self.folder / f"{_TEMPORARY}probe{self._mark}")
        if cause is None:  # torch could not write, and there is room now: the trouble has passed
            cause = OSError(errno.EIO, str(error).splitlines()[0])
        newest = "not known"
        with suppress(StorageError):
            newest = next((folder.name for folder in self.complete()), "none")
        told = f"{self.folder / tag}: not saved (rank {dist.rank()}): {cause.strerror or cause}"
        return unwritten(f"{told}. The newest complete checkpoint is {newest}", cause)


def _remove_leftover(path: Path) -> None:
    """Best effort: an older attempt may still be writing there. The next save removes the rest."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def tag_of(step: int) -> str:
    """Name of a step's checkpoint; names sort as steps do."""
    return f"step{step:08d}"


def unusable(folder: Path) -> str | None:
    """Why a checkpoint folder can't be used, or None: files are looked at by name and size, see `manifest.damage`.

    Raises:
        StorageError: the disk or file server does not say.
    """
    return incompleteness(folder) or (f"{RUN_STATE} is missing" if num_bytes(folder / RUN_STATE) is None else None)


def read_run_state(folder: Path) -> RunState:
    """What `save` recorded.

    Raises:
        CheckpointError: the record is none, or another version of the program wrote it.
        StorageError: it can't be read.
    """
    try:
        with answering(folder / RUN_STATE):
            return RunState(**json.loads(patiently((folder / RUN_STATE).read_text)))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(
            f"{folder / RUN_STATE}: unreadable ({error}); move this checkpoint away to resume from an older one"
        ) from error
