"""Real MLflow stores for tests, and what is asked of them."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.tracking.mlflow_tracker import MlflowTracker
from tests.processes import free_port

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(
    ["dmt_ds.tracking.mlflow_tracker", "mlflow.store.tracking.sqlalchemy_store", "mlflow.system_metrics"]
)


class Server:
    """A tracking server of its own process group, on one port and one database for its whole life."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it where it does not run, and wait until it answers."""
        if self._process is not None:
            return
        options = {
            "backend-store-uri": f"sqlite:///{self.folder / 'mlflow.db'}",
            "artifacts-destination": str(self.folder / "files"),
            "host": "127.0.0.1",
            "port": str(self.port),
            "workers": "1",
        }
        arguments = [word for key, value in options.items() for word in (f"--{key}", value)]
        with (self.folder / "server.log").open("ab") as log:
            command = [sys.executable, "-m", "mlflow", "server", *arguments]
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, env=server_environment()
            )
        wait_until(self._answers, 180)

    def kill(self) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "server.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def server_environment() -> dict[str, str]:
    """Without the server's seven further processes, which serve other features and take seconds to start."""
    return {**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def settings(uri: str, **fields: object) -> TrackingConfig:
    return TrackingConfig.model_validate({"uri": uri, "system_metrics_seconds": 0, "drain_seconds": 30, **fields})


def make_store(uri: str) -> None:
    """Its tables, as the first run makes them."""
    from dmt_ds.tracking import mlflow_store
    from dmt_ds.tracking.mlflow_opening import import_mlflow
    from dmt_ds.tracking.store_uri import store_uri

    store = store_uri(uri, Path(), {})
    import_mlflow(store)
    mlflow_store.open_store(store, "Default")


def mlflow_client(uri: str) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(uri)


def run_of(uri: str, tracker_or_id: MlflowTracker | str) -> "Run":
    run_id = tracker_or_id if isinstance(tracker_or_id, str) else tracker_or_id.run_id
    assert run_id is not None
    return mlflow_client(uri).get_run(run_id)


def curve(uri: str, run_id: str | None, key: str = "train/loss") -> list[tuple[int, float]]:
    """All points that the store has of a metric, by step; double ones would show."""
    assert run_id is not None
    history = mlflow_client(uri).get_metric_history(run_id, key)
    return sorted((metric.step, metric.value) for metric in history)


def tracking_in(folder: Path) -> dict[str, object]:
    """A recipe's section for a store of the folder's own."""
    return {"enabled": True, "uri": f"sqlite:///{folder / 'mlflow.db'}", "system_metrics_seconds": 0}


def mlflow_runs(folder: Path) -> "tuple[MlflowClient, list[Run]]":
    """The store that `tracking_in` names, and the runs in it."""
    client = mlflow_client(f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dmt_ds")
    return client, client.search_runs([experiment.experiment_id])
