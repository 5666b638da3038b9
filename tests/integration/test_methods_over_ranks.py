"""Making a teacher is a function of its recipe, not of ranks or restarts: real engines, real processes."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from dmt_ds.models.encoders import load_encoder
from tests import processes, tiny_run
from tests.integration.knn_points import knn_of_published, knn_points

pytestmark = pytest.mark.distributed

NUM_STEPS, HALF = 6, 3
JITTER = {"brightness": 0.3, "contrast": 0.3, "saturation": 0.0}
METHODS: dict[str, dict[str, object]] = {
    "mae": {"decoder_embed_dim": 32, "decoder_depth": 1, "decoder_num_heads": 2},
    "ibot": {  # on the CPU a head with batch norm has the statistics of its rank
        "output_dim": 64,
        "hidden_dim": 64,
        "bottleneck_dim": 32,
        "head_batch_norm": False,
        "freeze_last_layer": 0.6,  # longer than until HALF
        "local_crops": 2,
        "local_crop_size": 8,
        "local_crop_scale": [0.3, 0.5],
        "view_1": JITTER,
        "view_2": JITTER,
        "view_local": JITTER,
    },
    "tinymim": {"qk_weight": 2.0},
}
LAST_BLOCK_NUM_HEADS = 4
"""Of the teachers, and so of TinyMIM's student."""


def make_teachers(folder: Path) -> dict[str, object]:
    teachers = {}
    for seed, name in enumerate(("red", "blue")):
        source = tiny_run.make_teacher(folder / name, seed, num_heads=LAST_BLOCK_NUM_HEADS)
        teachers[name] = {"source": str(source), "weight": seed + 1}
    return {"models": teachers, "deepspeed": "teacher_zero3_inference_fp32"}


def write_recipe(folder: Path, method: str) -> Path:
    recipe = {
        "task": method,
        "output_dir": str(folder / "run"),
        "data": {"source": "digits", "image_size": 16, "horizontal_flip": 0, "num_workers": 0},
        "augment": JITTER,
        "student": {"patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "drop_path": 0.1},
        method: METHODS[method],
        "teachers": make_teachers(folder) if method == "tinymim" else {},
        "optim": {"base_lr": 1.6e-2, "warmup_steps": 2, "clip_grad_norm": 1.0},
        "train": {
            "steps": NUM_STEPS,
            "global_batch_size": 16,
            "micro_batch_size": 8,
            "log_every_steps": 1,
            "deepspeed": "student_zero2_fp32",
        },
        "tracking": {"enabled": False, "pictures": False},
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def figures(run: Path) -> dict[str, dict[int, float]]:
    """Name -> step -> value of all that is logged of the training."""
    points = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = {name for point in points for name in point["metrics"] if name.startswith("train/")}
    of_a_micro_batch = {"train/teacher_entropy_mean"}  # a mean over fewer rows, where there is accumulation
    return {name: tiny_run.losses(run, name) for name in names - of_a_micro_batch}


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_then_one_equal_one_that_was_never_stopped(method: str, tmp_path: Path) -> None:
    runs = {}
    for name in ("unbroken", "stopped"):
        (tmp_path / name).mkdir()
        runs[name] = write_recipe(tmp_path / name, method)
    whole, stopped = (recipe.with_name("run") for recipe in runs.values())
    processes.run(tiny_run.pretrain(runs["unbroken"], "train.micro_batch_size=16"))
    judged = f"train.eval_every_epochs={2 * 16 / 1437}"
    processes.run(tiny_run.pretrain(runs["stopped"], judged, f"train.stop_after_step={HALF}"), processes=2)
    half_way = load_encoder(str(stopped), 16).vit.state_dict()
    processes.run(tiny_run.pretrain(runs["stopped"], judged))

    expected, found = figures(whole), figures(stopped)
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        assert sorted(curve) == list(range(1, NUM_STEPS + 1)), name
        assert found[name] == pytest.approx(curve, rel=1e-4, abs=1e-6), name
    assert tiny_run.backbone_difference(stopped, whole) < 1e-4

    teacher = load_encoder(str(stopped), 16)
    tokens = teacher(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    assert tokens.shape == (2, 17, 48)
    assert tokens.isfinite().all()
    moved = "blocks.1.attn.qkv.weight"
    assert not torch.equal(half_way[moved], teacher.vit.state_dict()[moved])
    shape = teacher.record.shape
    assert (shape.num_heads, shape.last_block_num_heads) == (3, LAST_BLOCK_NUM_HEADS if method == "tinymim" else 3)

    assert not knn_points(whole)
    judgements = knn_points(stopped)
    assert sorted(judgements) == [0, 2, 4, NUM_STEPS]
    assert judgements[NUM_STEPS] == knn_of_published(stopped)
