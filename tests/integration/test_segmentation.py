"""Segmentation through the command: learned, judged alike on one and two ranks, gone on with, drawn; refusals."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from tests import processes, tiny_run
from tests.tiny_scenes import CLASSES, png, scene, write_ade
from tests.tracking.stores import mlflow_client, run_of

pytestmark = pytest.mark.distributed

NUM_STEPS, STOP = 10, 7
"""Stopped in the middle of an epoch of two steps, each of two micro-steps."""


def recipe(folder: Path, ade: Path, micro_batch_size: int = 4, **tracking: object) -> Path:
    settings = {
        "task": "segment",
        "output_dir": str(folder / "run"),
        "data": {
            "source": "folder",
            "path": str(ade),
            "train_split": "training",
            "val_split": "validation",
            "image_size": 24,
            "interpolation": "bilinear",
            "num_workers": 0,
        },
        "segment": {"channels": 12, "auxiliary_channels": 8, "short_side": 30},
        "optim": {"base_lr": 0.16, "schedule": "linear", "warmup_steps": 2, "layer_decay": 0.9},
        "train": {
            "steps": NUM_STEPS,
            "global_batch_size": 8,
            "micro_batch_size": micro_batch_size,
            "eval_every_epochs": 2.5,
            "log_every_steps": 1,
            "deepspeed": "student_zero2_fp32",
        },
        "tracking": {"enabled": False, "pictures": False, "system_metrics_seconds": 0, **tracking},
    }
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def segment(encoder: Path, recipe: Path, *overrides: str) -> list[str]:
    return ["-m", "dmt_ds", "segment", "-e", str(encoder), "-c", str(recipe), *overrides]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one encoder: at one go, stopped and gone on with, and on two ranks."""
    folder = tmp_path_factory.mktemp("segmentation")
    ade = write_ade(folder / "ade", num_train=16)
    encoder = tiny_run.make_teacher(folder / "encoder", seed=0)
    (encoder / "config.yaml").write_text(yaml.safe_dump({"task": "mae", "name": "red", "tracking": {"enabled": False}}))
    store = f"tracking.uri=sqlite:///{folder}/mlflow.db"
    whole = recipe(folder / "whole", ade, enabled=True, pictures=True)
    processes.run(segment(encoder, whole, store))
    stopped = recipe(folder / "stopped", ade)
    processes.run(segment(encoder, stopped, f"train.stop_after_step={STOP}"))
    processes.run(segment(encoder, stopped))
    processes.run(segment(encoder, recipe(folder / "two", ade, 2)), processes=2)
    return folder


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "run/segmenter/model.safetensors")


def test_what_was_stopped_goes_on_bit_for_bit_batch_norms_included(folder: Path) -> None:
    whole, stopped = weights(folder / "whole"), weights(folder / "stopped")
    assert whole.keys() == stopped.keys()
    assert sum("running_mean" in name for name in whole) == 14
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)


def test_two_ranks_learn_and_are_judged_as_one(folder: Path) -> None:
    one, two = (folder / name / "run" for name in ("whole", "two"))
    for name in ("train/loss", "train/loss_auxiliary"):
        assert tiny_run.largest_difference(tiny_run.losses(two, name), tiny_run.losses(one, name)) < 2e-3
    for name in ("eval/miou", "eval/aacc", "eval/macc"):
        assert list(tiny_run.losses(one, name)) == [5, 10]
        assert tiny_run.largest_difference(tiny_run.losses(two, name), tiny_run.losses(one, name)) < 2e-2


def test_a_trained_segmenter_is_better_than_the_most_frequent_class(folder: Path) -> None:
    run = folder / "whole/run"
    assert tiny_run.losses(run, "eval/miou")[NUM_STEPS] > 1.3 * tiny_run.losses(run, "eval/miou_of_majority")[NUM_STEPS]


def test_the_run_leaves_pictures_classes_and_an_encoder_of_the_crops_grid(folder: Path) -> None:
    run = folder / "whole/run"
    assert {path.name for path in (run / "pictures").iterdir()} >= {"masks.png", "classes.csv", "confusion.csv"}
    rows = (run / "pictures/classes.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["class", *CLASSES]
    told = json.loads((run / "segmenter/segmenter.json").read_text())
    assert told["segment"]["classes"] == list(CLASSES)
    assert told["student"]["init_from"] is None
    assert told["dmt_ds"]["task"] == "segment"
    encoder = load_file(run / "backbone/model.safetensors")
    assert encoder["pos_embed"].shape == (1, 1 + 36, 48)
    segmenter = weights(folder / "whole")
    assert all(torch.equal(encoder[name], segmenter[f"vit.{name}"]) for name in encoder)


def test_mlflow_knows_the_stage_and_the_encoders_run_the_result(folder: Path) -> None:
    store = f"sqlite:///{folder}/mlflow.db"
    run = run_of(store, (folder / "whole/run/tracking/mlflow_run_id").read_text().strip())
    assert run.data.tags["stage"] == "segment"
    assert run.data.tags["init_from.run_name"] == "red"
    assert run.data.metrics["eval/miou_best"] >= run.data.metrics["eval/miou"]
    listed = {item.path for item in mlflow_client(store).list_artifacts(run.info.run_id, "pictures")}
    assert "pictures/masks.png" in listed
    points = [json.loads(line)["metrics"] for line in (folder / "encoder/metrics.jsonl").read_text().splitlines()]
    told = [point["eval/segment_miou"] for point in points if "eval/segment_miou" in point]
    assert tiny_run.losses(folder / "whole/run", "eval/miou")[NUM_STEPS] in told


def test_predict_writes_masks_that_are_what_was_judged(folder: Path, tmp_path: Path) -> None:
    images = folder / "ade/images/validation"
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    model = folder / "whole/run"
    paths = [str(images), str(tmp_path / "broken.jpg")]
    processes.run(["-m", "dmt_ds", "predict", "-e", str(model), *paths, "-o", str(tmp_path / "out")])
    told = json.loads((tmp_path / "out/predictions.json").read_text())
    assert told["classes"] == list(CLASSES)
    assert list(told["unreadable"]) == [str(tmp_path / "broken.jpg")]
    right = counted = 0
    for number, (name, shape) in enumerate(zip(sorted(told["images"]), ((40, 56), (33, 50), (45, 37)), strict=True)):
        answer = told["images"][name]
        mask = np.asarray(Image.open(tmp_path / "out" / answer["mask"]))
        assert mask.shape == shape == tuple(reversed(answer["size"]))
        assert sum(answer["classes"].values()) == pytest.approx(1, abs=1e-5)
        assert Image.open(tmp_path / "out" / answer["overlay"]).size == tuple(answer["size"])
        raw = scene(100 + number, *shape)[1]
        right += int((mask == raw - 1)[raw > 0].sum())
        counted += int((raw > 0).sum())
    assert right / counted == pytest.approx(tiny_run.losses(model, "eval/aacc")[NUM_STEPS], abs=1e-3)
    assert (tmp_path / "out/contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("size", r"ADE_validat_00000001.png: is 50 x 30 pixels, its image"),
        ("value", r"ADE_validat_00000001.png: has the value 9 \(row 0, column 0\), which is none of the 3 classes"),
        ("missing", r"ADE_validat_00000001.png: the annotation of"),
    ],
)
def test_a_bad_annotation_is_one_line_and_exit_code_two_before_training(
    folder: Path, tmp_path: Path, damage: str, message: str
) -> None:
    ade = write_ade(tmp_path / "ade")
    file = ade / "annotations/validation/ADE_validat_00000001.png"
    raw = scene(101, 33, 50)[1]
    if damage == "size":
        file.write_bytes(png(raw[:30]))
    elif damage == "value":
        raw[0, 0] = 9
        file.write_bytes(png(raw))
    else:
        file.unlink()
    done = processes.run(segment(folder / "encoder", recipe(tmp_path / "bad", ade)), check=False)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dmt-ds: error:")]
    assert re.search(message, line)
    assert "Traceback" not in done.stderr
