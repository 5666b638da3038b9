"""Two real processes with half of the images each give what one process gives with all."""

from typing import Any

import pytest
import torch

from dmt_ds.config.schema import DataConfig
from dmt_ds.data.sources import open_source
from dmt_ds.downstream.answers import accuracy_over_ranks, confusion_over_ranks, samples_over_ranks
from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm
from dmt_ds.engine import dist
from dmt_ds.engine.task import Progress
from tests import on_ranks
from tests.downstream import classified
from tests.middles import middles

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


def judged() -> dict[str, Any]:
    """Accuracy, confusion and samples of an odd number of images."""
    of = classified.task()
    source = classified.spaced_images(open_source(DataConfig(), "val"), NUM_JUDGED)
    batches = middles(source, classified.IMAGE_SIZE, 5, rank=dist.rank(), world_size=dist.world_size())
    answers = of.answers({"": of.module}, batches)[""]
    return {
        "scores": tuple(accuracy_over_ranks(answers)),
        "confusion": confusion_over_ranks(answers, of.num_classes),
        "samples": [[tuple(sample[:3]) for sample in kind] for kind in samples_over_ranks(answers, 3)],
    }


def normed() -> dict[str, torch.Tensor]:
    """Features of two micro-batches through the probe's batch norm, as all ranks have them, and its running means."""
    norm, each = SharedBatchNorm(3), SIZE // dist.world_size()
    generator = torch.Generator().manual_seed(0)
    batches = [5 + torch.randn(SIZE, 3, generator=generator) for _ in range(2)]
    own = slice(dist.rank() * each, (dist.rank() + 1) * each)
    out = torch.cat([dist.gather_rows(norm(batch[own])) for batch in batches])
    return {"out": out, "mean": norm.running_mean, "variance": norm.running_var, "in": torch.cat(batches)}


def everything() -> dict[str, Any]:
    return {"step": one_step(), "judged": judged(), "normed": normed()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks.answers(everything, tmp_path_factory.mktemp("ranks"))


def test_a_mixed_step_on_two_ranks_is_the_step_of_one(ranks: list[dict[str, Any]]) -> None:
    alone = one_step()
    for of_rank in ranks:
        torch.testing.assert_close(of_rank["step"], alone, rtol=1e-4, atol=1e-6)


def test_an_odd_number_of_images_is_judged_as_by_one_rank(ranks: list[dict[str, Any]]) -> None:
    alone = judged()
    assert 0 < alone["scores"][0] < alone["scores"][1] < 1
    assert alone["confusion"].sum() == NUM_JUDGED
    assert alone["confusion"].diagonal().sum() / NUM_JUDGED == pytest.approx(alone["scores"][0])
    assert [len(kind) for kind in alone["samples"]] == [3, 3]
    for of_rank in ranks:
        assert of_rank["judged"]["scores"] == alone["scores"]
        assert torch.equal(of_rank["judged"]["confusion"], alone["confusion"])
        assert of_rank["judged"]["samples"] == alone["samples"]


def test_the_probes_batch_norm_over_two_ranks_is_torchs_over_all_images(ranks: list[dict[str, Any]]) -> None:
    torchs = torch.nn.BatchNorm1d(3, affine=False, eps=1e-6)
    features = normed()["in"]
    out = torch.cat([torchs(batch) for batch in features.split(SIZE)])
    for found in (normed(), *(of_rank["normed"] for of_rank in ranks)):
        torch.testing.assert_close(found["out"], out)
        torch.testing.assert_close(found["mean"], torchs.running_mean)
        torch.testing.assert_close(found["variance"], torchs.running_var)
