"""Run by test_part_gradients: what can be read of averaged gradients in DeepSpeed's buffers and in ours."""

import json
from typing import Any

import torch
from torch import nn

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import bucket_reduction, ds_engine, part_gradients

KINDS = {"plain": (0.0, False), "clipped": (0.1, False), "left out on the device": (0.0, True)}
made: list[int] = []
"""Of how many gradients views were made."""


def updates(clip_grad_norm: float, fused: bool, reads: bool) -> dict[str, Any]:
    """Three, on each rank: gradients as anybody reads them, norms, and weights at the end."""
    from deepspeed.utils import safe_get_full_grad

    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 63), nn.LayerNorm(63), nn.Linear(63, 5))
    config = resolve_student(
        find_ds_config("student_zero2_bf16"), plan_batch(4 * dist.world_size(), 4, dist.world_size()), clip_grad_norm
    )
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, fused=fused)
    engine = ds_engine.build_student(module, optimizer, lambda step: 1.0, config)
    generator = torch.Generator().manual_seed(dist.rank())
    gradients, norms = [], []
    for _ in range(3):
        numbers = torch.randn(4, 12, generator=generator).bfloat16()
        engine.backward(engine(numbers).float().square().mean())
        if reads:
            gradients.append([safe_get_full_grad(parameter).flatten().tolist() for parameter in module.parameters()])
        engine.step()
        norms.append(engine.gradient_norm())
    weights = {name: value.flatten().tolist() for name, value in engine.trained_state().items()}
    return {"gradients": gradients, "norms": norms, "weights": weights}


def main() -> None:
    ds_engine.start(60)
    views = part_gradients.PartGradients._views.func  # type: ignore[attr-defined]

    def noted(gradients: part_gradients.PartGradients) -> list[torch.Tensor]:
        made.append(len(gradients))
        return views(gradients)

    part_gradients.PartGradients._views.func = noted  # type: ignore[attr-defined]
    facts: dict[str, Any] = {"ours": {kind: updates(*case, reads=True) for kind, case in KINDS.items()}}
    facts["made where they are read"] = len(made)
    made.clear()
    updates(*KINDS["left out on the device"], reads=False)
    facts["made where nobody reads"] = len(made)
    bucket_reduction.views_on_demand = lambda zero: None
    facts["deepspeed's"] = {kind: updates(*case, reads=True) for kind, case in KINDS.items()}
    if dist.is_main():
        print("FACTS " + json.dumps(facts))
    ds_engine.stop()


if __name__ == "__main__":
    main()
