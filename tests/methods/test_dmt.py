"""What DMT shows to whom, what it logs, and what survives a restart; its losses: `tests/distill`."""

import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dmt_ds.data.augment import Augment, normalize
from dmt_ds.data.batch import Batch
from dmt_ds.distill.diagnostics import TeacherDiagnostics
from dmt_ds.distill.fusion import TokenFusion
from dmt_ds.distill.losses import spatial_fusion_loss, token_fusion_loss
from dmt_ds.distill.objective import DistillationObjective
from dmt_ds.engine.task import Progress
from dmt_ds.methods.dmt import DmtTask, FusedTeachers
from dmt_ds.models.student import Student
from dmt_ds.models.vit import build_vit
from tests.methods import tiny

WIDTH = tiny.TEACHER.embed_dim
NOW = Progress(0, 10)


class Watched:
    """A teacher, or the student, and what it was given."""

    def __init__(self, called: Callable[..., object]) -> None:
        self.called, self.given = called, []

    def __call__(self, *given: Tensor) -> object:
        self.given.append(given)
        return self.called(*given)


def dmt(fusion: str = "sum") -> tuple[DmtTask, dict[str, Watched]]:
    torch.manual_seed(0)
    vits = {name: build_vit(tiny.TEACHER, tiny.IMAGE_SIZE) for name in ("red", "blue")}
    teachers = {
        name: Watched(lambda images, vit=vit: 3 + vit.forward_features(images.float() / 255))
        for name, vit in vits.items()
    }
    weights = dict.fromkeys(teachers, 1.0)
    fused = FusedTeachers(teachers, TokenFusion(fusion, weights, {}, 0.5), TeacherDiagnostics(momentum=0.5))
    student = Student(build_vit(tiny.STUDENT, tiny.IMAGE_SIZE), {"fused": WIDTH})
    return DmtTask(student, fused, DistillationObjective(), Augment(tiny.JITTER)), teachers


@pytest.fixture(scope="module")
def batch() -> Batch:
    return tiny.batch(dmt()[0])


def test_teachers_see_the_crop_as_it_is_and_the_student_each_image_by_its_own_seed(batch: Batch) -> None:
    task, teachers = dmt()
    student = Watched(task.module)
    found = task.losses(student, batch, NOW, diagnose=False)
    assert all(torch.equal(teacher.given[0][0], batch.images) for teacher in teachers.values())
    images, seeds = student.given[0]
    assert torch.equal(images, Augment(tiny.JITTER)(batch.images, batch.seeds)) and torch.equal(seeds, batch.seeds)
    plain = normalize(batch.images, tiny.JITTER.mean, tiny.JITTER.std)
    assert not torch.allclose(images, plain, atol=0.1)

    target = sum(teacher.called(batch.images) for teacher in teachers.values()).detach()
    tokens = task.module(images, seeds)["fused"]
    tfd, sfd = token_fusion_loss(tokens, target), spatial_fusion_loss(tokens, target)
    torch.testing.assert_close(found.metrics, {"train/loss_tfd": tfd.detach(), "train/loss_sfd": sfd.detach()})
    torch.testing.assert_close(found.loss, tfd + sfd)


def test_no_graph_is_kept_of_the_teachers(batch: Batch) -> None:
    task, _ = dmt()
    lesson = task._teachers.lesson(batch, True)
    assert not any(tokens.requires_grad for tokens in (*lesson.targets.values(), *lesson.metrics.values()))


def test_a_log_step_alone_looks_at_teachers_and_student(batch: Batch) -> None:
    names = {
        diagnose: set(dmt()[0].losses(dmt()[0].module, batch, NOW, diagnose).metrics) for diagnose in (False, True)
    }
    assert names[False] == {"train/loss_tfd", "train/loss_sfd"}
    assert {"teachers/red/class_share", "teachers/fused/student_cosine"} < names[True]


@pytest.mark.parametrize("diagnose", [False, True])
def test_a_teachers_tokens_lie_beside_the_next_teachers_only_where_they_are_looked_at(
    batch: Batch, diagnose: bool
) -> None:
    task, teachers = dmt()
    made: list[weakref.ref[Tensor]] = []
    alive: list[bool] = []

    def first(images: Tensor) -> Tensor:
        tokens = torch.randn(len(images), 1 + tiny.NUM_PATCHES, WIDTH)
        made.append(weakref.ref(tokens))
        return tokens

    def second(images: Tensor) -> Tensor:
        alive.append(made[0]() is not None)
        return torch.randn(len(images), 1 + tiny.NUM_PATCHES, WIDTH)

    teachers["red"].called, teachers["blue"].called = first, second
    task.losses(task.module, batch, NOW, diagnose)
    assert alive == [diagnose]


def test_running_means_move_once_a_step_and_survive_a_restart(batch: Batch) -> None:
    unbroken, _ = dmt("centred")
    other = replace(batch, crops=(255 - batch.images,))
    unbroken.losses(unbroken.module, batch, NOW, diagnose=True)
    assert unbroken.state_dict() == {}
    unbroken.after_step(NOW)
    state = {name: value.clone() for name, value in unbroken.state_dict().items()}
    assert {name.partition(".")[0] for name in state} == {"fusion", "diagnostics"}
    resumed, _ = dmt("centred")
    resumed.load_state_dict({name: value.clone() for name, value in state.items()})
    for task in (unbroken, resumed):
        task.losses(task.module, other, NOW, diagnose=True)
        task.after_step(NOW)
    for name, value in unbroken.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    kinds = ("fusion", "diagnostics")
    assert all(
        any(not torch.equal(state[n], v) for n, v in unbroken.state_dict().items() if n.startswith(k)) for k in kinds
    )


def test_a_look_at_pictures_moves_nothing_and_leaves_the_student_in_training(batch: Batch) -> None:
    task, _ = dmt("centred")
    seen = Watched(task.module)
    tokens = task.pictured_tokens(seen, batch.images)
    assert list(tokens) == ["red", "blue", "fused", "student"]
    torch.testing.assert_close(seen.given[0][0], normalize(batch.images, tiny.JITTER.mean, tiny.JITTER.std))
    assert all(module.training for module in task.module.modules())
    task.module.eval()
    exact = task.module(seen.given[0][0], torch.ones(len(batch.seeds), dtype=torch.int64))["fused"]
    torch.testing.assert_close(tokens["student"], exact)  # nothing was dropped
    task.after_step(NOW)
    assert task.state_dict() == {}
