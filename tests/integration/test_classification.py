"""Training with labels through the command: it learns, goes on, and is judged the same on any number of processes."""

import json
from pathlib import Path

import pytest
import timm
import torch
import yaml
from safetensors.torch import load_file

from dmt_ds.config.schema import DataConfig
from dmt_ds.config.section import IMAGENET_MEAN, IMAGENET_STD
from dmt_ds.data.augment import normalize
from dmt_ds.data.sources import open_source
from dmt_ds.run_files import DONE
from tests import processes, tiny_run
from tests.middles import middles

pytestmark = pytest.mark.distributed

NUM_IMAGES = 360
NUM_STEPS, HALF = 6, 3
WIDTH = 48


def write_recipe(folder: Path, **train: object) -> Path:
    """DeiT's means in small: all of them on, none of them strong."""
    recipe = {
        "task": "classify",
        "output_dir": str(folder / "run"),
        "data": {
            "source": "digits",
            "image_size": 16,
            "crop_scale": [0.6, 1.0],
            "horizontal_flip": 0,
            "num_workers": 0,
        },
        "augment": {"brightness": 0.2, "contrast": 0.2, "saturation": 0},
        "student": {"patch_size": 4, "embed_dim": WIDTH, "depth": 2, "num_heads": 3, "drop_path": 0.05},
        "classify": {"mixup": 0.2, "cutmix": 0.2, "mix_probability": 0.5, "rand_augment_magnitude": 1, "erasing": 0.1},
        "optim": {"base_lr": 1.6e-2, "warmup_steps": 2, "clip_grad_norm": 1.0, "layer_decay": 0.8},
        "train": {
            "steps": NUM_STEPS,
            "global_batch_size": 16,
            "micro_batch_size": 8,
            "log_every_steps": 1,
            "deepspeed": "student_zero2_fp32",
            **train,
        },
        "tracking": {"enabled": False, "pictures": False},
    }
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def assert_same_weights(a: Path, b: Path) -> None:
    """But for the keys' biases: softmax does not feel them, so AdamW walks them by the rounding of their gradient."""
    first, second = (load_file(run / "backbone" / "model.safetensors") for run in (a, b))
    assert first.keys() == second.keys()
    for name, ours in first.items():
        theirs = second[name]
        if name.endswith("attn.qkv.bias"):
            ours, theirs = (torch.cat([bias[:WIDTH], bias[2 * WIDTH :]]) for bias in (ours, theirs))
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def accuracy_in_timm(folder: Path) -> float:
    """Top-1 on the validation digits of a folder that plain timm loads."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert json.loads((folder / "classes.json").read_text()) == list("0123456789")
    right = 0
    for batch in middles(open_source(DataConfig(), "val"), 16, 100):
        pixels = normalize(batch.images, IMAGENET_MEAN, IMAGENET_STD)
        right += int((model(pixels).argmax(dim=1) == batch.labels).sum())
    return right / NUM_IMAGES


def test_a_student_learns_the_digits_and_a_finished_run_is_judged_again(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, steps=150, global_batch_size=64, micro_batch_size=64, log_every_steps=150)
    run = recipe.with_name("run")
    processes.run(tiny_run.pretrain(recipe, "optim.warmup_steps=10"))
    (top1,), (top5,) = (tiny_run.losses(run, f"eval/{name}").values() for name in ("top1", "top5"))
    assert top1 > 0.45 and top5 > 0.85  # by chance 0.1 and 0.5
    assert accuracy_in_timm(run / "classifier") == pytest.approx(top1)
    (run / DONE).unlink()
    processes.run(tiny_run.pretrain(recipe, "optim.warmup_steps=10"))
    assert tiny_run.losses(run, "eval/top1") == {150: top1}
    assert len([line for line in (run / "metrics.jsonl").read_text().splitlines() if '"eval/top1"' in line]) == 2
    assert (run / DONE).exists() and (run / "backbone" / "model.safetensors").exists()


def test_two_processes_then_one_equal_one_that_was_never_stopped(tmp_path: Path) -> None:
    recipes = {name: write_recipe(tmp_path / name) for name in ("unbroken", "stopped")}
    whole, stopped = (recipe.with_name("run") for recipe in recipes.values())
    processes.run(tiny_run.pretrain(recipes["unbroken"], "train.micro_batch_size=16"))
    processes.run(tiny_run.pretrain(recipes["stopped"], f"train.stop_after_step={HALF}"), processes=2)
    assert tiny_run.losses(stopped, "eval/top1") == {}
    processes.run(tiny_run.pretrain(recipes["stopped"]))
    for name in ("train/loss", "train/loss_classification", "train/top1"):
        expected = tiny_run.losses(whole, name)
        assert sorted(expected) == list(range(1, NUM_STEPS + 1))
        assert tiny_run.losses(stopped, name) == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert_same_weights(stopped, whole)
    for name in ("eval/top1", "eval/top5"):
        assert tiny_run.losses(stopped, name) == pytest.approx(tiny_run.losses(whole, name), abs=1.5 / NUM_IMAGES)


def test_images_without_labels_are_refused_before_anything_is_built(tmp_path: Path) -> None:
    from PIL import Image

    for split in ("train", "val"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(tmp_path / "images" / split / "1.png")
    overrides = ("data.source=folder", f"data.path={tmp_path / 'images'}")
    done = processes.run(tiny_run.pretrain(write_recipe(tmp_path), *overrides), check=False)
    assert done.returncode == 2
    assert "the training images have no labels" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "checkpoints").exists()
