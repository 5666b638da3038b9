"""A restart with other code, data, teachers or settings; and a run made again from its record alone."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from dmt_ds.engine.checkpoints.checkpoint import read_run_state
from dmt_ds.tracking.environment import library_versions
from tests import processes, tiny_run
from tests.processes import errors
from tests.tracking.stores import mlflow_runs

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a recipe whose run on 48 files was stopped at step 3."""
    folder = tmp_path_factory.mktemp("stopped")
    images, _ = load_digits(return_X_y=True)
    (folder / "images" / "train" / "all").mkdir(parents=True)
    for number in range(48):
        picture = Image.fromarray((images[number].reshape(8, 8) * 15).astype(np.uint8)).resize((16, 16))
        picture.save(folder / "images" / "train" / "all" / f"{number:03d}.png")
    recipe = tiny_run.write_recipe(folder, data={"source": "folder", "path": str(folder / "images")})
    processes.run(tiny_run.pretrain(recipe, "train.stop_after_step=3"))
    return folder


@pytest.fixture
def copy(stopped: Path, tmp_path: Path) -> list[str]:
    """Arguments that go on with a copy of the run."""
    shutil.copytree(stopped / "run", tmp_path / "run")
    return tiny_run.pretrain(stopped / "recipe.yaml", f"output_dir={tmp_path / 'run'}", "train.stop_after_step=4")


def refused(arguments: list[str], cwd: Path | None = None, **environment: str) -> str:
    done = processes.run(arguments, check=False, cwd=cwd, **environment)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    return "\n".join(errors(done.stderr))


@pytest.mark.parametrize("asked", [2, 3])
def test_a_slice_that_is_done_is_not_gone_beyond(copy, tmp_path, asked: int) -> None:
    """The same command once more: a rank died after the save, or somebody submitted it twice."""
    done = processes.run([*copy[:-1], f"train.stop_after_step={asked}"])
    assert f"train.stop_after_step={asked}: saved at step 3 of {tiny_run.NUM_STEPS}" in done.stdout + done.stderr
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text().endswith("3")
    assert not (tmp_path / "run" / "DONE").exists()


def test_other_data_are_refused_with_the_difference_and_taken_where_that_is_said(stopped, copy, tmp_path):
    shutil.copytree(stopped / "images", tmp_path / "images")
    shutil.copy(tmp_path / "images/train/all/000.png", tmp_path / "images/train/all/more.png")
    copy.append(f"data.path={tmp_path / 'images'}")
    text = refused(copy)
    assert "data_fingerprint: " in text and "accept it with train.accept_changes=[data]" in text
    done = processes.run([*copy, "train.accept_changes=[data]"])
    assert "resuming despite an accepted difference: data_fingerprint: " in done.stderr
    assert list(tiny_run.losses(tmp_path / "run")) == [1, 2, 3, 4]


def test_the_same_data_at_another_place_are_the_same(stopped, copy, tmp_path):
    shutil.copytree(stopped / "images", tmp_path / "images")
    processes.run([*copy, f"data.path={tmp_path / 'images'}"])


def test_other_settings_and_teachers_are_taken_where_that_is_said(copy, tmp_path):
    other = tiny_run.make_teacher(tmp_path / "other", seed=9)
    copy += [f"teachers.models.red.source={other}", "optim.weight_decay=0.2"]
    text = refused([*copy, "train.accept_changes=[recipe]"])
    assert "teacher red: weights sha256" in text and "weight_decay" not in text
    assert "train.accept_changes=[recipe,teachers]" in text
    processes.run([*copy, "train.accept_changes=[recipe,teachers]", "tracking.enabled=true"])
    _, (run,) = mlflow_runs(tmp_path)
    assert run.data.tags["changed_at_step"] == "3"


def test_another_model_is_never_taken(copy):
    text = refused([*copy, "student.embed_dim=36", "train.accept_changes=[recipe,code,data,teachers]"])
    assert "parameters: " in text and "accept" not in text
    assert ", a hash of the names and shapes of all that is trained" in text


def test_other_code_is_refused_with_the_name_of_the_file(copy, tmp_path):
    shutil.copytree(processes.ROOT / "dmt_ds", tmp_path / "dmt_ds")
    (tmp_path / "ds_configs").symlink_to(processes.ROOT / "ds_configs")
    with (tmp_path / "dmt_ds" / "distill" / "losses.py").open("a") as file:
        file.write("\n# changed\n")
    with (tmp_path / "dmt_ds" / "cli" / "parts.py").open("a") as file:
        file.write("\n# what commands print does not count\n")
    text = refused(copy, tmp_path, PYTHONPATH=str(tmp_path))
    assert "code: distill/losses.py of dmt_ds differ" in text and "train.accept_changes=[code]" in text


def test_the_record_tells_all_that_is_needed_to_make_the_run_again(stopped, tmp_path):
    again = ["-m", "dmt_ds", "pretrain", "-c", str(stopped / "run" / "config.yaml")]
    processes.run([*again, f"output_dir={tmp_path / 'run'}", "train.deterministic=true"])
    assert tiny_run.losses(tmp_path / "run") == tiny_run.losses(stopped / "run")
    assert read_run_state(stopped / "run" / "checkpoints" / "step00000003").libraries == library_versions()
