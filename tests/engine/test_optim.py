"""Parameter groups and the schedule."""

import math

import pytest
import torch
from torch import nn

from dmt_ds.config.optim import OptimConfig
from dmt_ds.config.schema import StudentConfig
from dmt_ds.engine.momentum_sgd import MomentumSgd
from dmt_ds.engine.optim import (
    build_optimizer,
    fusing_pays,
    learning_rate_schedule,
    parameter_groups,
    weight_decay_schedule,
)
from dmt_ds.models.vit import build_vit


def test_the_peak_rate_of_the_paper():
    assert OptimConfig(base_lr=1.5e-4).peak_lr(4096) == pytest.approx(2.4e-3)


def test_only_matrices_decay_and_every_trained_parameter_is_in_one_group():
    vit = build_vit(StudentConfig(arch="vit_tiny", patch_size=8, embed_dim=24, depth=2, num_heads=3), 16)
    decayed, plain = parameter_groups(vit, 0.05, peak=1.0)
    names = {id(p): name for name, p in vit.named_parameters()}
    assert {names[id(p)].rsplit(".", 1)[-1] for p in decayed["params"]} == {"weight"}
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert decayed["weight_decay"] == 0.05 and plain["weight_decay"] == 0.0
    assert "cls_token" in {names[id(p)] for p in plain["params"]}
    trained = {id(p) for p in vit.parameters() if p.requires_grad}
    assert [id(p) for p in decayed["params"] + plain["params"]].__len__() == len(trained)


def test_warmup_rises_to_the_peak_and_the_cosine_falls_to_min_lr():
    section = OptimConfig(base_lr=1e-3, min_lr=1e-4)
    factor = learning_rate_schedule(section, 256, warmup_steps=10, total_steps=110)
    assert factor(0) == pytest.approx(0.1) and factor(9) == pytest.approx(1.0) and factor(10) == pytest.approx(1.0)
    assert factor(60) == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factor(110) == pytest.approx(0.1)


def test_weight_decay_rises_by_half_a_cosine_where_it_has_an_end() -> None:
    assert weight_decay_schedule(OptimConfig(weight_decay=0.04), 100) is None
    decay = weight_decay_schedule(OptimConfig(weight_decay=0.04, weight_decay_end=0.4), 100)
    assert decay is not None
    assert decay(99) < 0.4  # which comes a step after the last, as in iBOT's code
    assert [decay(step) for step in (0, 50, 100, 120)] == pytest.approx([0.04, 0.22, 0.4, 0.4])


def test_a_linear_schedule_falls_in_a_straight_line_to_the_floor() -> None:
    section = OptimConfig(base_lr=1.0, min_lr=0.1, schedule="linear")
    factor = learning_rate_schedule(section, 256, warmup_steps=10, total_steps=110)
    assert factor(4) == pytest.approx(0.5)
    assert [factor(step) for step in (10, 35, 60, 110, 200)] == pytest.approx([1, 0.775, 0.55, 0.1, 0.1])


def test_a_schedule_of_steps_is_a_tenth_after_epochs_8_and_11_of_12() -> None:
    factor = learning_rate_schedule(OptimConfig(base_lr=1.0, schedule="steps"), 256, warmup_steps=10, total_steps=1200)
    assert [factor(step) for step in (4, 10, 799)] == pytest.approx([0.5, 1, 1])
    assert [factor(step) for step in (800, 1099)] == pytest.approx([0.1, 0.1])
    assert [factor(step) for step in (1100, 1199)] == pytest.approx([0.01, 0.01])
    section = OptimConfig(base_lr=1.0, min_lr=0.1, schedule="steps", decay_at=(0.5,))
    assert learning_rate_schedule(section, 256, 0, 10)(5) == pytest.approx(0.1 + 0.9 * 0.1)


def test_the_optimizer_follows_the_schedule_per_step():
    module = nn.Linear(2, 2)
    optimizer = build_optimizer(module, OptimConfig(base_lr=1.0), 256, fused=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_schedule(OptimConfig(base_lr=1.0), 256, 2, 4))
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.5])


def test_adamw_has_the_recipes_betas_and_eps():
    section = OptimConfig(betas=(0.7, 0.8), eps=1e-3)
    optimizer = build_optimizer(nn.Linear(2, 2), section, 256, fused=False)
    assert {(group["betas"], group["eps"]) for group in optimizer.param_groups} == {((0.7, 0.8), 1e-3)}


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs(momentum):
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    section = OptimConfig(name="sgd", base_lr=0.1, weight_decay=0.2, momentum=momentum)
    first = build_optimizer(ours, section, 256, fused=False)
    groups = [{"params": [theirs.weight], "weight_decay": 0.2}, {"params": [theirs.bias], "weight_decay": 0.0}]
    second = torch.optim.SGD(groups, lr=0.1, momentum=momentum)
    for _ in range(5):
        images = torch.randn(4, 3)
        for module, optimizer in ((ours, first), (theirs, second)):
            optimizer.zero_grad()
            module(images).square().sum().backward()
            optimizer.step()
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_sgd_leaves_weights_without_a_gradient_and_keeps_what_a_universal_checkpoint_carries():
    module = nn.Linear(3, 2)
    optimizer = MomentumSgd([{"params": list(module.parameters()), "lr": 0.1, "weight_decay": 0.2}], momentum=0.9)
    bias, module.weight.grad = module.bias.detach().clone(), torch.ones(2, 3)
    optimizer.step()
    assert torch.equal(module.bias, bias) and list(optimizer.state) == [module.weight]
    state = optimizer.state[module.weight]
    assert list(state) == ["exp_avg", "exp_avg_sq"] and state["exp_avg"].any()
    assert torch.equal(state["exp_avg_sq"], torch.zeros(2, 3))


@pytest.mark.parametrize("kind", ["adamw", "sgd"])
def test_a_fused_optimizer_makes_the_same_updates(kind):
    weights = []
    for fused in (False, True):
        module = nn.Linear(5, 3)
        nn.init.constant_(module.weight, 0.5)
        nn.init.zeros_(module.bias)
        optimizer = build_optimizer(module, OptimConfig(name=kind), 256, fused=fused)
        for step in range(4):
            module(torch.linspace(-1, 1, 5) * (step + 1)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append(module.weight.detach())
    torch.testing.assert_close(*weights, rtol=1e-6, atol=1e-8)


def test_updates_are_fused_but_in_bf16_on_a_cpu():
    assert [fusing_pays(*case) for case in (("cuda", True), ("cuda", False), ("cpu", False))] == [True] * 3
    assert not fusing_pays("cpu", bf16=True)
