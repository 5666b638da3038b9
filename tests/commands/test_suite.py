"""`dmt-ds suite` in real processes: what is finished stays, what fails is told, what it needs comes first."""

import json
import logging
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from dmt_ds.cli import main
from dmt_ds.commands.child_command import Command
from dmt_ds.commands.suites.suite import by_cause, select
from dmt_ds.commands.suites.suite_check import check_batches, check_inputs
from dmt_ds.commands.suites.suite_local import LocalSuite, share_of
from dmt_ds.commands.suites.suite_state import changed, choose
from dmt_ds.config.suite_plan import SuitePlan
from dmt_ds.config.suite_run import SuiteRun
from dmt_ds.errors import ConfigError
from dmt_ds.run_files import EVALUATION_FILE
from tests import processes, tiny_run, tiny_suite
from tests.forked_command import ForkedCommand
from tests.tiny_suite import call, plan_of, pretend_finished

NO_MLFLOW = {"tracking.enabled": "false"}
ONE_TASK = "--sbatch=--ntasks-per-node=1"


def wait_until(condition: Callable[[], bool], log: Path, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.distributed
def test_a_suite_that_is_interrupted_goes_on_and_redoes_no_finished_run_though_one_fails(
    tmp_path: Path, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher, a variant, one that can't run; SIGINT while the variant trains."""
    suite = tiny_suite.write_suite(
        tmp_path,
        set={"teachers.models.mae.source": "{teachers}/mae", **NO_MLFLOW},
        seeds=[0],
        tune=None,
        variants={
            "dmt": {"set": {"train.steps": 150}},
            "bad": {"set": {"optim.base_lr": 1e30, "train.steps": 20}},
        },
    )
    log, out = tmp_path / "log", tmp_path / "out"
    first = processes.start(tiny_suite.command(suite, "--jobs", "2"), log=log)
    dmt, teacher = out / "dmt" / "seed0", out / "teachers" / "mae"
    wait_until(lambda: (dmt / "metrics.jsonl").exists() and len(tiny_run.losses(dmt)) > 3, log)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130, log.read_text()
    assert log.read_text().splitlines()[-1] == "dmt-ds: stopped"
    assert (dmt / "checkpoints" / "latest").exists() and not (dmt / "DONE").exists()
    before = stamps(teacher)
    assert str(teacher / "evaluation.json") in before

    monkeypatch.setattr("dmt_ds.commands.suites.suite_local.RunningCommand", ForkedCommand)
    second = call(suite, "--jobs", "2")
    assert second.exit_code == 2
    (error,) = [line for line in second.stderr.splitlines() if line.startswith("dmt-ds: error:")]
    assert error.startswith("dmt-ds: error: bad seed0: ") and "is not finite" in error
    assert stamps(teacher) == before
    assert "resuming from" in (dmt / "train.log").read_text()
    assert sorted(tiny_run.losses(dmt)) == list(range(1, 151))
    states = call(suite, "--list").output.splitlines()
    assert [line.split()[:2] + line.split()[3:4] for line in states[1:4]] == [
        ["teacher", "mae", "finished"],
        ["dmt", "seed0", "finished"],
        ["bad", "seed0", "failed:"],
    ]
    assert "is not finite" in states[3]


@pytest.mark.slow
def test_a_whole_suite_is_one_parent_run_with_all_runs_under_it(tmp_path: Path) -> None:
    import mlflow

    suite = tiny_suite.write_suite(tmp_path)
    processes.run(tiny_suite.command(suite, "--jobs", "2"), timeout=900)
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("tiny")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("tiny")
    assert (parent.info.status, parent.data.tags["variants"]) == ("FINISHED", "dmt,untrained")
    assert sorted(runs) == [
        "dmt-seed0",
        "dmt-seed1",
        "teachers-mae",
        "tune-dmt-0.001",
        "tune-dmt-0.01",
        "untrained-seed0",
        "untrained-seed1",
    ]
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all("eval/knn_top1" in run.data.metrics for run in runs.values())
    again = processes.run(tiny_suite.command(suite))
    assert "7 of them finished" in again.stdout and "training" not in again.stdout


class CommandInThisProcess:
    """Does at once what a process would do."""

    def __init__(self, command: Command) -> None:
        self._code = CliRunner().invoke(main, [*command.arguments]).exit_code

    def poll(self) -> int:
        return self._code


def test_a_suite_judges_what_is_left_by_its_own_readouts(
    tmp_path: Path, own_signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dmt_ds.commands.suites.suite_local.RunningCommand", CommandInThisProcess)
    changes = {"teachers": None, "tune": None, "paper": None, "seeds": [0], "variants": {"made": {}}}
    quiet = {"tracking.enabled": False, "linear.max_iterations": 1}
    suite = tiny_suite.write_suite(tmp_path, recipe="maker.yaml", set=quiet, **changes)
    (run,) = plan_of(suite).variants({})
    pretend_finished(run)
    (run.folder / "evaluation.json").unlink()
    tiny_run.make_teacher(run.folder, seed=0)
    made = call(suite, "knn.k=5")
    assert made.exit_code == 0, made.output
    assert json.loads((run.folder / "evaluation.json").read_text())["made_from"]["knn"]["k"] == 5
    assert changed(plan_of(suite).variants({})[0]) is not None  # judged by 5 neighbours, not by 20


# What is not started


@pytest.mark.parametrize("action", [(), ("--submit", ONE_TASK)])
def test_images_and_teachers_that_are_not_there_are_told_once_before_any_run_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, action: tuple[str, ...]
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    suite = tiny_suite.write_suite(
        tmp_path,
        set={"teachers.models.mae.source": "{teachers}/mae", **NO_MLFLOW},
        variants={
            "dmt": {},
            "other": {"set": {"teachers.models.mae.source": "/no/mae.pth"}, "tune": False},
            "start": {"set": {"student.init_from": "/no/start.pth"}, "tune": False},
        },
    )
    result = call(suite, *action, "data.source=folder", "data.path=/typo")
    assert result.exit_code == 2 and result.stdout == ""
    images, teacher, start = result.stderr.splitlines()
    assert f"{suite}: data.path: /typo does not exist" in images
    assert "teacher 'mae': /no/mae.pth: no such file; " in teacher
    assert "student.init_from /no/start.pth: no such file; " in start
    assert not (tmp_path / "out").exists()
    assert call(suite, "--slurm", "data.source=folder", "data.path=/typo").exit_code == 0, "it looks at nothing"


def test_a_batch_that_the_processes_cannot_share_is_told_once_before_any_run_starts(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(tmp_path, set={"teachers.models.mae.source": "{teachers}/mae", **NO_MLFLOW})
    result = call(suite, "--ranks", "3")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert f"{suite}: train.global_batch_size: 16 is not divisible by micro_batch_size 16 x 3 ranks = 48" in line
    assert not (tmp_path / "out").exists()
    for run in select(plan_of(suite), ()):
        (run.folder).mkdir(parents=True)
        (run.folder / "DONE").write_text("3\n")
    check_batches(plan_of(suite), select(plan_of(suite), ()), lambda _: 3)  # what is trained is not cut again


def test_a_dry_run_looks_and_starts_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    suite = tiny_suite.write_suite(tmp_path, set={"teachers.models.mae.source": "{teachers}/mae", **NO_MLFLOW})
    with caplog.at_level(logging.INFO, "dmt_ds"):
        result = call(suite, "--dry-run")
    num_runs = len(select(plan_of(suite), ()))
    told = f"images, teachers, batches and follow-ups of the {num_runs} still to run: no problems found"
    assert f"settings of {num_runs} runs, {told}" in caplog.text
    assert result.exit_code == 0 and result.stdout == call(suite, "--list").stdout
    assert call(suite, "--dry-run", "--ranks", "3").exit_code == 2
    assert "data.path: /typo does not exist" in call(suite, "--dry-run", "data.source=folder", "data.path=/typo").stderr
    assert not (tmp_path / "out").exists()


def test_runs_that_failed_alike_are_one_line() -> None:
    failures = {"dmt seed0": "no room", "dmt seed1": "no room", "mse seed0": "other"}
    assert by_cause(failures) == ["dmt seed0, dmt seed1: no room", "mse seed0: other"]


def test_where_compute_nodes_alone_have_the_data_a_suite_is_submitted_without_a_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("DMT_DS_DOCTOR", "0")
    suite = tiny_suite.write_suite(tmp_path, set={"teachers.models.mae.source": "{teachers}/mae", **NO_MLFLOW})
    assert call(suite, "--submit", "data.source=folder", "data.path=/typo").output.startswith("7  ")


def test_inputs_of_judged_runs_are_not_asked_for(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(
        tmp_path, tune=None, teachers=None, set={"teachers.models.mae.source": "/no/mae.pth", **NO_MLFLOW}
    )
    plan = plan_of(suite)
    with pytest.raises(ConfigError, match=r"mae\.pth: no such file"):
        check_inputs(plan, select(plan, ()))
    for run in plan.variants({}):
        pretend_finished(run)
    check_inputs(plan, select(plan, ()))
    for run in plan.variants({}):
        (run.folder / EVALUATION_FILE).unlink()
    check_inputs(plan, select(plan, ()))  # to be judged, which needs no teacher


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ("--sbatch=--nodes=2",),
            "--sbatch=--nodes=2: works only with --slurm or --submit; add one of them, or take it",
        ),
        (("--list", "--sbatch=--nodes=2"), "--sbatch=--nodes=2: works only with --slurm or --submit"),
        (("--submit", "--slurm"), "--slurm and --submit: choose one of them"),
        (("--slurm", "--list"), "--list and --slurm: choose one of them"),
        (("--slurm", "--ranks", "4"), "with --slurm give --sbatch=--ntasks-per-node=4, or take it out"),
        (("--submit", "--ranks", "1"), "with --submit give --sbatch=--ntasks-per-node=1, or take it out"),
        (("--list", "--ranks", "4"), "--ranks 4: has no effect with --list: take it out"),
        (("--list", "--jobs", "2"), "--jobs 2: has no effect with --list: take it out"),
        (("--dry-run", "--jobs", "2"), "--jobs 2: has no effect with --dry-run: take it out"),
    ],
)
def test_options_that_would_be_left_aside_are_refused(tmp_path: Path, options: tuple[str, ...], said: str) -> None:
    result = call(tiny_suite.write_suite(tmp_path), *options)
    assert result.exit_code == 2 and said in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_finished_run_with_other_settings_is_refused_in_one_line_that_names_the_difference(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(tmp_path, tune=None)
    for run in plan_of(suite).variants({}):
        pretend_finished(run)
    result = call(suite, "--only", "dmt", "optim.weight_decay=0.3", "data.num_workers=1")
    assert result.exit_code == 2
    for seed, line in enumerate(result.stderr.splitlines()):
        assert f"{tmp_path}/out/dmt/seed{seed}: was trained with other settings" in line
        assert "(then -> now): optim.weight_decay: 0.05 -> 0.3; choose another -o" in line
    assert len(result.stderr.splitlines()) == 2
    assert not (tmp_path / "out" / "teachers").exists()


def test_teachers_that_other_variants_brought_in_do_not_make_a_finished_run_another_one(tmp_path: Path) -> None:
    for run in plan_of(tiny_suite.write_suite(tmp_path, tune=None)).variants({}):
        pretend_finished(run)
    sources = {f"teachers.models.{name}.source": f"{{teachers}}/{name}" for name in ("mae", "new")}
    suite = tiny_suite.write_suite(
        tmp_path,
        tune=None,
        set={**sources, "teachers.use": ["mae"]},
        teachers={"mae": {"recipe": "maker.yaml"}, "new": {"recipe": "maker.yaml"}},
    )
    for run in plan_of(suite).variants({}):
        assert changed(run) is None


def test_what_is_wrong_with_any_run_stops_the_suite_before_the_first_starts(tmp_path: Path) -> None:
    variants = {"dmt": {}, "odd": {"set": {"train.stpes": "3"}}, "worse": {"recipe": "nothing.yaml"}}
    result = call(tiny_suite.write_suite(tmp_path, variants=variants))
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (tmp_path / "out").exists()
    lines = result.stderr.splitlines()
    assert any("variants.odd.set: train.stpes: unknown key. Did you mean 'steps'?" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "dmtt"], "--only dmtt: no such variant or teacher"),
        (["seed=3"], "command line: seed: is given to each run by the suite itself"),
        (["optim.base_lr=1"], "command line: optim.base_lr: is given to each run by the suite itself"),
        (["train.epochs"], "command line: train.epochs: must be key=value"),
        (["train.epochs=1", "train.epochs=2"], "command line: train.epochs is given twice"),
    ],
)
def test_a_command_line_that_does_not_fit_is_one_line(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = call(tiny_suite.write_suite(tmp_path), *arguments)
    (line,) = result.stderr.splitlines()
    assert result.exit_code == 2 and words in line


def test_only_brings_what_its_variants_need(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(
        tmp_path,
        variants={"dmt": {}, "alone": {"recipe": "maker.yaml", "tune": False}},
    )
    labels = {
        only: [line.split("  ")[0] for line in call(suite, "--list", "--only", only).output.splitlines()[1:-1]]
        for only in ("dmt", "alone", "mae")
    }
    assert labels == {
        "dmt": ["teacher mae", "dmt optim.base_lr=0.001", "dmt optim.base_lr=0.01", "dmt seed0", "dmt seed1"],
        "alone": ["alone seed0", "alone seed1"],
        "mae": ["teacher mae"],
    }


# Tuning


def choice_of(suite: Path, scores: dict[float, float | None]):
    plan = plan_of(suite)
    tune = plan.file.suite.tune
    assert tune is not None
    for run in plan.tried("dmt"):
        score = scores[run.value or 0.0]
        if score is not None:
            pretend_finished(run, select_knn_top1=score)
    return choose(plan, tune, "dmt")


@pytest.mark.parametrize(
    ("scores", "value", "is_at_the_edge"),
    [
        ({1.0: 0.1, 2.0: 0.3, 4.0: 0.2}, 2.0, False),
        ({1.0: 0.3, 2.0: 0.3, 4.0: 0.2}, 1.0, True),
        ({1.0: 0.1, 2.0: 0.3, 4.0: 0.3}, 2.0, False),
        ({1.0: 0.1, 2.0: 0.2, 4.0: 0.3}, 4.0, True),
        ({1.0: 0.1, 2.0: 0.2, 4.0: None}, 2.0, False),  # beyond it the run fails: no edge of the grid
    ],
)
def test_the_best_value_is_kept_a_tie_takes_the_smaller_and_the_edge_is_noted(
    scores: dict[float, float | None], value: float, is_at_the_edge: bool, tmp_path: Path
) -> None:
    suite = tiny_suite.write_suite(tmp_path, tune={"values": [4, 1, 2]})
    choice = choice_of(suite, scores)
    kept = json.loads((tmp_path / "out" / "tune" / "dmt.json").read_text())
    assert (choice.value, kept["value"], kept["is_at_the_edge"]) == (value, value, is_at_the_edge)
    assert kept["failed"] == ["4" for score in scores.values() if score is None]


def test_a_metric_that_no_run_has_is_one_line_with_those_there_are(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(tmp_path, tune={"values": [1, 2], "metric": "eval/nothing"})
    with pytest.raises(ConfigError, match=r"^[^\n]*tune\.metric=eval/nothing: not measured; there are: eval/knn_top1"):
        choice_of(suite, {1.0: 0.1, 2.0: 0.2})


def test_without_a_finished_tuning_run_a_variant_is_not_started(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(tmp_path, tune={"values": [1, 2]})
    with pytest.raises(
        ConfigError, match=r"^dmt: none of the tuning runs finished: dmt optim\.base_lr=1, dmt optim\.base_lr=2$"
    ):
        choice_of(suite, {1.0: None, 2.0: None})


def make_all(plan: SuitePlan, runs: list[SuiteRun]) -> tuple[LocalSuite, list[str]]:
    """What a suite of finished runs says: nothing is left to start."""
    lines: list[str] = []
    local = LocalSuite(plan, runs, jobs=1, ranks=1, say=lines.append)
    local.make_all()
    return local, lines


def test_seeds_have_the_value_that_their_own_tuning_chose(tmp_path: Path, own_signals: None) -> None:
    plan = plan_of(tiny_suite.write_suite(tmp_path))
    runs = select(plan, ())
    for run in runs[:1] + plan.variants({"dmt": 1e-2}):
        pretend_finished(run)
    for run, score in zip(plan.tuning(), (0.1, 0.2), strict=True):
        pretend_finished(run, select_knn_top1=score)
    local, lines = make_all(plan, runs)
    assert local.failures == {}
    assert lines == [
        "  dmt: optim.base_lr=0.01 is best by eval/select_knn_top1 (0.001: 0.1000, 0.01: 0.2000)",
        "  dmt: warning: that is at the edge of tune.values; the best may lie beyond",
    ]


def test_seeds_of_another_value_than_the_chosen_one_are_refused_and_the_others_go_on(
    tmp_path: Path, own_signals: None
) -> None:
    plan = plan_of(tiny_suite.write_suite(tmp_path))
    runs = select(plan, ())
    for run in runs[:1] + plan.variants({"dmt": 1e-3}):
        pretend_finished(run)
    for run, score in zip(plan.tuning(), (0.1, 0.2), strict=True):
        pretend_finished(run, select_knn_top1=score)
    local, lines = make_all(plan, runs)
    assert list(local.failures) == ["dmt seed0", "dmt seed1"]
    assert all("optim.base_lr: 0.001 -> 0.01" in why for why in local.failures.values())
    assert lines[-1].startswith("[5/7] dmt seed1: ")


# SLURM


def test_the_arrays_come_one_after_the_other_without_what_is_finished(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(tmp_path)
    plan = plan_of(suite)
    pretend_finished(plan.variants({})[2])
    given = ("data.source=digits", "data.path=a b")
    lines = call(suite, "--slurm", "--jobs", "4", "--sbatch=--nodes=2", *given).output.splitlines()
    assert [line.split("=$(sbatch ")[0] for line in lines] == ["job0", "job1", "job2"]
    assert ["--dependency=afterany:$job0" in line for line in lines] == [False, True, False]
    assert [next(word for word in line.split() if word.startswith("--array")) for line in lines] == [
        "--array=0%4",
        "--array=0,1%4",
        "--array=0,1,3%4",
    ]
    assert all("--nodes=2" in line and "'data.path=a b'" in line and f"-o {tmp_path}/out" in line for line in lines)


def test_an_option_may_be_of_one_stage_and_a_dependency_of_ones_own_is_the_first_arrays(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(tmp_path)
    own = ("--sbatch=seeds:--nodes=1", "--sbatch=tune:--time=9")
    lines = call(suite, "--slurm", *own, "--sbatch=--nodes=2", "--sbatch=--dependency=afterok:7").output.splitlines()
    options = [line.split("=$(sbatch ")[1].partition(" /")[0].split()[3:] for line in lines]
    of_all = ["--nodes=2", "--dependency=afterok:7"]
    assert options == [  # of an option that is given twice sbatch takes the last
        of_all,
        [*of_all, "--time=9", "--dependency=afterany:$job0"],
        [*of_all, "--nodes=1", "--dependency=afterany:$job1"],
    ]
    refused = call(suite, "--slurm", "--sbatch=seed:--nodes=1")
    assert refused.exit_code == 2
    assert "--sbatch=seed:--nodes=1: there is no stage seed; there are: teachers, tune, seeds, " in refused.stderr


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("seeds:nodes=2", "is not an option of sbatch: write one, such as seeds:--nodes=2"),
        ("seeds:", "is not an option of sbatch: write one, such as seeds:--nodes=2"),
        ("detect:--nodes=4", "suite.yaml has no detect; its stages are: teachers, seeds"),
        ("tune:--nodes=4", "suite.yaml has no tune; its stages are: teachers, seeds"),
    ],
)
def test_an_option_that_sbatch_would_take_for_a_script_or_no_stage_takes_is_refused(
    option: str, said: str, tmp_path: Path
) -> None:
    suite = tiny_suite.write_suite(tmp_path, tune=None)
    refused = call(suite, "--slurm", f"--sbatch={option}")
    (line,) = refused.stderr.splitlines()
    assert (refused.exit_code, refused.stdout) == (2, "") and f"--sbatch={option}: " in line and said in line
    assert " --time 9:00:00 " in call(suite, "--slurm", "--sbatch=--time", "--sbatch=9:00:00").output  # as two words


def test_a_batch_that_an_arrays_tasks_cannot_share_is_told_before_anything_is_submitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    finetune = {"recipe": "finetune_vit_tiny", "set": {"data.image_size": 16}}
    suite = tiny_suite.write_suite(tmp_path, tune=None, finetune=finetune)
    refused = call(suite, "--submit", "--sbatch=teachers:--nodes=1-2", ONE_TASK, "--sbatch=finetune:-n24")
    (line,) = refused.stderr.splitlines()
    assert (refused.exit_code, refused.stdout) == (2, "") and not (tmp_path / "out").exists()
    assert (
        f"{suite}: finetune: train.global_batch_size: 1024 is not divisible by micro_batch_size 128 x 24 ranks" in line
    )
    assert line.endswith("; for it alone: finetune.set.train.micro_batch_size=...")
    refused = call(suite, "--submit")  # 8 tasks, as the script says
    assert "train.global_batch_size: 16 is not divisible by micro_batch_size 16 x 8 ranks" in refused.stderr


def test_a_task_refuses_a_suite_whose_runs_have_other_numbers_by_now(tmp_path: Path) -> None:
    def task(number: int) -> Result:
        return call(suite, "--stage", "seeds", "--print-run", str(number), "--numbered", mark)

    kept: dict[str, object] = {"dmt": {}, "other": {"set": {"train.steps": 1}}}
    changes = {"tune": None, "teachers": None, "set": {"teachers.models.mae.source": "/mae.pth"}}
    suite = tiny_suite.write_suite(tmp_path, variants=kept, **changes)
    (line,) = call(suite, "--slurm").output.splitlines()
    mark = line.rstrip(")").split("--numbered ")[1]
    assert f"output_dir={tmp_path}/out/other/seed0" in task(2).output.splitlines()
    tiny_suite.write_suite(tmp_path, variants={**kept, "late": {}}, **changes)
    assert f"output_dir={tmp_path}/out/other/seed0" in task(2).output.splitlines()
    tiny_suite.write_suite(tmp_path, variants={"early": {}, **kept}, **changes)
    refused = task(2)
    assert refused.exit_code == 2 and refused.stdout == ""
    assert f"{suite}: task 2 of stage seeds may be another run than when the array was submitted: " in refused.stderr


def test_a_task_of_an_array_gets_the_arguments_of_its_run_one_a_line(tmp_path: Path) -> None:
    suite = tiny_suite.write_suite(tmp_path)
    plan = plan_of(suite)
    refused = call(suite, "--stage", "seeds", "--print-run", "1")
    assert refused.exit_code == 2 and "none of the tuning runs finished" in refused.stderr
    for run, score in zip(plan.tuning(), (0.1, 0.2), strict=True):
        pretend_finished(run, select_knn_top1=score)
    refused = call(suite, "--stage", "seeds", "--print-run", "1")
    assert refused.exit_code == 2 and "it needs teacher mae, which is not finished" in refused.stderr
    (teacher,) = plan.teachers()
    pretend_finished(teacher)
    lines = call(suite, "--stage", "seeds", "--print-run", "1").output.splitlines()
    assert lines[:2] == ["-c", str(tmp_path / "student.yaml")]
    assert {"optim.base_lr=0.01", "seed=1", f"output_dir={tmp_path}/out/dmt/seed1"} <= set(lines)
    assert call(suite, "--stage", "teachers", "--print-run", "0").output == "\n"
    assert call(suite, "--stage", "seeds", "--print-run", "4").exit_code == 2


def test_arrays_are_submitted_each_after_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in sbatch's place writes down what it is asked."""
    suite = tiny_suite.write_suite(tmp_path / "suite")
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/asked\necho "$(wc -l < {tmp_path}/asked);cluster"\n')
    sbatch.chmod(sbatch.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    own = (ONE_TASK, "--sbatch=--dependency=afterok:99", "tracking.enabled=false")
    done = call(suite, "--submit", *own)
    assert done.exit_code == 0, done.output
    asked = (tmp_path / "asked").read_text().splitlines()
    assert all("--parsable" in line for line in asked)
    last = [[word for word in line.split() if word.startswith("--dependency=")][-1] for line in asked]
    assert last == ["--dependency=afterok:99", "--dependency=afterany:1", "--dependency=afterany:2"]
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["1", "tiny-teachers"],
        ["2", "tiny-tune"],
        ["3", "tiny-seeds"],
    ]


# GPUs


def test_runs_at_a_time_share_out_the_gpus() -> None:
    gpus = [*"01234567"]
    assert [share_of(gpus, slot, 1) for slot in (0, 7, 8)] == [["0"], ["7"], ["0"]]
    assert [share_of(gpus, slot, 3) for slot in range(3)] == [["0", "1", "2"], ["3", "4", "5"], ["0", "1", "2"]]
    assert share_of(gpus[:2], 1, 4) == ["0", "1"]
