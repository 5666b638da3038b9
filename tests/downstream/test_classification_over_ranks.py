"""Two real processes with half of the images each give what one process gives with all."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as torch_dist
import torch.multiprocessing as torch_mp

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.loader import eval_batches
from dmt_ds.data.sources import open_source
from dmt_ds.engine import dist
from dmt_ds.engine.task import Progress
from tests.downstream import classified

pytestmark = pytest.mark.distributed

SIZE = 8
NUM_JUDGED = 37
"""Odd, and no multiple of the batch: the last share and the last batch are shorter."""


def one_step() -> dict[str, Any]:
    """Loss, metrics and gradients of a step, means over ranks as an engine makes them."""
    of, each = classified.task(), SIZE // dist.world_size()
    batch = classified.part(classified.digits_batch(of, SIZE), slice(dist.rank() * each, (dist.rank() + 1) * each))
    out = of.losses(of.module, batch, Progress(0, 10), True)
    out.loss.backward()
    values = {"loss": out.loss.detach(), **out.metrics}
    values |= {name: value.grad for name, value in of.module.named_parameters() if value.grad is not None}
    return {name: dist.mean_over_ranks(value.clone()) for name, value in values.items()}


def scores() -> tuple[float, float]:
    of = classified.task()
    source = classified.first_images(open_source(DataConfig(), "val"), NUM_JUDGED)
    batches = eval_batches(source, classified.IMAGE_SIZE, 5, rank=dist.rank(), world_size=dist.world_size())
    return tuple(of.evaluate(of.module, batches))


def rank_main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch_dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save({"step": one_step(), "scores": scores()}, folder / f"{rank}.pt")
    torch_dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch_mp.spawn(rank_main, (folder,), nprocs=2)  # type: ignore[attr-defined, no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_a_mixed_step_on_two_ranks_is_the_step_of_one(ranks: list[dict[str, Any]]) -> None:
    alone = one_step()
    for of_rank in ranks:
        torch.testing.assert_close(of_rank["step"], alone, rtol=1e-4, atol=1e-6)


def test_accuracy_of_an_odd_number_of_images_is_that_of_one_rank(ranks: list[dict[str, Any]]) -> None:
    alone = scores()
    assert 0 < alone[0] < alone[1] < 1
    assert [of_rank["scores"] for of_rank in ranks] == [alone, alone]
