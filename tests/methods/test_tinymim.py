"""TinyMIM held against the authors' numbers; m-TinyMIM against TinyMIM; who sees what and who learns."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dmt_ds.config.methods import TinyMimConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.config.teachers import TeacherConfig
from dmt_ds.distill.relations import relation_loss
from dmt_ds.engine.task import Progress
from dmt_ds.methods.tinymim import TinyMimTask
from dmt_ds.models.encoders import load_teacher
from dmt_ds.models.relations import last_qkv, with_heads_of
from dmt_ds.models.vit import build_vit
from dmt_ds.models.weights import load_strict, read_weights
from tests.methods import tiny

START = Progress(0, 10)
QUIET = tiny.STUDENT.model_copy(update={"drop_path": 0.0})


def metrics_of(task: TinyMimTask, size: int = 4) -> dict[str, float]:
    out = task.losses(task.module, tiny.batch(task, size), START, False)
    return {"loss": out.loss.item(), **{name: value.item() for name, value in out.metrics.items()}}


# The authors' numbers


@pytest.fixture(scope="module")
def authors(shared_dir: Path) -> Path:
    return shared_dir / "fixtures" / "teachers"


@torch.no_grad()
def test_both_losses_are_the_authors(authors: Path) -> None:
    sizes, expected = json.loads((authors / "spec.json").read_text()), np.load(authors / "expected.npz")
    source = TeacherConfig(
        source=str(authors / "tinymim_teacher.pth"), num_heads=sizes["tinymim"]["teacher"]["num_heads"]
    )
    teacher = load_teacher("mae", source, sizes["image_size"])
    shape = {key: sizes["tinymim"]["student"][key] for key in ("embed_dim", "depth", "num_heads")}
    section = with_heads_of(StudentConfig(patch_size=sizes["patch_size"], **shape), {"mae": teacher})
    assert section.last_block_num_heads == sizes["tinymim"]["student"]["last_block_heads"] != section.num_heads
    student = build_vit(section, sizes["image_size"]).eval()
    load_strict(student, read_weights(authors / "tinymim_student.pth"))
    images = torch.from_numpy(expected["images"]).double()
    student_qkv, teacher_qkv = (last_qkv(vit.double(), images) for vit in (student, teacher.vit))
    for relation in ("qk", "vv"):
        loss = relation_loss(relation, student_qkv, {"mae": teacher_qkv})
        assert loss.dtype == torch.float64
        assert loss.item() == pytest.approx(float(expected[f"tinymim_{relation}_loss"]), abs=1e-6, rel=1e-4), relation


# m-TinyMIM


def test_one_teacher_twice_is_that_teacher_once() -> None:
    red = tiny.relation_teacher(1)
    once, twice = tiny.tinymim({"red": red}), tiny.tinymim({"red": red, "again": red})
    assert metrics_of(twice) == pytest.approx(metrics_of(once), rel=1e-6)


def test_several_teachers_are_the_weighted_mean_of_their_tinymims() -> None:
    red, blue = tiny.relation_teacher(1), tiny.relation_teacher(2)
    alone = [metrics_of(tiny.tinymim({"one": teacher})) for teacher in (red, blue)]
    assert alone[0]["loss"] != pytest.approx(alone[1]["loss"], rel=1e-2)
    both = metrics_of(tiny.tinymim({"red": red, "blue": blue}, red=1.0, blue=3.0))
    expected = {name: (value + 3 * alone[1][name]) / 4 for name, value in alone[0].items()}
    assert both == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("weight", [0.5, 7.0])
def test_the_weight_of_a_single_teacher_changes_nothing(weight: float) -> None:
    red = tiny.relation_teacher(1)
    assert metrics_of(tiny.tinymim({"red": red}, red=weight)) == pytest.approx(metrics_of(tiny.tinymim({"red": red})))


# The two losses


def test_the_loss_is_the_weighted_sum_of_both() -> None:
    metrics = metrics_of(
        tiny.tinymim({"red": tiny.relation_teacher(1)}, section=TinyMimConfig(qk_weight=2, vv_weight=3))
    )
    assert metrics["loss"] == pytest.approx(2 * metrics["train/loss_qk"] + 3 * metrics["train/loss_vv"])


@pytest.mark.parametrize(("left_out", "stays"), [("qk", "vv"), ("vv", "qk")])
def test_a_loss_of_weight_0_is_left_out(left_out: str, stays: str) -> None:
    both = metrics_of(tiny.task("tinymim"))
    section = TinyMimConfig.model_validate({f"{left_out}_weight": 0})
    metrics = metrics_of(
        tiny.tinymim({"red": tiny.relation_teacher(1), "blue": tiny.relation_teacher(2)}, section=section)
    )
    assert metrics[f"train/loss_{left_out}"] == 0
    assert metrics["loss"] == metrics[f"train/loss_{stays}"] == pytest.approx(both[f"train/loss_{stays}"])


# Who sees what, and who learns


def test_teachers_see_the_crop_as_it_is_and_the_student_a_jittered_one() -> None:
    seen: dict[str, Tensor] = {}
    teacher = tiny.relation_teacher(1)

    def watched(images: Tensor) -> Tensor:
        seen["teacher"] = images
        return teacher(images)

    task = tiny.tinymim({"red": watched})
    task.module.register_forward_pre_hook(lambda module, inputs: seen.update(student=inputs[0]))
    data = tiny.batch(task, 4)
    task.losses(task.module, data, START, False)
    assert torch.equal(seen["teacher"], data.images)
    plain = tiny.normalised(data.images)
    assert seen["student"].shape == plain.shape and not torch.allclose(seen["student"], plain, atol=1e-2)


def test_gradients_reach_all_blocks_and_never_a_teacher() -> None:
    teachers = {"red": tiny.relation_teacher(1), "blue": tiny.relation_teacher(2)}
    task = tiny.tinymim(teachers, student=QUIET)
    task.losses(task.module, tiny.batch(task, 4), START, True).loss.backward()
    gradients = {name: value.grad for name, value in task.backbone().named_parameters() if value.requires_grad}
    for name in ("patch_embed.proj.weight", "cls_token", "blocks.0.attn.proj.weight", "blocks.0.mlp.fc1.weight"):
        assert gradients[name] is not None and gradients[name].abs().sum() > 0, name
    queries, keys, values = gradients["blocks.1.attn.qkv.weight"].chunk(3)
    assert all(part.abs().sum() > 0 for part in (queries, keys, values))
    assert all(value.grad is None for teacher in teachers.values() for value in teacher.parameters())
    trained = {id(value) for value in task.module.parameters()}
    assert not trained & {id(value) for teacher in teachers.values() for value in teacher.parameters()}


def test_what_no_loss_reaches_is_not_moved_by_weight_decay() -> None:
    task = tiny.task("tinymim")
    before = {name: value.detach().clone() for name, value in task.backbone().named_parameters()}
    tiny.train(task, steps=2, size=4)
    moved = {name for name, value in task.backbone().named_parameters() if not torch.equal(value, before[name])}
    assert "blocks.1.attn.qkv.weight" in moved and "blocks.0.mlp.fc2.weight" in moved
    assert not {
        name for name in moved if name.startswith(("blocks.1.attn.proj", "blocks.1.mlp", "blocks.1.norm2", "norm"))
    }


def test_the_student_comes_to_attend_as_its_teachers_do() -> None:
    history = tiny.train(tiny.tinymim({"red": tiny.relation_teacher(1)}, student=QUIET), steps=60)
    for name in ("train/loss_qk", "train/loss_vv"):
        first, last = (sum(metrics[name] for metrics in part) / 5 for part in (history[:5], history[-5:]))
        assert last < 0.6 * first, name


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    teacher = tiny.relation_teacher(1)
    task = tiny.tinymim({"red": teacher}, student=tiny.TEACHER, augment=tiny.PLAIN)
    vit: nn.Module = task.backbone()
    vit.load_state_dict(teacher.vit.state_dict(), strict=False)
    assert metrics_of(task)["loss"] == pytest.approx(0, abs=1e-6)
