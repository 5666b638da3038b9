"""Run by test_master_mean on two ranks: a bf16 engine's running mean beside loops over its masters and its weights.

python -m tests.downstream.mean_of_masters OUT
"""

import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.config.optim import OptimConfig
from dmt_ds.downstream.classification import ClassificationTask
from dmt_ds.engine import dist
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.deepspeed.ds_engine import StudentEngine
from dmt_ds.engine.optim import build_optimizer
from dmt_ds.engine.task import Progress
from tests.downstream import classified

EACH, STEPS, DECAY = 4, 6, 0.8


def start(zero_stage: int) -> tuple[ClassificationTask, StudentEngine]:
    of = classified.task(ema_decay=DECAY)
    optimizer = build_optimizer(of.module, OptimConfig(base_lr=0.05), 256, fused=False)
    batch = plan_batch(EACH * dist.world_size(), EACH, dist.world_size())
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "0.json").write_text("{}")  # no ZeRO, in float32
        name = f"student_zero{zero_stage}_bf16" if zero_stage else f"{folder}/0.json"
        config = resolve_student(find_ds_config(name), batch, 0.0)
    return of, ds_engine.build_student(of.module, optimizer, lambda step: 1.0, config)


def learn(of: ClassificationTask, engine: StudentEngine, step: int) -> None:
    whole = classified.digits_batch(of, EACH * dist.world_size(), epoch=step)
    own = classified.part(whole, slice(dist.rank() * EACH, (dist.rank() + 1) * EACH))
    engine.backward(of.losses(engine, own, Progress(step, STEPS), False).loss)
    engine.step()
    of.after_step(Progress(step + 1, STEPS))


def moved(average: dict[str, Tensor], weights: dict[str, Tensor], step: int) -> dict[str, Tensor]:
    decay = min(DECAY, step / (step + 9))
    return {name: decay * value + (1 - decay) * weights[name] for name, value in average.items()}


def train(zero_stage: int) -> dict[str, Any]:
    of, engine = start(zero_stage)
    first = {name: value.clone() for name, value in of.published.named_parameters() if name != "vit.pos_embed"}
    of_masters, of_weights = dict(first), dict(first)
    for step in range(STEPS):
        learn(of, engine, step)
        of_masters = moved(of_masters, engine.trained_state(), step + 1)
        of_weights = moved(of_weights, {k: v.float() for k, v in of.module.named_parameters()}, step + 1)
        if step + 1 == STEPS // 2:  # as a restart has it: nothing but the state is left
            of.load_state_dict({name: value.clone() for name, value in of.state_dict().items()})
    kind = next(of.module.parameters()).dtype
    judged = of.evaluated_models(engine)["ema_"](
        torch.ones(1, 3, 16, 16, dtype=kind), torch.zeros(1, dtype=torch.int64)
    )
    return {
        "found": {name: value.clone() for name, value in of.state_dict().items()},
        "first": first,
        "of masters": of_masters,
        "of weights": of_weights,
        "judged": judged,
        "published": of.published(torch.ones(1, 3, 16, 16), torch.zeros(1, dtype=torch.int64)).detach(),
        "type": str(kind),
    }


def main() -> None:
    torch.set_num_threads(1)
    ds_engine.start(120)
    facts = dist.gather_objects({stage: train(stage) for stage in (0, 1, 2)})
    if dist.is_main():
        torch.save(facts, sys.argv[1])
    ds_engine.stop()


if __name__ == "__main__":
    main()
