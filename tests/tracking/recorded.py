"""Runs written into a store by hand, as training and suites would leave them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.tracking.stores import mlflow_client

if TYPE_CHECKING:
    from mlflow.entities import Run

Rates = Sequence[tuple[int, float]]
"""Step and images a second, of each log point."""


@dataclass(frozen=True)
class Recorder:
    """Writes runs into one experiment of a store; each starts a second after the one before."""

    uri: str
    experiment_id: str
    parent_id: str | None = None
    suite: str | None = None

    @classmethod
    def of_experiment(cls, uri: str, name: str) -> "Recorder":
        """A new experiment."""
        return cls(uri, mlflow_client(uri).create_experiment(name))

    @classmethod
    def of_suite(cls, uri: str, name: str, experiment: str | None = None, **tags: str) -> "Recorder":
        """A suite's parent run, as its first run makes it, in a new experiment of its name or one that is there."""
        client = mlflow_client(uri)
        known = None if experiment is None else client.get_experiment_by_name(experiment)
        number = client.create_experiment(name) if known is None else known.experiment_id
        parent = client.create_run(number, 1, {"dmt_ds.parent_of": name, **tags}, name)
        client.set_terminated(parent.info.run_id)
        return cls(uri, number, parent.info.run_id, name)

    def add(
        self,
        name: str,
        scores: Mapping[str, float],
        status: str = "FINISHED",
        rates: Rates = ((10, 100.0),),
        batch_size: int = 32,
        params: Mapping[str, object] | None = None,
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
        ranks: Mapping[int, int] | None = None,
        **tags: str,
    ) -> "Run":
        """One run with its log points, and scores at the step of the last."""
        from mlflow.entities import Metric, Param

        client = mlflow_client(self.uri)
        number = len(client.search_runs([self.experiment_id]))
        parent = {} if self.parent_id is None else {"mlflow.parentRunId": self.parent_id}
        suite = {} if self.suite is None else {"suite": self.suite}
        run = client.create_run(self.experiment_id, 1000 * (1 + number), {**parent, **suite, **tags}, name)
        last = max((step for step, _ in rates), default=0)
        points = [("train/images_seen", step, float(step * batch_size)) for step, _ in rates]
        points += [("perf/images_per_second", step, rate) for step, rate in rates]
        points += [("perf/ranks", step, float(count)) for step, count in (ranks or {}).items()]
        points += [(key, step, value) for key, curve in (curves or {}).items() for step, value in curve]
        points += [(key, last, value) for key, value in scores.items()]
        metrics = [Metric(key, value, 1000 + step, step) for key, step, value in points]
        seed = {"seed": name.rpartition("seed")[2]} if "seed" in name else {}
        settings = [Param(key, str(value)) for key, value in {**seed, **(params or {})}.items()]
        client.log_batch(run.info.run_id, metrics, settings)
        if status != "RUNNING":
            client.set_terminated(run.info.run_id, status)
        return client.get_run(run.info.run_id)
