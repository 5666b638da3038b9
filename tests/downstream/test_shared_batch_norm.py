"""Batch norm that is shared by ranks, on one of them; on two: `test_segmentation_over_ranks`."""

import pytest
import torch
from torch import nn

from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm, SharedBatchNorm2d
from tests.downstream.normed_maps import SIZE, given, normed


def test_one_rank_is_torchs_batch_norm() -> None:
    ours, theirs = (normed(kind(5), slice(0, SIZE)) for kind in (SharedBatchNorm2d, nn.BatchNorm2d))
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_statistics_stay_in_float32_beside_weights_in_bf16() -> None:
    norm = SharedBatchNorm2d(5).bfloat16()
    assert norm.weight.dtype == torch.bfloat16
    inputs, _ = given()
    out = norm(inputs.bfloat16())
    assert out.dtype == torch.bfloat16
    exact = nn.BatchNorm2d(5)
    exact(inputs.bfloat16().float())
    assert norm.running_mean is not None
    assert exact.running_mean is not None
    assert norm.running_mean.dtype == torch.float32
    torch.testing.assert_close(norm.running_mean, exact.running_mean)


@pytest.mark.parametrize(("mean", "deviation"), [(3.0, 2.0), (1000.0, 0.1)])
def test_the_probes_norm_is_torchs_in_training_and_by_its_running_means(mean: float, deviation: float) -> None:
    """Also far from 0, where a mean of squares in float32 would lose the variance."""
    ours, theirs = SharedBatchNorm(5), nn.BatchNorm1d(5, eps=1e-6, affine=False).double()
    assert (ours.momentum, theirs.momentum) == (0.1, 0.1)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        features = mean + deviation * torch.randn(6, 5, generator=generator)
        torch.testing.assert_close(ours(features).double(), theirs(features.double()), rtol=2e-3, atol=2e-3)
    found, exact = ours.eval()(features), theirs.eval()(features.double())
    torch.testing.assert_close(found.double(), exact, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(ours.running_var.double(), theirs.running_var, rtol=1e-5, atol=1e-5)


def test_the_probes_statistics_stay_in_float32_beside_weights_in_bf16() -> None:
    norm = nn.Sequential(SharedBatchNorm(5), nn.Linear(5, 2)).bfloat16()[0]
    assert isinstance(norm, SharedBatchNorm)
    assert norm.running_mean.dtype == norm.running_var.dtype == torch.float32
