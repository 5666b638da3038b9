"""Students that learn from one pass of the teachers: each as if it were trained alone. Real engines, real processes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dmt_ds.commands.readouts import evaluate
from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.config.load import config_from_yaml
from dmt_ds.models.encoders import load_encoder
from dmt_ds.tracking.mlflow_compare import read_study
from dmt_ds.tracking.store_uri import named_store
from tests import processes, tiny_run
from tests.integration.knn_points import knn_of_published, knn_points
from tests.integration.test_stopping import mlflow_runs

pytestmark = pytest.mark.distributed

MEMBERS: dict[str, dict[str, Any]] = {
    "slim": {},
    "wide": {"student": {"embed_dim": 48, "drop_path": 0.0}, "optim": {"base_lr": 8.0e-3, "clip_grad_norm": 0.0}},
}
"""The second is as wide as its teachers, so that it has no adapter, and follows a schedule of its own."""
CENTRED = {"fusion": "centred"}
"""Has running means, which must move once a step whoever asks for the targets."""
SCRIPT = str(Path(__file__).with_name("family_process.py"))


def recipe_of(folder: Path, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    tracking = {"enabled": False, "pictures": False}
    return tiny_run.write_recipe(folder, **({"family": MEMBERS, "distill": CENTRED, "tracking": tracking} | changes))


def points(run: Path) -> dict[int, dict[str, float]]:
    """Step -> everything logged but speed and memory."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {
        line["step"]: {key: value for key, value in line["metrics"].items() if not key.startswith("perf/")}
        for line in lines
        if "train/loss" in line["metrics"]
    }


def alone(folder: Path, name: str, *overrides: str, number: int = 1) -> Path:
    """The run folder of a member that is trained alone."""
    member = MEMBERS[name]
    recipe = recipe_of(folder, family={}, **{key: value for key, value in member.items() if key != "family"})
    processes.run(tiny_run.pretrain(recipe, *overrides), processes=number)
    return folder / "run"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Path:
    """The run folder of a family on one process that was never stopped, judged on the way, kept in MLflow."""
    folder = tmp_path_factory.mktemp("unbroken")
    shutil.copyfile(empty_database, folder / "mlflow.db")
    tracking = {"enabled": True, "pictures": False, "system_metrics_seconds": 0, "drain_seconds": 120}
    processes.run(tiny_run.pretrain(recipe_of(folder, tracking=tracking), f"train.eval_every_epochs={3 * 32 / 1437}"))
    return folder / "run"


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a recipe whose family was stopped at step 4 on two processes."""
    folder = tmp_path_factory.mktemp("half")
    processes.run(tiny_run.pretrain(recipe_of(folder), "train.stop_after_step=4"), processes=2)
    return folder


@pytest.mark.parametrize("name", MEMBERS)
def test_each_member_is_bit_equal_to_its_run_alone(unbroken: Path, tmp_path: Path, name: str) -> None:
    run = alone(tmp_path, name)
    assert points(run) == points(unbroken / name)
    assert tiny_run.backbone_difference(run, unbroken / name) == 0.0


def test_each_member_is_judged_by_its_own_encoder(unbroken: Path) -> None:
    for name in MEMBERS:
        judged = knn_points(unbroken / name)
        assert sorted(judged) == [0, 3, 6, tiny_run.NUM_STEPS]
        assert judged[tiny_run.NUM_STEPS] == knn_of_published(unbroken / name)


def test_a_member_on_two_processes_is_bit_equal_to_its_run_alone_on_two(half: Path, tmp_path: Path) -> None:
    run = alone(tmp_path, "slim", "train.stop_after_step=4", number=2)
    assert points(run) == points(half / "run" / "slim")


def test_a_family_that_goes_on_with_another_number_of_processes_ends_as_the_unbroken_one(
    unbroken: Path, half: Path, tmp_path: Path
) -> None:
    shutil.copytree(half / "run", tmp_path / "run")
    processes.run(tiny_run.pretrain(half / "recipe.yaml", f"output_dir={tmp_path / 'run'}"))
    for name in MEMBERS:
        curves = (tiny_run.losses(tmp_path / "run" / name), tiny_run.losses(unbroken / name))
        assert tiny_run.largest_difference(*curves) < 1e-5


@pytest.mark.slow
def test_a_member_goes_on_alone(unbroken: Path, half: Path, tmp_path: Path) -> None:
    shutil.copytree(half / "run", tmp_path / "run")
    slim = tmp_path / "run" / "slim"
    processes.run(tiny_run.pretrain(slim / "config.yaml", f"output_dir={slim}", "train.stop_after_step=6"))
    curve, whole = tiny_run.losses(slim), tiny_run.losses(unbroken / "slim")
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    assert all(abs(curve[step] - whole[step]) < 1e-5 * whole[step] for step in curve)


def test_a_member_whose_record_can_not_be_opened_ends_the_runs_of_those_before_it_as_failed(
    tmp_path: Path, empty_database: Path
) -> None:
    shutil.copyfile(empty_database, tmp_path / "mlflow.db")
    tracking = {"enabled": True, "pictures": False, "system_metrics_seconds": 0}
    (tmp_path / "run" / "wide" / "environment.json").mkdir(parents=True)
    done = processes.run(tiny_run.pretrain(recipe_of(tmp_path, tracking=tracking)), check=False)
    assert done.returncode == 2 and "wide/environment.json: can't be written" in done.stderr
    _, runs = mlflow_runs(tmp_path)
    status = {run.info.run_name: run.info.status for run in runs}
    assert {name: status[name] for name in MEMBERS} == dict.fromkeys(MEMBERS, "FAILED")


def test_kills_between_two_members_saves_lose_nothing_that_all_had(unbroken: Path, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, train={"save_every_steps": 2, "keep_checkpoints": 1})
    run = tmp_path / "run"

    def saved() -> dict[str, list[str]]:
        return {name: sorted(p.name[-1] for p in (run / name / "checkpoints").glob("step*")) for name in MEMBERS}

    first = processes.run([SCRIPT, str(recipe), "wide", "2"], check=False)
    assert first.returncode == -9 and saved() == {"slim": ["2"], "wide": []}
    second = processes.run([SCRIPT, str(recipe), "wide", "4"], check=False)
    assert second.returncode == -9 and saved() == {"slim": ["2", "4"], "wide": ["2"]}

    last = processes.run([SCRIPT, str(recipe)])
    log = (run / "train.log").read_text()
    assert "the family starts from scratch" in log
    assert "step00000004: skipped: not all members of the family have it" in log
    for name in MEMBERS:
        assert points(run / name) == points(unbroken / name)
        assert tiny_run.backbone_difference(run / name, unbroken / name) == 0.0
    assert saved() == {"slim": ["8"], "wide": ["8"]}
    # Six steps of four micro-batches of eight images, two teachers, and two students that share them.
    assert f"TEACHERS {6 * 4 * 2} {6 * 32 * 2}" in last.stdout


def test_a_member_that_diverges_is_named_and_ends_all(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, distill={"fusion": "sum"})
    done = processes.run(tiny_run.pretrain(recipe, "family.wide.optim.base_lr=1e30"), check=False)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dmt-ds: error:")]
    assert " of wide is not finite" in line


def test_a_members_folder_is_that_of_a_run(unbroken: Path, tmp_path: Path) -> None:
    shutil.copytree(unbroken.parent, tmp_path / "all")
    folder = tmp_path / "all" / "run" / "slim"
    assert (folder / "DONE").read_text() == (unbroken / "DONE").read_text() == "8\n"
    assert load_encoder(str(folder), 16).record.shape.embed_dim == 24
    config = config_from_yaml((folder / "config.yaml").read_text())
    assert (config.name, config.student.embed_dim, config.family) == ("slim", 24, {})
    table = evaluate.run(config.data, KnnConfig(), LinearConfig(), {"slim": str(folder)}, torch.device("cpu"))
    study = read_study(named_store(str(tmp_path / "all" / "mlflow.db"), must_exist=True), "dmt_ds", "tiny")
    scores = {run.name: run.metrics.get("eval/linear_top1") for run in study.runs}
    assert scores == {"slim": table.rows[0].scores["eval/linear_top1"], "wide": None}


def test_members_stand_under_the_family_in_mlflow_as_runs_alone_do(unbroken: Path) -> None:
    store = named_store(str(unbroken.parent / "mlflow.db"), must_exist=True)
    study = read_study(store, "dmt_ds", "tiny")
    assert study.parent is not None and study.parent.name == "tiny"
    assert {run.name: (run.status, run.tags["student"], run.params["student.embed_dim"]) for run in study.runs} == {
        "slim": ("FINISHED", "vit_tiny", "24"),
        "wide": ("FINISHED", "vit_tiny", "48"),
    }
    for run in study.runs:
        logged = points(unbroken / run.name)
        assert {point.step: point.value for point in run.history("train/loss")} == {
            step: metrics["train/loss"] for step, metrics in logged.items()
        }
        assert "teachers/red/share" in run.metrics and "family.slim.optim.base_lr" not in run.params
