"""Run by test_repeated_work: how often DeepSpeed makes weights views of their flat group, and where they are then."""

import json
from typing import Any

import torch
from torch import nn

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine

JSONS = ["student_zero2_bf16", "student_zero2_fp32"]
made: list[int] = []
"""Groups whose weights were made views."""


def run(json_name: str, moves: bool) -> dict[str, Any]:
    """Weights after each of three updates; after the first they may be moved away, one of them or all."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 63), nn.LayerNorm(63), nn.Linear(63, 5))
    config = resolve_student(
        find_ds_config(json_name), plan_batch(4 * dist.world_size(), 4, dist.world_size()), clip_grad_norm=0.0
    )
    groups = [{"params": [p for p in module.parameters() if (p.ndim == 2) == matrices]} for matrices in (True, False)]
    engine = ds_engine.build_student(module, torch.optim.AdamW(groups, lr=1e-2), lambda step: 1.0, config)
    zero = engine._engine.optimizer
    generator = torch.Generator().manual_seed(dist.rank())
    weights, in_place = [], []
    made.clear()
    for step in range(3):
        numbers = torch.randn(4, 12, generator=generator).to(module[0].weight.dtype)
        engine.backward(engine(numbers).float().square().mean())
        if moves and step < 2:
            weight = module[2 - 2 * step].weight  # the last matrix, then the first
            weight.data = weight.data.clone()
        engine.step()
        if moves and step == 1:
            engine._engine.offload_states(include=["lp_params"], pin_memory=False)
            engine._engine.reload_states()
        weights.append(torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).tolist())
        flat = [group.untyped_storage().data_ptr() for group in zero.bit16_groups_flat]
        in_place.append(all(p.untyped_storage().data_ptr() in flat for p in module.parameters()))
    return {"weights": weights, "in place": in_place, "made": list(made)}


def noting(engine: Any) -> None:
    """Between DeepSpeed's own way and what takes its place."""
    zero = engine.optimizer
    make_views = zero._update_model_bit16_weights

    def noted(group: int) -> None:
        made.append(group)
        make_views(group)

    zero._update_model_bit16_weights = noted


def main() -> None:
    ds_engine.start(60)
    keep_in_place = ds_engine.keep_weights_in_place

    def noting_keep(engine: Any) -> None:
        noting(engine)
        keep_in_place(engine)

    ds_engine.keep_weights_in_place = noting_keep
    facts: dict[str, Any] = {"ours": {name: run(name, moves=False) for name in JSONS}}
    facts["moved"] = run(JSONS[0], moves=True)
    ds_engine.keep_weights_in_place = noting
    facts["deepspeed's"] = {name: run(name, moves=False) for name in JSONS}
    if dist.is_main():
        print("FACTS " + json.dumps(facts))
    ds_engine.stop()


if __name__ == "__main__":
    main()
