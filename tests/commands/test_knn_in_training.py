"""k-NN while a run trains; that it is what `dmt-ds knn` finds, integration tests show."""

from collections.abc import Iterator
from itertools import count

import pytest
import torch

from dmt_ds.commands.training.knn_in_training import KnnInTraining, _StopAsked
from dmt_ds.config.schema import DataConfig
from dmt_ds.data.labels import open_labelled


def test_a_signal_ends_an_evaluation_after_a_few_batches() -> None:
    looks = count()
    images = open_labelled(DataConfig(source="digits"))
    knn = KnnInTraining((), images, beat=lambda doing: None, stop_asked=lambda: next(looks) == 2)
    given: list[int] = []
    with pytest.raises(_StopAsked):
        list(knn._until_stopped(_noting(given), torch.device("cpu")))
    assert given == list(range(17)), "looked at before batches 0, 8 and 16"


def _noting(given: list[int]) -> Iterator[int]:
    for number in range(100):
        given.append(number)
        yield number
