"""A loss that is no number, or suddenly a thousand times as large, on one rank of two."""

from pathlib import Path

import pytest

from tests import processes, tiny_run
from tests.processes import errors

pytestmark = pytest.mark.distributed
HARM = "tests.faults.harm.disturb_loss"


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    folder = tmp_path_factory.mktemp("unbroken")
    processes.run(tiny_run.pretrain(tiny_run.write_recipe(folder)), processes=2)
    return tiny_run.losses(folder / "run")


@pytest.mark.parametrize(("factor", "rank"), [("nan", 1), ("inf", 0)])
def test_a_loss_that_is_no_number_is_in_no_weight_and_the_next_start_is_as_if_nothing_was(
    tmp_path: Path, unbroken, factor, rank
) -> None:
    recipe = tiny_run.write_recipe(tmp_path, train={"save_every_steps": 3})
    with processes.launched(
        tiny_run.pretrain(recipe), 2, tmp_path / "log", harm=(HARM, [rank, 5, float(factor)])
    ) as ranks:
        assert ranks.wait() == [2, 1]
    (line,) = errors(ranks.log)
    assert f"step 5: the loss is not finite on rank {rank}; this update was not made" in line and "digits" in line
    assert "Start again to resume from the newest checkpoint, with a lower optim.base_lr" in line
    processes.run(tiny_run.pretrain(recipe), processes=2)
    assert tiny_run.losses(tmp_path / "run") == unbroken


def test_a_spike_is_in_the_record_and_moves_the_weights_no_further_than_any_step(tmp_path: Path, unbroken) -> None:
    recipe = tiny_run.write_recipe(tmp_path)
    with processes.launched(tiny_run.pretrain(recipe), 2, tmp_path / "log", harm=(HARM, [1, 5, 1e4])) as ranks:
        assert ranks.wait() == [0, 0], ranks.log
    losses, norms = tiny_run.losses(tmp_path / "run"), tiny_run.losses(tmp_path / "run", "train/grad_norm")
    assert losses[5] > 1000 * unbroken[5] and norms[5] > 1000 * norms[4]
    assert [losses[step] for step in range(1, 5)] == [unbroken[step] for step in range(1, 5)]
    assert all(abs(losses[step] - unbroken[step]) < 0.1 * unbroken[step] for step in range(6, 9))
