"""What is measured of a machine, by a clock that stands still but where a test moves it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dmt_ds.engine import rates
from tests import on_ranks

CPU = torch.device("cpu")
SECONDS = 0.25


class Measured:
    """Takes the place of the clock: each act has taken so long."""

    def __init__(self) -> None:
        self.made: object = None

    def __call__(self, act: Callable[[], object], device: torch.device) -> float:
        self.made = act()
        return SECONDS


def test_the_best_of_a_few_counts_and_the_first_only_warms_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [100.0], iter([0.5, 3.0, 1.0, 2.0])

    def act() -> None:
        now[0] += next(durations)

    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])
    assert rates._best_seconds(act, CPU) == 1.0
    assert list(durations) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_multiply_add_of_matrices_of_that_type_is_two_operations(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    measured = Measured()
    monkeypatch.setattr(rates, "_best_seconds", measured)
    side = 64
    monkeypatch.setattr(rates, "_SIDE", side)
    assert rates.matmul_flops_per_second(CPU, dtype) == side * side * (2 * side) / SECONDS
    assert isinstance(measured.made, torch.Tensor)
    assert measured.made.dtype is dtype and measured.made.shape == (side, side)


def gathered() -> tuple[float, float]:
    """Bytes a second of a gather, and the slowest of rates that are the ranks' numbers."""
    rates._best_seconds = Measured()
    of_all = torch.distributed.group.WORLD
    return (
        rates.gather_bytes_per_second(of_all, 2, CPU),
        rates.slowest(5.0 + torch.distributed.get_rank()),
    )


@pytest.mark.distributed
def test_a_rank_receives_the_others_parts_and_all_know_the_slowest(tmp_path: Path) -> None:
    received = rates._GATHERED_BYTES // 2
    assert on_ranks.answers(gathered, tmp_path) == [(received / SECONDS, 5.0)] * 2
