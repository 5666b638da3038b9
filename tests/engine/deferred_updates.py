"""How training ends where the device leaves unsound updates out, as JSON.

test_deferred_updates runs it on two ranks, the tests on a GPU on one.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.config.optim import OptimConfig
from dmt_ds.data.batch import Batch
from dmt_ds.engine import dist
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder, RunState
from dmt_ds.engine.checkpoints.checkpoint_group import CheckpointGroup
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.learner import Learner
from dmt_ds.engine.optim import build_optimizer
from dmt_ds.engine.progress import ProgressView
from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.ranks.stopping import StopRequest, Watchdog
from dmt_ds.engine.task import Progress, StatelessTask, TaskLosses
from dmt_ds.engine.trainer import Surroundings, Trainer, TrainPlan
from dmt_ds.errors import DmtError
from dmt_ds.tracking.tracker import NullTracker

ACCUMULATION = 2
ZERO2 = {"zero_optimization": {"stage": 2}}


class Regression(StatelessTask):
    """Learns to give zeros; on the last rank something happens in one step."""

    def __init__(self, stop: StopRequest, happens: str = "nothing", at_step: int = 0) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(12, 8), nn.LayerNorm(8))
        self._stop, self._happens, self._at_step = stop, happens, at_step
        self.weights: list[list[float]] = []  # before each micro-step
        self.found: list[float] = []  # each micro-step's loss

    def losses(self, model: Any, batch: Batch, progress: Progress, diagnose: bool) -> TaskLosses:
        self.weights.append(self.module[0].weight.detach().float().flatten().tolist())
        tokens = model(batch.images.flatten(1).to(self.module[0].weight.dtype) / 255)
        loss = tokens.float().square().mean()
        if dist.rank() == dist.world_size() - 1 and progress.step + 1 == self._at_step:
            if "signal" in self._happens:
                self._stop._signal = 10
            if "unsound loss" in self._happens:
                loss = loss * torch.nan
            if "unsound gradient" in self._happens:
                loss = loss + (tokens.float() - tokens.detach().float()).sum().sqrt() * 0  # 0, with slope 0 * inf
        self.found.append(loss.item())
        return TaskLosses(loss, {})


class Images:
    """A loader of noise: an image a rank and micro-step."""

    num_workers, cores = 0, 1

    def batches(self, start_image: int, num_micro_steps: int, grad_accum_steps: int) -> Iterator[Batch]:
        for number in range(num_micro_steps):
            generator = torch.Generator().manual_seed(100 * number + dist.rank())
            image = torch.randint(0, 256, (1, 3, 2, 2), dtype=torch.uint8, generator=generator)
            row = torch.tensor([number])
            yield Batch((image,), row, row, row)


class Losses(NullTracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        self.points: dict[int, float] = {}
        self.norms: dict[int, float] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.points[step] = metrics["train/loss"]
        self.norms[step] = metrics["train/grad_norm"]


def train(
    fused: bool, happens: str = "nothing", at_step: int = 0, json_name: str = "student_zero2_bf16", **plan: int
) -> dict[str, Any]:
    """Eight steps of which every fifth is logged."""
    stop = StopRequest()
    task, losses = Regression(stop, happens, at_step), Losses()
    optimizer = build_optimizer(task.module, OptimConfig(base_lr=1.0), 2 * dist.world_size(), fused=fused)
    batch = plan_batch(ACCUMULATION * dist.world_size(), 1, dist.world_size())
    config = resolve_student(find_ds_config(json_name), batch, 0.0)
    engine = ds_engine.build_student(task.module, optimizer, lambda step: 1.0, config)
    lengths = {"total_steps": 8, "log_every_steps": 5, "save_every_steps": 100} | plan
    with tempfile.TemporaryDirectory() as name:
        folder = Path(dist.from_main(name))
        around = Surroundings(
            ProgressView("run", 8, visible=False), stop, Watchdog(600, dist.rank(), Peers()), "image {}".format
        )
        checkpoints = CheckpointFolder(folder, 2)
        learner = Learner(
            task,
            engine,
            checkpoints,
            lambda step: RunState(step, 0, dist.world_size(), 2, "bf16", {}),
            lambda engine, folder, step: None,
            losses,
        )
        trainer = Trainer(
            [learner],
            CheckpointGroup([checkpoints]),
            Images(),  # type: ignore[arg-type]
            TrainPlan(global_batch_size=batch.global_batch_size, grad_accum_steps=ACCUMULATION, **lengths),
            around,
        )
        error = None
        try:
            outcome = trainer.fit().name
        except DmtError as caught:
            outcome, error = "FAILED", str(caught)
        saved = sorted(path.name for path in folder.glob("step*"))
        dist.barrier()
    return {
        "outcome": outcome,
        "error": error,
        "steps_done": trainer.step,
        "saved": saved,
        "losses": losses.points,
        "own_losses": [task.found[step : step + ACCUMULATION] for step in range(0, len(task.found), ACCUMULATION)],
        "norms": losses.norms,
        "weights": task.weights[::ACCUMULATION],
        "last_weights": task.module[0].weight.detach().float().flatten().tolist(),
        "skips_on_device": engine.skips_on_device,
    }


def on_all_ranks(facts: dict[str, Any]) -> list[dict[str, Any]]:
    return dist.gather_objects(facts)


def main() -> None:
    torch.set_num_threads(1)
    ds_engine.start(120)
    with tempfile.TemporaryDirectory() as folder:
        stage_zero, unchecked = Path(folder) / "stage_zero.json", Path(folder) / "unchecked.json"
        stage_zero.write_text("{}")
        unchecked.write_text(json.dumps({"bf16": {"enabled": True, "check_grad_overflow": False}, **ZERO2}))
        at_stage_zero = train(False, "unsound gradient", 3, json_name=str(stage_zero))
        saved = train(False, "unsound gradient", 3, json_name=str(unchecked), save_every_steps=3)
        stopped = train(False, "unsound gradient and signal", 3, json_name=str(unchecked))
    facts = {
        "unsound gradient at stage 0": on_all_ranks(at_stage_zero),
        "unchecked, saved": on_all_ranks(saved),
        "unchecked, stopped": on_all_ranks(stopped),
        "at once": on_all_ranks(train(fused=False)),
        "deferred": on_all_ranks(train(fused=True)),
        "signal": on_all_ranks(train(True, "signal", 3)),
        "signal on a log step": on_all_ranks(train(True, "signal", 5)),
        "unsound loss": on_all_ranks(train(True, "unsound loss", 3)),
        "unsound loss before a save": on_all_ranks(train(True, "unsound loss", 3, save_every_steps=3)),
        "unsound gradient": on_all_ranks(train(True, "unsound gradient", 3)),
    }
    if dist.is_main():
        print("FACTS " + json.dumps(facts), flush=True)
    ds_engine.stop()


if __name__ == "__main__":
    main()
