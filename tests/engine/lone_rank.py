"""Run by test_lone_rank: updates of one process as DeepSpeed makes them, and without what a lone rank can leave out."""

import json
from typing import Any

import torch
from torch import nn

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.engine.deepspeed import ds_engine

CASES = {"plain": 0.0, "clipped": 0.1}
NOT_FINITE_AT = 2


def weights(clip_grad_norm: float) -> dict[str, Any]:
    """After each update, with two micro-batches each; the gradient of one update is not finite."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 64), nn.LayerNorm(64), nn.Linear(64, 5))
    config = resolve_student(find_ds_config("student_zero2_fp32"), plan_batch(8, 4, 1), clip_grad_norm)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=True)
    engine = ds_engine.build_student(module, optimizer, lambda step: 1.0, config)
    inputs = torch.randn(4, 2, 4, 12)
    found, norms = [], []
    for step in range(4):
        for images in inputs[step]:
            loss = engine(images).square().mean()
            engine.backward(loss * (torch.inf if step == NOT_FINITE_AT else 1.0))
            engine.step()
        found.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).tolist())
        norms.append(engine.gradient_norm())
    return {"weights": found, "norms": norms, "skipped": engine.skipped_steps}


def main() -> None:
    ds_engine.start(60)
    spared = {name: weights(clip) for name, clip in CASES.items()}
    ds_engine.averages_with_nobody = lambda config, world_size: False
    by_deepspeed = {name: weights(clip) for name, clip in CASES.items()}
    print("FACTS " + json.dumps({"spared": spared, "by deepspeed": by_deepspeed}))
    ds_engine.stop()


if __name__ == "__main__":
    main()
