"""The tracker of a run that is kept in MLflow; knows files and threads, and MLflow only through its door.

The training process appends to the run's spool and goes on; a thread of its own carries the spool to the store.
"""

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.redact import masked
from dmt_ds.tracking import mlflow_parent, mlflow_store
from dmt_ds.tracking.mlflow_errors import translated
from dmt_ds.tracking.mlflow_opening import import_mlflow
from dmt_ds.tracking.mlflow_system import system_sampler
from dmt_ds.tracking.shipper import ItemRefused, Shipper, StoreAway
from dmt_ds.tracking.spool import Spool
from dmt_ds.tracking.store_uri import StoreUri, store_uri
from dmt_ds.tracking.tracker import JsonlTracker, NullTracker, Status, Tracker, point

logger = logging.getLogger(__name__)

_KILLED_DRAIN_SECONDS = 10.0  # a signal leaves little time


def open_tracker(
    section: TrackingConfig, output_dir: Path, run_name: str, resume_run_id: str | None, is_main: bool
) -> Tracker:
    """The tracker of this rank.

    Args:
        section: which store, how named, how patient.
        output_dir: folder of the run.
        run_name: name of a new run; `section.run_name` wins.
        resume_run_id: what the checkpoint says; None takes what the folder says, else a new run.
        is_main: whether this is the one rank that tracks.

    Raises:
        TrackingError: the store can't be used at all.
    """
    if not is_main:
        return NullTracker()
    if not section.enabled:
        return JsonlTracker(output_dir)
    return MlflowTracker(section, output_dir, run_name, resume_run_id)


class MlflowTracker:
    """A run in MLflow. No call but `finish` takes longer than writing a line to disk."""

    def __init__(self, section: TrackingConfig, output_dir: Path, run_name: str, resume_run_id: str | None) -> None:
        """Begin a run, or go on with the one of `output_dir`; the store need not be there.

        Raises:
            TrackingError: the store can't be used at all.
        """
        store = store_uri(section.uri, output_dir, os.environ)
        import_mlflow(store)
        self._section = section
        self._finished = False
        self._finishing = threading.Lock()
        self._drained = threading.Event()
        self._spool = Spool(output_dir, section.run_name or run_name)
        if resume_run_id is not None and resume_run_id != self._spool.run_id:
            self._spool.adopt(resume_run_id)
        self._spool.put("status", status="RUNNING")
        if section.tags:
            self.set_tags(section.tags)
        self._shipper = _shipper(section, store, self._spool)
        self._shipper.start()
        self._sampler: _SystemSampler | None = None
        if section.system_metrics_seconds > 0:
            self._sampler = _SystemSampler(self._spool, section.system_metrics_seconds)
            self._sampler.start()

    @property
    def run_id(self) -> str | None:
        """MLflow's name of the run; None until the store has answered for the first time."""
        return self._spool.run_id

    def log_params(self, params: Mapping[str, object]) -> None:
        """Settings; nested mappings become dotted keys, and what a resumed run changes becomes a tag `resumed.KEY`."""
        self._put("params", params={key: masked(str(value)) for key, value in _flat(params).items()})

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Words to find the run by."""
        self._put("tags", tags={key: masked(str(value)) for key, value in tags.items()})

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """One point of some curves."""
        if not self._finished:
            self._spool.metrics.append(point(metrics, step))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file or a folder with the run."""
        if not self._finished:
            self._spool.put_artifact(path, folder)

    def log_dataset(self, name: str, source: str, fingerprint: str, context: str) -> None:
        """What was trained or evaluated on."""
        self._put("dataset", name=name, source=masked(source), fingerprint=fingerprint, context=context)

    def sync(self) -> None:
        """Write the spool out; whether the store has it does not matter."""
        self._spool.sync()

    def finish(self, status: Status) -> None:
        """Set the status, and wait for `drain_seconds` at most (10 s when killed) until everything has arrived.

        A second call, also of another thread, waits as long for the first one to end: who ends the process after it
        cuts off nothing.
        """
        seconds = self._section.drain_seconds
        seconds = min(seconds, _KILLED_DRAIN_SECONDS) if status == "KILLED" else seconds
        if not self._is_first_to_finish(status):
            self._drained.wait(seconds)
            return
        try:
            if self._sampler is not None:
                self._sampler.stop()
            _drain(self._shipper, self._spool, seconds)
        finally:
            self._drained.set()

    def _is_first_to_finish(self, status: Status) -> bool:
        with self._finishing:
            if self._finished:
                return False
            self._put("status", status=status)
            self._finished = True
            return True

    def _put(self, kind: str, **content: object) -> None:
        if not self._finished:
            self._spool.put(kind, **content)


def add_metrics(section: TrackingConfig, output_dir: Path, metrics: Mapping[str, float], step: int) -> bool:
    """Add what an evaluation measured to the run of a folder, running or finished; its status stays.

    For another process than the run's own: there, use its tracker. Unlike in training, a step may be given again.

    Returns:
        Whether it has arrived; else it waits in the folder, and is sent by the run itself or with the next points.

    Raises:
        TrackingError: the store can't be used at all.
    """
    if not section.enabled:
        JsonlTracker(output_dir).log_metrics(metrics, step)
        return False
    store = store_uri(section.uri, output_dir, os.environ)
    import_mlflow(store)
    spool = Spool(output_dir, section.run_name or output_dir.name)
    spool.metrics.append({**point(metrics, step), "again": True})
    shipper = _shipper(section, store, spool)
    shipper.start()
    return _drain(shipper, spool, section.drain_seconds)


def describe_parent(
    section: TrackingConfig, output_dir: Path, tags: Mapping[str, str], status: Status | Literal["RUNNING"]
) -> bool:
    """Make `section.parent` where it is missing, and say on it what stands under it and how far that is.

    Args:
        section: which store and parent.
        output_dir: folder of a run under it.
        tags: words on the parent.
        status: of all that stands under it.

    Returns:
        Whether the store took it.

    Raises:
        TrackingError: the store can't be used at all.
    """
    if not section.enabled or section.parent is None:
        return False
    store = store_uri(section.uri, output_dir, os.environ)
    import_mlflow(store)
    try:
        client, experiment_id = mlflow_store.open_store(store, section.experiment)
        with translated():
            run_id = mlflow_store.find_parent(client, store, experiment_id, section.parent)
            mlflow_parent.describe_parent(client, run_id, tags, status)
    except (ItemRefused, StoreAway) as error:
        logger.warning("MLflow at %s: run %s: its status %s was not recorded: %s", store, section.parent, status, error)
        return False
    return True


class _SystemSampler(threading.Thread):
    """Puts CPU, memory, disk, network and GPU into the spool every so often; counts on where the last start stopped."""

    def __init__(self, spool: Spool, seconds: float) -> None:
        super().__init__(name="tracking-system-metrics", daemon=True)
        self._journal = spool.system
        self._seconds = seconds
        self._stop_asked = threading.Event()

    def stop(self) -> None:
        """No further samples."""
        self._stop_asked.set()

    def run(self) -> None:
        """Until stopped."""
        sample = system_sampler()
        step = int((self._journal.last() or {"step": -1})["step"]) + 1
        while not self._stop_asked.wait(self._seconds):
            self._journal.append(point(sample(), step))
            step += 1


def _shipper(section: TrackingConfig, store: StoreUri, spool: Spool) -> Shipper:
    def open_run() -> mlflow_store.MlflowRun:
        return mlflow_store.open_run(store, section.experiment, spool, section.parent)

    return Shipper(spool, open_run, str(store))


def _drain(shipper: Shipper, spool: Spool, seconds: float) -> bool:
    arrived = shipper.finish(seconds)
    if not arrived:
        logger.warning("%s: not all has arrived; the rest is kept, and sent by the run or its next start", spool.folder)
    spool.close()
    return arrived


def _flat(params: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in params.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
