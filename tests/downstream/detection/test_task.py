"""Detection as a task: what it hands to the model, where its weights start, and how fast each of them learns."""

from pathlib import Path
from typing import Any

import torch

from dmt_ds.config.methods import AugmentConfig
from dmt_ds.data.batch import Batch
from dmt_ds.data.detection_batch import DetectionTarget, Objects
from dmt_ds.downstream.detection.task import DetectionTask
from dmt_ds.engine.task import AnnotatedTask, Progress
from tests import tiny_run
from tests.downstream.detection import tiny

PLAIN = AugmentConfig(brightness=0, contrast=0, saturation=0)


def task(**changes: Any) -> DetectionTask:
    torch.manual_seed(0)
    student = tiny.STUDENT.model_copy(update=changes)
    return DetectionTask(student, tiny.section(), tiny.IMAGE_SIZE, PLAIN, ("red", "blue"))


def batch() -> Batch:
    objects = tuple(Objects(own["boxes"], own["labels"] - 1, own["masks"]) for own in tiny.targets())
    target = DetectionTarget(tiny.SIZES, objects)
    pixels = torch.full((2, 3, 64, 64), 200, dtype=torch.uint8)
    rows = torch.tensor([0, 1])
    return Batch((pixels,), tiny.SEEDS, rows, torch.full_like(rows, -1), target)


def test_the_model_sees_labels_from_one_and_zeros_beyond_each_image() -> None:
    seen: dict[str, Any] = {}

    def model(images: torch.Tensor, seeds: torch.Tensor, sizes: Any, wanted: Any) -> dict[str, torch.Tensor]:
        seen.update(images=images, wanted=wanted)
        return {"loss_a": torch.tensor(1.0), "loss_b": torch.tensor(2.5)}

    losses = task().losses(model, batch(), Progress(0, 1), diagnose=False)
    assert losses.loss == 3.5 and losses.metrics == {"train/loss_a": 1.0, "train/loss_b": 2.5}
    assert [own["labels"].tolist() for own in seen["wanted"]] == [[1, 2], []]
    for image, (height, width) in zip(seen["images"], tiny.SIZES, strict=True):
        assert (image != 0).any(dim=0).sum() == height * width


def test_pyramid_and_heads_learn_as_the_last_layer() -> None:
    made = task()
    assert isinstance(made, AnnotatedTask)
    layers = made.layers()
    assert layers.keys() == dict(made.module.named_parameters()).keys()
    assert layers["vit.patch_embed.proj.weight"] == 0 and layers["vit.blocks.1.mlp.fc1.weight"] == 2
    others = {number for name, number in layers.items() if not name.startswith("vit.")}
    assert others == {layers["vit.norm.weight"]} == {3}


def test_the_encoder_starts_from_the_weights_given(tmp_path: Path) -> None:
    source = tiny_run.make_teacher(tmp_path / "run", 3, embed_dim=24)
    made, fresh = task(init_from=str(source)), task()
    given = tiny_run.load_file(source / "backbone/model.safetensors")
    assert all(torch.equal(made.backbone().state_dict()[name], value) for name, value in given.items())
    assert not torch.equal(fresh.backbone().state_dict()["cls_token"], given["cls_token"])


def test_fixed_positions_leave_as_they_came_though_an_engine_rounds_them() -> None:
    made = task(positions="sincos")
    before = made.module.vit.pos_embed.detach().clone()
    made.module.to(torch.bfloat16)
    assert not torch.equal(made.module.vit.pos_embed.float(), before)
    assert made.untouched.keys() == {"vit.pos_embed"} and torch.equal(made.untouched["vit.pos_embed"], before)
    assert not task(positions="learned").untouched


def test_a_detector_that_is_judged_sees_zeros_beyond_each_image_too() -> None:
    made, seen = task(), []

    def model(images: torch.Tensor, seeds: torch.Tensor, sizes: Any) -> list[dict[str, torch.Tensor]]:
        seen.append((images, made.module.training))
        return [{}, {}]

    rows = torch.tensor([0, 1])
    list(made.answers(model, [Batch(batch().crops, tiny.SEEDS, rows, rows, DetectionTarget(tiny.SIZES))]))
    ((images, training),) = seen
    assert not training
    for image, (height, width) in zip(images, tiny.SIZES, strict=True):
        assert (image != 0).any(dim=0).sum() == (image[:, :height, :width] != 0).any(dim=0).sum() == height * width


def test_what_is_found_names_the_row_and_leaves_a_row_too_many_out() -> None:
    made = task()
    evaluated = Batch(
        batch().crops, tiny.SEEDS, torch.tensor([8, 3]), torch.tensor([0, -1]), DetectionTarget(tiny.SIZES)
    )
    (answer,) = list(made.answers(made.module, [evaluated]))
    assert (answer.row, answer.size) == (8, tiny.SIZES[0])
    assert {"boxes", "labels", "scores", "masks"} == answer.found.keys()
    assert made.module.training


def test_a_target_moves_with_its_batch() -> None:
    target = batch().target
    assert isinstance(target, DetectionTarget)
    moved = target.to(torch.device("meta"))
    assert moved.sizes == target.sizes
    assert all(part.is_meta for own in moved.objects for part in own)
