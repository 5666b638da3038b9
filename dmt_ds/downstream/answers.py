"""What a classifier said to each image, and what that comes to over all ranks; knows no model and no picture."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dmt_ds.downstream.accuracy import Accuracy
from dmt_ds.engine import dist

NUM_RANKED = 5


class Answers(NamedTuple):
    """This rank's images that have a label."""

    rows: Tensor
    """[n] int64, of the data set."""
    labels: Tensor
    """[n] int64."""
    classes: Tensor
    """[n, 5] int64, the likeliest first; fewer where there are fewer classes."""
    probabilities: Tensor
    """[n, 5] float32, of these classes."""


class Sample(NamedTuple):
    """One image and the answer to it."""

    row: int
    label: int
    answer: int
    probability: float
    """Of the answer."""


def answers_of(logits: Tensor, rows: Tensor, labels: Tensor) -> Answers:
    """Answers of one batch: [B, C], [B] and [B]; an image whose label is below 0 is left out."""
    counted = labels >= 0
    likely = logits[counted].float().softmax(dim=1).topk(min(NUM_RANKED, logits.shape[1]), dim=1)
    return Answers(rows[counted], labels[counted], likely.indices, likely.values)


def joined(parts: Sequence[Answers]) -> Answers:
    """The answers of several batches as one, in their order."""
    return Answers(*(torch.cat(column) for column in zip(*parts, strict=True)))


def accuracy_over_ranks(answers: Answers) -> Accuracy:
    """Share of right answers among the images of all ranks, each counted once; all ranks call."""
    hits = answers.classes == answers.labels[:, None]  # [n, 5]
    counts = torch.stack([hits[:, 0].sum(), hits.any(dim=1).sum(), hits.new_tensor(len(hits), dtype=torch.int64)])
    top1, top5, num_images = dist.sum_over_ranks(counts).tolist()
    return Accuracy(top1 / num_images, top5 / num_images)


def confusion_over_ranks(answers: Answers, num_classes: int) -> Tensor:
    """How many images of a class got which answer, over all ranks, which all call: [C, C] int64, a row a true class."""
    cells = answers.labels * num_classes + answers.classes[:, 0]
    counts = torch.bincount(cells, minlength=num_classes**2)
    return dist.sum_over_ranks(counts).reshape(num_classes, num_classes).cpu()


def samples_over_ranks(answers: Answers, count: int) -> tuple[list[Sample], list[Sample]]:
    """Up to `count` images with a right answer and as many with a wrong one, evenly spaced; the same on every rank.

    All ranks call. On another number of ranks they are the same images.
    """
    columns = (answers.rows, answers.labels, answers.classes[:, 0], answers.probabilities[:, 0])
    of_all = dist.gather_objects(tuple(column.tolist() for column in columns))
    samples = sorted(Sample(*values) for columns in of_all for values in zip(*columns, strict=True))
    right = [sample for sample in samples if sample.answer == sample.label]
    wrong = [sample for sample in samples if sample.answer != sample.label]
    return _evenly(right, count), _evenly(wrong, count)


def _evenly(samples: list[Sample], count: int) -> list[Sample]:
    if len(samples) <= count:
        return samples
    return [samples[turn * len(samples) // count] for turn in range(count)]
