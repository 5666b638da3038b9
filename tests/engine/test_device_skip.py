"""For which engines the device leaves unsound updates out; that it does so: `test_deferred_updates`."""

from types import SimpleNamespace

import pytest
import torch

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.engine.deepspeed.device_skip import DeviceSkip, can_skip, without_own_check


@pytest.mark.parametrize(
    ("json_name", "clip_grad_norm", "fused", "skips"),
    [
        ("student_zero2_bf16", 0.0, True, True),
        ("student_zero2_bf16", 1.0, True, False),  # DeepSpeed clips by the norm that the skip would turn off
        ("student_zero2_bf16", 0.0, False, False),
        ("student_zero2_fp32", 0.0, True, False),
        ("student_zero1_bf16", 0.0, True, False),
        ("student_zero3_bf16", 0.0, True, False),
    ],
)
def test_only_a_fused_optimizer_of_zero2_in_bf16_without_clipping_or_offload_skips(
    json_name: str, clip_grad_norm: float, fused: bool, skips: bool
) -> None:
    config = resolve_student(find_ds_config(json_name), plan_batch(8, 8, 1), clip_grad_norm)
    optimizer = torch.optim.AdamW(torch.nn.Linear(2, 2).parameters(), fused=fused)
    assert can_skip(config, optimizer) is skips
    config["zero_optimization"]["offload_optimizer"] = {"device": "cpu"}
    assert not can_skip(config, optimizer)


def test_only_deepspeeds_look_at_the_gradient_is_turned_off() -> None:
    bf16 = {"enabled": True, "check_grad_overflow": True, "immediate_grad_update": True}
    config = {"bf16": bf16, "zero_optimization": {"stage": 2}}
    assert without_own_check(config) == {**config, "bf16": {**bf16, "check_grad_overflow": False}}
    assert config["bf16"]["check_grad_overflow"]


def test_the_norm_is_that_of_all_groups_in_float32_and_deepspeed_computes_none() -> None:
    """One group in one piece, of which nobody needs a view; one whose gradients lie apart, and lack one."""
    one_piece, apart = torch.full((1000,), 1.01).bfloat16(), torch.tensor([3.0, 4.0])
    zero = SimpleNamespace(
        compute_grad_norm=True,
        averaged_gradients={0: SimpleNamespace(flat_partition=one_piece), 1: [None, apart]},
    )
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    skip = DeviceSkip(SimpleNamespace(optimizer=zero), optimizer)
    assert zero.compute_grad_norm is False
    found = skip.squared_norm()
    assert found.dtype is torch.float32
    assert found.item() == pytest.approx(one_piece.double().square().sum().item() + 25, rel=1e-5)
    skip.arm(torch.tensor(True))
    assert optimizer.found_inf == 1
