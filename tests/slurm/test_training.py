"""The real trainer on the cluster: what happens to its nodes and jobs leaves no trace in what is learned."""

import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests import processes, tiny_run
from tests.slurm.slurm_cluster import ROOT, SMALL, Cluster, Job, output_of, wait_until
from tests.tracking.stores import mlflow_runs

STEPS = 120
SAVE_EVERY = 10
ONE_NODE = (*SMALL, "--nodes=1")
PYTHON = {"DMT_DS_PYTHON": sys.executable}


def recipe_with_store(folder: Path, **changes: object) -> Path:
    tracking = {"enabled": True, "uri": f"sqlite:///{folder / 'mlflow.db'}", "system_metrics_seconds": 0}
    return tiny_run.write_recipe(folder, tracking=tracking, **changes)


def newest_step(run: Path) -> int:
    return max(tiny_run.losses(run), default=0) if (run / "metrics.jsonl").exists() else 0


def until_step(job: Job, run: Path, step: int, seconds: float = 180) -> None:
    wait_until(lambda: newest_step(run) >= step, seconds, job.report)


@dataclass
class Story:
    """What one run went through, and what it left."""

    run: Path
    unbroken: Path
    jobs: list[Job] = field(default_factory=list)
    ran_on: list[list[str]] = field(default_factory=list)
    """Nodes of each attempt."""
    lost: list[str] = field(default_factory=list)
    """The node that was killed, then the one that was cut off."""
    restarts_after_kill: int = 0
    steps_seen: list[int] = field(default_factory=list)
    """Newest step at the end of each attempt."""
    last_step_of_cut_off: int = 0


@pytest.fixture(scope="module")
def story(running_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Story:
    """One run on 2 x 2 tasks: asked to save, then a node dies; cancelled; on one node; that is cut off; finished."""
    cluster, folder = running_cluster, tmp_path_factory.mktemp("story")
    recipe = recipe_with_store(folder, train={"steps": STEPS, "save_every_steps": SAVE_EVERY})
    told = Story(folder / "run", folder / "unbroken")
    processes.run(tiny_run.pretrain(recipe, f"output_dir={told.unbroken}", "tracking.enabled=false"), processes=4)

    words = ("-c", str(recipe))
    job = cluster.submit("pretrain_vit_b.sh", *words, folder=folder, **PYTHON)
    until_step(job, told.run, 3)
    end_of_attempt(told, job)
    job.scancel("--batch", "--signal=USR1")
    wait_until(lambda: job.restarts == 1, 60, job.report)

    until_step(job.until("RUNNING"), told.run, newest_step(told.run) + SAVE_EVERY + 3)
    end_of_attempt(told, job)
    lose(cluster, told, job, "kill", job.nodes[-1])
    told.restarts_after_kill = job.restarts

    until_step(job.until("RUNNING"), told.run, told.steps_seen[-1] + 3)
    end_of_attempt(told, job)
    job.scancel()
    job.until("CANCELLED")
    told.jobs.append(job)

    job = cluster.submit("pretrain_vit_b.sh", *words, folder=folder, options=ONE_NODE, DMT_DS_DOCTOR="0", **PYTHON)
    told.jobs.append(job)
    until_step(job, told.run, newest_step(told.run) + 3)
    if cluster.mode == "netns":
        end_of_attempt(told, job)
        cut_off_and_bring_back(cluster, told, job)
    end_of_attempt(told, job.ends_as("COMPLETED", seconds=180))
    cluster.heal()
    return told


def cut_off_and_bring_back(cluster: Cluster, told: Story, job: Job) -> None:
    """The node stands still while it is cut off, so that its attempt goes on just when the next one has begun."""
    node = told.ran_on[-1][0]
    claim = (told.run / "attempt.json").read_text()
    lose(cluster, told, job, "cut", node, freeze=True)
    told.last_step_of_cut_off = newest_step(told.run)
    assert told.last_step_of_cut_off < STEPS, f"it was over before its node stood still\n{job.report()}"
    wait_until(lambda: (told.run / "attempt.json").read_text() != claim, 120, job.report)
    cluster.node("thaw", node)
    wait_until(lambda: not cluster.has_processes(node), 90, job.report)


def end_of_attempt(told: Story, job: Job) -> None:
    told.ran_on.append(job.nodes)
    told.steps_seen.append(newest_step(told.run))


def lose(cluster: Cluster, told: Story, job: Job, how: str, node: str, freeze: bool = False) -> None:
    """A node is lost; wait until Slurm has put the job back into its queue."""
    before = job.restarts
    if freeze:  # first: it takes a while to find all processes, and the run must not be over by then
        cluster.node("freeze", node)
    cluster.node(how, node)
    told.lost.append(node)
    wait_until(lambda: job.restarts > before, 90, job.report)


def test_losses_equal_those_of_four_ranks_without_slurm(story):
    on_slurm, without = tiny_run.losses(story.run), tiny_run.losses(story.unbroken)
    last_on_four_ranks = story.steps_seen[2]
    assert last_on_four_ranks > SAVE_EVERY
    # Not to the bit: gloo adds up in another order between nodes than within one.
    first = range(1, last_on_four_ranks)
    curves = [{step: losses[step] for step in first} for losses in (on_slurm, without)]
    assert tiny_run.largest_difference(*curves) < 1e-6


def test_no_step_is_missing_after_all_that_and_every_loss_is_that_of_an_unbroken_run(story):
    assert sorted(tiny_run.losses(story.run)) == list(range(1, STEPS + 1))
    assert tiny_run.largest_difference(tiny_run.losses(story.run), tiny_run.losses(story.unbroken)) < 1e-5


def test_ranks_ran_on_two_nodes_with_their_own_addresses(story):
    assert len(story.ran_on[0]) == 2
    environment = json.loads((story.run / "environment.json").read_text())
    assert environment["hostname"] in ([story.ran_on[-1][0]] if story.lost[1:] else [environment["hostname"]])


def test_usr1_saved_and_no_step_was_done_twice(story):
    log = (story.run / "train.log").read_text()
    assert "SIGUSR1: saved at step" in log or "another rank's signal: saved at step" in log
    saved = int(log.split(": saved at step ")[1].split()[0])
    steps = [json.loads(line)["step"] for line in (story.run / "metrics.jsonl").read_text().splitlines()]
    assert steps[: saved + 1] == list(range(1, saved + 2))


def test_a_node_that_lost_power_is_replaced(story):
    assert story.restarts_after_kill == 2
    assert story.lost[0] in story.ran_on[1] and story.lost[0] not in story.ran_on[2]


def test_a_run_of_two_nodes_goes_on_with_one(story):
    assert len(story.ran_on[2]) == 2 and len(story.ran_on[3]) == 1
    assert story.jobs[0].state == "CANCELLED" and story.jobs[1].state == "COMPLETED"


def test_an_attempt_on_a_node_that_was_cut_off_writes_nothing_when_it_comes_back(story):
    if len(story.lost) < 2:
        pytest.skip("nodes have no network of their own in this mode")
    assert story.lost[1] in story.ran_on[3] and story.lost[1] not in story.ran_on[4]
    log = story.jobs[1].text()
    assert "has taken this run over" in log, f"the attempt that was cut off says nothing of it; the whole log:\n{log}"
    steps = [json.loads(line)["step"] for line in (story.run / "metrics.jsonl").read_text().splitlines()]
    assert [step for step in steps if step > story.last_step_of_cut_off] == list(
        range(story.last_step_of_cut_off + 1, STEPS + 1)
    )
    records = [json.loads(line) for line in (story.run / "tracking" / "records.jsonl").read_text().splitlines()]
    assert [record["status"] for record in records if record["kind"] == "status"][-2:] == ["RUNNING", "FINISHED"]


def test_all_attempts_are_one_finished_mlflow_run_with_each_step(story):
    client, runs = mlflow_runs(story.run.parent)
    assert [run.info.status for run in runs] == ["FINISHED"]
    assert runs[0].data.tags["slurm.restarts"] == ("1" if story.lost[1:] else "2")
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    values = {}
    for point in history:
        assert values.setdefault(point.step, point.value) == pytest.approx(point.value, rel=1e-5)
    assert sorted(values) == list(range(1, STEPS + 1))
    assert runs[0].data.tags["slurm.job_id"] == story.jobs[-1].number


def test_each_rank_holds_its_nodes_share_of_a_teacher(cluster, tmp_path):
    command = ["srun", "--nodes=2", "--ntasks-per-node=2", "--kill-on-bad-exit=1", sys.executable]
    port = str(10000 + os.getpid() % 20000)
    where = {"MASTER_ADDR": "node1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    printed = cluster.at(tmp_path, [*command, "-m", "tests.slurm.node_shares"], **where)
    facts = json.loads(next(line for line in printed.splitlines() if line.startswith("FACTS "))[6:])
    assert len(facts) == 4
    for rank in facts:
        assert rank["local"] == 2
        assert rank["share"] == pytest.approx(0.5, abs=0.02)
        assert rank["difference"] < 1e-5


def test_one_of_four_runs_of_an_array_diverges_and_only_that_is_failed(cluster, tmp_path):
    recipe = recipe_with_store(tmp_path, train={"micro_batch_size": 16, "steps": 3}, teachers={"use": ["red"]})
    lines = [f"seed={seed}" + (" optim.base_lr=1e30 optim.clip_grad_norm=0" if seed == 2 else "") for seed in range(4)]
    (tmp_path / "sweep.txt").write_text("\n".join(lines) + "\n")
    options = (*ONE_NODE, "--ntasks-per-node=1", "--array=1-4")
    job = cluster.submit(
        "sweep.sh", "sweep.txt", "-c", recipe, folder=tmp_path, options=options, DMT_DS_DOCTOR="0", **PYTHON
    )
    tasks = [cluster.job(f"{job.number}_{index}", tmp_path) for index in range(1, 5)]
    for task, state in zip(tasks, ["COMPLETED", "COMPLETED", "FAILED", "COMPLETED"], strict=True):
        task.ends_as(state, seconds=180)
    assert tasks[2].field("ExitCode") == "2:0" and tasks[2].restarts == 0
    _, runs = mlflow_runs(tmp_path)
    assert {run.data.params["seed"]: run.info.status for run in runs} == {
        "0": "FINISHED", "1": "FINISHED", "2": "FAILED", "3": "FINISHED",
    }  # fmt: skip


@pytest.mark.slow
def test_a_true_time_limit_saves_requeues_and_goes_on(cluster, tmp_path):
    steps = 800
    recipe = recipe_with_store(tmp_path, train={"steps": steps, "save_every_steps": 1000}, teachers={"use": ["red"]})
    unbroken = tmp_path / "unbroken"
    processes.run(tiny_run.pretrain(recipe, f"output_dir={unbroken}", "tracking.enabled=false"), processes=4)
    options = (*SMALL, "--time=1", "--signal=B:USR1@20")
    job = cluster.submit(
        "pretrain_vit_b.sh", "-c", recipe, folder=tmp_path, options=options, DMT_DS_DOCTOR="0", **PYTHON
    )
    wait_until(lambda: job.restarts == 1, 120, job.report)
    output_of("scontrol", "update", f"jobid={job.number}", "timelimit=30")
    job.ends_as("COMPLETED", seconds=600)
    assert job.restarts == 1
    assert tiny_run.losses(tmp_path / "run") == tiny_run.losses(unbroken)
    client, runs = mlflow_runs(tmp_path)
    assert len(runs) == 1
    history = client.get_metric_history(runs[0].info.run_id, "train/loss")
    assert [point.step for point in sorted(history, key=lambda p: p.step)] == list(range(1, steps + 1))
