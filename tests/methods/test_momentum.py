"""The running mean of a network."""

import copy
import math

import pytest
import torch
from torch import nn

from dmt_ds.engine.task import Progress
from dmt_ds.methods.momentum import MomentumNetwork, momentum_at


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Dropout(0.5))


def moved(source: nn.Module) -> nn.Module:
    other = copy.deepcopy(source)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    return other


def test_an_update_is_m_times_the_average_plus_the_rest_of_the_weights():
    trained = network()
    average = MomentumNetwork(trained)
    later = moved(trained)
    average.update(later, 0.9)
    for old, new, mean in zip(trained.parameters(), later.parameters(), average.network.parameters(), strict=True):
        torch.testing.assert_close(mean, 0.9 * old + 0.1 * new)


def test_the_average_of_bf16_weights_is_float32_and_moves_less_than_bf16_can_show():
    trained = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    nn.init.ones_(trained.weight)
    average = MomentumNetwork(trained)
    nn.init.constant_(trained.weight, 2.0)
    average.update(trained, 0.999)
    assert average.network.weight.dtype == torch.float32
    assert average.network.weight.item() == pytest.approx(1.001)


def test_the_average_neither_has_nor_gives_gradients():
    trained = network()
    average = MomentumNetwork(trained)
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert not average(trained, torch.randn(5, 3, requires_grad=True)).requires_grad


def test_the_average_computes_in_bf16_where_the_trained_weights_are_bf16():
    trained = network()
    average = MomentumNetwork(trained)
    assert average(trained, torch.randn(5, 3)).dtype == torch.float32
    linear = nn.Linear(3, 4).to(torch.bfloat16)
    assert MomentumNetwork(linear)(linear, torch.randn(5, 3)).dtype == torch.bfloat16


def test_the_average_normalises_by_the_batch_and_drops_nothing():
    average = MomentumNetwork(network())
    rows = average(average.network, torch.randn(50, 3))
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(4), atol=1e-5, rtol=0)
    assert (rows != 0).all()
    norm, dropout = average.network[1], average.network[2]
    assert norm.training and not dropout.training  # in evaluation a norm shared by CUDA ranks would be each rank's own


def test_momentum_rises_from_its_start_to_one_by_a_half_cosine():
    # The authors' loop: iteration i of n uses 1 - (1 - m) * (1 + cos(pi i / n)) / 2, then counts itself done.
    for i in range(10):
        wanted = 1 - (1 - 0.9) * (1 + math.cos(math.pi * i / 10)) / 2
        assert momentum_at(0.9, Progress(i + 1, 10)) == pytest.approx(wanted)
    assert momentum_at(0.9, Progress(1, 10)) == pytest.approx(0.9)
