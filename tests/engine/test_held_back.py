"""Weights that are held back move as DINO's authors have it: AdamW starts with them when they are let go."""

import json

import pytest
import torch
from torch import Tensor

from dmt_ds.engine.optim import parameter_groups
from tests import processes
from tests.engine.held_back import HELD, HELD_BACK, OPTIM, RANKS, RATE_OF, TOTAL, head, loss_of, rows, schedule

ENGINES = [
    *("student_zero2_fp32", "student_zero2_bf16", "student_zero1_bf16", "student_zero3_bf16"),
    *("stage 0", "fused"),
]


@pytest.fixture(scope="module", params=[1, RANKS])
def curves(request: pytest.FixtureRequest) -> tuple[int, dict[str, Tensor]]:
    """Number of ranks; name of an engine -> its prototypes from the start on, [1 + TOTAL, ...]."""
    done = processes.run(["-m", "tests.engine.held_back"], processes=request.param)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))
    return request.param, {name: torch.tensor(curve) for name, curve in json.loads(line[len("FACTS ") :]).items()}


def authors_curve(num_ranks: int) -> Tensor:
    """Torch's AdamW on all rows, the prototypes' gradient taken away before an update, as DINO's code does."""
    module, decay = head(), OPTIM.weight_decay
    matrices = [parameter for parameter in module.parameters() if parameter.ndim > 1]
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=OPTIM.betas, eps=OPTIM.eps)
    found = [module.prototypes.detach().flatten().clone()]
    for step in range(TOTAL):
        optimizer.zero_grad()
        loss_of(module(torch.cat([rows(step, rank) for rank in range(num_ranks)]))).backward()
        if step < HELD:
            module.prototypes.grad = None
        for group in optimizer.param_groups:
            group["lr"] = OPTIM.base_lr * RATE_OF / 256 * schedule(step)
        optimizer.step()
        found.append(module.prototypes.detach().flatten().clone())
    return torch.stack(found)


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ENGINES)
def test_held_weights_stay_and_then_move_as_the_authors(curves: tuple[int, dict[str, Tensor]], engine: str) -> None:
    num_ranks, found = curves
    curve, expected = found[engine], authors_curve(num_ranks)
    is_float32 = engine in ("student_zero2_fp32", "stage 0")
    start = curve[0] if is_float32 else expected[0].bfloat16().float()
    assert torch.equal(curve[: 1 + HELD], curve[0].expand(1 + HELD, -1))
    torch.testing.assert_close(curve[0], start)
    if is_float32:
        torch.testing.assert_close(curve, expected, rtol=1e-4, atol=1e-6)
    rate = OPTIM.base_lr * RATE_OF / 256 * schedule(HELD)
    moved = (curve[1 + HELD] - curve[HELD]).abs()  # AdamW's first update is its rate, whatever the gradient
    assert moved.median().item() == pytest.approx(rate, rel=0.1)


def test_held_weights_are_a_group_of_their_own_behind_the_others() -> None:
    module = head()
    *others, held = parameter_groups(module, 0.1, peak=2.0, held_back=HELD_BACK)
    assert [parameter is module.prototypes for parameter in held["params"]] == [True]
    assert (held["lr"], held["weight_decay"], held["held_share"]) == (2.0, 0.1, HELD / TOTAL)
    assert [("held_share" in group, group["weight_decay"]) for group in others] == [(False, 0.1), (False, 0.0)]
