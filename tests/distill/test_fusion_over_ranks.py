"""Centred fusion on real processes gives what one process gives."""

from pathlib import Path

import pytest
import torch
import torch.distributed as torch_dist

from dmt_ds.distill.fusion import TokenFusion
from tests import on_ranks

WEIGHTS = {"mae": 1.0, "ibot": 2.0}
SHARES_OF_IMAGES = ((0, 2), (2, 6))
"""Rows of each rank: not the same number, as at the end of an epoch."""


def run_steps(start: int, stop: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Three steps on some rows of each global batch of 6 images; the last step's target, and the means."""
    fusion = TokenFusion("centred", WEIGHTS, {"mae": False}, centring_momentum=0.8)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        tokens = {name: 4 + torch.randn(6, 5, 8, generator=generator) for name in WEIGHTS}
        fused = fusion((name, rows[start:stop]) for name, rows in tokens.items())["fused"]
        fusion.after_step()
    return fused, fusion.state_dict()


def steps_of_rank() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return run_steps(*SHARES_OF_IMAGES[torch_dist.get_rank()])


@pytest.mark.distributed
def test_centred_fusion_on_two_processes_gives_what_one_process_gives(tmp_path: Path) -> None:
    (fused_0, state_0), (fused_1, state_1) = on_ranks.answers(steps_of_rank, tmp_path)
    fused, state = run_steps(0, 6)
    torch.testing.assert_close(torch.cat([fused_0, fused_1]), fused, rtol=1e-6, atol=1e-6)
    for key, value in state.items():
        assert torch.equal(state_0[key], state_1[key])
        torch.testing.assert_close(state_0[key], value, rtol=1e-6, atol=1e-6)
