"""What the trainer costs beside the bare forward, backward and step of the same modules in the same process.

    python benchmarks/bench_trainer.py                       # three ViT-B teachers, ViT-T student, batch 8
    python benchmarks/bench_trainer.py --batch 256 --rounds 9 --steps 16 --workers 8      # on a GPU
    python benchmarks/bench_trainer.py --steps 14 --workers 14 --pictures 256 --compile   # fed with JPEG files

Bare: uint8 images that lie on the device, teachers, sum, student, both losses, backward, DeepSpeed's step. In memory:
the trainer on that batch, which adds jitter, agreement between ranks, meters, watchdog. Trainer: the loader, too, of
digits scaled up or of JPEG files. None of these is a log step, at which the host waits for what was measured; steps in
memory that all are log steps come beside them. What one costs more, spread over the usual `train.log_every_steps`, is
added to the trainer's time in the last row. Writing the record is not in it.

Loader processes that can't keep up give their batches in bursts of one each: let `--steps` be a multiple of
`--workers`.
"""

import argparse
import tempfile
from dataclasses import replace
from itertools import repeat
from pathlib import Path

import harness
import torch
from harness import Report, Spread
from ours import build_trainer, log_step, make_teachers, settle, teachers_section
from pictures import make_pictures

from dmt_ds.commands.training.tasks import build_task
from dmt_ds.config.schema import DataConfig, RunConfig, StudentConfig
from dmt_ds.config.tracking import TrackingConfig
from dmt_ds.config.train import TrainConfig
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.trainer import Trainer


def bare_step(trainer: Trainer, images: torch.Tensor, seeds: torch.Tensor, pixels: torch.Tensor) -> None:
    """The modules alone, in the order in which the task calls them."""
    task, engine = trainer.learners[0].task, trainer.learners[0].engine
    with torch.no_grad():
        targets = task._teachers._fusion(task._teachers._tokens(images, None))
    losses = task._objective(engine(pixels, seeds), targets)
    engine.backward(losses.total)
    nothing = torch.zeros((), device=images.device)
    engine.prepare_update(nothing > 0, nothing)
    engine.step()


def measure(trainer: Trainer, options: argparse.Namespace, device: torch.device) -> dict[str, list[float]]:
    """Seconds a step of each."""
    batches = trainer.batches()
    made = next(trainer.batches())
    batch = replace(made.to(device), indices=made.indices, labels=made.labels)  # of which the trainer reads some
    pixels = trainer.learners[0].task._augment(batch.images, batch.seeds)
    trainer.learners[0].start()
    sides = {
        "bare": lambda: bare_step(trainer, batch.images, batch.seeds, pixels),
        "in memory": lambda: trainer.update(repeat(batch)),
        "in memory, log steps": lambda: log_step(trainer, repeat(batch)),
        "trainer": lambda: trainer.update(batches),
    }
    for act in sides.values():
        act()  # compiles
    # Steps come in a row in training; the first after another side's finds its memory scattered, and its loader ahead.
    before = sides | {"trainer": lambda: settle(sides["trainer"], batches, options.workers)}
    with harness.turn():
        return harness.alternate(sides, options.rounds, options.steps, device, before=before)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = harness.parser(__doc__, rounds=7, steps=10 if on_gpu else 1)
    parser.add_argument("--teacher", default="vit_base")
    parser.add_argument("--teachers", type=int, default=3)
    parser.add_argument("--student", default="vit_tiny")
    parser.add_argument("--batch", type=int, default=256 if on_gpu else 8)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=on_gpu)
    parser.add_argument("--pictures", type=int, default=0, help="JPEG files to read; 0 reads digits scaled up")
    parser.add_argument("--compile", action="store_true", help="student and teachers")
    options = parser.parse_args()
    device = ds_engine.start(600)
    harness.start(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_teachers(folder, options.teacher, options.teachers, options.image_size)
        teachers = teachers_section(models, bf16=options.bf16)
        config = RunConfig(
            data=data_section(folder, options),
            teachers=teachers.model_copy(update={"compile": options.compile}),
            student=StudentConfig(arch=options.student),
            train=TrainConfig(
                global_batch_size=options.batch,
                micro_batch_size=options.batch,
                deepspeed="student_zero2_bf16" if options.bf16 else "student_zero2_fp32",
                compile=options.compile,
            ),
            tracking=TrackingConfig(enabled=False),
        )
        trainer = build_trainer(config, [build_task(config, device).task], folder, device)
        times = measure(trainer, options, device)
    make_report(times, options, device).publish(options)
    ds_engine.stop()


def data_section(folder: Path, options: argparse.Namespace) -> DataConfig:
    section = DataConfig(image_size=options.image_size, num_workers=options.workers)
    if not options.pictures:
        return section
    make_pictures(folder / "pictures", options.pictures)
    return section.model_copy(update={"source": "folder", "path": str(folder / "pictures")})


def make_report(times: dict[str, list[float]], options: argparse.Namespace, device: torch.device) -> Report:
    names = ("student", "teacher", "teachers", "batch", "image_size", "workers", "pictures", "compile", "bf16")
    setting = {name: getattr(options, name) for name in (*names, "rounds", "steps")}
    fed = "_pictures" if options.pictures else ""
    title = f"The trainer beside bare steps, student {options.student}"
    report = Report(f"trainer_{options.student}{fed}_{harness.device_slug(device)}", title, setting)
    for name, seconds in times.items():
        report.rows.append({"": name, "s a step": Spread.of(seconds).text(1, 4)})
    more = [logged - plain for logged, plain in zip(times["in memory, log steps"], times["in memory"], strict=True)]
    report.rows.append({"": "a log step more than a plain one", "s a step": Spread.of(more).text(1, 4)})
    interval = TrainConfig().log_every_steps
    with_log = f"trainer with a log step in {interval}"
    sides = times | {with_log: [step + one / interval for step, one in zip(times["trainer"], more, strict=True)]}
    for name, base in (("in memory", "bare"), ("trainer", "bare"), ("trainer", "in memory"), (with_log, "bare")):
        percents = Spread(*(100 * (value - 1) for value in harness.ratios(sides[name], sides[base])))
        report.rows.append({"": f"{name} over {base}", "s a step": f"{percents.text(1, 1)} %"})
        report.metrics[f"{name} over {base}, percent".replace(" ", "_").replace(",", "")] = percents.median
    report.raw = {"seconds": times}
    report.notes = [
        f"Times are {'CPU' if device.type == 'cpu' else 'wall'} seconds: medians and ranges of the rounds.",
        f"The last row has 1/{interval} of what a log step costs more in each step; writing the record is not in it.",
    ]
    return report


if __name__ == "__main__":
    main()
