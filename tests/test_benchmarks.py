"""The benchmarks run, hold the sides equal, and keep what they found; how fast anything is, no test says."""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import processes

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, out: Path, *options: str, check: bool = True) -> Any:
    done = processes.run(
        [str(BENCHMARKS / script), "--rounds", "2", "--steps", "1", "--out", str(out), *options],
        check=check,
        cwd=out,
        CUDA_VISIBLE_DEVICES="",
        DS_ACCELERATOR="cpu",
    )
    return done if not check else json.loads(next(out.glob("*.json")).read_text())


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("harness", BENCHMARKS / "harness.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["harness"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_rounds_take_every_side_in_turn_after_one_call_that_does_not_count(harness: ModuleType) -> None:
    import torch

    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in "ab"}
    times = harness.alternate(sides, rounds=2, steps=2, device=torch.device("cpu"))
    assert "".join(calls) == "ab" + "aabb" * 2
    assert {name: len(found) for name, found in times.items()} == {"a": 2, "b": 2}


def test_a_side_is_faster_only_where_all_rounds_say_so(harness: ModuleType) -> None:
    base = [2.0, 2.0, 2.0]
    assert harness.ratios(base, [1.0, 4.0, 2.0]) == (1.0, 0.5, 2.0)
    assert harness.verdict(harness.ratios(base, [1.0, 4.0, 2.0])) == "no difference seen"
    assert harness.verdict(harness.ratios(base, [1.0, 1.9, 1.0])) == "faster"
    assert harness.verdict(harness.ratios(base, [4.0, 2.1, 4.0])) == "slower"


TURNS = """
import sys, time
sys.path.insert(0, sys.argv[1])
import harness
begin = time.monotonic()
with harness.turn():
    print(begin, time.monotonic(), end=" ")
    time.sleep(0.5)
    print(time.monotonic())
"""


def test_programs_that_start_together_wait_for_each_other_and_take_turns(tmp_path: Path) -> None:
    """Two are set up at different times; the third ends before it is, for which whoever started it answers."""
    (tmp_path / "expected").write_text("3")

    def start(name: str) -> subprocess.Popen[str]:
        environment = {**os.environ, "TURN": str(tmp_path / name), "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-c", TURNS, str(BENCHMARKS)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)

    both = [start("one"), start("two")]
    while len(list(tmp_path.glob("*.ready"))) < 2 and None in [one.poll() for one in both]:
        time.sleep(0.1)
    answered = time.monotonic()
    (tmp_path / "three.ready").touch()
    times = sorted([float(word) for word in one.communicate(timeout=120)[0].split()] for one in both)
    turns = sorted((entered, left) for _, entered, left in times)
    assert answered <= turns[0][0] and turns[0][1] <= turns[1][0]
    assert [one.returncode for one in both] == [0, 0]


def test_peak_memory_counts_what_lives_at_once(harness: ModuleType) -> None:
    import torch

    def two_at_a_time() -> None:
        kept = torch.zeros(1 << 20)  # 4 MiB
        for _ in range(3):
            kept + 1

    assert harness.peak_bytes(two_at_a_time, torch.device("cpu")) == pytest.approx(8 << 20, rel=0.01)


def test_losses_are_compared_and_kept_in_files_and_in_mlflow(tmp_path: Path) -> None:
    sizes = ["--batch", "2", "--tokens", "17", "--channels", "24", "--direction", "student_teacher", "--no-compile"]
    found = run("bench_loss.py", tmp_path, *sizes)
    assert [row["loss"] for row in found["rows"]] == ["eager", "chunked"] * 2
    assert len(found["raw"]["student_teacher, float32"]["seconds"]["chunked"]) == 2
    assert "| student_teacher, float32 | chunked |" in (tmp_path / "loss_cpu.md").read_text()
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/runs/benchmarks/mlflow.db")
    experiment = client.get_experiment_by_name("benchmarks")
    assert experiment is not None
    (kept,) = client.search_runs([experiment.experiment_id])
    assert kept.info.status == "FINISHED"
    assert kept.data.metrics["student_teacher/float32/chunked/ms"] > 0
    assert kept.data.params["tokens"] == "17"


def test_whole_steps_of_ours_and_of_all_peers_start_with_equal_losses_and_gradients(tmp_path: Path) -> None:
    sizes = ["--teacher", "vit_tiny", "--teachers", "2", "--batch", "2", "--image-size", "32", "--no-mlflow"]
    found = run("bench_step.py", tmp_path, *sizes)
    sides = {"P1 plain PyTorch", "ours", "DeepSpeed by hand", "TinyMIM-style"}
    assert set(found["raw"]["seconds"]) == sides
    for name in sides:
        assert found["raw"]["checked"][name]["loss_error"] < 1e-5
        assert found["raw"]["checked"][name]["gradient_error"] < 1e-4
    assert len({round(found["raw"]["checked"][name]["loss"], 3) for name in sides}) == 1


def test_the_teachers_pass_gives_timms_sum(tmp_path: Path) -> None:
    sizes = ["--teacher", "vit_tiny", "--teachers", "2", "--batch", "2", "--image-size", "32", "--no-mlflow"]
    found = run("bench_teachers.py", tmp_path, *sizes)
    assert set(found["raw"]["seconds"]) == {"timm", "ours"}
    assert found["raw"]["errors"]["timm"] == 0 and found["raw"]["errors"]["ours"] < 1e-5


PREPARED = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
from bench_teachers import prepare
def fails():
    raise RuntimeError("no\\n  compiler")
others = {"near": lambda: lambda x: x + 1e-6, "fails": fails}
others |= {"far": lambda: lambda x: 2 * x, "odd": lambda: lambda x: x * torch.nan}
sides, errors, left_out = prepare(lambda x: x, others, torch.ones(3), 1e-4)
print(json.dumps([list(sides), list(errors), left_out]))
"""


def test_a_way_of_the_teachers_that_fails_or_differs_is_a_note_beside_the_others_times() -> None:
    done = processes.run(["-c", PREPARED, str(BENCHMARKS)], CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    sides, errors, left_out = json.loads(done.stdout.splitlines()[-1])
    assert sides == errors == ["timm", "near"]
    assert left_out == [
        "fails: not timed: RuntimeError: no compiler",
        "far: not timed: its sum of tokens differs from timm's by 1.0e+00",
        "odd: not timed: its sum of tokens differs from timm's by nan",
    ]


def test_the_trainer_is_measured_beside_bare_steps(tmp_path: Path) -> None:
    sizes = ["--teacher", "vit_tiny", "--teachers", "1", "--batch", "2", "--image-size", "32", "--no-mlflow"]
    found = run("bench_trainer.py", tmp_path, *sizes)
    assert {name: len(seconds) for name, seconds in found["raw"]["seconds"].items()} == {
        "bare": 2,
        "in memory": 2,
        "in memory, log steps": 2,
        "trainer": 2,
    }
    assert found["rows"][-1][""] == "trainer with a log step in 20 over bare"


def test_a_run_with_profiled_steps_leaves_its_table_and_a_small_trace(tmp_path: Path) -> None:
    small = ["--teacher", "vit_tiny", "--image-size", "32", "train.global_batch_size=2", "train.micro_batch_size=2"]
    short = ["data.num_workers=0", "train.steps=3", "train.profile_steps=[2,3]"]
    arguments = [str(BENCHMARKS / "profile_run.py"), "--out", str(tmp_path), *small, *short]
    done = processes.run(arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="", DS_ACCELERATOR="cpu")
    assert "steps 2 to 3:" in done.stdout
    assert json.loads((tmp_path / "profile.json").read_text())["steps"] == [2, 3]
    assert (tmp_path / "profile_trace.json.gz").exists()


def test_jitter_is_measured_with_and_without_hue(tmp_path: Path) -> None:
    found = run("bench_jitter.py", tmp_path, "--batch", "2", "--size", "32", "--no-mlflow")
    assert {case: len(of_case["seconds"]) for case, of_case in found["raw"].items()} == {"three": 2, "three and hue": 2}


FAKE_PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
echo "runs $1"
touch "$MARKS/$$"
exec sleep "$SECONDS_EACH"
"""


def gpu_check(folder: Path, seconds_each: int, limit: int, *words: str) -> tuple[int, set[str]]:
    """The script with programs that sleep, ended at a limit in seconds: its code, and what the archive holds."""
    python, marks, out = folder / "python", folder / "marks", folder / "out"
    marks.mkdir()
    (out / "study").mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    told = {"PYTHON": str(python), "MARKS": str(marks), "SECONDS_EACH": str(seconds_each)}
    command = ["timeout", str(limit), str(BENCHMARKS / "gpu_check.sh"), str(out), *words]
    done = subprocess.run(command, env={**os.environ, **told}, capture_output=True, timeout=120)
    with tarfile.open(folder / "out.tar.gz") as archive:
        return done.returncode, set(archive.getnames())


def lives(pid: int) -> bool:
    """What has ended but nobody waited for does not."""
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_the_figures_of_a_gpu_are_one_file_as_well(tmp_path: Path) -> None:
    code, names = gpu_check(tmp_path, 0, 60, "loss+trainer", "jitter")
    assert code == 0
    assert names == {"out", *(f"out/{name}" for name in ("machine.txt", "loss.log", "trainer.log", "jitter.log"))}


@pytest.mark.parametrize("stages", ["loss+trainer", "loss"])
def test_what_a_check_that_is_ended_from_outside_has_is_kept_and_no_program_outlives_it(
    tmp_path: Path, stages: str
) -> None:
    code, names = gpu_check(tmp_path, 300, 5, stages)
    assert code == 124 and {"out/machine.txt", "out/loss.log"} < names
    programs = [int(mark.name) for mark in (tmp_path / "marks").iterdir()]
    assert len(programs) == len(stages.split("+"))
    deadline = time.monotonic() + 60  # `timeout` kills after 30 what does not end
    while alive := [pid for pid in programs if lives(pid)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.1)


@pytest.mark.parametrize("peer", ["pytorch", "tinymim_style", "deepspeed"])
def test_a_peer_is_short_and_owes_nothing_to_this_project(peer: str) -> None:
    text = (BENCHMARKS / f"peer_{peer}.py").read_text()
    assert len(text.splitlines()) < 150
    assert "dmt_ds" not in text
