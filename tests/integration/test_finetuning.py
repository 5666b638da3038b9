"""Fine-tuning through the command: judged on the way, gone on with in the middle of an epoch, traced in MLflow."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests import processes, tiny_run
from tests.tracking.stores import mlflow_client, run_of

pytestmark = pytest.mark.distributed

NUM_STEPS, STOP, EPOCH = 10, 6, 4
"""Stopped between two epochs' ends."""
SETTINGS: dict[str, Any] = {
    "task": "classify",
    "data": {"source": "digits", "horizontal_flip": 0, "num_workers": 0, "max_train_images": 16 * EPOCH},
    "classify": {"pooling": "patch_mean", "mixup": 0.2, "cutmix": 0.0, "rand_augment_magnitude": 0, "ema_decay": 0.9},
    "optim": {"base_lr": 1.6e-2, "warmup_steps": 2, "layer_decay": 0.5},
    "train": {
        "steps": NUM_STEPS,
        "global_batch_size": 16,
        "micro_batch_size": 16,
        "eval_every_epochs": 1,
        "log_every_steps": 1,
        "deepspeed": "student_zero2_fp32",
    },
}


def recipe(folder: Path, **tracking: object) -> Path:
    settings = {**SETTINGS, "output_dir": str(folder / "run"), "tracking": {"system_metrics_seconds": 0, **tracking}}
    folder.mkdir()
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return folder / "recipe.yaml"


def finetune(encoder: Path, recipe: Path, *overrides: str) -> list[str]:
    return ["-m", "dmt_ds", "finetune", "-e", str(encoder), "-c", str(recipe), *overrides]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three starts: a run at one go, and one that was stopped and went on."""
    folder = tmp_path_factory.mktemp("finetuning")
    encoder = tiny_run.make_teacher(folder / "encoder", seed=0)
    (encoder / "config.yaml").write_text(yaml.safe_dump({"task": "mae", "tracking": {"enabled": False}}))
    whole, stopped = recipe(folder / "whole"), recipe(folder / "stopped", enabled=False, pictures=False)
    processes.run(finetune(encoder, whole, f"tracking.uri=sqlite:///{folder}/mlflow.db"))
    processes.run(finetune(encoder, stopped, f"train.stop_after_step={STOP}"))
    processes.run(finetune(encoder, stopped))
    return folder


def test_what_was_stopped_in_an_epoch_goes_on_bit_for_bit(folder: Path) -> None:
    whole, stopped = (load_file(folder / run / "run/classifier/model.safetensors") for run in ("whole", "stopped"))
    assert whole.keys() == stopped.keys() and "head.weight" in whole and "fc_norm.weight" in whole
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    states = [
        torch.load(folder / run / f"run/checkpoints/step{NUM_STEPS:08d}/task_state.pt", weights_only=True)["task"]
        for run in ("whole", "stopped")
    ]
    assert states[0] and all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_weights_and_running_mean_are_judged_every_epoch_alike_whether_stopped_or_not(folder: Path) -> None:
    for name in ("eval/top1", "eval/top5", "eval/ema_top1", "eval/ema_top5", "train/loss"):
        curves = [tiny_run.losses(folder / run / "run", name) for run in ("whole", "stopped")]
        assert curves[0] == curves[1]
        if name.startswith("eval"):
            assert list(curves[0]) == [EPOCH, 2 * EPOCH, NUM_STEPS]


def test_the_running_mean_is_what_is_published(folder: Path) -> None:
    published = load_file(folder / "whole/run/classifier/model.safetensors")
    state = torch.load(folder / f"whole/run/checkpoints/step{NUM_STEPS:08d}/task_state.pt", weights_only=True)["task"]
    assert torch.equal(published["head.weight"], state["head.weight"])
    assert torch.equal(load_file(folder / "whole/run/backbone/model.safetensors")["cls_token"], state["vit.cls_token"])


def test_mlflow_has_pictures_the_best_score_and_the_encoders_run_which_has_the_result(folder: Path) -> None:
    store = f"sqlite:///{folder}/mlflow.db"
    run = run_of(store, (folder / "whole/run/tracking/mlflow_run_id").read_text().strip())
    assert run.data.tags["stage"] == "finetune"
    assert run.data.tags["init_from"] == str(folder / "encoder") and run.data.tags["init_from.run_name"] == "run"
    scores = tiny_run.losses(folder / "whole/run", "eval/ema_top1")
    assert run.data.metrics["eval/ema_top1_best"] == pytest.approx(max(scores.values()))
    (published,) = tiny_run.losses(folder / "encoder", "eval/finetune_top1").values()
    assert published == scores[NUM_STEPS]
    kept = {file.path for file in mlflow_client(store).list_artifacts(run.info.run_id, "pictures")}
    assert {"pictures/confusion.png", "pictures/confusion.csv", "pictures/answers_wrong.png"} <= kept


def test_a_broken_validation_image_is_named_before_training(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    for split, name in (("train", "cat/1"), ("train", "dog/1"), ("val", "cat/1"), ("val", "dog/1")):
        path = tmp_path / "images" / split / f"{name}.png"
        path.parent.mkdir(parents=True)
        Image.effect_noise((16, 16), 50).convert("RGB").save(path)
    broken = tmp_path / "images/val/dog/1.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = ("data.source=folder", f"data.path={tmp_path / 'images'}", "tracking.enabled=false")
    done = processes.run(finetune(folder / "encoder", recipe(tmp_path / "new"), *data), check=False)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("dmt-ds: error:")]
    assert done.returncode == 2 and str(broken) in line
    metrics = tmp_path / "new/run/metrics.jsonl"
    assert not metrics.exists() or "train/loss" not in metrics.read_text()


PROBE = (
    *("classify.frozen=true", "classify.pooling=class", "classify.ema_decay=0", "classify.mixup=0"),
    "data.crop_scale=[0.9, 1]",
)
SGD = ("optim.name=sgd", "optim.base_lr=0.5", "optim.layer_decay=1", "optim.weight_decay=0", "tracking.enabled=false")


def test_a_probe_on_two_processes_then_one_is_that_of_one_and_leaves_the_encoder_as_it_was(
    folder: Path, tmp_path: Path
) -> None:
    encoder = folder / "encoder"
    whole, stopped = recipe(tmp_path / "whole", pictures=False), recipe(tmp_path / "stopped", pictures=False)
    processes.run(finetune(encoder, whole, *PROBE, *SGD))
    half = ("train.micro_batch_size=8", f"train.stop_after_step={STOP}")
    processes.run(finetune(encoder, stopped, *PROBE, *SGD, *half), processes=2)
    processes.run(finetune(encoder, stopped, *PROBE, *SGD))
    expected = tiny_run.losses(tmp_path / "whole/run", "train/loss")
    first, second = (sum(expected[step] for step in range(start, start + EPOCH)) for start in (1, 1 + EPOCH))
    assert second < first  # of the same images
    assert tiny_run.losses(tmp_path / "stopped/run", "train/loss") == pytest.approx(expected, rel=1e-4)
    heads = [load_file(tmp_path / name / "run/classifier/model.safetensors") for name in ("whole", "stopped")]
    torch.testing.assert_close(heads[0], heads[1], rtol=1e-4, atol=1e-5)
    given, left = (load_file(path / "backbone/model.safetensors") for path in (encoder, tmp_path / "whole/run"))
    assert all(torch.equal(given[name], left[name]) for name in given)
