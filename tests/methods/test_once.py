"""What several students ask of the same teachers is computed once a micro-batch."""

import weakref

import pytest
import torch
from torch import Tensor

from dmt_ds.data.batch import Batch
from dmt_ds.methods.once import OncePerBatch


def batch(value: int) -> Batch:
    return Batch((torch.full((1, 3, 2, 2), value, dtype=torch.uint8),), *torch.zeros(3, 1, dtype=torch.int64))


def asked_of(once: OncePerBatch[Tensor], *batches: Batch) -> list[float]:
    return [float(once(each, False)) for each in batches]


def counting(asked: list[tuple[int, bool]], num_askers: int) -> OncePerBatch[Tensor]:
    """Answers by a batch's number, and notes what was computed."""

    def compute(of: Batch, diagnose: bool) -> Tensor:
        asked.append((int(of.images.max()), diagnose))
        return torch.tensor(float(asked[-1][0]))

    return OncePerBatch(compute, num_askers)


def test_a_batch_is_computed_once_for_all_who_ask() -> None:
    asked: list[tuple[int, bool]] = []
    once = counting(asked, num_askers=3)
    first, second = batch(1), batch(2)
    assert asked_of(once, first, first, first, second, second) == [1, 1, 1, 2, 2]
    assert float(once(second, True)) == 2, "other metrics are another question"
    assert asked == [(1, False), (2, False), (2, True)]


def test_equal_images_of_another_batch_are_another_batch() -> None:
    asked: list[tuple[int, bool]] = []
    asked_of(counting(asked, num_askers=2), batch(1), batch(1))
    assert len(asked) == 2


@pytest.mark.parametrize("num_askers", [1, 2])
def test_the_answer_is_kept_for_those_who_have_not_asked_and_no_longer(num_askers: int) -> None:
    once, of = counting([], num_askers), batch(1)
    answers = [weakref.ref(once(of, False)) for _ in range(num_askers - 1)]
    assert all(answer() is not None for answer in answers)
    last = weakref.ref(once(of, False))
    assert last() is None
