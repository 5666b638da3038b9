"""Two real processes with half a batch each give what one process gives with the whole (heads without batch norm)."""

from typing import Any

import pytest
import torch
from torch import Tensor

from dmt_ds.engine import dist
from dmt_ds.engine.task import Progress, Task
from dmt_ds.methods.ibot import IbotTask
from dmt_ds.methods.moco_v3 import contrast
from tests import on_ranks
from tests.methods import tiny

SIZE = 8
NAMES = ("mae", "ibot", "dino", "tinymim")


def without_batch_norm(name: str) -> Task:
    """On the CPU batch norm has the statistics of its rank, so with it nothing could be equal."""
    if name in ("mae", "tinymim"):
        return tiny.task(name)
    torch.manual_seed(0)
    changes = {"head_batch_norm": False, "patch_loss_weight": 1.0 if name == "ibot" else 0.0}
    return IbotTask(tiny.STUDENT, tiny.IBOT.model_copy(update=changes), tiny.IMAGE_SIZE)


def gradients(task: Task) -> dict[str, Tensor]:
    """The mean over ranks, as an engine makes it."""
    named = [(name, parameter.grad) for name, parameter in task.module.named_parameters()]
    return {name: dist.mean_over_ranks(gradient.clone()) for name, gradient in named if gradient is not None}


def share_of(size: int) -> slice:
    """The rows of this rank."""
    each = size // dist.world_size()
    return slice(dist.rank() * each, (dist.rank() + 1) * each)


def one_step(name: str) -> dict[str, Any]:
    """Loss, gradients and state after one step without an optimizer."""
    task = without_batch_norm(name)
    data = tiny.part(tiny.batch(task, SIZE), share_of(SIZE))
    out = task.losses(task.module, data, Progress(5, 10), True)
    out.loss.backward()
    task.after_step(Progress(6, 10))
    metrics = {key: dist.mean_over_ranks(value.clone()) for key, value in out.metrics.items()}
    loss = dist.mean_over_ranks(out.loss.detach())
    return {"loss": loss, "metrics": metrics, "gradients": gradients(task), "state": task.state_dict()}


def one_contrast() -> dict[str, Tensor]:
    """MoCo v3's loss and accuracy over all ranks, and the gradient of all queries."""
    torch.manual_seed(0)
    queries = torch.randn(SIZE, 16)
    keys = queries + 2 * torch.randn(SIZE, 16)
    rows = share_of(SIZE)
    own = queries[rows].clone().requires_grad_()
    loss, accuracy = contrast(own, keys[rows], 0.2)
    loss.backward()
    assert own.grad is not None
    gradient = dist.gather_rows(own.grad) / dist.world_size()
    return {
        "loss": dist.mean_over_ranks(loss.detach()), "accuracy": dist.mean_over_ranks(accuracy), "gradient": gradient,
    }  # fmt: skip


def everything() -> dict[str, Any]:
    return {**{name: one_step(name) for name in NAMES}, "contrast": one_contrast()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks.answers(everything, tmp_path_factory.mktemp("ranks"))


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_two_ranks_is_the_step_of_one(name: str, ranks: list[dict[str, Any]]) -> None:
    alone = one_step(name)
    for of_rank in ranks:
        torch.testing.assert_close(of_rank[name], alone, rtol=1e-4, atol=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_what_a_task_keeps_is_the_same_on_every_rank(name: str, ranks: list[dict[str, Any]]) -> None:
    first, second = (of_rank[name]["state"] for of_rank in ranks)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.distributed
def test_queries_are_held_against_the_keys_of_all_ranks(ranks: list[dict[str, Any]]) -> None:
    alone = one_contrast()
    for of_rank in ranks:
        torch.testing.assert_close(of_rank["contrast"], alone)
