"""GELU by one exponential is the exact one, and so is its slope."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dmt_ds.config.schema import StudentConfig
from dmt_ds.models import gelu
from dmt_ds.models.gelu import OneExpGelu, one_exp_gelus
from dmt_ds.models.vit import build_vit


def forward_and_slope(activation, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    made = activation(x)
    made.sum().backward()
    return made.detach(), x.grad


def test_values_and_slopes_are_those_of_float64() -> None:
    x = torch.linspace(-9, 9, 100_001)
    for found, wanted in zip(
        forward_and_slope(gelu._OneExp.apply, x), forward_and_slope(F.gelu, x.double()), strict=True
    ):
        torch.testing.assert_close(found.double(), wanted, atol=5e-7, rtol=0)


def test_far_below_zero_it_is_closer_than_erf() -> None:
    x = torch.linspace(-5, -2, 10_001)
    wanted = F.gelu(x.double())
    found, by_erf = (((made.double() - wanted) / wanted).abs().max() for made in (gelu._OneExp.apply(x), F.gelu(x)))
    assert found < 2e-3 < by_erf


def test_bfloat16_is_rounded_once_and_what_is_not_finite_stays_so() -> None:
    x = torch.tensor([-30.0, -1.5, 0.0, 0.3, 4.0, 1e4], dtype=torch.bfloat16)
    found, slope = forward_and_slope(gelu._OneExp.apply, x)
    assert found.dtype is slope.dtype is torch.bfloat16
    torch.testing.assert_close(found, F.gelu(x.float()).bfloat16())
    x = torch.linspace(-9, 9, 10_001).bfloat16()
    for rounded, wide in zip(*(forward_and_slope(gelu._OneExp.apply, each) for each in (x, x.float())), strict=True):
        assert torch.equal(rounded, wide.bfloat16())
    assert slope[0] == 0 and slope[5] == 1
    broken = forward_and_slope(gelu._OneExp.apply, torch.tensor([float("inf"), -float("inf"), float("nan")]))
    assert not any(numbers.isfinite().any() for numbers in broken)


@pytest.mark.parametrize("pays", [False, True])
def test_a_compiled_vit_takes_the_formula_in_one_graph_where_that_pays(
    monkeypatch: pytest.MonkeyPatch, pays: bool
) -> None:
    monkeypatch.setattr(gelu, "_pays", lambda x: pays and torch.compiler.is_compiling())
    vit = build_vit(StudentConfig(arch="vit_tiny", depth=2, drop_path=0.0), 32)
    assert [type(block.mlp.act) for block in vit.blocks] == [OneExpGelu] * 2
    images, gradients, graphs = torch.randn(2, 3, 32, 32), [], []

    def backend(graph, inputs):
        graphs.append(str(graph.graph))
        return graph

    for forward in (vit.forward_features, torch.compile(vit.forward_features, backend=backend, fullgraph=True)):
        vit.zero_grad()
        (forward(images) ** 3).sum().backward()
        gradients.append(vit.blocks[0].mlp.fc1.weight.grad.clone())
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-4)
    assert ("autograd_function_apply" in graphs[0]) == pays


class OwnGelu(nn.GELU):
    """May do anything."""


def test_other_activations_stay() -> None:
    module = one_exp_gelus(nn.ModuleList([nn.GELU("tanh"), nn.ReLU(), OwnGelu(), nn.GELU()]))
    assert [type(layer) for layer in module] == [nn.GELU, nn.ReLU, OwnGelu, OneExpGelu]


def test_what_does_not_gain_has_the_standards_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    x = torch.ones(2, dtype=torch.bfloat16, device="meta")
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    assert gelu._pays(x) and not gelu._pays(x.float()) and not gelu._pays(x.half())
    with monkeypatch.context() as on_a_cpu:
        on_a_cpu.setattr(torch.Tensor, "is_cuda", False)
        assert not gelu._pays(x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: False)
    assert not gelu._pays(x)
