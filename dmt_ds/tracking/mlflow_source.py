"""Runs as a copy reads them, out of a store or out of run folders that never reached one; writes to neither."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.errors import TrackingError
from dmt_ds.run_files import METRICS_FILE, RECORDS_FILE, RUN_ID_FILE, SYSTEM_FILE
from dmt_ds.tracking.journal import Record, read_lines
from dmt_ds.tracking.mlflow_errors import translated
from dmt_ds.tracking.mlflow_opening import opening
from dmt_ds.tracking.mlflow_parent import PARENT_TAG, origin_tags
from dmt_ds.tracking.mlflow_store import KEY_TAG, MlflowRun
from dmt_ds.tracking.shipper import ItemDoubted, ItemRefused, StoreAway
from dmt_ds.tracking.store_uri import StoreUri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Experiment, Metric, Run

logger = logging.getLogger(__name__)

ORIGIN_TAG = "sync.source_run_id"


@dataclass(frozen=True)
class SourceRun:
    """One run that may be copied. What is large is read when it is asked for.

    Attributes:
        ids: names of the run; the first is the one it was born with and keeps through copies of copies.
        key: the spool's name of it, which all its records share; None for runs of other programs.
        parent: an id of its parent.
        parent_name: in place of an id, for what was sent nowhere: `tracking.parent`.
        read_points: every point of every metric.
        read_files: path and size in bytes of every artifact.
        fetch: brings an artifact, named by its path, into a folder; returns the file.
    """

    ids: tuple[str, ...]
    key: str | None
    experiment: str
    name: str
    start_time: int
    end_time: int | None
    status: str
    params: dict[str, str]
    tags: dict[str, str]
    parent: str | None
    datasets: list["DatasetInput"]
    read_points: Callable[[], list["Metric"]]
    read_files: Callable[[], dict[str, int]]
    fetch: Callable[[str, Path], Path]
    parent_name: str | None = None


@contextmanager
def asking(store: StoreUri) -> Iterator[None]:
    """A store that does not answer as it should is an error here: someone waits for the copy.

    Raises:
        TrackingError: it doesn't answer.
        ItemRefused: it answers, and does not take this, now or ever.
    """
    try:
        with translated():
            yield
    except ItemDoubted as doubt:
        raise ItemRefused(str(doubt)) from doubt
    except StoreAway as away:
        raise TrackingError(f"{store} can't be reached properly: {away}") from away


@contextmanager
def answering(store: StoreUri) -> Iterator[None]:
    """Ask the store, as `asking` does, where there is nothing else to go on with.

    Raises:
        TrackingError: it doesn't answer, or refuses.
    """
    try:
        with asking(store):
            yield
    except ItemRefused as refusal:
        raise TrackingError(f"{store} refuses: {refusal}") from refusal


def runs_of_store(store: StoreUri, experiments: Sequence[str]) -> list[SourceRun]:
    """The runs of some experiments, or of all, but deleted ones.

    Raises:
        TrackingError: no good answer, or no such experiment.
    """
    from mlflow import MlflowClient

    with answering(store), opening(store):
        client = MlflowClient(tracking_uri=store.uri)
        known = {found.name: found for found in pages(client.search_experiments)}
    _check_known(experiments, list(known), str(store))
    with answering(store):
        return [
            _run_of_store(client, store, experiment, run)
            for name, experiment in known.items()
            if not experiments or name in experiments
            for run in pages(client.search_runs, experiment_ids=[experiment.experiment_id])
        ]


def runs_of_folders(folder: Path, experiments: Sequence[str]) -> list[SourceRun]:
    """The runs whose folders lie in a folder, however deep, or are it.

    Raises:
        TrackingError: there is none, or none of such an experiment.
    """
    found = [_run_of_folder(records.parents[1].resolve()) for records in sorted(folder.rglob(RECORDS_FILE))]
    runs = [run for run in found if run is not None]
    if not runs:
        raise TrackingError(
            f"{folder}: no run folder in it (one with {RECORDS_FILE}); name a folder of runs, or a store"
        )
    _check_known(experiments, sorted({run.experiment for run in runs}), str(folder))
    return [run for run in runs if not experiments or run.experiment in experiments]


def pages(search: Callable[..., Any], **arguments: object) -> Iterator[Any]:
    """All that one of MLflow's searches finds."""
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        token = page.token
        if not token:
            return


def store_files(client: "MlflowClient", store: StoreUri, run: "Run") -> dict[str, int]:
    """Path and size in bytes of every artifact that a store has of a run."""
    folder = _local_folder(store, run)
    if folder is not None:
        return {path: file.stat().st_size for path, file in _files_below(folder).items()}

    def walk(path: str | None) -> Iterator[tuple[str, int]]:
        for info in client.list_artifacts(run.info.run_id, path):
            if info.is_dir:
                yield from walk(info.path)
            else:
                yield info.path, info.file_size

    with asking(store):
        return dict(walk(None))


def _run_of_store(client: "MlflowClient", store: StoreUri, experiment: "Experiment", run: "Run") -> SourceRun:
    info, tags = run.info, dict(run.data.tags)

    def read_points() -> list["Metric"]:
        with asking(store):
            return [point for name in run.data.metrics for point in client.get_metric_history(info.run_id, name)]

    def fetch(path: str, into: Path) -> Path:
        folder = _local_folder(store, run)
        if folder is not None:
            return folder / path
        with asking(store):
            return Path(client.download_artifacts(info.run_id, path, str(into)))

    return SourceRun(
        ids=tuple(dict.fromkeys([tags.get(ORIGIN_TAG, info.run_id), info.run_id])),
        key=tags.get(KEY_TAG),
        experiment=experiment.name,
        name=info.run_name,
        start_time=info.start_time,
        end_time=info.end_time,
        status=info.status,
        params=dict(run.data.params),
        tags=tags,
        parent=tags.get(PARENT_TAG),
        datasets=list(run.inputs.dataset_inputs) if run.inputs else [],
        read_points=read_points,
        read_files=lambda: store_files(client, store, run),
        fetch=fetch,
    )


def _local_folder(store: StoreUri, run: "Run") -> Path | None:
    """A run's artifacts where they lie on this machine; also where a store was moved together with its artifacts."""
    uri = unquote(run.info.artifact_uri.removeprefix("file://"))
    if not uri.startswith("/") or store.artifact_root is None:
        return None
    folder = Path(uri)
    return folder if folder.exists() else store.artifact_root.joinpath(*folder.parts[-3:])


@dataclass
class _Memory:
    """Takes the calls that MLflow's client would get, so that a folder is read by the rules it is sent by."""

    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list["Metric"] = field(default_factory=list)
    datasets: list["DatasetInput"] = field(default_factory=list)
    files: dict[str, Path] = field(default_factory=dict)
    status: str = "RUNNING"
    end_time: int | None = None

    def log_batch(
        self, _run_id: str, metrics: Sequence[Any] = (), params: Sequence[Any] = (), tags: Sequence[Any] = (), **_: Any
    ) -> None:
        self.points += metrics
        self.params.update({param.key: param.value for param in params})
        self.tags.update({tag.key: tag.value for tag in tags})

    def log_artifact(self, _run_id: str, path: str, folder: str | None) -> None:
        source, target = Path(path), Path(folder or "") / Path(path).name
        if source.is_dir():
            self.files.update({str(target / below): file for below, file in _files_below(source).items()})
        else:
            self.files[str(target)] = source

    def log_inputs(self, _run_id: str, datasets: list["DatasetInput"]) -> None:
        self.datasets += datasets

    def update_run(self, _run_id: str, status: str) -> None:
        self.status, self.end_time = status, None

    def set_terminated(self, _run_id: str, status: str, end_time: int) -> None:
        self.status, self.end_time = status, end_time


def _run_of_folder(folder: Path) -> SourceRun | None:
    records = list(read_lines(folder / RECORDS_FILE))
    begin = next((record for record in records if record.get("kind") == "begin" and record.get("key")), None)
    if begin is None:
        logger.warning("%s: left out, because its %s does not begin as it should", folder, RECORDS_FILE)
        return None
    memory = _remember(folder, records)
    parent = memory.params.get("tracking.parent")
    stored_id = folder / RUN_ID_FILE
    ids = [begin["key"], stored_id.read_text().strip() if stored_id.exists() else ""]
    return SourceRun(
        ids=tuple(name for name in ids if name),
        key=begin["key"],
        experiment=memory.params.get("tracking.experiment", TrackingConfig().experiment),
        name=begin.get("run_name") or folder.name,
        start_time=begin["time_ms"],
        end_time=memory.end_time,
        status=memory.status,
        params=memory.params,
        tags={KEY_TAG: begin["key"], **origin_tags(), **memory.tags},
        parent=None,
        parent_name=None if parent in ("", "None") else parent,
        datasets=memory.datasets,
        read_points=lambda: _points_of_folder(folder),
        read_files=lambda: {path: file.stat().st_size for path, file in memory.files.items() if file.exists()},
        fetch=lambda path, _into: memory.files[path],
    )


def _remember(folder: Path, records: Sequence[Record]) -> _Memory:
    memory = _Memory()
    run = _blank_run(memory, folder)
    for record in records:
        try:
            run.apply(record)
        except (ItemRefused, StoreAway) as refusal:
            logger.warning("%s: left out: %s", folder, refusal)
    return memory


def _points_of_folder(folder: Path) -> list["Metric"]:
    memory = _Memory()
    run = _blank_run(memory, folder)
    for path in (folder / METRICS_FILE, folder / SYSTEM_FILE):
        run.log_points(list(read_lines(path)))
    return memory.points


def _blank_run(memory: _Memory, folder: Path) -> MlflowRun:
    from mlflow.entities import Run, RunData, RunInfo

    return MlflowRun(memory, Run(RunInfo("", "", "", "RUNNING", 0, None, "active"), RunData()), folder)


def _files_below(folder: Path) -> dict[str, Path]:
    """Links that lead elsewhere are left out: a folder from elsewhere may hold one to anything."""
    files = (file for file in sorted(folder.rglob("*")) if file.is_file())
    root = folder.resolve()
    return {str(file.relative_to(folder)): file for file in files if file.resolve().is_relative_to(root)}


def _check_known(wanted: Sequence[str], known: Sequence[str], where: str) -> None:
    for name in wanted:
        if name not in known:
            raise TrackingError(f"{where}: no experiment '{name}'; there are: {', '.join(known) or 'none'}")
