"""Runs copied between real stores: nothing missing, nothing twice, however often and from wherever."""

import math
import shutil
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from dmt_ds.cli import main
from dmt_ds.errors import TrackingError
from dmt_ds.tracking.mlflow_sync import _dataset_name, _identity, sync
from dmt_ds.tracking.mlflow_tracker import MlflowTracker, add_metrics
from tests.tracking.stores import FORKSERVER, Server, curve, mlflow_client, settings, wait_until

if TYPE_CHECKING:
    from mlflow.entities import Run

NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def stores(empty_database: Path, tmp_path: Path) -> list[str]:
    """Three stores without runs."""
    for name in "abc":
        (tmp_path / name).mkdir()
        shutil.copyfile(empty_database, tmp_path / name / "mlflow.db")
    return [f"sqlite:///{tmp_path / name / 'mlflow.db'}" for name in "abc"]


@pytest.fixture
def server(empty_database: Path, tmp_path: Path) -> Iterator[Server]:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    server = Server(tmp_path)
    server.start()
    yield server
    server.kill()


def track(uri: str, folder: Path, steps: range, status: Any = "FINISHED", **fields: object) -> MlflowTracker:
    """A training process, from its start or restart to its end."""
    tracker = MlflowTracker(settings(uri, **fields), folder, folder.name, None)
    section = {"experiment": "dmt_ds", "parent": fields.get("parent")}
    tracker.log_params({"seed": 1, "optim": {"base_lr": 0.1}, "tracking": section})
    tracker.set_tags({"stage": "distill"})
    tracker.log_dataset("digits", "digits", "f" * 8, "training")
    (folder / "config.yaml").write_text("seed: 1")
    (folder / "backbone").mkdir(exist_ok=True)
    (folder / "backbone" / "config.json").write_text("{}")
    tracker.log_artifact(folder / "config.yaml")
    tracker.log_artifact(folder / "backbone", "encoder")
    for step in steps:
        tracker.log_metrics(
            {"train/loss": 1 / (1 + step), "train/odd": (math.nan, math.inf, -math.inf)[step % 3]}, step
        )
    tracker.finish(status)
    return tracker


def copy(source: object, target: object, *experiments: str) -> list[str]:
    return [str(outcome) for outcome in sync(str(source), str(target), experiments)]


def runs_of(uri: str) -> list["Run"]:
    client = mlflow_client(uri)
    found = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return sorted((client.get_run(run.info.run_id) for run in found), key=lambda run: str(run.info.run_name))


def all_of(uri: str, run: "Run") -> dict[str, Any]:
    """Everything that a copy has to keep."""
    client = mlflow_client(uri)

    def files(path: str | None = None) -> Iterator[tuple[str, str]]:
        for info in client.list_artifacts(run.info.run_id, path):
            if info.is_dir:
                yield from files(info.path)
            else:
                yield info.path, Path(client.download_artifacts(run.info.run_id, info.path)).read_text()

    points = [point for name in run.data.metrics for point in client.get_metric_history(run.info.run_id, name)]
    tags = {name: value for name, value in run.data.tags.items() if not name.startswith("sync.")}
    return {
        "name": run.info.run_name,
        "time": (run.info.start_time, run.info.end_time, run.info.status),
        "experiment": client.get_experiment(run.info.experiment_id).name,
        "params": run.data.params,
        "tags": {name: value for name, value in tags.items() if name != "mlflow.parentRunId"},
        "points": sorted((point.key, point.step, point.timestamp, repr(point.value)) for point in points),
        "data sets": [(item.dataset.to_dictionary(), item.tags[0].value) for item in run.inputs.dataset_inputs],
        "files": dict(files()),
    }


def wordings(uri: str) -> list[dict[str, Any]]:
    return [all_of(uri, run) for run in runs_of(uri)]


def test_a_copy_has_everything_and_a_second_one_adds_nothing(stores: list[str], server: Server, tmp_path: Path) -> None:
    track(stores[0], tmp_path / "a" / "one", range(30))
    track(stores[0], tmp_path / "a" / "two", range(1100), "FAILED")  # more points than one call takes
    first = copy(stores[0], server.uri)
    assert first[0].startswith("dmt_ds/one: new, 60 points added, ") and first[0].endswith(", FINISHED")
    assert wordings(server.uri) == wordings(stores[0])
    assert copy(stores[0], server.uri) == ["dmt_ds/one: up to date", "dmt_ds/two: up to date"]
    copy(server.uri, stores[1])
    assert wordings(stores[1]) == wordings(stores[0])


def test_a_run_that_grows_between_two_copies_gets_what_is_new(stores: list[str], tmp_path: Path) -> None:
    tracker = MlflowTracker(settings(stores[0]), tmp_path / "a" / "run", "run", None)
    tracker.log_metrics({"train/loss": 2.0}, 5)
    wait_until(lambda: tracker.run_id is not None and curve(stores[0], tracker.run_id) == [(5, 2.0)])
    assert copy(stores[0], stores[1])[0].startswith("dmt_ds/run: new, 1 point added")
    assert runs_of(stores[1])[0].info.status == "RUNNING"
    tracker.log_metrics({"train/loss": 1.0, "train/new": 3.0}, 6)
    tracker.finish("FINISHED")
    assert copy(stores[0], stores[1]) == ["dmt_ds/run: 2 points added, FINISHED"]
    for step in (1, 6):  # an earlier one, and one that is there
        assert add_metrics(settings(stores[0]), tmp_path / "a" / "run", {"train/loss": 9.0}, step)
        assert copy(stores[0], stores[1]) == ["dmt_ds/run: 1 point added"]
    assert wordings(stores[1]) == wordings(stores[0])
    assert copy(stores[0], stores[1]) == ["dmt_ds/run: up to date"]


def test_children_find_the_copy_of_their_parent(stores: list[str]) -> None:
    client = mlflow_client(stores[0])
    pipeline, members = client.create_experiment("pipeline"), client.create_experiment("members")
    parent = client.create_run(pipeline, start_time=2000, run_name="parent")
    for experiment, name in ((pipeline, "child"), (members, "member")):
        tags = {"mlflow.parentRunId": parent.info.run_id}
        client.create_run(experiment, start_time=1000, tags=tags, run_name=name)
    copy(stores[0], stores[1], "members")
    assert "mlflow.parentRunId" not in runs_of(stores[1])[0].data.tags
    assert copy(stores[0], stores[1], "pipeline")[0].startswith("pipeline/parent: new")
    assert copy(stores[0], stores[1]) == [
        "pipeline/parent: up to date",
        "members/member: 1 tag added",
        "pipeline/child: up to date",
    ]
    child, member, made = runs_of(stores[1])
    assert made.info.run_id != parent.info.run_id
    assert {run.data.tags["mlflow.parentRunId"] for run in (child, member)} == {made.info.run_id}
    copy(stores[1], stores[2])  # where they go by the ids of the first store, and their parent by the second's
    assert hierarchy(stores[2]) == {"child": "parent", "member": "parent", "parent": None}


def test_a_run_finds_its_parent_where_that_was_copied_before_or_has_been_all_the_time(stores: list[str]) -> None:
    client = mlflow_client(stores[0])
    studies, members = client.create_experiment("studies"), client.create_experiment("members")
    parent = client.create_run(studies, run_name="parent")
    tags = {"mlflow.parentRunId": parent.info.run_id}
    client.create_run(members, tags=tags, run_name="member")
    copy(stores[0], stores[1], "studies")
    copy(stores[0], stores[1], "members")
    assert hierarchy(stores[1]) == {"member": "parent", "parent": None}
    mlflow_client(stores[2]).create_run("0", tags=tags, run_name="lone")
    copy(stores[2], stores[0])
    assert hierarchy(stores[0]) == {"lone": "parent", "member": "parent", "parent": None}
    assert copy(stores[2], stores[0]) == ["Default/lone: up to date"]


def test_a_run_whose_experiment_was_deleted_from_the_target_stays_deleted(stores: list[str], tmp_path: Path) -> None:
    track(stores[0], tmp_path / "a" / "run", range(3))
    copy(stores[0], stores[1])
    client = mlflow_client(stores[1])
    client.delete_experiment(client.get_experiment_by_name("dmt_ds").experiment_id)
    assert copy(stores[0], stores[1]) == ["dmt_ds/run: was deleted there, left alone"]


def test_of_a_copy_that_was_deleted_and_one_that_was_not_the_latter_grows(stores: list[str], tmp_path: Path) -> None:
    track(stores[0], tmp_path / "a" / "run", range(3))
    copy(stores[0], stores[1])
    client = mlflow_client(stores[1])
    (deleted,), (born,) = runs_of(stores[1]), runs_of(stores[0])
    client.delete_run(deleted.info.run_id)
    tags = {"sync.source_run_id": born.info.run_id}
    kept = client.create_run(deleted.info.experiment_id, tags=tags, run_name="run")
    assert copy(stores[0], stores[1])[0].startswith("dmt_ds/run: 6 points added")
    assert [run.info.run_id for run in runs_of(stores[1])] == [kept.info.run_id]


def test_a_file_that_has_grown_is_copied_again(stores: list[str], tmp_path: Path) -> None:
    track(stores[0], tmp_path / "a" / "run", range(3))
    copy(stores[0], stores[1])
    mlflow_client(stores[0]).log_text(runs_of(stores[0])[0].info.run_id, "seed: 12345", "config.yaml")
    assert copy(stores[0], stores[1]) == ["dmt_ds/run: 1 file added"]
    assert wordings(stores[1])[0]["files"]["config.yaml"] == "seed: 12345"


def test_run_folders_that_never_reached_a_store_are_copied_as_they_would_have_been_sent(
    stores: list[str], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    track(NOWHERE, runs / "run", range(20), "KILLED", drain_seconds=0.1)
    assert copy(runs, stores[0])[0].startswith("dmt_ds/run: new, 40 points added")
    assert runs_of(stores[0])[0].info.status == "KILLED"
    track(NOWHERE, runs / "run", range(10, 30), drain_seconds=0.1)  # resumed from a checkpoint
    add_metrics(settings(NOWHERE, drain_seconds=0.1), runs / "run", {"eval/knn_top1": 0.5}, 10)
    assert copy(runs, stores[0]) == ["dmt_ds/run: 21 points added, FINISHED"]
    assert copy(runs / "run", stores[0]) == ["dmt_ds/run: up to date"]
    assert not (runs / "run" / "tracking" / "mlflow_run_id").exists()
    # The oracle is the run itself, once it gets through to a store, and then to the one that has its copy.
    assert add_metrics(settings(stores[1]), runs / "run", {"eval/knn_top1": 0.75}, 30)
    assert copy(runs, stores[0]) == ["dmt_ds/run: 1 point added"]
    assert wordings(stores[0]) == wordings(stores[1])
    assert copy(stores[1], stores[0]) == ["dmt_ds/run: up to date"]


def test_runs_of_folders_stand_under_the_parent_that_training_would_have_made(
    stores: list[str], server: Server, tmp_path: Path
) -> None:
    runs, parent = tmp_path / "a", "Nonesuch"  # begins as `None`, which is recorded where there is no parent
    for name, status in (("one", "FINISHED"), ("two", "FAILED")):
        track(stores[0], runs / name, range(3), status, parent=parent)
    track(stores[0], runs / "alone", range(3))
    truth, target = hierarchy(stores[0]), server.uri
    assert truth == {"alone": None, "one": parent, "two": parent, parent: None}
    copy(runs, target)
    assert hierarchy(target) == truth
    status = {run.info.run_name: run.info.status for run in runs_of(target)}
    assert status[parent] == "FAILED"
    assert set(copy(runs, target)) == {f"dmt_ds/{name}: up to date" for name in ("alone", "one", "two")}
    copy(stores[0], target)  # where they have been all the time
    assert hierarchy(target) == truth
    assert copy(stores[0], target)[0] == f"dmt_ds/{parent}: up to date"
    copy(stores[0], stores[1])
    copy(runs, stores[1])
    assert hierarchy(stores[1]) == truth


def test_suites_of_one_name_that_were_trained_in_both_stores_stay_two(stores: list[str], tmp_path: Path) -> None:
    for store, status in zip(stores[:2], ("FINISHED", "FAILED"), strict=True):
        track(store, tmp_path / status, range(3), status, parent="trial")
    (born,) = [run for run in runs_of(stores[1]) if run.info.run_name == "trial"]
    copy(stores[0], stores[1])
    both = {run.info.run_id: run for run in runs_of(stores[1]) if run.info.run_name == "trial"}
    kept = both.pop(born.info.run_id)
    assert (kept.info.status, kept.data.tags) == (born.info.status, born.data.tags)
    assert [run.info.status for run in both.values()] == ["FINISHED"]


def hierarchy(uri: str) -> dict[str, str | None]:
    """Name of each run -> that of its parent."""
    runs = runs_of(uri)
    names = {run.info.run_id: str(run.info.run_name) for run in runs}
    found = {names[run.info.run_id]: names.get(run.data.tags.get("mlflow.parentRunId", "")) for run in runs}
    assert len(found) == len(runs)
    return found


def test_a_copied_folder_whose_run_reaches_the_same_store_later_stays_one_run(
    stores: list[str], tmp_path: Path
) -> None:
    track(NOWHERE, tmp_path / "runs" / "run", range(20), "KILLED", drain_seconds=0.1)
    copy(tmp_path / "runs", stores[0])
    track(stores[0], tmp_path / "runs" / "run", range(15, 25))
    (run,) = runs_of(stores[0])
    assert curve(stores[0], run.info.run_id) == [(step, 1 / (1 + step)) for step in range(25)]
    assert copy(tmp_path / "runs", stores[0]) == ["dmt_ds/run: up to date"]


def test_a_run_is_one_run_whatever_way_its_copies_take(stores: list[str], tmp_path: Path) -> None:
    a, b, c = stores
    track(a, tmp_path / "a" / "run", range(3))
    copy(a, b)
    copy(b, c)
    assert copy(a, c) == ["dmt_ds/run: up to date"]
    assert copy(tmp_path / "a", c) == ["dmt_ds/run: up to date"]
    assert copy(c, a) == ["dmt_ds/run: comes from there, left alone"]
    assert wordings(a) == wordings(c)


def test_what_was_deleted_from_the_target_stays_deleted(stores: list[str], tmp_path: Path) -> None:
    track(stores[0], tmp_path / "a" / "run", range(3))
    copy(stores[0], stores[1])
    mlflow_client(stores[1]).delete_run(runs_of(stores[1])[0].info.run_id)
    assert copy(stores[0], stores[1]) == ["dmt_ds/run: was deleted there, left alone"]
    assert runs_of(stores[1]) == []


def test_a_store_that_was_moved_brings_its_files(stores: list[str], tmp_path: Path) -> None:
    track(stores[0], tmp_path / "a" / "run", range(3))
    (tmp_path / "a").rename(tmp_path / "moved")
    copy(tmp_path / "moved" / "mlflow.db", stores[1])
    assert wordings(stores[1])[0]["files"] == {"config.yaml": "seed: 1", "encoder/backbone/config.json": "{}"}


def copy_in_a_process(source: str, target: str) -> BaseProcess:
    process = FORKSERVER.Process(target=copy, args=(source, target))
    process.start()
    return process


def test_a_copy_that_is_killed_is_completed_by_the_next(stores: list[str], tmp_path: Path) -> None:
    for name in ("one", "three", "two"):
        track(stores[0], tmp_path / "a" / name, range(600))
    for num_runs in (1, 2, 3):
        process = copy_in_a_process(stores[0], stores[1])
        wait_until(lambda num_runs=num_runs: len(runs_of(stores[1])) >= num_runs)
        process.kill()  # the last one may have ended by itself
        process.join()
        assert num_runs > 1 or len(runs_of(stores[1])) < 3, "the first one was to be killed on its way"
    copy(stores[0], stores[1])
    assert wordings(stores[1]) == wordings(stores[0])
    assert {line.partition(": ")[2] for line in copy(stores[0], stores[1])} == {"up to date"}


def test_copies_at_once_make_each_run_once(stores: list[str], tmp_path: Path) -> None:
    for name in ("one", "two"):
        track(stores[0], tmp_path / "a" / name, range(10))
    processes = [copy_in_a_process(stores[0], stores[1]) for _ in range(3)]
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert wordings(stores[1]) == wordings(stores[0])


def test_a_copy_that_is_refused_some_runs_makes_all_others_and_says_so(
    stores: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    client = mlflow_client(stores[0])
    for name, origin in (("odd", "it's"), ("bad", ""), ("plain", "")):
        client.create_run("0", tags={"sync.source_run_id": origin} if origin else {}, run_name=name)
    create_run = MlflowClient.create_run

    def takes_nothing_bad(client: MlflowClient, *arguments: Any) -> "Run":
        if "bad" in arguments:
            raise MlflowException("not this one", error_code=BAD_REQUEST)
        return create_run(client, *arguments)

    monkeypatch.setattr(MlflowClient, "create_run", takes_nothing_bad)
    with pytest.raises(TrackingError) as error:
        copy(stores[0], stores[1])
    odd, bad = sorted(str(error.value).splitlines(), reverse=True)
    assert odd.startswith("Default/odd: ") and bad == "Default/bad: MlflowException: not this one"
    assert [run.info.run_name for run in runs_of(stores[1])] == ["plain"]

    def takes_nothing(*_: object, **__: object) -> None:
        raise MlflowException("nothing", error_code=BAD_REQUEST)

    monkeypatch.setattr(MlflowClient, "search_experiments", takes_nothing)
    with pytest.raises(TrackingError, match=r"mlflow\.db refuses: MlflowException: nothing"):
        copy(stores[0], stores[1])


def test_what_can_not_be_copied_is_one_line_and_exit_code_two(stores: list[str], tmp_path: Path) -> None:
    a, b, _ = stores
    (tmp_path / "empty").mkdir()
    for source, target, words, *experiments in (
        (a, NOWHERE, f"{NOWHERE} can't be reached properly"),
        (NOWHERE, a, f"{NOWHERE} can't be reached properly"),
        (a, a, "the same store"),
        (a, b, "no experiment 'nix'; there are: Default", "--experiment", "nix"),
        (tmp_path / "empty", a, "no run folder in it"),
        (tmp_path / "none", a, "there is no such folder or SQLite file"),
        (f"sqlite:///{tmp_path / 'none' / 'x.db'}", a, "there is no such file"),
        (a, tmp_path / "none", f"use sqlite:///{tmp_path / 'none' / 'mlflow.db'}"),
    ):
        result = CliRunner().invoke(main, ["mlflow", "sync", str(source), str(target), *experiments])
        assert (result.exit_code, result.stdout, len(result.stderr.splitlines())) == (2, "", 1), result.output
        assert words in result.stderr
    assert not (tmp_path / "none").exists()


def test_a_file_of_sqlite_that_is_not_there_yet_is_made(
    stores: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    track(stores[0], tmp_path / "a" / "run", range(2))
    monkeypatch.chdir(tmp_path)
    for words in ("new, 4 points added", "up to date"):
        assert copy(stores[0], "new/all.db")[0].startswith(f"dmt_ds/run: {words}")
    assert wordings(f"sqlite:///{tmp_path}/new/all.db") == wordings(stores[0])


def test_points_and_data_sets_are_told_apart_by_all_that_makes_them() -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric

    points = [("a", 1.0, 10, 2), ("b", 1.0, 10, 2), ("a", 2.0, 10, 2), ("a", 1.0, 11, 2), ("a", 1.0, 10, 3)]
    assert len({_identity(Metric(*point)) for point in points}) == len(points)
    assert _identity(Metric("a", math.nan, 1, 1)) == _identity(Metric("a", math.nan, 1, 1))
    sets = [("digits", "1", "train"), ("shapes", "1", "train"), ("digits", "2", "train"), ("digits", "1", "test")]
    inputs = [
        DatasetInput(Dataset(name, digest, "local", "{}"), [InputTag("mlflow.data.context", context)])
        for name, digest, context in sets
    ]
    assert len(set(map(_dataset_name, inputs))) == len(sets)


def test_the_command_says_a_line_a_run(stores: list[str], tmp_path: Path) -> None:
    track(NOWHERE, tmp_path / "runs" / "run", range(2), drain_seconds=0.1)
    for words in ("new, 4 points added", "up to date\nruns: 1, changed: 0"):
        result = CliRunner().invoke(main, ["mlflow", "sync", str(tmp_path / "runs"), stores[0]])
        assert result.exit_code == 0 and f"dmt_ds/run: {words}" in result.stdout
