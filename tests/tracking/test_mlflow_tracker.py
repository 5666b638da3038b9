"""Runs in real MLflow stores: every point once, whatever dies in between, and training never waits."""

import math
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Barrier

import pytest

from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.errors import TrackingError
from dmt_ds.tracking import mlflow_tracker
from dmt_ds.tracking.mlflow_look import look_at_store
from dmt_ds.tracking.mlflow_store import log_datasets
from dmt_ds.tracking.mlflow_tracker import MlflowTracker, add_metrics, open_tracker
from dmt_ds.tracking.tracker import JsonlTracker, NullTracker, Status
from tests.tracking.stores import FORKSERVER, Server, curve, mlflow_client, run_of, settings, wait_until

NUM_AT_ONCE = 8


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture(scope="module")
def database(empty_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An SQLite store that several tests share."""
    return f"sqlite:///{shutil.copy(empty_database, tmp_path_factory.mktemp('sqlite') / 'mlflow.db')}"


def write_run(folder: Path, uri: str, num_points: int, start_line: Barrier, wait: bool) -> None:
    """A training process: logs, and ends properly or waits for its end."""
    start_line.wait(60)
    tracker = MlflowTracker(settings(uri, drain_seconds=180), folder, folder.name, None)
    tracker.log_dataset("digits", "digits", "f" * 8, "training")
    for step in range(num_points):
        tracker.log_metrics({"train/loss": 1 / (1 + step)}, step)
    if wait:
        time.sleep(600)
    tracker.finish("FINISHED")


@contextmanager
def training(folders: list[Path], uri: str, num_points: int, wait: bool) -> Iterator[list[BaseProcess]]:
    """Processes that begin a run each at the same moment; killed at the end if they still live."""
    start_line = FORKSERVER.Barrier(len(folders))
    processes = [
        FORKSERVER.Process(target=write_run, args=(folder, uri, num_points, start_line, wait)) for folder in folders
    ]
    for process in processes:
        process.start()
    try:
        yield list(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def num_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_a_run_begun_while_the_server_is_away_is_made_later_with_its_true_start(server: Server, tmp_path: Path) -> None:
    server.kill()
    before = time.time_ns() // 1_000_000
    tracker = MlflowTracker(settings(server.uri, drain_seconds=1.0), tmp_path / "run", "early", None)
    tracker.log_metrics({"train/loss": 4.0}, 1)
    began = time.time_ns() // 1_000_000
    start = time.monotonic()
    tracker.finish("KILLED")
    assert time.monotonic() - start < 5 and tracker.run_id is None
    server.start()
    assert add_metrics(settings(server.uri), tmp_path / "run", {"eval/knn_top1": 0.5}, 1)
    run = run_of(server.uri, (tmp_path / "run" / "tracking" / "mlflow_run_id").read_text().strip())
    assert before <= run.info.start_time <= began
    assert (run.info.run_name, run.info.status) == ("early", "KILLED")
    assert run.data.metrics == {"train/loss": 4.0, "eval/knn_top1": 0.5}


def test_every_point_arrives_once_though_the_server_dies_and_comes_back(server: Server, tmp_path: Path) -> None:
    server.start()
    tracker = MlflowTracker(settings(server.uri), tmp_path / "run", "survivor", None)
    tracker.log_params({"optim": {"base_lr": 1e-3}})
    waits: list[float] = []

    def log(first: int, last: int) -> None:
        for step in range(first, last):
            start = time.perf_counter()
            tracker.log_metrics({"train/loss": 1 / (1 + step), "train/lr": float(step)}, step)
            waits.append(time.perf_counter() - start)

    log(0, 500)
    wait_until(lambda: tracker.run_id is not None and len(curve(server.uri, tracker.run_id)) > 0)
    log(500, 1000)
    server.kill()
    log(1000, 2000)
    time.sleep(2.5)  # the shipper meets the dead server
    log(2000, 2500)
    server.start()
    tracker.finish("FINISHED")
    assert curve(server.uri, tracker.run_id) == [(step, 1 / (1 + step)) for step in range(2500)]
    assert curve(server.uri, tracker.run_id, "train/lr") == [(step, float(step)) for step in range(2500)]
    assert run_of(server.uri, tracker).info.status == "FINISHED"
    # The median says what a call costs; a busy machine may preempt a few.
    assert sorted(waits)[len(waits) // 2] < 1e-3 and sorted(waits)[-10] < 0.1


def test_an_empty_tag_takes_away_what_an_earlier_one_said_and_is_not_made_by_itself(
    server: Server, tmp_path: Path
) -> None:
    server.start()
    tracker = MlflowTracker(settings(server.uri), tmp_path / "run", "mended", None)
    tracker.set_tags({"failure": "a loss that is no number", "never": ""})
    tracker.set_tags({"failure": ""})
    tracker.finish("FINISHED")
    tags = run_of(server.uri, tracker).data.tags
    assert tags["failure"] == "" and "never" not in tags


def test_a_second_finish_waits_for_the_first_one_but_no_longer_than_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_tracker, "_KILLED_DRAIN_SECONDS", 0.5)
    tracker = MlflowTracker(settings("http://127.0.0.1:9", drain_seconds=4.0), tmp_path / "run", "run", None)

    def seconds(status: Status) -> float:
        start = time.monotonic()
        tracker.finish(status)
        return time.monotonic() - start

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(seconds, "FAILED")
        time.sleep(0.5)
        second, impatient = pool.submit(seconds, "FAILED"), pool.submit(seconds, "KILLED")
        assert first.result() > 3.9 and 2.5 < second.result() < 6 and 0.5 <= impatient.result() < 2.5
    assert seconds("FAILED") < 0.5


def test_a_file_reaches_the_servers_store(server: Server, tmp_path: Path) -> None:
    server.start()
    tracker = MlflowTracker(settings(server.uri), tmp_path / "run", "files", None)
    (tmp_path / "config.yaml").write_text("seed: 0")
    tracker.log_artifact(tmp_path / "config.yaml", "settings")
    tracker.log_artifact(tmp_path / "run" / "missing.png")
    tracker.finish("FINISHED")
    assert tracker.run_id is not None
    files = mlflow_client(server.uri).list_artifacts(tracker.run_id, "settings")
    assert [file.path for file in files] == ["settings/config.yaml"]
    assert run_of(server.uri, tracker).info.status == "FINISHED"


def test_a_resumed_run_goes_on_and_repeats_no_point(database: str, tmp_path: Path) -> None:
    first = MlflowTracker(settings(database), tmp_path / "run", "resumed", None)
    first.log_params({"optim": {"base_lr": 0.1}, "seed": 1})
    for step in range(100):
        first.log_metrics({"train/loss": float(step)}, step)
    first.finish("KILLED")
    assert run_of(database, first).info.status == "KILLED"
    again = MlflowTracker(settings(database), tmp_path / "run", "ignored", first.run_id)
    wait_until(lambda: run_of(database, again).info.status == "RUNNING")
    again.log_params({"optim": {"base_lr": 0.2}, "seed": 1, "new": "x" * 7000})
    for step in range(60, 150):
        again.log_metrics({"train/loss": float(step)}, step)
    again.finish("FINISHED")
    run = run_of(database, again)
    assert again.run_id == first.run_id
    assert curve(database, again.run_id) == [(step, float(step)) for step in range(150)]
    assert run.data.params == {"optim.base_lr": "0.1", "seed": "1", "new": "x" * 6000}
    assert run.data.tags["resumed.optim.base_lr"] == "0.2" and "resumed.seed" not in run.data.tags
    assert run.info.status == "FINISHED" and run.info.run_name == "resumed"


def test_a_run_killed_at_any_moment_is_completed_by_its_next_start(database: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for wait in (0.0, 0.3):
        before = num_lines(folder / "metrics.jsonl")
        with training([folder], database, 3000, wait=True):
            wait_until(lambda before=before: num_lines(folder / "metrics.jsonl") == before + 3000)
            time.sleep(wait)  # 0: before the store was opened; else while points are on their way
    tracker = MlflowTracker(settings(database), folder, "again", None)
    tracker.finish("FAILED")
    assert curve(database, tracker.run_id) == [(step, 1 / (1 + step)) for step in range(3000)]
    assert run_of(database, tracker).info.status == "FAILED"


def test_offsets_that_were_lost_send_nothing_twice(database: str, tmp_path: Path) -> None:
    def start_and_finish(last: int) -> MlflowTracker:
        tracker = MlflowTracker(settings(database), tmp_path / "run", "forgetful", None)
        for step in range(last - 10, last):
            tracker.log_metrics({"train/loss": math.nan}, step)
        tracker.finish("FINISHED")
        return tracker

    start_and_finish(10)
    (tmp_path / "run" / "tracking" / "shipped.json").unlink()
    (tmp_path / "run" / "tracking" / "mlflow_run_id").unlink()
    tracker = start_and_finish(20)
    assert [step for step, _ in curve(database, tracker.run_id)] == list(range(20))
    runs = mlflow_client(database).search_runs([run_of(database, tracker).info.experiment_id])
    assert [run.info.run_id for run in runs if run.info.run_name == "forgetful"] == [tracker.run_id]


def test_a_run_that_was_deleted_is_written_anew_with_all_it_had(database: str, tmp_path: Path) -> None:
    first = MlflowTracker(settings(database), tmp_path / "run", "run", None)
    first.log_metrics({"train/loss": 1.0}, 1)
    first.finish("KILLED")
    assert first.run_id is not None
    mlflow_client(database).delete_run(first.run_id)
    again = MlflowTracker(settings(database), tmp_path / "run", "run", first.run_id)
    again.log_metrics({"train/loss": 0.5}, 2)
    again.finish("FINISHED")
    assert again.run_id != first.run_id
    assert curve(database, again.run_id) == [(1, 1.0), (2, 0.5)]


def test_an_evaluation_joins_a_finished_run_and_may_be_repeated(database: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(settings(database), tmp_path / "run", "run", None)
    tracker.log_metrics({"train/loss": 1.0}, 7)
    tracker.finish("FINISHED")
    for value in (0.25, 0.75):
        assert add_metrics(settings(database), tmp_path / "run", {"eval/knn_top1": value}, 7)
    assert curve(database, tracker.run_id, "eval/knn_top1") == [(7, 0.25), (7, 0.75)]
    assert run_of(database, tracker).info.status == "FINISHED"


def test_an_evaluation_beside_a_running_run_is_sent_by_that_run(database: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with training([folder], database, 10, wait=True):
        run_id = folder / "tracking" / "mlflow_run_id"
        wait_until(run_id.exists)
        assert not add_metrics(settings(database, drain_seconds=0.1), folder, {"eval/knn_top1": 0.5}, 7)
        wait_until(lambda: curve(database, run_id.read_text().strip(), "eval/knn_top1") == [(7, 0.5)])


def test_odd_names_odd_values_and_secrets_do_no_harm(database: str, tmp_path: Path) -> None:
    tracker = MlflowTracker(settings(database, tags={"stage": "distill"}), tmp_path / "run", "run", None)
    tracker.log_metrics({"teacher/mae|b": 1.0, "../up": 2.0, "train/loss": math.inf}, 1)
    tracker.log_params({"tracking": {"uri": "postgresql://me:secret@db/x"}, "empty": {}, "list": [1, 2]})
    tracker.set_tags({"server": "http://me:secret@host", "empty": ""})
    tracker.log_dataset("digits", "http://me:secret@host/digits", "f" * 64, "training")
    tracker.log_dataset("digits", "http://me:secret@host/digits", "f" * 64, "training")
    tracker.finish("FINISHED")
    run = run_of(database, tracker)
    assert set(run.data.metrics) == {"teacher/mae_b", "train/loss"}
    assert run.data.tags["stage"] == "distill" and run.data.tags["server"] == "http://***@host"
    assert [item.dataset.name for item in run.inputs.dataset_inputs] == ["digits"]
    written = [path.read_text(errors="replace") for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert not any("secret" in text for text in [*written, str(run.to_dictionary())])


def test_a_line_that_is_no_point_holds_up_no_other(database: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step":1}\n\x00\x00\n[1]\n{"step":"x","metrics":{"a":1}}\n')
    tracker = MlflowTracker(settings(database), tmp_path, "run", None)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.finish("FINISHED")
    assert curve(database, tracker.run_id) == [(1, 1.0)]


def test_system_metrics_count_on_after_a_restart(database: str, tmp_path: Path) -> None:
    for _ in range(2):
        tracker = MlflowTracker(settings(database, system_metrics_seconds=0.1), tmp_path / "run", "run", None)
        time.sleep(0.7)
        tracker.finish("FINISHED")
    steps = [step for step, _ in curve(database, tracker.run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps))) and len(steps) >= 6


def test_processes_that_start_at_once_on_a_new_store_all_get_their_run(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'fresh' / 'mlflow.db'}"
    with training([tmp_path / f"run{index}" for index in range(NUM_AT_ONCE)], uri, 20, wait=False) as processes:
        for process in processes:
            process.join(200)
        assert [process.exitcode for process in processes] == [0] * NUM_AT_ONCE
    client = mlflow_client(uri)
    experiment = client.get_experiment_by_name("dmt_ds")
    assert experiment is not None
    assert experiment.artifact_location == str(tmp_path / "fresh" / "mlartifacts" / "dmt_ds")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(str(run.info.run_name) for run in runs) == sorted(f"run{index}" for index in range(NUM_AT_ONCE))
    assert all(run.info.status == "FINISHED" for run in runs)
    assert all(len(curve(uri, run.info.run_id)) == 20 for run in runs)
    assert all(len(run.inputs.dataset_inputs) == 1 for run in runs)


def test_runs_that_bring_the_same_data_set_at_once_all_keep_it(database: str) -> None:
    from mlflow.entities import Dataset, DatasetInput

    client, barrier = mlflow_client(database), Barrier(8)

    def bring(run_id: str, digest: str) -> None:
        barrier.wait(30)
        log_datasets(client, run_id, [DatasetInput(Dataset("digits", digest, "local", "{}"))])

    for digest in "abc":
        run_ids = [client.create_run("0").info.run_id for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda run_id, digest=digest: bring(run_id, digest), run_ids))
        assert all(len(client.get_run(run_id).inputs.dataset_inputs) == 1 for run_id in run_ids)


def test_only_one_rank_tracks_and_tracking_can_be_off(tmp_path: Path) -> None:
    assert isinstance(open_tracker(TrackingConfig(), tmp_path / "a", "a", None, is_main=False), NullTracker)
    off = open_tracker(TrackingConfig(enabled=False), tmp_path / "b", "b", None, is_main=True)
    assert isinstance(off, JsonlTracker)
    off.finish("FINISHED")
    assert not (tmp_path / "a").exists()
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["metrics.jsonl"]


def test_a_store_is_checked_before_a_job_needs_it(server: Server, database: str, tmp_path: Path) -> None:
    server.start()
    for uri, words, answers in (
        (database, "answers", True),
        (server.uri, "answers", True),
        ("http://127.0.0.1:9", "sent later", False),
    ):
        line, found = look_at_store(settings(uri), tmp_path / "run")
        assert words in line and found == answers
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"?" * 5000)
    with pytest.raises(TrackingError, match=r"broken\.db"):
        look_at_store(settings(f"sqlite:///{tmp_path / 'broken.db'}"), tmp_path / "run")
