"""The process's generators go on where a checkpoint left them."""

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from dmt_ds.engine.checkpoints import rng_state


def draw() -> list[float]:
    return [random.gauss(0, 1), random.random(), np.random.standard_normal(), np.random.rand(), torch.rand(()).item()]


@pytest.mark.parametrize("draws", [0, 1, 2])  # Gaussian numbers come in pairs, of which one may be left
def test_what_is_drawn_after_a_restore_is_what_was_drawn_after_the_save(tmp_path: Path, draws: int) -> None:
    for _ in range(draws):
        draw()
    rng_state.save(tmp_path / "state.pt")
    expected = [draw() for _ in range(3)]
    rng_state.restore(tmp_path / "state.pt")
    assert [draw() for _ in range(3)] == expected


def test_a_file_of_a_version_that_kept_no_half_of_a_pair_is_read(tmp_path: Path) -> None:
    rng_state.save(tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["numpy_gauss"]
    torch.save(state, tmp_path / "state.pt")
    expected = np.random.rand()
    rng_state.restore(tmp_path / "state.pt")
    assert np.random.rand() == expected
