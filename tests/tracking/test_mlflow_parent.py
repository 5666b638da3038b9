"""The run above others, in real stores: one, however many runs ask for it at the same moment."""

import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path
from threading import Barrier

import pytest

from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.tracking.mlflow_parent import PARENT_OF_TAG, PARENT_TAG, origin_tags, parent_id
from dmt_ds.tracking.mlflow_sync import sync
from dmt_ds.tracking.mlflow_tracker import MlflowTracker, describe_parent
from tests.tracking.stores import FORKSERVER, Server, mlflow_client, run_of, settings, wait_until

NUM_AT_ONCE = 8


@pytest.fixture
def database(empty_database: Path, tmp_path: Path) -> str:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> Iterator[str]:
    if request.param == "sqlite":
        yield database
        return
    server = Server(tmp_path)
    server.start()
    yield server.uri
    server.kill()


def train(uri: str, folder: Path, start_line: Barrier) -> None:
    """A run under a parent, from its start to its end."""
    start_line.wait(60)
    tracker = MlflowTracker(settings(uri, parent="study", drain_seconds=120), folder, folder.name, None)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.finish("FINISHED")


def runs_of(uri: str):
    client = mlflow_client(uri)
    return client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])


def one_run(uri: str, folder: Path, **fields: object) -> MlflowTracker:
    tracker = MlflowTracker(settings(uri, drain_seconds=120, **fields), folder, folder.name, None)
    tracker.finish("FINISHED")
    return tracker


def test_runs_that_start_at_once_stand_under_one_parent(uri: str, tmp_path: Path) -> None:
    start_line = FORKSERVER.Barrier(NUM_AT_ONCE)
    folders = [tmp_path / "runs" / f"run{number}" for number in range(NUM_AT_ONCE)]
    processes = [FORKSERVER.Process(target=train, args=(uri, folder, start_line)) for folder in folders]
    for process in processes:
        process.start()
    for process in processes:
        process.join(150)
    assert [process.exitcode for process in processes] == NUM_AT_ONCE * [0]
    runs = runs_of(uri)
    (parent,) = (run for run in runs if PARENT_OF_TAG in run.data.tags)
    children = [run for run in runs if run is not parent]
    assert sorted(run.info.run_name for run in children) == sorted(folder.name for folder in folders)
    assert {run.data.tags[PARENT_TAG] for run in children} == {parent.info.run_id}
    assert (parent.info.run_name, parent.info.status) == ("study", "FINISHED")


def test_one_that_comes_late_with_an_earlier_time_does_not_win(tmp_path: Path, database: str) -> None:
    """As a slow client's does: its time is taken before the request that makes it."""
    server = Server(tmp_path)
    server.start()
    client = mlflow_client(server.uri)
    kept = parent_id(client, "0", "study", alone=False)
    late = client.create_run("0", 1000, {PARENT_OF_TAG: "study"}, "study").info.run_id
    assert parent_id(client, "0", "study", alone=False) == kept
    client.delete_run(kept)
    assert parent_id(client, "0", "study", alone=False) == late
    server.kill()


def test_each_name_and_each_experiment_has_a_parent_of_its_own(database: str, tmp_path: Path) -> None:
    one = one_run(database, tmp_path / "one", parent="a")
    same = one_run(database, tmp_path / "same", parent="a")
    other_name = one_run(database, tmp_path / "name", parent="it's b")
    other_experiment = one_run(database, tmp_path / "experiment", parent="a", experiment="other")
    above = [run_of(database, run).data.tags[PARENT_TAG] for run in (one, same, other_name, other_experiment)]
    assert above[0] == above[1] and len(set(above)) == 3
    assert run_of(database, above[3]).info.experiment_id == run_of(database, other_experiment).info.experiment_id


def test_a_run_without_parent_stands_alone(database: str, tmp_path: Path) -> None:
    assert PARENT_TAG not in run_of(database, one_run(database, tmp_path / "run")).data.tags
    assert len(runs_of(database)) == 1


def test_a_run_that_goes_on_keeps_the_parent_it_was_born_under(database: str, tmp_path: Path) -> None:
    first = run_of(database, one_run(database, tmp_path / "run", parent="a"))
    again = run_of(database, one_run(database, tmp_path / "run", parent="b"))
    assert again.info.run_id == first.info.run_id
    assert again.data.tags[PARENT_TAG] == first.data.tags[PARENT_TAG]
    assert len(runs_of(database)) == 2


def test_the_parent_says_how_far_its_runs_are(database: str, tmp_path: Path) -> None:
    section = settings(database, parent="study")
    assert describe_parent(section, tmp_path / "run", {"variants": "a,b"}, "RUNNING")
    run = one_run(database, tmp_path / "run", parent="study")
    parent = run_of(database, run_of(database, run).data.tags[PARENT_TAG])
    assert (parent.info.status, parent.data.tags["variants"]) == ("FINISHED", "a,b")
    assert describe_parent(section, tmp_path / "run", {}, "FINISHED")
    assert run_of(database, parent.info.run_id).info.status == "FINISHED"
    assert describe_parent(section, tmp_path / "run", {}, "RUNNING")
    assert run_of(database, parent.info.run_id).info.status == "RUNNING"
    assert len(runs_of(database)) == 2


def test_a_parent_has_the_state_that_its_runs_add_up_to(database: str, tmp_path: Path) -> None:
    def tracker(name: str) -> MlflowTracker:
        return MlflowTracker(settings(database, parent="study", drain_seconds=120), tmp_path / name, name, None)

    def state_of_parent() -> str:
        (parent,) = (run for run in runs_of(database) if PARENT_OF_TAG in run.data.tags)
        return parent.info.status

    waiting, failing = tracker("waiting"), tracker("failing")
    failing.finish("FAILED")
    wait_until(lambda: len(runs_of(database)) == 3)
    assert state_of_parent() == "RUNNING"
    waiting.finish("FINISHED")
    assert state_of_parent() == "FAILED"
    tracker("failing").finish("FINISHED")
    assert state_of_parent() == "FINISHED"


def test_a_store_that_is_away_is_no_error_for_the_parent(tmp_path: Path) -> None:
    assert not describe_parent(settings("http://127.0.0.1:9", parent="study"), tmp_path / "run", {}, "RUNNING")
    assert not describe_parent(TrackingConfig(enabled=False, parent="study"), tmp_path / "run", {}, "RUNNING")


def test_a_copy_of_a_parent_is_found_by_runs_that_begin_in_the_copy(
    empty_database: Path, database: str, tmp_path: Path
) -> None:
    one_run(database, tmp_path / "first", parent="study")
    (tmp_path / "copy").mkdir()
    shutil.copyfile(empty_database, tmp_path / "copy" / "mlflow.db")
    target = f"sqlite:///{tmp_path / 'copy' / 'mlflow.db'}"
    list(sync(database, target, ()))
    one_run(target, tmp_path / "second", parent="study")
    runs = runs_of(target)
    (parent,) = (run for run in runs if PARENT_OF_TAG in run.data.tags)
    children = {run.info.run_name: run.data.tags[PARENT_TAG] for run in runs if run is not parent}
    assert children == {"first": parent.info.run_id, "second": parent.info.run_id}


def test_a_run_has_its_users_name_where_no_variable_says_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    assert origin_tags()["mlflow.user"] == "ada"
    for name in ("USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert origin_tags()["mlflow.user"] == pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a number without a name
    assert origin_tags()["mlflow.user"] == str(os.getuid())
