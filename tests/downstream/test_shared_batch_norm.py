"""Batch norm that is shared by ranks, on one of them; on two: `test_segmentation_over_ranks`."""

import torch
from torch import nn

from dmt_ds.downstream.shared_batch_norm import SharedBatchNorm2d
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
