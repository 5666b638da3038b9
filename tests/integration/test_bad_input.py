"""What a person gets wrong ends in one clear line and exit code 2, and nothing is lost."""

import io
import shutil
import socket
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from tests import processes, tiny_run

pytestmark = pytest.mark.distributed


def errors_of(arguments) -> list[str]:
    """Lines of the error, after checking that there is no traceback."""
    done = processes.run(arguments, check=False)
    assert done.returncode == 2, f"exit code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "Traceback" not in done.stderr
    return [
        line.removeprefix("dmt-ds: error: ") for line in done.stderr.splitlines() if line.startswith("dmt-ds: error:")
    ]


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a recipe whose run was stopped at step 3."""
    folder = tmp_path_factory.mktemp("stopped")
    processes.run(tiny_run.pretrain(tiny_run.write_recipe(folder), "train.stop_after_step=3"))
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """48 digits as PNG files in two classes, in an ImageNet-style folder."""
    images, labels = load_digits(return_X_y=True)
    for number in range(48):
        target = tmp_path / "images" / "train" / f"class{labels[number] % 2}" / f"{number:03d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images[number].reshape(8, 8) * 15).astype(np.uint8)).resize((16, 16)).save(target)
    return tmp_path / "images"


def test_all_findings_of_a_recipe_come_at_once(tmp_path):
    recipe = tiny_run.write_recipe(tmp_path)
    lines = errors_of(tiny_run.pretrain(recipe, "optim.wieght_decay=0.1", "train.epochs=abc"))
    assert any("optim.wieght_decay" in line and "Did you mean 'weight_decay'" in line for line in lines)
    assert any("train.epochs" in line for line in lines)


def test_a_missing_teacher_file_is_named(tmp_path):
    recipe = tiny_run.write_recipe(tmp_path)
    (line,) = errors_of(tiny_run.pretrain(recipe, "teachers.models.red.source=/nowhere/mae.pth"))
    assert "/nowhere/mae.pth" in line and "red" in line


def test_a_corrupt_image_can_be_skipped_and_is_named_in_the_log(tmp_path, image_folder):
    recipe = tiny_run.write_recipe(tmp_path, data={"source": "folder", "path": str(image_folder), "bad_images": "skip"})
    broken = sorted(image_folder.rglob("*.png"))[20]
    broken.write_bytes(b"")
    sorted(image_folder.rglob("*.png"))[0].write_bytes(b"")  # also one of those that would be pictured
    shutil.copy(broken, image_folder / "train" / "beside.png")  # and one that has no class
    processes.run(tiny_run.pretrain(recipe, "tracking.pictures=true"))
    assert (tmp_path / "run" / "DONE").exists()
    log = (tmp_path / "run" / "train.log").read_text()
    assert str(broken) in log and log.count("next to its class folders") == 1


def test_a_taken_port_is_one_line_with_the_address(tmp_path):
    recipe = tiny_run.write_recipe(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ranks = {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        with processes.launched(tiny_run.pretrain(recipe), 1, tmp_path / "log", **ranks) as run:
            assert run.wait() == [2], run.log
    (line,) = processes.errors(run.log)
    assert f"127.0.0.1:{port}" in line and "MASTER_PORT" in line and "Traceback" not in run.log


def test_a_refused_start_shows_all_differences_and_changes_nothing_in_the_run(stopped_run, tmp_path):
    files = ("config.yaml", "attempt.json", "checkpoints/latest")
    kept = {name: (stopped_run / "run" / name).read_bytes() for name in files}
    settings = ["distill.fusion=mean", "optim.weight_decay=0.2", "student.embed_dim=36"]
    other = f"teachers.models.red.source={tiny_run.make_teacher(tmp_path / 'other', seed=9)}"
    lines = errors_of(tiny_run.pretrain(stopped_run / "recipe.yaml", *settings, other))
    text = "\n".join(lines)
    assert "distill.fusion: sum -> mean" in text and "optim.weight_decay: 0.05 -> 0.2" in text
    assert "student.embed_dim: 24 -> 36" in text
    assert any(line.startswith("teacher red: weights sha256") for line in lines)
    assert {name: (stopped_run / "run" / name).read_bytes() for name in kept} == kept


def test_an_output_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    recipe = tiny_run.write_recipe(tmp_path, output_dir=str(tmp_path / "file" / "run"))
    (line,) = errors_of(tiny_run.pretrain(recipe))
    place = tmp_path / "file" / "run"
    assert f"output_dir={place}: {place} can't be made (Not a directory); choose another output_dir" in line


def test_of_two_ranks_the_one_that_fails_says_it_in_one_line(tmp_path, image_folder):
    recipe = tiny_run.write_recipe(tmp_path, data={"source": "folder", "path": str(image_folder)})
    broken = sorted(image_folder.rglob("*.png"))[20]
    broken.write_bytes(broken.read_bytes()[:40])
    done = processes.run(tiny_run.pretrain(recipe), processes=2, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith("dmt-ds: error:")]
    # A line a rank that came upon it: the other may, in the next epoch, before it is ended.
    assert done.returncode != 0 and 1 <= len(lines) <= 2 and all(str(broken) in line for line in lines)
    assert "[rank" not in done.stderr  # no traceback of a rank


def test_what_rank_0_alone_finds_ends_all_ranks_with_one_line(tmp_path):
    recipe = tiny_run.write_recipe(tmp_path, data={"source": "folder", "path": str(tmp_path / "nowhere")})
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log") as ranks:
        assert ranks.wait() == [2, 1], ranks.log  # by themselves: no launcher ends the other
    (line,) = processes.errors(ranks.log)
    assert "nowhere" in line and "Traceback" not in ranks.log


def test_a_full_disk_keeps_the_earlier_checkpoint(tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("a small file system can't be mounted here (needs root)")
    try:
        recipe = tiny_run.write_recipe(tmp_path, output_dir=str(small / "run"), train={"save_every_steps": 2})
        processes.run(tiny_run.pretrain(recipe, "train.stop_after_step=2"))
        free = shutil.disk_usage(small).free
        (small / "ballast").write_bytes(io.BytesIO(b"\0" * max(0, free - 100_000)).getvalue())
        (line,) = errors_of(tiny_run.pretrain(recipe))
        assert "step00000004: not saved" in line and "No space left on device" in line and "step00000002" in line
        (small / "ballast").unlink()
        processes.run(tiny_run.pretrain(recipe))
        assert (small / "run" / "DONE").exists()
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_unreachable_tracking_server_does_not_stop_the_run(tmp_path):
    port = processes.free_port()
    tracking = {"enabled": True, "uri": f"http://127.0.0.1:{port}", "drain_seconds": 1, "system_metrics_seconds": 0}
    recipe = tiny_run.write_recipe(tmp_path, tracking=tracking)
    processes.run(tiny_run.pretrain(recipe))
    assert len(tiny_run.losses(tmp_path / "run")) == tiny_run.NUM_STEPS
    log = (tmp_path / "run" / "train.log").read_text()
    assert f"127.0.0.1:{port}" in log
