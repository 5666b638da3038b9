"""Run by test_frozen_groups on every rank: how real engines move prototypes that are frozen at first."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.config.optim import OptimConfig
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.engine.optim import build_optimizer, learning_rate_schedule
from dmt_ds.engine.schedule import with_frozen_groups
from dmt_ds.methods.heads import PrototypeHead

OPTIM = OptimConfig(base_lr=1e-2, betas=(0.9, 0.999), weight_decay=0.1)
FROZEN, TOTAL, WARMUP, RATE_OF = 4, 8, 2, 256
FROZEN_UNTIL = {"prototypes": FROZEN / TOTAL}
RANKS = 2


def head() -> PrototypeHead:
    torch.manual_seed(0)
    return PrototypeHead(6, 8, 4, 12, batch_norm=False)


def rows(step: int, rank: int) -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(10 * step + rank))


def loss_of(logits: Tensor) -> Tensor:
    return -(10 * logits).log_softmax(dim=1)[:, :3].mean()


def schedule(step: int) -> float:
    return learning_rate_schedule(OPTIM, RATE_OF, WARMUP, TOTAL)(step)


def build(json_name: str, fused: bool, folder: Path) -> StudentEngine:
    if json_name == "stage 0":
        json_name = str(folder / "stage_zero.json")
        Path(json_name).write_text("{}")
    module = head()
    optimizer = build_optimizer(module, OPTIM, RATE_OF, fused=fused, frozen_until=FROZEN_UNTIL)
    config = resolve_student(find_ds_config(json_name), plan_batch(dist.world_size(), 1, dist.world_size()), 0.0)
    return ds_engine.build_student(module, optimizer, with_frozen_groups(optimizer, schedule, TOTAL), config)


def curve(json_name: str, fused: bool) -> list[list[float]]:
    """The prototypes at the start and after each step."""
    with tempfile.TemporaryDirectory() as folder:
        engine = build(json_name, fused, Path(folder))
    kind = next(engine.module.parameters()).dtype
    found = [engine.trained_state()["prototypes"].clone()]
    for step in range(TOTAL):
        engine.backward(loss_of(engine(rows(step, dist.rank()).to(kind))))
        squared_norm = dist.sum_over_ranks(engine.squared_gradient_norm())
        engine.prepare_update(~squared_norm.isfinite(), squared_norm)
        engine.step()
        found.append(engine.trained_state()["prototypes"].clone())
    return [values.flatten().tolist() for values in found]


def main() -> None:
    torch.set_num_threads(1)
    ds_engine.start(120)
    names = ["student_zero2_fp32", "student_zero2_bf16", "student_zero1_bf16", "student_zero3_bf16", "stage 0"]
    facts = {name: curve(name, fused=False) for name in names}
    facts["fused"] = curve("student_zero2_bf16", fused=True)
    if dist.is_main():
        sys.stdout.write("FACTS " + json.dumps(facts) + "\n")
    ds_engine.stop()


if __name__ == "__main__":
    main()
