"""Photographs: three teachers made by three methods, distilled on one and two processes, judged, taken elsewhere."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from dmt_ds.commands import export
from dmt_ds.models.forms import FORMS
from tests import processes, tiny_run
from tests.models import strangers

pytestmark = pytest.mark.distributed

STEPS = 12


@pytest.fixture(scope="module")
def photographs(shared_dir: Path) -> dict[str, object]:
    """The data section: 48 px crops of 112 px photographs."""
    return {
        "source": "parquet", "path": str(shared_dir / "data" / "imagenette112"), "image_size": 48, "num_workers": 0,
        "max_train_images": 600,
    }  # fmt: skip


@pytest.fixture(scope="module")
def teachers(photographs: dict[str, object], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders of a MAE, a MoCo v3 and an iBOT teacher, a few steps each."""
    folder = tmp_path_factory.mktemp("teachers")
    made = {}
    for task in ("mae", "moco_v3", "ibot"):
        recipe = {
            "task": task,
            "name": task,
            "output_dir": str(folder / task),
            "data": photographs,
            "student": {
                "arch": "vit_tiny",
                "patch_size": 12,
                "embed_dim": 48,
                "depth": 3,
                "num_heads": 3,
                "drop_path": 0.0,
            },
            "mae": {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2},
            "moco_v3": {"hidden_dim": 64, "output_dim": 32},
            "ibot": {"output_dim": 64, "hidden_dim": 64, "bottleneck_dim": 32, "local_crops": 2, "local_crop_size": 24},
            "optim": {"base_lr": 4e-3, "warmup_steps": 4, "clip_grad_norm": 3.0},
            "train": {"steps": STEPS, "global_batch_size": 32, "micro_batch_size": 32, "log_every_steps": 1},
            "tracking": {"enabled": False},
        }
        path = folder / f"{task}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        processes.run(tiny_run.pretrain(path))
        made[task] = folder / task
    return made


def write_recipe(folder: Path, data: object, teachers: dict[str, Path], precision: str, **train: object) -> Path:
    """A distillation of these teachers, into `run`."""
    suffix = "" if precision == "bf16" else "_fp32"
    recipe = tiny_run.write_recipe(
        folder,
        data=data,
        student={"patch_size": 12},
        teachers={
            "models": {name: {"source": str(path)} for name, path in teachers.items()},
            "deepspeed": f"teacher_zero3_inference{suffix}",
        },
        train={"steps": STEPS, "deepspeed": f"student_zero2_{precision}", **train},
    )
    text = yaml.safe_load(recipe.read_text())
    text["teachers"]["models"] = {name: {"source": str(path)} for name, path in teachers.items()}
    recipe.write_text(yaml.safe_dump(text))
    return recipe


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-3)])
def test_distillation_on_photographs_is_the_same_on_one_and_two_processes(
    photographs, teachers, tmp_path, precision, tolerance
):
    curves = []
    for number in (1, 2):
        folder = tmp_path / str(number)
        folder.mkdir()
        recipe = write_recipe(folder, photographs, teachers, precision)
        processes.run(tiny_run.pretrain(recipe), processes=number)
        curves.append(tiny_run.losses(folder / "run"))
    assert curves[0][STEPS] < 0.9 * curves[0][1]
    assert tiny_run.largest_difference(*curves) < tolerance


def test_knn_judges_a_teacher_on_photographs(photographs, teachers):
    settings = [f"data.{key}={value}" for key, value in photographs.items()]
    done = processes.run(["-m", "dmt_ds", "knn", "-e", str(teachers["mae"]), *settings, "tracking.enabled=false"])
    assert "3925 test images, 10 classes" in done.stdout


def test_a_trained_student_says_the_same_of_photographs_in_every_form_as_in_its_engine(photographs, teachers, tmp_path):
    recipe = write_recipe(tmp_path, photographs, teachers, "fp32", steps=40, micro_batch_size=32)
    processes.run(["-m", "tests.integration.live_tokens", str(recipe), str(tmp_path / "live.pt")])
    losses, live = tiny_run.losses(tmp_path / "run"), torch.load(tmp_path / "live.pt")
    assert losses[40] < 0.8 * losses[1]
    export.run(str(tmp_path / "run"), tuple(FORMS), tmp_path / "exported")
    torch.save(live["images"], tmp_path / "exported" / "images.pt")
    command = [sys.executable, strangers.__file__, str(tmp_path), str(tmp_path / "answers.pt")]
    subprocess.run(command, cwd=tmp_path, env=processes.environment(PYTHONPATH=""), check=True)
    found = torch.load(tmp_path / "answers.pt")["exported"]
    for form, tolerance in {"timm": 1e-5, "transformers": 1e-5, "torch_export": 1e-5, "onnx": 1e-4}.items():
        for ours, theirs in zip(live["tokens"], found[form], strict=True):
            torch.testing.assert_close(theirs, ours, atol=tolerance, rtol=0)
