"""Runs as a comparison reads them out of a store; writes nothing but the files of a comparison, and computes none."""

import difflib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dmt_ds.errors import TrackingError
from dmt_ds.tracking.mlflow_opening import import_mlflow, opening
from dmt_ds.tracking.mlflow_parent import PARENT_OF_TAG, PARENT_TAG
from dmt_ds.tracking.mlflow_source import answering, pages
from dmt_ds.tracking.store_uri import StoreUri
from dmt_ds.wording import few

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)

SUITE_TAG = "suite"


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    step: int
    value: float
    time_ms: int


@dataclass(frozen=True)
class RecordedRun:
    """One run as the store has it.

    Attributes:
        status: RUNNING, SCHEDULED, FINISHED, FAILED or KILLED.
        metrics: the last value of each metric.
        start_ms: milliseconds since 1970.
        end_ms: the same; None while it runs.
        read_points: every point of a metric, in no order; asks the store.
        images: fingerprint of the training images; None where nobody noted it.
    """

    run_id: str
    name: str
    status: str
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    start_ms: int
    end_ms: int | None
    read_points: Callable[[str], list[Point]]
    images: str | None = None

    def history(self, metric: str) -> list[Point]:
        """A metric by rising step; of a step that was logged again the last word counts."""
        if metric not in self.metrics:
            return []
        points = sorted(self.read_points(metric), key=lambda point: point.time_ms)
        return sorted({point.step: point for point in points}.values(), key=lambda point: point.step)

    @property
    def restarts(self) -> int | None:
        """How often the run was started again; None where its record does not tell."""
        attempts = self.tags.get("attempts", "")
        return int(attempts) - 1 if attempts.isdigit() else None


@dataclass(frozen=True)
class RecordedStudy:
    """The runs of an experiment or of a suite, in the order of their starts.

    Attributes:
        name: of the suite, else of the experiment.
        parent: the run under which a suite's runs stand; None where there is none, or several.
    """

    name: str
    experiment: str
    runs: tuple[RecordedRun, ...]
    parent: RecordedRun | None


def read_study(store: StoreUri, experiment: str | None, suite: str | None) -> RecordedStudy:
    """The runs of an experiment, or of one of its suites; parents are no runs to compare, and deleted ones are gone.

    Args:
        store: a store that is there.
        experiment: its name; None takes the suite's, or the only one that has runs.
        suite: its name; None takes all runs.

    Raises:
        TrackingError: no answer; no such experiment or suite; or it is empty.
    """
    import_mlflow(store)
    from mlflow import MlflowClient

    with answering(store), opening(store):
        client = MlflowClient(tracking_uri=store.uri)
        ids = {found.name: found.experiment_id for found in pages(client.search_experiments)}
    name = _choose_experiment(client, store, ids, experiment, suite)
    with answering(store):
        found = list(pages(client.search_runs, experiment_ids=[ids[name]]))
    runs = sorted((_recorded(client, store, run) for run in found), key=lambda run: (run.start_ms, run.name))
    parents = [run for run in runs if PARENT_OF_TAG in run.tags]
    if suite is not None:
        return _one_suite(name, suite, runs, parents, store)
    members = tuple(run for run in runs if run not in parents)
    if not members:
        raise TrackingError(f"{store}: experiment '{name}' has no runs yet; start one, or name another experiment")
    if len(parents) > 1:
        logger.info("experiment %s holds several suites, one of which --suite compares: %s", name, _suites(parents))
    return RecordedStudy(name, name, members, parents[0] if len(parents) == 1 else None)


def find_run(store: StoreUri, study: RecordedStudy, name: str) -> str:
    """Id of a run that is named by its id or its name, the latter within the study's experiment; the newest counts.

    Raises:
        TrackingError: no answer, or no such run.
    """
    from mlflow import MlflowClient

    with answering(store):
        client = MlflowClient(tracking_uri=store.uri)
        found = client.get_experiment_by_name(study.experiment)
        runs = [] if found is None else list(pages(client.search_runs, experiment_ids=[found.experiment_id]))
    for run in sorted(runs, key=lambda run: run.info.start_time, reverse=True):
        if name in (run.info.run_id, run.info.run_name):
            return str(run.info.run_id)
    near = _near(name, {run.info.run_name for run in runs})
    raise TrackingError(f"{store}: experiment '{study.experiment}' has no run '{name}'; {near}")


def log_files(store: StoreUri, run_id: str, files: Iterable[Path], folder: str) -> None:
    """Keep files with a run, as artifacts in `folder`; older ones of the same names are replaced.

    Raises:
        TrackingError: the store doesn't answer, or doesn't take them.
    """
    from mlflow import MlflowClient

    with answering(store):
        client = MlflowClient(tracking_uri=store.uri)
        for file in files:
            client.log_artifact(run_id, str(file), folder)


def _choose_experiment(
    client: "MlflowClient", store: StoreUri, ids: dict[str, str], experiment: str | None, suite: str | None
) -> str:
    if experiment is not None:
        if experiment not in ids:
            raise TrackingError(f"{store}: no experiment '{experiment}'; {_near(experiment, ids)}")
        return experiment
    if suite is not None:
        return _experiment_of_suite(client, store, ids, suite)
    with answering(store):
        filled = sorted(name for name, number in ids.items() if client.search_runs([number], max_results=1))
    if not filled:
        raise TrackingError(f"{store}: there are no runs in it yet; name another store with --uri")
    if len(filled) > 1:
        with_suites = {run.info.experiment_id for run in _suites_parents(client, store, ids)}
        # What a suite makes of its runs' encoders has experiments of its own, beside the one that people compare.
        filled = [name for name in filled if ids[name] in with_suites] if len(with_suites) == 1 else filled
    if len(filled) > 1:
        raise TrackingError(f"{store}: which experiment? Name one of: {', '.join(filled)}")
    return filled[0]


def _suites_parents(client: "MlflowClient", store: StoreUri, ids: dict[str, str]) -> "list[Run]":
    query = f"tags.`{PARENT_OF_TAG}` != ''"
    with answering(store):
        return list(pages(client.search_runs, experiment_ids=list(ids.values()), filter_string=query))


def _experiment_of_suite(client: "MlflowClient", store: StoreUri, ids: dict[str, str], suite: str) -> str:
    parents = _suites_parents(client, store, ids)
    holding = {run.info.experiment_id for run in parents if run.data.tags[PARENT_OF_TAG] == suite}
    names = sorted(name for name, number in ids.items() if number in holding)
    if not names:
        near = _near(suite, {run.data.tags[PARENT_OF_TAG] for run in parents})
        raise TrackingError(f"{store}: no suite '{suite}' in any experiment; {near}")
    if len(names) > 1:
        raise TrackingError(f"{store}: which experiment? Name one of: {', '.join(names)}")
    return names[0]


def _one_suite(
    experiment: str, suite: str, runs: Sequence[RecordedRun], parents: Sequence[RecordedRun], store: StoreUri
) -> RecordedStudy:
    own = [run for run in parents if run.tags[PARENT_OF_TAG] == suite]
    ids = {run.run_id for run in own}
    members = tuple(
        run
        for run in runs
        if run not in parents and (run.tags.get(PARENT_TAG) in ids or run.tags.get(SUITE_TAG) == suite)
    )
    if not own and not members:
        there = f"there are: {_suites(parents)}" if parents else "it holds none"
        raise TrackingError(f"{store}: experiment '{experiment}' has no suite '{suite}'; {there}")
    if not members:
        raise TrackingError(f"{store}: suite '{suite}' has no runs yet; start it with dmt-ds suite")
    return RecordedStudy(suite, experiment, members, own[0] if own else None)


def _suites(parents: Sequence[RecordedRun]) -> str:
    return ", ".join(sorted({run.tags[PARENT_OF_TAG] for run in parents}))


def _near(name: str, known: Iterable[str]) -> str:
    """The names that come near, else all, but not too many."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3) or [one for one in known if one in name]
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"there are: {few(known, 10)}" if known else "there is none"


def _recorded(client: "MlflowClient", store: StoreUri, run: "Run") -> RecordedRun:
    run_id = run.info.run_id

    def read_points(metric: str) -> list[Point]:
        with answering(store):
            found = client.get_metric_history(run_id, metric)
        return [Point(point.step, point.value, point.timestamp) for point in found]

    return RecordedRun(
        run_id=run_id,
        name=run.info.run_name,
        status=run.info.status,
        tags=dict(run.data.tags),
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        start_ms=run.info.start_time,
        end_ms=run.info.end_time,
        read_points=read_points,
        images=_images(run),
    )


def _images(run: "Run") -> str | None:
    """Fingerprint of the images that it was trained on; the newest, where a restart was given others."""
    inputs = () if run.inputs is None else run.inputs.dataset_inputs
    digests = [
        data.dataset.digest
        for data in inputs
        if any(tag.key == "mlflow.data.context" and tag.value == "training" for tag in data.tags)
    ]
    return str(digests[-1]) if digests else None
