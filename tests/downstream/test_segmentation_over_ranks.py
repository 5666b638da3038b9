"""Two real processes with half of the images each give what one process gives with all."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_ds.data.batch import Batch
from dmt_ds.data.loader import every_image
from dmt_ds.data.map_batches import EvalMapMaker, LabelMaps
from dmt_ds.downstream.region_overlap import overlap_of
from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm2d
from dmt_ds.engine import dist
from dmt_ds.engine.task import Progress
from tests import on_ranks
from tests.downstream import normed_maps, segmented
from tests.tiny_scenes import write_ade

pytestmark = pytest.mark.distributed

SIZE = 8


def part(whole: Batch) -> Batch:
    each = SIZE // dist.world_size()
    rows = slice(dist.rank() * each, (dist.rank() + 1) * each)
    assert isinstance(whole.target, LabelMaps)
    target = LabelMaps(whole.target.maps[rows], whole.target.sizes[rows])
    return Batch((whole.images[rows],), whole.seeds[rows], whole.indices[rows], whole.labels[rows], target)


def one_step(folder: Path) -> dict[str, Tensor]:
    """Loss, gradients (means over ranks, as an engine makes them) and running statistics of a step."""
    of = segmented.task()
    out = of.losses(of.module, part(segmented.batch(folder, SIZE)), Progress(0, 10), True)
    out.loss.backward()
    values = {"loss": out.loss.detach()}
    values |= {name: value.grad for name, value in of.module.named_parameters() if value.grad is not None}
    means = {name: dist.mean_over_ranks(value.clone()) for name, value in values.items()}
    return means | {name: value for name, value in of.module.named_buffers() if "running" in name}


def judged(folder: Path) -> tuple[float, ...]:
    """Of an odd number of images of unlike sizes."""
    of = segmented.task()
    maker = EvalMapMaker(segmented.images_of(folder).test, segmented.SECTION.short_side, "bilinear")
    batches = every_image(maker, 3, 1, rank=dist.rank(), world_size=dist.world_size())
    return tuple(overlap_of(dist.sum_over_ranks(of.confusion(of.module, batches))))


def everything(scenes: Path) -> dict[str, Any]:
    shares = [slice(0, 4), slice(4, normed_maps.SIZE)]  # unlike: statistics are of images, not means of ranks' means
    norm = normed_maps.normed(SharedBatchNorm2d(5), shares[dist.rank()])
    return {"step": one_step(scenes), "judged": judged(scenes), "normed": norm}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ade(tmp_path_factory.mktemp("scenes") / "ade")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory, scenes: Path) -> list[dict[str, Any]]:
    return on_ranks.answers(everything, tmp_path_factory.mktemp("ranks"), scenes)


def test_a_step_on_two_ranks_is_the_step_of_one_batch_norm_included(ranks: list[dict[str, Any]], scenes: Path) -> None:
    alone = one_step(scenes)
    assert len([name for name in alone if "running" in name]) == 2 * 14
    for of_rank in ranks:
        torch.testing.assert_close(of_rank["step"], alone, rtol=1e-3, atol=1e-6)


def test_an_odd_number_of_images_is_judged_as_by_one_rank(ranks: list[dict[str, Any]], scenes: Path) -> None:
    alone = judged(scenes)
    assert 0 < alone[0] < 1
    assert [of_rank["judged"] for of_rank in ranks] == [alone, alone]


def test_batch_norm_over_two_ranks_with_unlike_shares_is_torchs_of_all(ranks: list[dict[str, Any]]) -> None:
    both = [of_rank["normed"] for of_rank in ranks]
    alone = normed_maps.normed(torch.nn.BatchNorm2d(5), slice(0, normed_maps.SIZE))
    for name in ("out", "inputs", "judged"):
        torch.testing.assert_close(torch.cat([own[name] for own in both]), alone[name], rtol=1e-4, atol=1e-5)
    for name in ("weight", "bias"):  # each rank's own part; an engine adds them up
        torch.testing.assert_close(both[0][name] + both[1][name], alone[name], rtol=1e-4, atol=1e-5)
    for own in both:
        torch.testing.assert_close(own["mean"], alone["mean"])
        torch.testing.assert_close(own["variance"], alone["variance"])
