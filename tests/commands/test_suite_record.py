"""Finished runs of a suite stay in one table only with runs that learn from the same and are judged alike."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from dmt_ds.commands.suites.suite_state import changed, judge_as_asked
from dmt_ds.config.deepspeed import find_ds_config
from dmt_ds.config.load import config_from_yaml
from dmt_ds.config.suite_run import SuiteRun
from dmt_ds.data.sources import open_source
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder, RunState
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.encoders import load_teacher
from tests import tiny_suite
from tests.models import tiny
from tests.tiny_suite import call, plan_of, pretend_finished

FP32 = "student_zero2_fp32"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for number in range(3):
        path = folder / "train" / "cat" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 50).convert("RGB").save(path)
    return folder


def save_teacher(path: Path, seed: int) -> Path:
    state = {f"backbone.{key}": value for key, value in tiny.vit(seed=seed).state_dict().items()}
    torch.save({"teacher": state}, path)
    return path


@pytest.fixture
def suite(tmp_path: Path, images: Path) -> Callable[..., Path]:
    """Writes the suite: one variant, two seeds; settings of all runs may be others."""
    teacher = save_teacher(tmp_path / "mae.pth", seed=0)

    def write(**settings: object) -> Path:
        settings = {
            "data.source": "folder",
            "data.path": str(images),
            "teachers.models.mae.source": str(teacher),
            "teachers.models.mae.num_heads": tiny.HEADS,
            **settings,
        }
        nothing = {"teachers": None, "tune": None, "paper": None}
        return tiny_suite.write_suite(tmp_path / "suite", set=settings, variants={"dmt": {}}, **nothing)

    return write


def finish(run: SuiteRun) -> None:
    """What a finished run leaves, its checkpoint's record among it."""
    pretend_finished(run)
    config = run.config
    state = RunState(
        step=3,
        images_seen=48,
        world_size=1,
        zero_stage=2,
        precision="fp32",
        config=config.model_dump(mode="json"),
        teachers={name: load_teacher(name, it).record.sha256 or "" for name, it in config.teachers.used().items()},
        data_fingerprint=open_source(config.data, "train").fingerprint,
    )

    def write(folder: Path, tag: str) -> None:
        (folder / tag / "weights.pt").write_bytes(b"0")

    CheckpointFolder(run.folder / "checkpoints", keep=2).save(state, write)
    recorded = {"mae": {"bf16": {"enabled": False}}}
    (run.folder / "deepspeed_teachers.json").write_text(json.dumps(recorded))


def test_seeds_are_refused_that_would_learn_from_other_things(
    suite: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    finish(plan_of(suite()).variants({})[0])
    other_images, other_teacher = tmp_path / "other", save_teacher(tmp_path / "other.pth", seed=1)
    shutil.copytree(images, other_images)
    (other_images / "train" / "cat" / "0.png").unlink()
    for key, value, said in (
        ("data.path", other_images, f"data.path: {images} -> {other_images} (its content differs: "),
        ("teachers.models.mae.source", other_teacher, f"{tmp_path}/mae.pth -> {other_teacher} (its content differs: "),
        ("train.deepspeed", "student_zero2_bf16", "_bf16 (its content differs: fp32 -> bf16)"),
        ("teachers.deepspeed", "teacher_zero3_inference", "inference (its content differs: fp32 -> bf16)"),
    ):
        refused = call(suite(**{key: str(value)}), "--slurm")
        (line,) = refused.stderr.splitlines()
        assert refused.exit_code == 2 and "dmt/seed0: was trained with other settings" in line and said in line


def test_what_is_the_same_under_another_name_and_what_decides_nothing_may_change(
    suite: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    finish(plan_of(suite()).variants({})[0])
    shutil.copytree(images, tmp_path / "moved")
    shutil.copy(tmp_path / "mae.pth", tmp_path / "moved.pth")
    shutil.copy(find_ds_config(FP32), tmp_path / "own.json")
    moved = {
        "data.path": str(tmp_path / "moved"),
        "teachers.models.mae.source": str(tmp_path / "moved.pth"),
        "train.deepspeed": str(tmp_path / "own.json"),
        "knn.batch_size": 7,
        "train.micro_batch_size": 8,
        "data.num_workers": 1,
    }
    lines = call(suite(**moved), "--slurm")
    assert lines.exit_code == 0 and "--array=1 " in lines.output


def test_where_a_run_kept_no_record_another_name_is_refused(suite: Callable[..., Path], tmp_path: Path) -> None:
    pretend_finished(plan_of(suite()).variants({})[0])
    assert changed(plan_of(suite()).variants({})[0]) is None
    other = shutil.copy(find_ds_config(FP32), tmp_path / "own.json")
    refused = changed(plan_of(suite(**{"train.deepspeed": str(other)})).variants({})[0])
    assert refused is not None and "(the run kept no record to compare it with)" in refused


def test_one_thing_by_two_names_needs_no_record(
    suite: Callable[..., Path], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_finished(plan_of(suite()).variants({})[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path)
    for changes in (
        {"data.path": "images"},
        {"data.path": f"{images}/"},
        {"data.path": str(tmp_path / "link" / "images")},
        {"teachers.models.mae.source": "mae.pth"},
        {"train.deepspeed": str(find_ds_config(FP32))},
        {"teachers.deepspeed": str(find_ds_config("teacher_zero3_inference_fp32"))},
    ):
        assert changed(plan_of(suite(**changes)).variants({})[0]) is None, changes


def test_a_record_is_read_only_where_something_has_another_name_and_needs_no_weights_beside_it(
    suite: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    run = plan_of(suite()).variants({})[0]
    finish(run)
    shutil.copytree(images, tmp_path / "moved")
    moved = plan_of(suite(**{"data.path": str(tmp_path / "moved")})).variants({})[0]
    (checkpoint,) = (run.folder / "checkpoints").glob("step*")
    (checkpoint / "weights.pt").unlink()
    assert changed(moved) is None
    state = json.loads((checkpoint / "run_state.json").read_text())
    (checkpoint / "run_state.json").write_text(json.dumps({**state, "of_a_later_version": 1}))
    assert changed(run) is None
    told = changed(moved)
    assert told is not None and f"{images} -> {tmp_path}/moved (the run kept no record to compare it with)" in told


def test_a_damaged_record_of_teachers_precision_is_none(suite: Callable[..., Path]) -> None:
    run = plan_of(suite()).variants({})[0]
    finish(run)
    other = plan_of(suite(**{"teachers.deepspeed": "teacher_zero3_inference"})).variants({})[0]
    for text in ("{", "[]", '{"mae": 1}'):
        (run.folder / "deepspeed_teachers.json").write_text(text)
        told = changed(other)
        assert told is not None and "-> teacher_zero3_inference (the run kept no record to compare it with)" in told


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data.path", "/far", "/far (data.path: /far does not exist: "),
        ("teachers.models.mae.source", "/far.pth", "/far.pth (teacher 'mae': /far.pth: no such file; "),
    ],
)
def test_what_cannot_be_looked_at_here_is_told_as_that_or_left_to_the_compute_nodes(
    suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str, said: str
) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "sbatch").write_text("#!/bin/sh\necho 7\n")
    (tmp_path / "bin" / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    quiet = {"tracking.enabled": False}
    finish(plan_of(suite(**quiet)).variants({})[0])
    moved = suite(**quiet, **{key: value})
    submit = ("--submit", "--sbatch=--ntasks-per-node=1")
    for action in (("--dry-run",), submit):
        refused = call(moved, *action)
        (line,) = refused.stderr.splitlines()
        assert (
            refused.exit_code == 2
            and "dmt/seed0: can't be compared on this machine with what the suite asks for now" in line
        )
        assert said in line and "DMT_DS_DOCTOR=0" in line and "remove" not in line
    assert call(moved, "--slurm").exit_code == 0
    monkeypatch.setenv("DMT_DS_DOCTOR", "0")
    assert call(moved, *submit).output.startswith("7  ")
    other = suite(**quiet, **{key: value, "optim.weight_decay": 0.3})
    assert "dmt/seed0: was trained with other settings" in call(other, *submit).stderr


def test_runs_that_were_judged_otherwise_are_told_how_their_encoders_are_judged_anew(
    suite: Callable[..., Path], images: Path, tmp_path: Path
) -> None:
    run, _ = plan_of(suite()).variants({})
    finish(run)
    shutil.copytree(images, tmp_path / "my photos")
    for given, said, words in (
        ({"knn.k": 5}, "knn.k: 20 -> 5", "knn.k=5"),
        ({"knn.temperature": 1}, "knn.temperature: 0.07 -> 1.0", "knn.temperature=1.0"),
        ({"linear.max_iterations": 7}, "linear.max_iterations: 300 -> 7", "linear.max_iterations=7"),
        (
            {"knn.k": 5, "data.path": str(tmp_path / "my photos")},
            "knn.k: 20 -> 5",
            f"knn.k=5 'data.path={tmp_path}/my photos'",
        ),
    ):
        refused = call(suite(**given), "--slurm")
        (line,) = refused.stderr.splitlines()
        assert refused.exit_code == 2 and f"{run.folder}: was evaluated with other settings" in line
        assert f"(then -> now): {said}; restore" in line and f"`dmt-ds evaluate -e {run.folder} {words}`" in line
        assert "remove" not in line
    both = call(suite(**{"knn.k": 5, "optim.weight_decay": 0.3}), "--slurm").stderr
    assert "was trained with other settings" in both and "knn" not in both


def test_what_is_trained_and_not_judged_yet_is_judged_as_the_suite_asks_now(suite: Callable[..., Path]) -> None:
    run, _ = plan_of(suite()).variants({})
    finish(run)
    (run.folder / "evaluation.json").unlink()
    now, _ = plan_of(suite(**{"knn.k": 5, "linear.max_iterations": 7, "data.num_workers": 1})).variants({})
    assert changed(now) is None
    judge_as_asked(now)
    file = run.folder / "config.yaml"
    saved = config_from_yaml(file.read_text())
    assert (saved.knn, saved.linear) == (now.config.knn, now.config.linear)
    assert saved.model_copy(update={"knn": run.config.knn, "linear": run.config.linear}) == run.config


def test_a_teacher_may_have_been_judged_otherwise(tmp_path: Path) -> None:
    for run in plan_of(tiny_suite.write_suite(tmp_path)).teachers():
        pretend_finished(run)
    given = tiny_suite.write_suite(tmp_path, set={"teachers.models.mae.source": "{teachers}/mae", "knn.k": 5})
    assert call(given, "--slurm").exit_code == 0


def test_settings_that_are_refused_today_do_not_keep_a_finished_run_from_its_suite(suite: Callable[..., Path]) -> None:
    """A rate that rises to min_lr, a teacher that is named twice: what was trained so may be gone through."""
    plan = plan_of(suite())
    odd = {"optim.min_lr": 0.5, "teachers.use": ["mae", "mae"]}
    refused = call(suite(**odd), "--list")
    assert refused.exit_code == 2 and "teachers: use names 'mae' twice" in refused.stderr
    for run in plan.variants({}):
        pretend_finished(run)
        text = (run.folder / "config.yaml").read_text()
        text = text.replace("min_lr: 0.0\n", "min_lr: 0.5\n").replace("  use: null\n", "  use: [mae, mae]\n")
        (run.folder / "config.yaml").write_text(text)
    told = changed(plan.variants({})[0])
    assert told is not None and "optim.min_lr: 0.5 -> 0.0" in told
    assert "2 of 2 finished" in call(suite(**odd), "--list").output
    assert call(suite(**odd), "--slurm").exit_code == 0


@pytest.mark.parametrize("seed", [0, 1])
def test_a_teacher_that_was_made_anew_in_its_place_is_compared(
    suite: Callable[..., Path], tmp_path: Path, seed: int
) -> None:
    made = tmp_path / "made"

    def make(seed: int) -> None:
        provenance = {"task": "mae", "teachers": {}}
        state = tiny.vit(seed=seed).state_dict()
        save_backbone(made / "backbone", state, tiny.section(), tiny.IMAGE_SIZE, provenance=provenance)
        (made / "DONE").write_text("3\n")

    make(seed=0)
    (run, _) = plan_of(suite(**{"teachers.models.mae.source": str(made)})).variants({})
    finish(run)
    shutil.rmtree(made)
    assert changed(run) is None  # not there yet: the suite makes it
    make(seed)
    told = changed(run)
    assert told is None if seed == 0 else told and f"teachers.models.mae.source: {made} (its content differs: " in told
