"""mIoU, aAcc and mAcc against hand counts, scikit-learn and torchmetrics."""

import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, recall_score
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from dmt_ds.downstream.region_overlap import class_iou, confusion_of, overlap_of


def test_the_three_scores_of_a_small_map_are_those_counted_by_hand() -> None:
    labels = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 255, 255], [2, 2, 2, 255]], dtype=torch.uint8)
    answers = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 1], [2, 2, 0, 1], [2, 1, 1, 2]], dtype=torch.uint8)
    confusion = confusion_of(labels, answers, 3)
    # 13 pixels have a class. Class 0: 4, right 3, answered 4. Class 1: 4, right 3, answered 6. Class 2: 5, right 3.
    assert confusion.tolist() == [[3, 1, 0], [1, 3, 0], [0, 2, 3]]
    assert class_iou(confusion).tolist() == pytest.approx([3 / 5, 3 / 7, 3 / 5])
    found = overlap_of(confusion)
    assert found.miou == pytest.approx((3 / 5 + 3 / 7 + 3 / 5) / 3)
    assert found.aacc == pytest.approx(9 / 13)
    assert found.macc == pytest.approx((3 / 4 + 3 / 4 + 3 / 5) / 3)


def guessed() -> tuple[Tensor, Tensor]:
    """Labels of six classes and 255, and answers of which a good half is right: [50, 40] int64 each."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (50, 40), generator=generator)
    answers = torch.where(
        torch.rand(50, 40, generator=generator) < 0.6, labels, torch.randint(0, 6, (50, 40), generator=generator)
    )
    labels[:5] = 255
    return labels, answers


@pytest.mark.parametrize("num_classes", [6, 8])  # two of the eight are in no map and no answer
def test_the_three_scores_are_those_of_torchmetrics(num_classes: int) -> None:
    labels, answers = guessed()
    found = overlap_of(confusion_of(labels.byte(), answers.byte(), num_classes))
    told = {
        "miou": MulticlassJaccardIndex(num_classes, ignore_index=255),
        "aacc": MulticlassAccuracy(num_classes, average="micro", ignore_index=255),
        "macc": MulticlassAccuracy(num_classes, average="macro", ignore_index=255),
    }
    assert found._asdict() == pytest.approx({name: float(of(answers, labels)) for name, of in told.items()})


def test_confusion_and_scores_are_those_of_scikit_learn() -> None:
    labels, answers = guessed()
    true, told = labels[labels != 255].numpy(), answers[labels != 255].numpy()
    confusion = confusion_of(labels.byte(), answers.byte(), 6)
    assert (confusion.numpy() == confusion_matrix(true, told, labels=range(6))).all()
    found = overlap_of(confusion)
    assert found.miou == pytest.approx(jaccard_score(true, told, average="macro"))
    assert found.aacc == pytest.approx(accuracy_score(true, told))
    assert found.macc == pytest.approx(recall_score(true, told, average="macro"))


def test_a_class_that_is_nowhere_is_left_out_and_one_that_is_only_answered_counts_as_zero() -> None:
    labels, answers = torch.tensor([0, 0, 0, 0]).byte(), torch.tensor([0, 0, 0, 2]).byte()
    found = overlap_of(confusion_of(labels, answers, 4))
    assert found.miou == pytest.approx((3 / 4 + 0) / 2)
    assert found.macc == pytest.approx(3 / 4)


def test_confusions_of_parts_add_up() -> None:
    generator = torch.Generator().manual_seed(1)
    labels, answers = (torch.randint(0, 5, (8, 9), generator=generator).byte() for _ in range(2))
    parts = sum(confusion_of(labels[rows], answers[rows], 5) for rows in (slice(0, 3), slice(3, 8)))
    assert torch.equal(parts, confusion_of(labels, answers, 5))


def test_no_pixel_with_a_class_is_no_error() -> None:
    assert overlap_of(torch.zeros(3, 3, dtype=torch.int64)) == (0, 0, 0)
