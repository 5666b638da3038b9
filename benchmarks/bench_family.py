"""Several students in one run, which share one pass of the teachers, against a run for each.

    python benchmarks/bench_family.py                        # blocks cut to 4 of 12, batch 4 in float32, on a CPU
    python benchmarks/bench_family.py --compile             # whole depth, batch 256, on a GPU

Both sides are this project's trainer, loader included, from the same weights; before any time is taken, each student's
first losses must be those of its run alone, on a CPU bit for bit. Teachers and students are cut to the same number of
blocks, so that the shares of their operations are those of the whole models. Loader processes that can't keep up give
their batches in bursts of one each: let `--steps` be a multiple of `--workers`.
"""

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path

import harness
import torch
from harness import Report, Spread
from ours import build_trainer, log_step, make_teachers, settle, teachers_section

from dmt_ds.commands.training.tasks import build_task, build_tasks
from dmt_ds.config.schema import DataConfig, FamilyMember, RunConfig, StudentConfig
from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.config.train import TrainConfig
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.trainer import Trainer
from dmt_ds.tracking.tracker import NullTracker

TOGETHER = "all in one run"
ROUNDING = 1e-3
"""Of losses after an update in bf16, whose kernels add up in no fixed order on a GPU."""


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = harness.parser(__doc__, rounds=7, steps=8 if on_gpu else 1)
    parser.add_argument("--students", nargs="+", default=["vit_tiny", "vit_small", "vit_base"])
    parser.add_argument("--teacher", default="vit_base")
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--depth", type=int, default=12 if on_gpu else 4, help="blocks of teachers and students")
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=8 if on_gpu else 0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=on_gpu)
    parser.add_argument("--compile", action="store_true", help="students and teachers")
    options = parser.parse_args()
    device = ds_engine.start(600)
    harness.start(options)
    with tempfile.TemporaryDirectory() as name:
        trainers = build(options, Path(name), device)
        difference = check_losses(trainers, device)
        times = measure(trainers, options, device)
    make_report(times, difference, options, device).publish(options)
    ds_engine.stop()


def build(options: argparse.Namespace, folder: Path, device: torch.device) -> dict[str, Trainer]:
    """The family's trainer, and one for each student alone."""
    models = make_teachers(folder, options.teacher, options.teachers, options.image_size, options.depth)
    config = RunConfig(
        data=DataConfig(image_size=options.image_size, num_workers=options.workers),
        teachers=teachers_section(models, bf16=options.bf16).model_copy(update={"compile": options.compile}),
        family={arch: FamilyMember(student=StudentConfig(arch=arch, depth=options.depth)) for arch in options.students},
        train=TrainConfig(
            global_batch_size=options.batch,
            micro_batch_size=options.batch,
            deepspeed="student_zero2_bf16" if options.bf16 else "student_zero2_fp32",
            compile=options.compile,
        ),
        tracking=TrackingConfig(enabled=False),
    )
    members = config.students()
    together = [built.task for built in build_tasks(list(members.values()), device)]
    trainers = {TOGETHER: build_trainer(config, together, folder, device)}
    for name, member in members.items():
        trainers[name] = build_trainer(member, [build_task(member, device).task], folder, device)
    return trainers


class Losses(NullTracker):
    """Keeps the losses that are logged."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self.values.append(metrics["train/loss"])


def check_losses(trainers: dict[str, Trainer], device: torch.device) -> float:
    """Two updates of each, whose losses must not depend on the company: their largest relative difference.

    Raises:
        SystemExit: they do.
    """
    losses: dict[str, list[list[float]]] = {}
    for name, trainer in trainers.items():
        for learner in trainer.learners:
            learner.start()
            learner.tracker = Losses()
        batches = trainer.batches()
        for _ in range(2):
            log_step(trainer, batches)
        losses[name] = [learner.tracker.values for learner in trainer.learners]  # type: ignore[attr-defined]
    alone = torch.tensor([of_run[0] for name, of_run in losses.items() if name != TOGETHER])
    difference = (torch.tensor(losses[TOGETHER]) / alone - 1).abs().max().item()
    if difference > (0 if device.type == "cpu" else ROUNDING):
        raise SystemExit(f"losses depend on the company, by {difference:.1e}: {losses}")
    return difference


def measure(trainers: dict[str, Trainer], options: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    """Seconds a step of each."""
    batches = {name: trainer.batches() for name, trainer in trainers.items()}
    sides = {name: lambda name=name: trainers[name].update(batches[name]) for name in trainers}  # type: ignore[misc]
    before = {
        name: lambda name=name: settle(sides[name], batches[name], options.workers)  # type: ignore[misc]
        for name in trainers
    }
    with harness.turn():
        return harness.alternate(sides, options.rounds, options.steps, device, before=before)


def make_report(
    times: dict[str, list[float]], difference: float, options: argparse.Namespace, device: torch.device
) -> Report:
    together = times.pop(TOGETHER)
    apart = [sum(of_round) for of_round in zip(*times.values(), strict=True)]
    shares = Spread.of([one / three for one, three in zip(together, apart, strict=True)])
    names = (
        "students",
        "teacher",
        "teachers",
        "depth",
        "batch",
        "image_size",
        "workers",
        "bf16",
        "compile",
        "rounds",
        "steps",
    )
    report = Report(
        f"family_{harness.device_slug(device)}",
        "Students that share one pass of the teachers, and a run for each",
        {name: getattr(options, name) for name in names} | {"students": " + ".join(options.students)},
    )
    sides = {**times, f"{len(times)} runs": apart, TOGETHER: together}
    report.rows = [{"": name, "s a step": Spread.of(seconds).text(1, 3)} for name, seconds in sides.items()]
    report.rows.append({"": "one run over all runs", "s a step": shares.text()})
    report.metrics = {"share_of_time": shares.median}
    report.raw = {"seconds": {**times, TOGETHER: together}}
    report.notes = [
        f"Times are {'CPU' if device.type == 'cpu' else 'wall'} seconds: medians and ranges of the rounds.",
        f"Before times were taken, each student's losses were those of its run alone, within {difference:.0e}.",
    ]
    return report


if __name__ == "__main__":
    main()
