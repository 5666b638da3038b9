"""What a finished run of a suite learned from, as its own record has it, against what the suite would take now."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path

from dmt_ds.commands.annotations.annotated_tasks import kind_of
from dmt_ds.config.deepspeed import find_ds_config, named_ds_config, precision
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig
from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.data.sources import open_source
from dmt_ds.engine.checkpoints.checkpoint import RunState, read_run_state
from dmt_ds.engine.checkpoints.manifest import saved_in
from dmt_ds.errors import CheckpointError, ConfigError, DmtError, StorageError
from dmt_ds.models.encoders import load_teacher
from dmt_ds.run_files import CHECKPOINTS_FOLDER, DONE, TEACHER_ENGINES_FILE


@dataclass(frozen=True)
class OtherInput:
    """Images, a teacher's weights or a precision that are not the run's, or that nobody can tell of.

    Attributes:
        line: the setting, then and now, and what is found there.
        was_seen: False where the look itself failed here, which says nothing of what was trained.
    """

    line: str
    was_seen: bool = True


def other_inputs(folder: Path, saved: RunConfig, now: RunConfig) -> list[OtherInput]:
    """Images, teachers' weights and precision that are not the run's, one finding each.

    The same images, weights or precision under another name are no difference. Only what has another name is looked
    at, and teachers that are finished runs, which may have been made anew in their old place. A checkpoint's record
    that this version can't read is as none.

    Args:
        folder: of the finished run.
        saved: its settings.
        now: those that the suite asks for.

    Raises:
        StorageError: the run's checkpoints can't be read for now.
    """
    record = _Record(folder)
    found = [*_images(saved, now, record), *_precision_of_student(saved, now, record)]
    if now.task in TEACHER_TASKS:
        found += [*_teachers(saved, now, record), *_precision_of_teachers(saved, now, record)]
    return found


@dataclass(frozen=True)
class _Record:
    """What a run's folder tells, read where somebody asks."""

    folder: Path

    @cached_property
    def state(self) -> RunState | None:
        """Of the newest checkpoint that tells, be its weights there still or not."""
        for checkpoint in self._checkpoints():
            try:
                return read_run_state(checkpoint)
            except StorageError:
                raise
            except CheckpointError:
                continue
        return None

    def _checkpoints(self) -> list[Path]:
        """The newest first."""
        try:
            return saved_in(self.folder / CHECKPOINTS_FOLDER)[::-1]
        except StorageError:
            raise
        except CheckpointError:  # may not be read
            return []

    @property
    def precision_of_teachers(self) -> str | None:
        """None where the file is not there, or damaged."""
        try:
            of_teachers = json.loads((self.folder / TEACHER_ENGINES_FILE).read_text())
            return next((precision(ds_config) for ds_config in of_teachers.values()), None)
        except (OSError, ValueError, AttributeError):
            return None


def _images(saved: RunConfig, now: RunConfig, record: _Record) -> Iterator[OtherInput]:
    before, after = saved.data.path, now.data.path
    if now.data.source == "digits" or before == after or _is_same_place(before, after):
        return  # digits have no path
    key = now.model_dump_json(include={"task", "data", "segment", "detect"})
    recorded = None if record.state is None else record.state.data_fingerprint
    yield from _compared(f"data.path: {before} -> {after}", recorded, partial(_fingerprint, _Images(key, now)))


def _precision_of_student(saved: RunConfig, now: RunConfig, record: _Record) -> Iterator[OtherInput]:
    before, after = saved.train.deepspeed, now.train.deepspeed
    if not _is_same_json(before, after):
        recorded = None if record.state is None else record.state.precision
        yield from _compared(f"train.deepspeed: {before} -> {after}", recorded, partial(_precision, after))


def _teachers(saved: RunConfig, now: RunConfig, record: _Record) -> Iterator[OtherInput]:
    sources = {name: teacher.source for name, teacher in saved.teachers.used().items()}
    for name, teacher in now.teachers.used().items():
        before, after = sources.get(name), teacher.source
        if before is None:
            continue  # a teacher that came or went is told by its settings
        is_in_its_place = before == after or _is_same_place(before, after)
        if is_in_its_place and not Path(os.path.expanduser(after), DONE).exists():
            continue
        recorded = None if record.state is None else record.state.teachers.get(name)
        if is_in_its_place and recorded is None:
            continue
        moved = f"teachers.models.{name}.source: {before}" + ("" if before == after else f" -> {after}")
        yield from _compared(moved, recorded, partial(_sha256, name, teacher))


def _precision_of_teachers(saved: RunConfig, now: RunConfig, record: _Record) -> Iterator[OtherInput]:
    before, after = saved.teachers.deepspeed, now.teachers.deepspeed
    if not _is_same_json(before, after):
        moved = f"teachers.deepspeed: {before} -> {after}"
        yield from _compared(moved, record.precision_of_teachers, partial(_precision, after))


def _is_same_place(before: str | None, after: str | None) -> bool:
    """Whether a path is only written otherwise: from another folder, with a slash at its end, by way of a link."""
    if not before or not after:
        return False
    here, there = (os.path.realpath(os.path.expanduser(path)) for path in (before, after))
    return here == there


def _is_same_json(before: str, after: str) -> bool:
    """Whether both name one DeepSpeed JSON; a shipped one has a name and a path."""
    if before == after:
        return True
    try:
        return find_ds_config(before).resolve() == find_ds_config(after).resolve()
    except ConfigError:
        return False


def _compared(setting: str, recorded: str | None, look: Callable[[], str]) -> Iterator[OtherInput]:
    """The setting as a finding, where what it names now is not what was recorded, or can't be compared with that."""
    if recorded is None:
        yield OtherInput(f"{setting} (the run kept no record to compare it with)")
        return
    try:
        found = look()
    except DmtError as error:
        yield OtherInput(f"{setting} ({' '.join(str(error).split())})", was_seen=False)
        return
    if found != recorded:
        yield OtherInput(f"{setting} (its content differs: {recorded[:12]} -> {found[:12]})")


@dataclass(frozen=True)
class _Images:
    """The training images of a run; runs whose images have the same key look at them once."""

    key: str
    config: RunConfig = field(compare=False)


@cache
def _fingerprint(images: _Images) -> str:
    config = images.config
    kind = kind_of(config)
    source = kind.source(config, "train") if kind else open_source(config.data, "train")
    return source.fingerprint


@cache
def _sha256(name: str, teacher: TeacherConfig) -> str:
    return load_teacher(name, teacher).record.sha256 or "unknown"  # as a run's checkpoints have it


def _precision(deepspeed: str) -> str:
    return precision(named_ds_config(deepspeed))
