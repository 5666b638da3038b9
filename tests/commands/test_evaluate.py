"""`dmt-ds evaluate` on real digits: one pass, all readouts, kept with the run."""

import json
import logging
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from dmt_ds.cli import main
from dmt_ds.commands.readouts.evaluate import run
from dmt_ds.commands.readouts.frozen_encoders import matches_run_settings
from dmt_ds.commands.readouts.frozen_protocol import ReadoutTable
from dmt_ds.commands.readouts.knn import run_knn
from dmt_ds.config.evaluation import KnnConfig, LinearConfig
from dmt_ds.config.load import load_config, to_yaml
from dmt_ds.config.schema import DataConfig, RunConfig
from dmt_ds.engine.checkpoints.checkpoint import Checkpoint, CheckpointFolder, RunState
from dmt_ds.run_files import DONE, EVALUATION_FILE
from dmt_ds.tracking.mlflow_tracker import open_tracker
from dmt_ds.tracking.spool import Spool
from dmt_ds.tracking.tracker import read_points
from tests import tiny_run
from tests.tracking.stores import curve

CPU = torch.device("cpu")
DIGITS = DataConfig(source="digits", image_size=16, num_workers=0, max_train_images=300)


class CountingTokens(nn.Module):
    """Class token: all pixels; patch tokens: two that know nothing. Counts the images that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.num_images = 0

    def forward(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> [B, 3, 3*H*W]."""
        self.num_images += len(images)
        pixels = images.flatten(1).float()
        return torch.stack([pixels, torch.ones_like(pixels), -torch.ones_like(pixels)], dim=1)


def make_run(folder: Path, *overrides: str) -> RunConfig:
    """A finished run's folder: a random encoder, the settings, the step."""
    tiny_run.make_teacher(folder, seed=0)
    config = load_config(
        None,
        (
            *("task=mae", "data.image_size=16", "data.num_workers=0", "data.max_train_images=300"),
            *("student.patch_size=4", *overrides),
        ),
    )
    (folder / "config.yaml").write_text(to_yaml(config))
    (folder / DONE).write_text("400\n")
    return config


def evaluate(*sources: str | Path, data: DataConfig = DIGITS, k: int = 20, again: bool = False) -> ReadoutTable:
    encoders = {str(source): str(source) for source in sources}
    return run(data, KnnConfig(k=k), LinearConfig(), encoders, CPU, again)


def num_points(folder: Path) -> int:
    return len((folder / "metrics.jsonl").read_text().splitlines())


def test_all_readouts_come_from_one_pass_over_the_images() -> None:
    tokens = CountingTokens()
    table = run(DIGITS, KnnConfig(), LinearConfig(), {"tokens": tokens}, CPU)
    assert tokens.num_images == 300 + 360
    scores = table.rows[0].scores
    assert len(scores) == 9
    assert scores["eval/linear_top1"] > 0.8 and scores["eval/knn_top1"] > 0.8
    assert scores["eval/linear_patch_top1"] < 0.2 and scores["eval/knn_patch_top1"] < 0.2


def test_k_nn_is_what_the_knn_command_measures() -> None:
    scores = evaluate("pixels").rows[0].scores
    for features in ("class", "patch_mean"):
        knn = KnnConfig(features=features)
        table = run_knn(DIGITS, knn, {"pixels": "pixels"}, CPU)
        assert table.rows[0].scores.items() <= scores.items()


def test_a_runs_scores_are_points_of_its_last_step_and_a_file_in_its_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "tracking.enabled=false")
    scores = evaluate(tmp_path / "run").rows[0].scores
    assert [(point["step"], point["metrics"]) for point in read_points(tmp_path / "run")] == [(400, scores)]
    kept = json.loads((tmp_path / "run" / EVALUATION_FILE).read_text())
    assert kept["scores"] == scores
    assert kept["made_from"]["step"] == 400
    assert kept["made_from"]["data"]["train"] != kept["made_from"]["data"]["validation"]


def test_called_again_it_evaluates_only_what_has_changed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, "tracking.enabled=false")
    first = evaluate(folder)
    assert evaluate(folder) == first and num_points(folder) == 1
    evaluate(folder, again=True)
    assert num_points(folder) == 2
    tiny_run.make_teacher(folder, seed=1)
    other = evaluate(folder)
    assert num_points(folder) == 3
    assert other.rows[0].scores != first.rows[0].scores


@pytest.mark.parametrize("setting", ["data.max_train_images=200", "data.interpolation=bilinear", "knn.k=5"])
@pytest.mark.parametrize("command", ["knn", "evaluate"])
def test_scores_of_other_images_or_settings_are_not_the_runs(
    command: str, setting: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "run"
    make_run(folder, "tracking.enabled=false")
    evaluate(folder)
    kept = (folder / EVALUATION_FILE).read_text()
    with caplog.at_level(logging.WARNING, "dmt_ds"):
        result = CliRunner().invoke(main, [command, "-e", str(folder), setting])
    assert result.exit_code == 0, result.output
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    key = setting.partition("=")[0]
    own = {"data.max_train_images": 300, "data.interpolation": "bicubic", "knn.k": 20}[key]
    why = f"because it was trained with different settings: {setting} (the run has {own})"
    told = f"{folder}: scores are not added to the run, {why}"
    assert warnings == [told]
    assert num_points(folder) == 1 and (folder / EVALUATION_FILE).read_text() == kept


def test_knn_adds_to_a_run_what_is_measured_as_the_run_has_it(tmp_path: Path) -> None:
    make_run(tmp_path / "run", "tracking.enabled=false")
    assert CliRunner().invoke(main, ["knn", "-e", str(tmp_path / "run")]).exit_code == 0
    assert num_points(tmp_path / "run") == 1


@pytest.mark.parametrize("command", ["knn", "evaluate"])
def test_a_run_in_the_home_folder_is_judged_as_itself(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path / "run", "tracking.enabled=false", "knn.k=3")
    result = CliRunner().invoke(main, [command, "-e", "~/run"])
    assert "k-NN (k 3, " in result.output
    assert num_points(tmp_path / "run") == 1


def test_the_images_of_a_run_may_have_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "run", "tracking.enabled=false", "data.source=folder", "data.path=/was/here")
    moved = DIGITS.model_copy(update={"source": "folder", "path": "/is/there"})
    state = RunState(1, 32, 1, 0, "fp32", {}, data_fingerprint="abc")
    monkeypatch.setattr(CheckpointFolder, "newest", lambda _: Checkpoint(tmp_path, state))
    assert matches_run_settings(tmp_path / "run", "abc", moved, KnnConfig())
    assert not matches_run_settings(tmp_path / "run", "abcd", moved, KnnConfig())


def test_the_images_of_a_run_without_checkpoints_may_have_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    make_run(folder, "tracking.enabled=false", "data.source=folder", "data.path=photos")
    same = DIGITS.model_copy(update={"source": "folder", "path": str(tmp_path / "photos")})
    moved = same.model_copy(update={"path": "/is/there"})
    assert matches_run_settings(folder, "abc", same, KnnConfig())
    assert not matches_run_settings(folder, "abc", moved, KnnConfig())
    Spool(folder, "run").put("dataset", name="folder", source="photos", fingerprint="abc", context="training")
    assert matches_run_settings(folder, "abc", moved, KnnConfig())
    assert not matches_run_settings(folder, "abcd", moved, KnnConfig())


@pytest.mark.parametrize("command", ["knn", "evaluate"])
def test_what_is_not_added_is_told_before_it_is_judged(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def judged(*_: object) -> NoReturn:
        assert "scores are not added to the run" in caplog.text
        raise InterruptedError

    make_run(tmp_path / "run", "tracking.enabled=false")
    monkeypatch.setattr("dmt_ds.commands.readouts.frozen_protocol.features_of", judged)
    result = CliRunner().invoke(main, [command, "-e", str(tmp_path / "run"), "knn.k=3"])
    assert isinstance(result.exception, InterruptedError)


def test_a_runs_scores_reach_its_mlflow_run(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = make_run(tmp_path / "run", f"tracking.uri={store}", "tracking.system_metrics_seconds=0")
    tracker = open_tracker(config.tracking, tmp_path / "run", "run", None, is_main=True)
    tracker.finish("FINISHED")
    scores = evaluate(tmp_path / "run").rows[0].scores
    for name, value in scores.items():
        assert curve(store, tracker.run_id, name) == [(400, value)]


def test_the_command_takes_the_settings_of_the_first_run_and_evaluates_again_when_told(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    make_run(folder, "tracking.enabled=false", "knn.k=3")
    for number, options in enumerate(([], [], ["--again"])):
        result = CliRunner().invoke(main, ["evaluate", "-e", str(folder), "-e", "pixels", *options])
        assert result.exit_code == 0, result.output
        assert "k-NN (k 3, " in result.output and "300 training and 360 test images" in result.output
        assert num_points(folder) == max(1, number)


def test_a_run_that_was_trained_with_what_is_refused_today_is_judged(tmp_path: Path) -> None:
    """Its rate rose to min_lr."""
    make_run(tmp_path / "run", "optim.min_lr=1e-3")
    file = tmp_path / "run" / "config.yaml"
    file.write_text(file.read_text().replace("min_lr: 0.001\n", "min_lr: 0.5\n"))
    told = CliRunner().invoke(main, ["evaluate", "-e", str(tmp_path / "run"), "linear.max_iterations=1"])
    assert told.exit_code == 0, told.stderr


def test_what_is_no_run_is_judged_and_left_as_it_is(tmp_path: Path) -> None:
    folder = tiny_run.make_teacher(tmp_path / "encoder", seed=0)
    before = sorted(folder.rglob("*"))
    assert evaluate(folder, "pixels").rows[0].scores["eval/knn_top1"] > 0.3
    assert sorted(folder.rglob("*")) == before


def test_the_table_has_four_columns_in_percent() -> None:
    table = run(DIGITS, KnnConfig(k=5), LinearConfig(), {"pixels": "pixels", "a longer name": CountingTokens()}, CPU)
    lines = str(table).splitlines()
    assert "on digits: 300 training and 360 test images, 10 classes" in lines[0]
    scores = table.rows[0].scores
    columns = ("knn_top1", "knn_patch_top1", "linear_top1", "linear_patch_top1")
    assert lines[2].split() == ["pixels", *(f"{100 * scores[f'eval/{name}']:.2f}" for name in columns)]
    assert len({len(line) for line in lines[1:]}) == 1


@pytest.mark.parametrize("command", ["knn", "evaluate"])
@pytest.mark.parametrize(("task", "told"), [("segment", "class maps"), ("detect", "boxes and masks")])
def test_a_run_whose_images_have_no_classes_is_judged_on_others_that_are_named(
    command: str, task: str, told: str, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    config = make_run(folder, "tracking.enabled=false", "data.source=folder", "data.path=scenes")
    (folder / "config.yaml").write_text(to_yaml(config.model_copy(update={"task": task})))
    arguments = [command, "-e", str(folder)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert f"error: {folder}: its images have {told}, but no class per image" in result.stderr
    assert "data.source=folder data.path=... data.train_split=train" in result.stderr
    result = CliRunner().invoke(main, [*arguments, "data.source=digits", "data.path=null"])
    assert result.exit_code == 0, result.output


def test_where_no_images_are_named_it_is_said_that_digits_are_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, told = tiny_run.make_teacher(tmp_path / "encoder", seed=0), "using scikit-learn's digits"
    for named in (), ("data.source=digits",):
        caplog.clear()
        settings = (*named, "data.image_size=16", "data.num_workers=0", "data.max_train_images=100")
        assert CliRunner().invoke(main, ["knn", "-e", str(folder), *settings]).exit_code == 0
        assert (told in caplog.text) == (not named)


def test_images_of_another_size_than_the_encoders_are_called_by_their_setting(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["knn", "-e", str(tiny_run.make_teacher(tmp_path / "encoder", seed=0))])
    assert result.exit_code == 2
    assert "data.image_size 224 gives 56 x 56: set data.image_size=16" in result.stderr
