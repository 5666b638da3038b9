"""What the trainer costs beside the bare forward, backward and step of the same modules in the same process.

    python benchmarks/trainer_overhead.py                       # three ViT-B teachers, ViT-T student, batch 8
    python benchmarks/trainer_overhead.py --batch 256 --rounds 9 --steps 20      # on a GPU

Bare: uint8 images that lie on the device, teachers, sum, student, both losses, backward, DeepSpeed's step. Trainer: the
same plus loader, jitter, sampler, agreement between ranks, meters, watchdog. Rounds alternate; medians and ranges are
printed, and nothing is asserted: machines are noisy. Augmentation counts for the trainer, not for the bare loop. On a
CPU the times are the process's CPU seconds, which other programs on the machine disturb less.
"""

import argparse
import datetime
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dmt_ds.commands.tasks import build_task
from dmt_ds.config.batch import plan_batch
from dmt_ds.config.deepspeed import find_ds_config, resolve_student
from dmt_ds.config.schema import (
    DataConfig,
    OptimConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
    TeachersConfig,
    TrackingConfig,
    TrainConfig,
)
from dmt_ds.data.loader import TrainLoader
from dmt_ds.data.sampling import SampleStream
from dmt_ds.data.sources import open_source
from dmt_ds.engine import dist, ds_engine
from dmt_ds.engine.checkpoint import CheckpointFolder, RunState
from dmt_ds.engine.learner import Learner
from dmt_ds.engine.optim import build_optimizer
from dmt_ds.engine.peers import Peers
from dmt_ds.engine.progress import ProgressView
from dmt_ds.engine.stopping import StopRequest, Watchdog
from dmt_ds.engine.trainer import Surroundings, Trainer, TrainPlan
from dmt_ds.models.backbone_folder import save_backbone
from dmt_ds.models.vit import build_vit
from dmt_ds.tracking.tracker import NullTracker


def make_teachers(folder: Path, arch: str, count: int, image_size: int) -> TeachersConfig:
    """Random weights: time does not depend on their values."""
    section = StudentConfig(arch=arch, drop_path=0.0)
    models = {}
    for number in range(count):
        torch.manual_seed(number)
        path = folder / f"teacher{number}"
        state = build_vit(section, image_size).state_dict()
        save_backbone(path, state, section, image_size, provenance={"task": "random", "teachers": {}})
        models[f"teacher{number}"] = TeacherConfig(source=str(path))
    return TeachersConfig(models=models)


def build(config: RunConfig, folder: Path, device: torch.device) -> tuple[Trainer, RunConfig]:
    """A trainer over the digits, scaled up to the image size."""
    built = build_task(config, device)
    batch = plan_batch(config.train.global_batch_size, config.train.micro_batch_size, dist.world_size())
    ds_config = resolve_student(find_ds_config(config.train.deepspeed), batch, 0.0)
    optimizer = build_optimizer(built.task.module, config.optim, 256, fused=device.type == "cuda")
    engine = ds_engine.build_student(built.task.module, optimizer, lambda step: 1.0, ds_config)
    source = open_source(config.data, "train")
    loader = TrainLoader(
        source,
        SampleStream(len(source), 0),
        built.task.crops(config.data),
        run_seed=0,
        micro_batch_size=config.train.micro_batch_size,
        rank=dist.rank(),
        world_size=dist.world_size(),
        num_workers=config.data.num_workers,
        pin_memory=device.type == "cuda",
    )
    plan = TrainPlan(10**6, config.train.global_batch_size, batch.grad_accum_steps, 20, 10**6)
    view = ProgressView("benchmark", 1, visible=False)
    around = Surroundings(view, StopRequest(), Watchdog(1e6, 0, Peers()), source.name)

    def no_record(step: int) -> RunState:
        return RunState(step, 0, 1, 2, "bf16", {})

    def no_export(engine: ds_engine.StudentEngine, folder: Path, step: int) -> None:
        return

    learner = Learner(built.task, engine, CheckpointFolder(folder, 1), no_record, no_export, NullTracker())
    return Trainer([learner], loader, plan, around), config


def bare_step(trainer: Trainer, images: torch.Tensor, seeds: torch.Tensor, pixels: torch.Tensor) -> None:
    """The modules alone, in the order in which the task calls them."""
    task, engine = trainer.learners[0].task, trainer.learners[0].engine
    with torch.no_grad():
        targets = task._teachers._fusion(task._teachers._tokens(images, None))
    losses = task._objective(engine(pixels, seeds), targets)
    engine.backward(losses.total)
    engine.step()


def seconds(act: Callable[[], None], steps: int, device: torch.device) -> float:
    """Mean time of a step: the process's CPU time on a CPU that others use too, else that of the wall."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    for _ in range(steps):
        act()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return (clock() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="vit_base")
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--student", default="vit_tiny")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=1, help="steps a round")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    device = ds_engine.start(600)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = RunConfig(
            data=DataConfig(image_size=options.image_size, num_workers=options.workers),
            teachers=make_teachers(folder, options.teacher, options.teachers, options.image_size),
            student=StudentConfig(arch=options.student),
            optim=OptimConfig(),
            train=TrainConfig(global_batch_size=options.batch * dist.world_size(), micro_batch_size=options.batch),
            tracking=TrackingConfig(enabled=False),
        )
        trainer, _ = build(config, folder, device)
        measure(trainer, options, device)


def measure(trainer: Trainer, options: argparse.Namespace, device: torch.device) -> None:
    """Alternate, and print."""
    batches = trainer.batches()
    batch = next(trainer.batches()).to(device)
    pixels = trainer.learners[0].task._augment(batch.images, batch.seeds)
    trainer.learners[0].start()

    def bare() -> None:
        bare_step(trainer, batch.images, batch.seeds, pixels)

    def whole() -> None:
        trainer.update(batches)

    seconds(bare, 1, device), seconds(whole, 1, device)
    times = [
        (seconds(bare, options.steps, device), seconds(whole, options.steps, device)) for _ in range(options.rounds)
    ]
    ratios = [trained / plain for plain, trained in times]
    figures = {
        "date": datetime.date.today().isoformat(),
        "bare_seconds": [plain for plain, _ in times],
        "trainer_seconds": [trained for _, trained in times],
        "overhead_median": statistics.median(ratios) - 1,
        "overhead_range": [min(ratios) - 1, max(ratios) - 1],
        "setting": {k: str(v) for k, v in vars(options).items() if k != "json"},
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
    }
    if dist.is_main():
        print(f"bare     {statistics.median(figures['bare_seconds']):.4f} s a step (median of {len(times)} rounds)")
        print(f"trainer  {statistics.median(figures['trainer_seconds']):.4f} s a step")
        low, high = figures["overhead_range"]
        print(f"overhead {100 * figures['overhead_median']:.1f} % (median; {100 * low:.1f} to {100 * high:.1f})")
        if options.json:
            options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
