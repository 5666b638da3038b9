"""Run by test_bucket_reduction: masters after updates as DeepSpeed makes them, and with buckets nobody waits for."""

import json
from typing import Any

import torch
from torch import nn

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import bucket_reduction, ds_engine

MICRO_BATCH, ACCUMULATION = 4, 2
sent: list[int] = []
"""How many buckets were on their way when one more was."""


def masters() -> list[dict[str, list[float]]]:
    """After each of three updates: all parameters, in two groups that no bucket holds together."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 64), nn.LayerNorm(64), nn.Linear(64, 5))
    plan = plan_batch(MICRO_BATCH * ACCUMULATION * dist.world_size(), MICRO_BATCH, dist.world_size())
    config = resolve_student(find_ds_config("student_zero2_bf16"), plan, 0.0)
    config["zero_optimization"]["reduce_bucket_size"] = 900
    groups = [{"params": [p for p in module.parameters() if (p.ndim == 2) == matrices]} for matrices in (True, False)]
    engine = ds_engine.build_student(module, torch.optim.AdamW(groups, lr=1e-2), lambda step: 1.0, config)
    generator = torch.Generator().manual_seed(dist.rank())
    found = []
    for _ in range(3):
        for _ in range(ACCUMULATION):
            numbers = torch.randn(MICRO_BATCH, 12, generator=generator).bfloat16()
            engine.backward(engine(numbers).float().square().mean())
            engine.step()
        found.append({name: master.flatten().tolist() for name, master in engine.trained_state().items()})
    return found


def main() -> None:
    ds_engine.start(60)
    send = bucket_reduction.BucketReduction.send

    def noted(reduction: bucket_reduction.BucketReduction, *arguments: Any) -> None:
        send(reduction, *arguments)
        sent.append(len(reduction._sent))

    bucket_reduction.BucketReduction.send = noted
    facts = {"overlapping": masters(), "on their way": list(sent)}
    ds_engine.overlap_reduction = lambda engine: None
    facts |= {"by deepspeed": masters(), "sent of both": len(sent)}
    if dist.is_main():
        print("FACTS " + json.dumps(facts))
    ds_engine.stop()


if __name__ == "__main__":
    main()
