"""The relation losses against loops, and what follows from their definition."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dmt_ds.distill.relations import Relation, relation_loss
from tests.distill.loops import kl_by_loop

RELATIONS = ["qk", "vv"]
each_relation = pytest.mark.parametrize("relation", RELATIONS)


def random_qkv(seed: int, width: int = 4, *, images: int = 2, heads: int = 3, tokens: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 1.5 * torch.randn(images, 3, heads, tokens, width, generator=generator, dtype=torch.float64)


def scores_by_loop(relation: Relation, qkv: Tensor, image: int, head: int, row: int) -> list[float]:
    """One row of Q K^T / sqrt(d) or V V^T / sqrt(d)."""
    left, right = (0, 1) if relation == "qk" else (2, 2)
    width = qkv.shape[-1]
    return [
        sum(
            qkv[image, left, head, row, c].item() * qkv[image, right, head, column, c].item() / math.sqrt(width)
            for c in range(width)
        )
        for column in range(qkv.shape[3])
    ]


def loss_by_loop(relation: Relation, student: Tensor, teacher: Tensor) -> float:
    images, _, heads, tokens, _ = student.shape
    total = 0.0
    for image in range(images):
        for head in range(heads):
            for row in range(tokens):
                theirs, ours = (scores_by_loop(relation, qkv, image, head, row) for qkv in (teacher, student))
                total += kl_by_loop(theirs, ours)
    return total / (images * heads * tokens)


@each_relation
def test_a_loss_is_the_mean_divergence_of_rows_with_each_models_own_head_width(relation: Relation) -> None:
    student, teacher = random_qkv(0, width=4), random_qkv(1, width=7)
    loss = relation_loss(relation, student, {"mae": teacher})
    assert loss.item() == pytest.approx(loss_by_loop(relation, student, teacher), rel=1e-12)


@each_relation
def test_with_several_teachers_it_is_the_weighted_mean_of_their_losses(relation: Relation) -> None:
    student, red, blue = random_qkv(0), random_qkv(1), random_qkv(2, width=6)
    alone = [relation_loss(relation, student, {"one": teacher}) for teacher in (red, blue)]
    both = {"red": red, "blue": blue}
    torch.testing.assert_close(relation_loss(relation, student, both), (alone[0] + alone[1]) / 2)
    weighted = relation_loss(relation, student, both, {"red": 3.0})
    torch.testing.assert_close(weighted, (3 * alone[0] + alone[1]) / 4)


@each_relation
def test_gradient_is_that_of_finite_differences(relation: Relation) -> None:
    student = random_qkv(0, width=2, images=1, heads=2, tokens=3).requires_grad_()
    teachers = {str(seed): random_qkv(seed, images=1, heads=2, tokens=3) for seed in (1, 2)}
    assert torch.autograd.gradcheck(lambda s: relation_loss(relation, s, teachers), student)


@each_relation
def test_gradient_reaches_the_student_and_never_a_teacher(relation: Relation) -> None:
    student, teacher = random_qkv(0).requires_grad_(), random_qkv(1).requires_grad_()
    relation_loss(relation, student, {"mae": teacher}).backward()
    assert student.grad is not None
    used = student.grad.flatten(2).abs().sum(dim=(0, 2)) > 0  # of queries, keys, values
    assert used.tolist() == ([True, True, False] if relation == "qk" else [False, False, True])
    assert teacher.grad is None


@each_relation
def test_an_equal_student_costs_nothing_and_is_pulled_nowhere(relation: Relation) -> None:
    teacher = random_qkv(0).float()
    student = teacher.clone().requires_grad_()
    loss = relation_loss(relation, student, {"mae": teacher})
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-7)
    assert student.grad is not None and student.grad.abs().max() < 1e-7


@each_relation
def test_relations_do_not_feel_a_rotation_of_a_heads_channels(relation: Relation) -> None:
    student, teacher = random_qkv(0), random_qkv(1)
    rotation = torch.linalg.qr(random_qkv(2)[0, 0, 0, :4])[0]
    turned = student @ rotation
    torch.testing.assert_close(
        relation_loss(relation, turned, {"mae": teacher}), relation_loss(relation, student, {"mae": teacher})
    )


@each_relation
def test_loss_of_a_batch_is_the_mean_over_its_images(relation: Relation) -> None:
    student, teacher = random_qkv(0), random_qkv(1)
    alone = [relation_loss(relation, student[i : i + 1], {"mae": teacher[i : i + 1]}) for i in range(2)]
    torch.testing.assert_close(relation_loss(relation, student, {"mae": teacher}), torch.stack(alone).mean())


@each_relation
def test_bfloat16_is_compared_in_float32_also_under_autocast(relation: Relation) -> None:
    student, teacher = (random_qkv(seed, tokens=17).bfloat16() for seed in (0, 1))
    exact = relation_loss(relation, student.double(), {"mae": teacher.double()})
    with torch.autocast("cpu", torch.bfloat16):
        loss = relation_loss(relation, student, {"mae": teacher})
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


@each_relation
def test_large_products_keep_loss_and_gradient_finite(relation: Relation) -> None:
    student, teacher = (100 * random_qkv(0).float()).requires_grad_(), 100 * random_qkv(1).float()
    loss = relation_loss(relation, student, {"mae": teacher})
    loss.backward()
    assert loss.isfinite() and student.grad is not None and student.grad.isfinite().all()


@each_relation
def test_one_target_is_kept_for_the_backward_however_many_teachers(relation: Relation) -> None:
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    totals = []
    for number in (1, 3):
        kept.clear()
        teachers = {str(seed): random_qkv(seed) for seed in range(1, 1 + number)}
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            relation_loss(relation, random_qkv(0).requires_grad_(), teachers)
        totals.append(sum(kept))
    assert totals[0] == totals[1] > 0


@pytest.mark.parametrize("changes", [{"heads": 1}, {"tokens": 1}, {"images": 1}])
def test_qkv_of_another_shape_is_never_broadcast(changes: dict[str, int]) -> None:
    with pytest.raises(AssertionError, match=r"teacher 'mae' \[.*\], student \[2, 3, 5, 5\]"):
        relation_loss("qk", random_qkv(0), {"mae": random_qkv(1, **changes)})


def test_it_is_torchs_divergence_with_the_teacher_first() -> None:
    student, teacher = random_qkv(0), random_qkv(1)
    log_student, log_teacher = (
        (q @ k.mT / 2).log_softmax(-1) for q, k, _ in (qkv.unbind(1) for qkv in (student, teacher))
    )
    expected = F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) / 30
    torch.testing.assert_close(relation_loss("qk", student, {"mae": teacher}), expected)
    other_way = F.kl_div(log_teacher, log_student, reduction="sum", log_target=True) / 30
    assert not torch.isclose(expected, other_way, rtol=1e-2)
