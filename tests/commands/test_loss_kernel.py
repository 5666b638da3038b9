"""What computes the losses of a run, as its recipe has it."""

import logging

import pytest
import torch

from dmt_ds.commands.training.tasks import _loss_kernel
from dmt_ds.config.methods import DistillConfig
from dmt_ds.errors import ConfigError

CPU = torch.device("cpu")


def test_the_kernel_is_said_once_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert _loss_kernel(DistillConfig(), CPU) == "chunked"
        assert _loss_kernel(DistillConfig(divergence="mse"), CPU) == "eager"
    assert [record.getMessage() for record in caplog.records] == [
        "losses: chunked kernel (the fastest on a CPU)",
        "losses: eager kernel (divergence mse has no fused form)",
    ]


def test_a_kernel_that_cannot_run_here_names_its_setting() -> None:
    with pytest.raises(ConfigError, match=r"distill\.kernel: kernel triton can't run here: the device is cpu"):
        _loss_kernel(DistillConfig(kernel="triton"), CPU)
