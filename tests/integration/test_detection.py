"""Detection through the command: on one and two processes, stopped and gone on with, traced, drawn, and used."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from dmt_ds.data.coco import open_coco
from dmt_ds.data.coco_library import average_precision
from tests import processes, tiny_run
from tests.tiny_coco import needs_pycocotools, write_coco
from tests.tracking.stores import mlflow_client, run_of

pytestmark = [pytest.mark.distributed, needs_pycocotools]

NUM_STEPS, STOP = 6, 3
"""An epoch is two steps, a step two micro-batches of one process."""
NUM_VAL = 5
RUNS: dict[str, dict[str, Any]] = {
    "whole": {},
    "stopped": {"enabled": False, "pictures": False},
    "two": {"enabled": False, "pictures": False},
}
"""What differs from the defaults of `tracking`."""
SETTINGS: dict[str, Any] = {
    "task": "detect",
    "data": {"source": "folder", "val_split": "val", "num_workers": 0},
    "augment": {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0},
    "student": {"positions": "learned", "drop_path": 0.1},
    "detect": {
        "short_sides": [48, 64],
        "max_side": 96,
        "eval_short_side": 64,
        "neck_width": 16,
        "head_width": 32,
        "head_convs": 1,
        "anchor_sizes": [8, 16, 24, 32, 48],
        "anchor_samples": 64,
        "box_samples": 32,
        "num_proposals": 100,
        "score_threshold": 0.0,
        "max_detections": 100,
        "window_size": 3,
        "num_global_blocks": 1,
    },
    "optim": {"base_lr": 0.1, "warmup_steps": 2, "layer_decay": 0.75, "clip_grad_norm": 1.0},
    "train": {
        "steps": NUM_STEPS,
        "global_batch_size": 4,
        "micro_batch_size": 2,
        "log_every_steps": 1,
        "eval_every_epochs": 2,
        "deepspeed": "student_zero2_fp32",
    },
}


def recipe(folder: Path, coco: Path, **tracking: object) -> Path:
    settings = {**SETTINGS, "output_dir": str(folder / "run"), "tracking": {"system_metrics_seconds": 0, **tracking}}
    settings["data"] = {**settings["data"], "path": str(coco)}
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def detect(encoder: Path, recipe: Path, *overrides: str) -> list[str]:
    return ["-m", "dmt_ds", "detect", "-e", str(encoder), "-c", str(recipe), *overrides]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run at one go, the same stopped within an epoch and gone on with, and its first steps on two processes."""
    folder = tmp_path_factory.mktemp("detection")
    coco = write_coco(folder / "coco", num_val=NUM_VAL)
    encoder = tiny_run.make_teacher(folder / "encoder", seed=0)
    (encoder / "config.yaml").write_text(yaml.safe_dump({"task": "mae", "tracking": {"enabled": False}}))
    whole, stopped, two = (recipe(folder / name, coco, **quiet) for name, quiet in RUNS.items())
    processes.run(detect(encoder, whole, f"tracking.uri=sqlite:///{folder}/mlflow.db"))
    processes.run(detect(encoder, stopped, f"train.stop_after_step={STOP}"))
    processes.run(detect(encoder, stopped))
    processes.run(detect(encoder, two, f"train.stop_after_step={STOP}"), processes=2)
    return folder


def test_a_run_that_was_stopped_comes_to_the_same_to_the_bit(folder: Path) -> None:
    for name in ("train/loss", "train/loss_mask", "train/loss_objectness", "eval/box_ap", "eval/mask_ap50"):
        whole, stopped = (tiny_run.losses(folder / run / "run", name) for run in ("whole", "stopped"))
        assert list(whole) == (list(range(1, NUM_STEPS + 1)) if name.startswith("train") else [4, NUM_STEPS])
        assert stopped == whole
    detectors = [load_file(folder / run / "run/detector/model.safetensors") for run in ("whole", "stopped")]
    assert detectors[0].keys() == detectors[1].keys()
    assert all(torch.equal(value, detectors[1][name]) for name, value in detectors[0].items())


def test_losses_are_the_same_on_two_processes(folder: Path) -> None:
    for name in ("train/loss", "train/loss_mask", "train/loss_objectness"):
        whole, two = (tiny_run.losses(folder / run / "run", name) for run in ("whole", "two"))
        assert list(two) == list(range(1, STOP + 1))
        assert two == pytest.approx({step: whole[step] for step in two}, rel=1e-3, abs=1e-4)


def test_mlflow_has_pictures_and_the_encoders_run_has_the_result(folder: Path) -> None:
    store = f"sqlite:///{folder}/mlflow.db"
    run = run_of(store, (folder / "whole/run/tracking/mlflow_run_id").read_text().strip())
    assert run.data.tags["stage"] == "detect" and run.data.tags["init_from"] == str(folder / "encoder")
    scores = tiny_run.losses(folder / "whole/run", "eval/mask_ap")
    assert run.data.metrics["eval/mask_ap_best"] == pytest.approx(max(scores.values()))
    (told,) = tiny_run.losses(folder / "encoder", "eval/detect_mask_ap").values()
    assert told == scores[NUM_STEPS]
    kept = {file.path for file in mlflow_client(store).list_artifacts(run.info.run_id, "pictures")}
    assert {"pictures/objects.png", "pictures/losses.png"} <= kept


def test_the_encoder_and_the_whole_detector_are_published(folder: Path) -> None:
    run = folder / "whole/run"
    backbone, detector = (load_file(run / name / "model.safetensors") for name in ("backbone", "detector"))
    assert all(torch.equal(value, detector[f"vit.{name}"]) for name, value in backbone.items())
    given = load_file(folder / "encoder/backbone/model.safetensors")
    assert backbone.keys() == given.keys()
    assert not torch.equal(backbone["blocks.1.mlp.fc1.weight"], given["blocks.1.mlp.fc1.weight"])
    assert torch.equal(backbone["cls_token"], given["cls_token"])  # there is none with windows
    described = json.loads((run / "detector/detector.json").read_text())
    assert described["categories"] == [{"id": 3, "name": "red"}, {"id": 7, "name": "blue"}]


def test_predict_finds_what_was_judged_and_draws_it(folder: Path, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "objects"
    shutil.copytree(folder / "coco/val", photos)
    (photos / "0009.png").write_bytes(b"no picture")
    processes.run(["-m", "dmt_ds", "predict", "-e", str(folder / "whole/run"), str(photos), "-o", str(out)])
    results = json.loads((out / "predictions.json").read_text())
    told = json.loads((out / "images.json").read_text())
    assert [image["id"] for image in told["images"]] == [0, 1, 2, 3, 4]  # what the files are called
    assert list(told["unreadable"]) == [str(photos / "0009.png")]
    for image in told["images"]:
        assert (out / image["picture"]).is_file()
        own = [result for result in results if result["image_id"] == image["id"]]
        assert all(result["segmentation"]["size"] == [image["height"], image["width"]] for result in own)
    truth = open_coco(str(folder / "coco"), "val", "annotations/instances_{split}.json", "{split}").truth()
    ids = {entry["file_name"]: entry["id"] for entry in truth["images"]}
    of_file = {image["id"]: ids[Path(image["file_name"]).name] for image in told["images"]}
    mapped = [{**result, "image_id": of_file[result["image_id"]]} for result in results]
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        scores = average_precision(truth, mapped, kind)  # type: ignore[arg-type]
        judged = {key: tiny_run.losses(folder / "whole/run", f"eval/{name}_{key}")[NUM_STEPS] for key in scores}
        assert scores == pytest.approx(judged, rel=1e-6) and scores["ap50"] > 0


def missing(coco: Path) -> None:
    (coco / "val/0001.png").unlink()


def crowds(coco: Path) -> None:
    path = coco / "annotations/instances_val.json"
    path.write_text(path.read_text().replace('"iscrowd": 0', '"iscrowd": 1'))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(missing, r"1 of 2 images are not in .*: 0001\.png$"), (crowds, "has no object besides crowds")],
)
def test_a_json_that_can_not_be_judged_by_ends_the_run_before_it_starts(
    folder: Path, tmp_path: Path, spoil: Callable[[Path], None], told: str
) -> None:
    spoil(coco := write_coco(tmp_path / "coco", num_train=2, num_val=2))
    settings = recipe(tmp_path, coco, enabled=False, pictures=False)
    done = processes.run(detect(folder / "encoder", settings), check=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dmt-ds: error:")]
    assert done.returncode == 2 and re.search(rf"instances_val\.json: {told}", line)
    assert not (tmp_path / "run/metrics.jsonl").exists()
