"""What several students ask of the same teachers is computed once a micro-batch."""

import torch

from dmt_ds.data.batch import Batch
from dmt_ds.methods.once import OncePerBatch


def batch(value: int) -> Batch:
    return Batch((torch.full((1, 3, 2, 2), value, dtype=torch.uint8),), *torch.zeros(3, 1, dtype=torch.int64))


def test_a_batch_is_computed_once_however_often_it_is_asked_about() -> None:
    asked: list[tuple[int, bool]] = []

    def compute(of: Batch, diagnose: bool) -> int:
        asked.append((int(of.images.max()), diagnose))
        return asked[-1][0]

    once = OncePerBatch(compute)
    first, second = batch(1), batch(2)
    assert [once(first, False), once(first, False), once(second, False), once(second, True)] == [1, 1, 2, 2]
    assert asked == [(1, False), (2, False), (2, True)]


def test_equal_images_of_another_batch_are_another_batch() -> None:
    answers = iter(range(9))
    once = OncePerBatch(lambda of, diagnose: next(answers))
    assert [once(batch(1), False), once(batch(1), False)] == [0, 1]
