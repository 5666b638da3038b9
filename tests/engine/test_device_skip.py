"""For which engines the device leaves unsound updates out; that it does so: `test_deferred_updates`."""

import pytest
import torch

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.engine.deepspeed.device_skip import can_skip


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
