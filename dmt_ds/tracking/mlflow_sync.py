"""Copies runs into a store, so that a second copy adds only what is new; deletes nothing, and writes nothing to SRC."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dmt_ds.errors import TrackingError
from dmt_ds.tracking import mlflow_store
from dmt_ds.tracking.journal import FileLock
from dmt_ds.tracking.mlflow_opening import import_mlflow, opening
from dmt_ds.tracking.mlflow_parent import PARENT_OF_TAG, PARENT_TAG, follow_children, parent_of_copies
from dmt_ds.tracking.mlflow_source import (
    ORIGIN_TAG,
    SourceRun,
    answering,
    asking,
    pages,
    runs_of_folders,
    runs_of_store,
    store_files,
)
from dmt_ds.tracking.shipper import ItemRefused
from dmt_ds.tracking.store_uri import StoreUri, named_store

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput, Metric, Run

_SOURCE_TAG = "sync.source"
_OWN_TAGS = {ORIGIN_TAG, _SOURCE_TAG, PARENT_TAG, "mlflow.runName"}  # not copied as they are


@dataclass(frozen=True)
class Outcome:
    """What a copy changed of one run, as a line to print."""

    run: str
    changes: tuple[str, ...] = ()
    unchanged: str = "up to date"

    def __str__(self) -> str:
        return f"{self.run}: {', '.join(self.changes) or self.unchanged}"


def sync(source: str, target: str, experiments: Sequence[str]) -> Iterator[Outcome]:
    """Copy runs, parents first, one outcome a run; a copy that was cut off is completed by the next call.

    Args:
        source: URI or SQLite file of a store, or a folder of run folders.
        target: URI or SQLite file of a store; made where missing, if it is SQLite.
        experiments: names; none means all.

    Raises:
        TrackingError: a store doesn't answer, there is no such experiment, or the target refused something, which is
            told after all other runs have been copied.
    """
    folder = Path(source) if Path(source).is_dir() else None
    from_store = None if folder else named_store(source, must_exist=True)
    to_store = named_store(target, must_exist=False)
    if from_store == to_store:
        raise TrackingError(f"{to_store}: source and target are the same store; name two")
    import_mlflow(to_store)
    with _lock(folder, from_store, to_store):
        runs = runs_of_folders(folder, experiments) if folder else runs_of_store(from_store or to_store, experiments)
        copy = _Copy(to_store, str(folder.resolve() if folder else from_store))
        refusals = []
        for run in _parents_first(runs):
            try:
                yield copy.bring(run)
            except ItemRefused as refusal:
                refusals.append(f"{run.experiment}/{run.name}: {refusal}")
        if refusals:
            raise TrackingError("\n".join(refusals))


class _Copy:
    """Writes to the target store."""

    def __init__(self, store: StoreUri, source: str) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import ViewType

        self._store = store
        self._source = source
        with answering(store), opening(store):
            self._client = MlflowClient(store.uri)
            found = pages(self._client.search_experiments, view_type=ViewType.ALL)
            self._experiment_ids: list[str] = [experiment.experiment_id for experiment in found]
        self._experiments: dict[str, str] = {}
        self._copies: dict[str, str] = {}

    def bring(self, run: SourceRun) -> Outcome:
        """Make the run, or add to it what it lacks.

        Raises:
            TrackingError: the store doesn't answer.
            ItemRefused: something of the run is not taken, now or ever.
        """
        title = f"{run.experiment}/{run.name}"
        copy = self._find(run)
        is_new = copy is None
        copy = copy or self._make(run)
        self._copies.update(dict.fromkeys(run.ids, copy.info.run_id))
        if copy.info.lifecycle_stage != "active":
            return Outcome(title, unchanged="was deleted there, left alone")
        if copy.info.run_id == run.ids[0]:
            return Outcome(title, unchanged="comes from there, left alone")
        changes = [
            self._add_points(run, copy),
            self._add_params(run, copy),
            self._set_tags(run, copy),
            self._add_datasets(run, copy),
            self._add_files(run, copy),
            self._set_status(run, copy),
        ]
        if run.parent_name and any(changes):
            self._follow_children(copy)
        return Outcome(title, (*(["new"] if is_new else []), *(change for change in changes if change)))

    def _find(self, run: SourceRun) -> "Run | None":
        """The run's copy, or the run itself where it comes from this store."""
        found = self._run(run.ids[0]) or self._tagged(ORIGIN_TAG, run.ids[0])
        if found is None and run.key is not None:
            found = self._tagged(mlflow_store.KEY_TAG, run.key)
            # Of two runs with one key (one was deleted, rewritten, restored) each has its own copy.
            other = found.data.tags.get(ORIGIN_TAG, run.key) if found else run.key
            found = found if run.key in (other, run.ids[0]) else None
        return found or self._parent_born_here(run)

    def _parent_born_here(self, run: SourceRun) -> "Run | None":
        """What was made as the same parent, for runs that came before it: those of folders."""
        name = run.tags.get(PARENT_OF_TAG)
        with asking(self._store):
            known = self._client.get_experiment_by_name(run.experiment) if name else None
            return parent_of_copies(self._client, known.experiment_id, name, ORIGIN_TAG) if name and known else None

    def _make(self, run: SourceRun) -> "Run":
        if run.experiment not in self._experiments:
            with asking(self._store):
                self._experiments[run.experiment] = mlflow_store.open_store(self._store, run.experiment)[1]
        tags = {ORIGIN_TAG: run.ids[0], _SOURCE_TAG: self._source}
        with asking(self._store):
            made = self._client.create_run(self._experiments[run.experiment], run.start_time, tags, run.name)
            if made.info.experiment_id not in self._experiment_ids:
                self._experiment_ids.append(made.info.experiment_id)
            return self._client.get_run(made.info.run_id)

    def _run(self, run_id: str) -> "Run | None":
        from mlflow.exceptions import MlflowException

        with asking(self._store):
            try:
                return self._client.get_run(run_id)
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
                return None

    def _tagged(self, tag: str, value: str) -> "Run | None":
        """A run with a tag, rather one that is not deleted."""
        from mlflow.entities import ViewType

        query = f"tags.`{tag}` = '{value}'"
        with asking(self._store):
            found = self._client.search_runs(self._experiment_ids, query, ViewType.ALL, 10)
        return min(found, key=lambda run: run.info.lifecycle_stage != "active", default=None)

    def _add_points(self, run: SourceRun, copy: "Run") -> str:
        points = run.read_points()
        names = {point.key for point in points} & set(copy.data.metrics)
        with asking(self._store):
            histories = [self._client.get_metric_history(copy.info.run_id, name) for name in names]
        known = {_identity(point) for history in histories for point in history}
        new = [_plain(point) for point in points if _identity(point) not in known]
        self._log(copy, mlflow_store.METRICS_AT_ONCE, metrics=new)
        return _counted(len(new), "point")

    def _add_params(self, run: SourceRun, copy: "Run") -> str:
        from mlflow.entities import Param

        new = [Param(name, value) for name, value in run.params.items() if name not in copy.data.params]
        self._log(copy, mlflow_store.PARAMS_AT_ONCE, params=new)
        return _counted(len(new), "param")

    def _set_tags(self, run: SourceRun, copy: "Run") -> str:
        from mlflow.entities import RunTag

        wanted = {name: value for name, value in run.tags.items() if name not in _OWN_TAGS}
        if run.parent is not None and (parent := self._copy_of(run.parent)):
            wanted[PARENT_TAG] = parent
        elif run.parent_name is not None and PARENT_TAG not in copy.data.tags:
            place = (self._client, self._store, copy.info.experiment_id)
            with asking(self._store):
                wanted[PARENT_TAG] = mlflow_store.find_parent(*place, run.parent_name)
        new = [RunTag(name, value) for name, value in wanted.items() if copy.data.tags.get(name) != value]
        self._log(copy, mlflow_store.PARAMS_AT_ONCE, tags=new)
        return _counted(len(new), "tag")

    def _log(self, copy: "Run", at_once: int, **kind: list[Any]) -> None:
        ((name, items),) = kind.items()
        with asking(self._store):
            for start in range(0, len(items), at_once):
                part = {name: items[start : start + at_once]}
                self._client.log_batch(copy.info.run_id, **part, synchronous=True)

    def _copy_of(self, run_id: str) -> str | None:
        """What a run of the source is called in the target; None while it is not there."""
        if run_id not in self._copies and (found := self._tagged(ORIGIN_TAG, run_id) or self._run(run_id)):
            self._copies[run_id] = found.info.run_id
        return self._copies.get(run_id)

    def _add_datasets(self, run: SourceRun, copy: "Run") -> str:
        known = {_dataset_name(item) for item in (copy.inputs.dataset_inputs if copy.inputs else ())}
        new = [item for item in run.datasets if _dataset_name(item) not in known]
        if new:
            with asking(self._store):
                mlflow_store.log_datasets(self._client, copy.info.run_id, new)
        return _counted(len(new), "data set")

    def _add_files(self, run: SourceRun, copy: "Run") -> str:
        """Files that are missing, or have another size."""
        wanted = run.read_files()
        known = store_files(self._client, self._store, copy) if wanted else {}
        new = [path for path, num_bytes in wanted.items() if known.get(path) != num_bytes]
        for path in new:
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ItemRefused(f"file {path}: would leave the folder that it is copied through")
            with TemporaryDirectory() as into:
                file = run.fetch(path, Path(into))
                with asking(self._store):
                    parent = Path(path).parent.as_posix()
                    self._client.log_artifact(copy.info.run_id, str(file), None if parent == "." else parent)
        return _counted(len(new), "file")

    def _set_status(self, run: SourceRun, copy: "Run") -> str:
        """Last of all: what says FINISHED is complete."""
        if copy.info.status == run.status and (run.end_time is None or copy.info.end_time == run.end_time):
            return ""
        with asking(self._store):
            if run.end_time is None:
                self._client.update_run(copy.info.run_id, status=run.status)
            else:
                self._client.set_terminated(copy.info.run_id, run.status, run.end_time)
        return run.status

    def _follow_children(self, copy: "Run") -> None:
        """As each run does that ends under a parent; one that was deleted is left alone."""
        with suppress(ItemRefused), asking(self._store):
            tags = self._client.get_run(copy.info.run_id).data.tags
            follow_children(self._client, copy.info.experiment_id, tags[PARENT_TAG])


def _lock(folder: Path | None, from_store: StoreUri | None, to_store: StoreUri) -> AbstractContextManager[Any]:
    """Two copies at once between the same places take turns: both would find a run missing, and make it."""
    database = to_store.database or (from_store.database if from_store else None)
    path = Path(f"{database}.sync.lock") if database else folder / ".sync.lock" if folder else None
    return FileLock(path) if path is not None and os.access(path.parent, os.W_OK) else nullcontext()


def _parents_first(runs: Sequence[SourceRun]) -> list[SourceRun]:
    by_id = {run_id: run for run in runs for run_id in run.ids}
    ordered: dict[str, SourceRun] = {}

    def add(run: SourceRun, below: tuple[str, ...]) -> None:
        parent = by_id.get(run.parent or "")
        if parent is not None and parent.ids[0] not in below:
            add(parent, (*below, run.ids[0]))
        ordered.setdefault(run.ids[0], run)

    for run in sorted(runs, key=lambda run: run.start_time):
        add(run, (run.ids[0],))
    return list(ordered.values())


def _plain(point: "Metric") -> "Metric":
    """Without what ties it to its store: models and data sets."""
    from mlflow.entities import Metric

    return Metric(point.key, point.value, point.timestamp, point.step)


def _identity(point: "Metric") -> tuple[str, int, int, str]:
    """What makes a point; databases keep the largest number in the place of infinity."""
    value = point.value if isnan(point.value) else max(-sys.float_info.max, min(sys.float_info.max, point.value))
    return point.key, point.step, point.timestamp, repr(value)


def _dataset_name(item: "DatasetInput") -> tuple[str, str, str]:
    return item.dataset.name, item.dataset.digest, str(sorted((tag.key, tag.value) for tag in item.tags))


def _counted(number: int, noun: str) -> str:
    return "" if number == 0 else f"{number} {noun}{'' if number == 1 else 's'} added"
