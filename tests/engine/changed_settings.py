"""Run by test_changed_settings: what is in force after a restart whose recipe has other settings of the optimizer."""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.config.optim import OptimConfig
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.engine.deepspeed.own_settings import torch_optimizer
from dmt_ds.engine.optim import build_optimizer, learning_rate_schedule, weight_decay_schedule

BATCH, WARMUP, TOTAL = 256, 2, 10
BEFORE = OptimConfig(base_lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95), clip_grad_norm=0.0)
AFTER = OptimConfig(base_lr=1e-5, weight_decay=0.2, betas=(0.9, 0.999), clip_grad_norm=1.0)
TAG = "saved"


def build(section: OptimConfig, name: str, *, fused: bool, universal: bool = False) -> StudentEngine:
    """Two layers, whose rates differ where the section has a decay by layers."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(12, 16), nn.LayerNorm(16))
    layers = {parameter: int(parameter[0]) for parameter, _ in module.named_parameters()}
    config = resolve_student(find_ds_config(name), plan_batch(BATCH, BATCH, 1), section.clip_grad_norm)
    optimizer = build_optimizer(module, section, BATCH, fused=fused, layers=layers)
    schedule = learning_rate_schedule(section, BATCH, WARMUP, TOTAL)
    decay = weight_decay_schedule(section, TOTAL)
    return ds_engine.build_student(module, optimizer, schedule, config, decay=decay, universal=universal)


def update(engine: StudentEngine) -> None:
    dtype = next(engine.module.parameters()).dtype
    engine.backward(100 * engine(torch.randn(4, 12).to(dtype)).float().square().mean())
    squared_norm = engine.squared_gradient_norm()
    engine.prepare_update(~squared_norm.isfinite(), squared_norm)
    engine.step()


def in_force(engine: StudentEngine) -> dict[str, Any]:
    groups = torch_optimizer(engine._engine).param_groups
    return {
        "lr": [group["lr"] for group in groups],
        "weight_decay": [group["weight_decay"] for group in groups],
        "betas": [list(group.get("betas", ())) for group in groups],
        "fused": [group.get("fused") for group in groups],
        "momentum": [group.get("momentum") for group in groups],
        "updates": [
            float(state["step"]) for state in torch_optimizer(engine._engine).state.values() if "step" in state
        ],
        "clipping": getattr(engine._engine.optimizer, "clip_grad", engine._engine.gradient_clipping()),
    }


def facts_of(json_name: str, *, universal: bool = False, **optimizer: Any) -> dict[str, Any]:
    """Settings of a run that never stopped and had those of AFTER all the time, and of one that changed to them."""
    before, after = BEFORE.model_copy(update=optimizer), AFTER.model_copy(update=optimizer)
    with tempfile.TemporaryDirectory() as text:
        folder, tag = Path(text), TAG
        name = json_name
        if name == "stage 0":
            name = str(folder / "stage_zero.json")
            Path(name).write_text("{}")
        first = build(before, name, fused=False)
        for _ in range(3):
            update(first)
        first.save(folder, tag)
        if universal:
            tag = "universal"
            ds_engine.to_universal(folder / TAG, folder / tag)
        second = build(after, name, fused=True, universal=universal)
        second.load(folder, tag)
        whole = build(after, name, fused=True)
    loaded = second.trained_state()
    unchanged = all(torch.equal(loaded[key], value) for key, value in first.trained_state().items())
    for _ in range(3):
        update(whole)
    both = {"wanted": in_force(whole), "found": in_force(second), "weights as saved": unchanged}
    for engine in (second, whole):
        update(engine)
    return both | {"wanted later": in_force(whole), "found later": in_force(second)}


def main() -> None:
    ds_engine.start(60)
    names = ["student_zero2_bf16", "student_zero2_fp32", "student_zero1_bf16", "student_zero3_bf16"]
    facts = {name: facts_of(name) for name in names}
    facts["stage 0"] = facts_of("stage 0")
    facts["universal"] = facts_of("student_zero2_bf16", universal=True)
    facts["universal of stage 3"] = facts_of("student_zero3_bf16", universal=True)
    facts["sgd"] = facts_of("student_zero2_fp32", name="sgd", momentum=0.8)
    facts["rising decay"] = facts_of("student_zero2_bf16", weight_decay_end=0.4)
    facts["layers"] = facts_of("student_zero2_bf16", layer_decay=0.5)
    print("FACTS " + json.dumps(facts))
    ds_engine.stop()


if __name__ == "__main__":
    main()
