"""The running mean of a bf16 fine-tuning is that of float32 masters, which two real ranks have halves of."""

from typing import Any

import pytest
import torch

from tests import processes

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> list[dict[int, dict[str, Any]]]:
    """What each rank found, by ZeRO stage."""
    out = tmp_path_factory.mktemp("mean") / "facts.pt"
    processes.run(["-m", "tests.downstream.mean_of_masters", str(out)], processes=2)
    return torch.load(out)


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_the_mean_is_a_loop_over_whole_masters_and_not_over_rounded_weights(facts, zero_stage):
    for rank in facts:
        of = rank[zero_stage]
        assert of["type"] == "torch.bfloat16"
        found = {name: of["found"][name] for name in of["first"]}
        torch.testing.assert_close(found, of["of masters"], rtol=1e-5, atol=1e-7)
        rounding = torch.cat([(found[name] - of["of weights"][name]).abs().flatten() for name in found])
        assert rounding.max() > 1e-4 and (rounding > 1e-5).float().mean() > 0.3
        assert torch.cat([(found[name] - of["first"][name]).abs().flatten() for name in found]).mean() > 0.01


def test_weights_that_each_rank_has_whole_count_once(facts):
    for rank in facts:
        of = rank[0]
        assert of["type"] == "torch.float32"
        torch.testing.assert_close({name: of["found"][name] for name in of["first"]}, of["of masters"])


@pytest.mark.parametrize("zero_stage", [0, 1, 2])
def test_all_ranks_have_the_whole_of_it_and_it_is_what_is_judged(facts, zero_stage):
    one, other = (rank[zero_stage] for rank in facts)
    assert all(torch.equal(value, other["found"][name]) for name, value in one["found"].items())
    torch.testing.assert_close(one["judged"].float(), one["published"], rtol=0.05, atol=0.05)


def test_what_is_not_trained_stays_as_it_was_in_float32(facts):
    positions = facts[0][2]["found"]["vit.pos_embed"]
    assert positions.dtype == torch.float32 and not torch.equal(positions, positions.bfloat16().float())
