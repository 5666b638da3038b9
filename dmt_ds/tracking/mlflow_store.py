"""The door to MLflow: opens a store, and writes to one run of it; knows neither queues nor threads.

Whatever MLflow raises leaves here as `StoreAway`, `ItemDoubted` or `ItemRefused`.
"""

import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dmt_ds.redact import masked
from dmt_ds.tracking.journal import Record
from dmt_ds.tracking.mlflow_errors import one_line, translated
from dmt_ds.tracking.mlflow_opening import opening
from dmt_ds.tracking.mlflow_parent import PARENT_TAG, follow_children, origin_tags, parent_id, set_status
from dmt_ds.tracking.shipper import ItemDoubted, ItemRefused, StoreAway
from dmt_ds.tracking.spool import Spool
from dmt_ds.tracking.store_uri import StoreUri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput, Metric, Run

logger = logging.getLogger(__name__)

KEY_TAG = "dmt_ds.key"  # finds a run that was created by a process which died before it could note the id
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100  # MLflow's limits of one call
_PARAM_CHARACTERS, _TAG_CHARACTERS, _DIGEST_CHARACTERS = 6000, 8000, 36
_ARTIFACT_ATTEMPTS = 3
_NOT_IN_A_NAME = re.compile(r"[^\w./ :-]")


def open_store(store: StoreUri, experiment: str) -> tuple["MlflowClient", str]:
    """A client, and the id of the experiment; both store and experiment are made where missing.

    Raises:
        StoreAway: it doesn't answer, or not as it should.
    """
    from mlflow import MlflowClient

    with translated(), opening(store):
        client = MlflowClient(tracking_uri=store.uri)
        return client, _experiment_id(client, store, experiment)


def open_run(store: StoreUri, experiment: str, spool: Spool, parent: str | None = None) -> "MlflowRun":
    """The spool's run: the one it knows, one made under its key, or a new one under `parent`, begun when the spool was.

    Raises:
        StoreAway: the store doesn't answer, or not as it should.
    """
    client, experiment_id = open_store(store, experiment)
    with translated():
        run = _known_run(client, spool.run_id) or _run_with_key(client, experiment_id, spool)
        run = run or _new_run(client, store, experiment_id, spool, parent)
        spool.adopt(run.info.run_id)
        return MlflowRun(client, run, spool.output_dir)


class MlflowRun:
    """One run, as MLflow has it when it is opened, and what is added since."""

    def __init__(self, client: "MlflowClient", run: "Run", output_dir: Path) -> None:
        self.run_id: str = run.info.run_id
        self._experiment_id: str = run.info.experiment_id
        self._client = client
        self._output_dir = output_dir
        self._params: dict[str, str] = dict(run.data.params)
        self._tags: dict[str, str] = dict(run.data.tags)
        self._last_steps: dict[str, int] = {metric.key: metric.step for metric in run.data.to_proto().metrics}

    def log_points(self, points: list[Record]) -> None:
        """Add points. A step that a metric has passed already is left out: it was sent before, or is being repeated."""
        fresh: list[Metric] = []
        refusals: list[str] = []
        for point in points:
            try:
                fresh += self._fresh_metrics(point)
            except (AttributeError, KeyError, TypeError, ValueError):
                logger.warning("not recorded, because it is not a valid point: %s", point)
        for start in range(0, len(fresh), METRICS_AT_ONCE):
            refusals += self._log_metrics(fresh[start : start + METRICS_AT_ONCE])
        if refusals:
            raise ItemRefused("; ".join(refusals[:3]) + (f"; and {len(refusals) - 3} more" if refusals[3:] else ""))

    def apply(self, record: Record) -> None:
        """Add what a record of the spool says."""
        apply = {
            "params": self._log_params,
            "tags": self._set_tags,
            "artifact": self._log_artifact,
            "dataset": self._log_dataset,
            "status": self._set_status,
        }.get(record.get("kind", ""))
        if apply is not None:
            try:
                with translated():
                    apply(record)
            except ItemDoubted:
                self._check_takes()
                raise

    def _fresh_metrics(self, point: Record) -> Iterator["Metric"]:
        from mlflow.entities import Metric

        for name, value in point["metrics"].items():
            key, step = _valid_name(name), int(point["step"])
            if point.get("again") or step > self._last_steps.get(key, step - 1):
                self._last_steps[key] = max(step, self._last_steps.get(key, step))
                yield Metric(key, float(value), int(point["time_ms"]), step)

    def _log_metrics(self, metrics: list["Metric"]) -> list[str]:
        """Whatever of it the store takes; what was refused, and why."""
        try:
            with translated():
                self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)
        except ItemDoubted:
            self._check_takes()
            raise
        except ItemRefused as refusal:
            self._check_takes()
            if len(metrics) == 1:
                return [f"metric {metrics[0].key} at step {metrics[0].step}: {refusal}"]
            return [line for metric in metrics for line in self._log_metrics([metric])]
        return []

    def _check_takes(self) -> None:
        """A deleted run, or a database in trouble, refuses everything: then they are at fault, and not the item."""
        try:
            with translated():
                if self._client.get_run(self.run_id).info.lifecycle_stage != "active":
                    raise StoreAway(f"run {self.run_id} was deleted")
                if key := self._tags.get(KEY_TAG):
                    self._client.set_tag(self.run_id, KEY_TAG, key)
        except ItemDoubted as error:
            raise StoreAway(str(error)) from error

    def _log_params(self, record: Record) -> None:
        """Params never change: the value of a resumed run that differs becomes a tag."""
        from mlflow.entities import Param

        params = {_valid_name(name): masked(str(value))[:_PARAM_CHARACTERS] for name, value in record["params"].items()}
        new = [Param(key, value) for key, value in params.items() if key not in self._params]
        for start in range(0, len(new), PARAMS_AT_ONCE):
            self._client.log_batch(self.run_id, params=new[start : start + PARAMS_AT_ONCE], synchronous=True)
        changed = {
            f"resumed.{key}": value
            for key, value in params.items()
            if self._params.setdefault(key, value) != value or f"resumed.{key}" in self._tags
        }
        self._set_tags({"tags": changed})

    def _set_tags(self, record: Record) -> None:
        """An empty tag takes away what an earlier one said, and is not made where there was none."""
        from mlflow.entities import RunTag

        named = {_valid_name(key): masked(str(value))[:_TAG_CHARACTERS] for key, value in record["tags"].items()}
        tags = [RunTag(key, value) for key, value in named.items() if self._tags.get(key, "") != value]
        for start in range(0, len(tags), PARAMS_AT_ONCE):
            self._client.log_batch(self.run_id, tags=tags[start : start + PARAMS_AT_ONCE], synchronous=True)
        self._tags.update(named)

    def _log_artifact(self, record: Record) -> None:
        path = (self._output_dir / record["path"]).resolve()
        if not path.is_relative_to(self._output_dir.resolve()):  # a folder from elsewhere may say anything
            raise ItemRefused(f"{record['path']} lies outside of the run's folder")
        if not path.exists():
            raise ItemRefused(f"{path} is gone")
        for attempt in range(1, _ARTIFACT_ATTEMPTS + 1):
            try:
                with translated():
                    self._client.log_artifact(self.run_id, str(path), record.get("folder"))
                return
            except ItemDoubted:
                raise
            except Exception as error:
                # Where the run can still be reached it is the files' own place that fails.
                self._check_takes()
                if attempt == _ARTIFACT_ATTEMPTS:
                    raise ItemRefused(f"{path}: {error}") from error
                time.sleep(attempt)

    def _log_dataset(self, record: Record) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = masked(record["source"])
        dataset = Dataset(
            name=record["name"],
            digest=record["fingerprint"][:_DIGEST_CHARACTERS],
            source_type="local" if Path(source).exists() else "external",
            source=json.dumps({"uri": source}),
        )
        context = InputTag("mlflow.data.context", record["context"])
        log_datasets(self._client, self.run_id, [DatasetInput(dataset, [context])])

    def _set_status(self, record: Record) -> None:
        set_status(self._client, self.run_id, record["status"], record["time_ms"])
        if PARENT_TAG in self._tags:
            follow_children(self._client, self._experiment_id, self._tags[PARENT_TAG])


def log_datasets(client: "MlflowClient", run_id: str, datasets: list["DatasetInput"]) -> None:
    """Log data sets of a run, twice if need be: of two runs that bring a new one at the same moment one is refused."""
    from mlflow.exceptions import MlflowException

    try:
        client.log_inputs(run_id, datasets)
    except MlflowException:
        client.log_inputs(run_id, datasets)


def _experiment_id(client: "MlflowClient", store: StoreUri, name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        # Without a place of its own it would get ./mlruns of whoever came first.
        place = None if store.artifact_root is None else str(store.artifact_root / _NOT_IN_A_NAME.sub("_", name))
        try:
            return str(client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise StoreAway(one_line(error)) from error
    if found.lifecycle_stage != "active":
        remedy = f"`mlflow experiments restore -x {found.experiment_id}`, or name another in tracking.experiment"
        raise StoreAway(f"experiment {name} was deleted; {remedy}")
    return str(found.experiment_id)


def _known_run(client: "MlflowClient", run_id: str | None) -> "Run | None":
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        run = None
    if run is None or run.info.lifecycle_stage != "active":
        logger.warning("run %s no longer exists in MLflow: its folder's record is sent to a new one", run_id)
        return None
    return run


def _run_with_key(client: "MlflowClient", experiment_id: str, spool: Spool) -> "Run | None":
    key = spool.beginning().get("key", "")
    found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{key}'", max_results=1)
    return client.get_run(found[0].info.run_id) if found else None


def find_parent(client: "MlflowClient", store: StoreUri, experiment_id: str, name: str) -> str:
    """Id of the parent of that name; made where missing."""
    with opening(store):
        return parent_id(client, experiment_id, _valid_name(name), alone=store.database is not None)


def _new_run(client: "MlflowClient", store: StoreUri, experiment_id: str, spool: Spool, parent: str | None) -> "Run":
    begin = spool.beginning()
    tags = {KEY_TAG: begin.get("key", ""), **origin_tags()}
    if parent is not None:
        tags[PARENT_TAG] = find_parent(client, store, experiment_id, parent)
    return client.create_run(experiment_id, begin.get("time_ms"), tags, begin.get("run_name"))


def _valid_name(name: str) -> str:
    return _NOT_IN_A_NAME.sub("_", name)
