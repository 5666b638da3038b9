"""Weights that are frozen at first stay bit for bit, and then move as by an AdamW whose rate was 0."""

import json

import pytest
import torch
from torch import Tensor

from dmt_ds.engine.optim import parameter_groups
from tests import processes
from tests.engine.frozen_groups import FROZEN, FROZEN_UNTIL, OPTIM, RANKS, RATE_OF, TOTAL, head, loss_of, rows, schedule

ENGINES = [
    *("student_zero2_fp32", "student_zero2_bf16", "student_zero1_bf16", "student_zero3_bf16"),
    *("stage 0", "fused"),
]


@pytest.fixture(scope="module", params=[1, RANKS])
def curves(request: pytest.FixtureRequest) -> tuple[int, dict[str, Tensor]]:
    """Number of ranks; name of an engine -> its prototypes from the start on, [1 + TOTAL, ...]."""
    done = processes.run(["-m", "tests.engine.frozen_groups"], processes=request.param)
    line = next(line for line in done.stdout.splitlines() if line.startswith("FACTS "))
    return request.param, {name: torch.tensor(curve) for name, curve in json.loads(line[len("FACTS ") :]).items()}


def torchs_curve(num_ranks: int) -> Tensor:
    """Torch's AdamW on all rows, with a rate of 0 for the prototypes at first."""
    module, decay = head(), OPTIM.weight_decay
    matrices = [parameter for parameter in module.mlp.parameters() if parameter.ndim > 1]
    groups = [
        {"params": [module.prototypes], "weight_decay": decay},
        {"params": matrices, "weight_decay": decay},
        {"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=OPTIM.betas, eps=OPTIM.eps)
    found = [module.prototypes.detach().flatten().clone()]
    for step in range(TOTAL):
        optimizer.zero_grad()
        loss_of(module(torch.cat([rows(step, rank) for rank in range(num_ranks)]))).backward()
        for group in optimizer.param_groups:
            group["lr"] = OPTIM.base_lr * RATE_OF / 256 * schedule(step)
        if step < FROZEN:
            optimizer.param_groups[0]["lr"] = 0.0
        optimizer.step()
        found.append(module.prototypes.detach().flatten().clone())
    return torch.stack(found)


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_weights_stay_and_then_move_as_by_torch(curves: tuple[int, dict[str, Tensor]], engine: str) -> None:
    num_ranks, found = curves
    curve, expected = found[engine], torchs_curve(num_ranks)
    assert torch.equal(curve[: 1 + FROZEN], curve[0].expand(1 + FROZEN, -1))
    if engine in ("student_zero2_fp32", "stage 0"):
        torch.testing.assert_close(curve, expected, rtol=1e-4, atol=1e-6)
    else:
        torch.testing.assert_close(curve[0], expected[0].bfloat16().float())
        moved, as_torch = ((each[-1] - each[0]) for each in (curve, expected))
        assert torch.nn.functional.cosine_similarity(moved, as_torch, dim=0) > 0.99
        assert moved.norm() / as_torch.norm() == pytest.approx(1, abs=0.05)


def test_frozen_weights_are_a_group_of_their_own_behind_the_others() -> None:
    module = head()
    *others, frozen = parameter_groups(module, 0.1, peak=2.0, frozen_until=FROZEN_UNTIL)
    assert [parameter is module.prototypes for parameter in frozen["params"]] == [True]
    assert (frozen["lr"], frozen["weight_decay"], frozen["frozen_until"]) == (2.0, 0.1, FROZEN / TOTAL)
    assert [("frozen_until" in group, group["weight_decay"]) for group in others] == [(False, 0.1), (False, 0.0)]
