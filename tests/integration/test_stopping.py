"""Signals, hangs and MLflow: a run ends well and goes on as one run."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests import processes, tiny_run
from tests.tiny_run import wait_for_step
from tests.tracking.stores import mlflow_runs, wait_until

pytestmark = pytest.mark.distributed


def test_term_saves_and_ends_with_0_and_the_next_start_goes_on_in_the_same_mlflow_run(tmp_path):
    tracking = {"enabled": True, "uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "system_metrics_seconds": 0}
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 400, "micro_batch_size": 16}, tracking=tracking)
    run = tmp_path / "run"
    first = processes.start(tiny_run.pretrain(recipe), log=tmp_path / "first.log")
    wait_for_step(run, 5)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 0, (tmp_path / "first.log").read_text()
    assert "SIGTERM: saved at step" in (run / "train.log").read_text()
    _, runs = mlflow_runs(tmp_path)
    assert [r.info.status for r in runs] == ["KILLED"]
    saved_at = max(tiny_run.losses(run))

    processes.run(tiny_run.pretrain(recipe, f"train.stop_after_step={saved_at + 5}"))
    client, runs = mlflow_runs(tmp_path)
    assert len(runs) == 1
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    assert sorted(point.step for point in history) == list(range(1, saved_at + 6))
    assert runs[0].data.tags["task"] == "dmt" and runs[0].data.tags["teachers"] == "red+blue"
    assert runs[0].data.params["distill.fusion"] == "sum"
    artifacts = {artifact.path for artifact in client.list_artifacts(runs[0].info.run_id)}
    described = {"config.yaml", "deepspeed_student.json", "deepspeed_teachers.json", "environment.json"}
    assert described <= artifacts
    assert (run / "attempts" / "0001" / "config.yaml").read_text() != (run / "config.yaml").read_text()
    kept = client.list_artifacts(runs[0].info.run_id, "attempts")
    assert {artifact.path for artifact in kept} == {"attempts/0001", "attempts/0002"}


def test_usr1_on_one_rank_stops_all_ranks_after_a_save(tmp_path):
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 2000})
    launched = processes.start(tiny_run.pretrain(recipe), processes=2, log=tmp_path / "log")
    wait_for_step(tmp_path / "run", 3)
    children = [int(pid) for pid in Path(f"/proc/{launched.pid}/task/{launched.pid}/children").read_text().split()]
    os.kill(children[-1], signal.SIGUSR1)
    assert launched.wait(90) == 0, (tmp_path / "log").read_text()[-3000:]
    last = max(tiny_run.losses(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == f"step{last:08d}"


def test_an_exception_ends_the_mlflow_run_as_failed(tmp_path):
    tracking = {"enabled": True, "uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "system_metrics_seconds": 0}
    recipe = tiny_run.write_recipe(tmp_path, optim={"base_lr": 1e30, "clip_grad_norm": 0.0}, tracking=tracking)
    done = processes.run(tiny_run.pretrain(recipe), check=False)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("dmt-ds: error:")]
    assert len(errors) == 1 and "the loss is not finite on rank 0" in errors[0] and "digits" in errors[0]
    assert "There is no checkpoint yet: start again, with a lower optim.base_lr" in errors[0]
    _, runs = mlflow_runs(tmp_path)
    assert [r.info.status for r in runs] == ["FAILED"]
    said = errors[0].removeprefix("dmt-ds: error: ")
    assert f"ERROR {said}\n" in (tmp_path / "run" / "train.log").read_text()
    assert runs[0].data.tags["failure"] == said

    processes.run(tiny_run.pretrain(recipe, "optim.base_lr=0.01", "train.stop_after_step=1"))
    _, runs = mlflow_runs(tmp_path)
    assert [(r.info.status, r.data.tags["failure"]) for r in runs] == [("KILLED", "")]


def test_ctrl_c_twice_before_the_first_save_is_no_failure(tmp_path):
    tracking = {"enabled": True, "uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "system_metrics_seconds": 0}
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 2000, "micro_batch_size": 1}, tracking=tracking)
    run = tmp_path / "run"
    launched = processes.start(tiny_run.pretrain(recipe), log=tmp_path / "log")
    wait_until((run / "tracking" / "records.jsonl").exists, 120)
    launched.send_signal(signal.SIGINT)
    time.sleep(0.3)  # two signals at once are one
    launched.send_signal(signal.SIGINT)
    assert launched.wait(60) == 130, (tmp_path / "log").read_text()
    assert "WARNING stopped\n" in (run / "train.log").read_text()
    _, runs = mlflow_runs(tmp_path)
    assert [(r.info.status, "failure" in r.data.tags) for r in runs] == [("KILLED", False)]


def test_a_failure_while_the_record_is_opened_ends_the_mlflow_run_as_failed(tmp_path):
    tracking = {"enabled": True, "uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "system_metrics_seconds": 0}
    recipe = tiny_run.write_recipe(tmp_path, tracking=tracking)
    (tmp_path / "run" / "environment.json").mkdir(parents=True)  # a file of the record can't be written
    done = processes.run(tiny_run.pretrain(recipe), check=False)
    assert done.returncode == 2 and "environment.json: can't be written (Is a directory)" in done.stderr
    _, runs = mlflow_runs(tmp_path)
    assert [r.info.status for r in runs] == ["FAILED"]


def test_a_finished_run_started_again_is_left_as_it_is_and_goes_on_only_where_something_is_left(tmp_path):
    tracking = {"enabled": True, "uri": f"sqlite:///{tmp_path / 'mlflow.db'}", "system_metrics_seconds": 0}
    recipe = tiny_run.write_recipe(tmp_path, train={"steps": 2}, tracking=tracking)
    run = tmp_path / "run"
    processes.run(tiny_run.pretrain(recipe))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file() and path.name != "train.log"}
    _, (first,) = mlflow_runs(tmp_path)
    done = processes.run(tiny_run.pretrain(recipe))
    assert f"{run}: finished at step 2 already; nothing to do" in done.stderr
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert not (run / "attempts" / "0002").exists() and "attempt.json" in {path.name for path in before}
    _, (second,) = mlflow_runs(tmp_path)
    assert (second.info.to_proto(), second.data.tags) == (first.info.to_proto(), first.data.tags)

    (run / "backbone" / "model.safetensors").unlink()
    processes.run(tiny_run.pretrain(recipe))
    (run / "DONE").unlink()  # killed while it published
    processes.run(tiny_run.pretrain(recipe))
    assert (run / "DONE").exists() and (run / "backbone" / "model.safetensors").exists()
    processes.run(tiny_run.pretrain(recipe, "train.steps=3", "train.accept_changes=[recipe]"))
    assert (run / "DONE").read_text() == "3\n" and sorted(tiny_run.losses(run)) == [1, 2, 3]
