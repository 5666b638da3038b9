"""`dmt-ds quickstart`: the whole path on real images in minutes: make three teachers, distil them, measure, show.

The digits are small and easy: raw pixels win there. It shows the machine at work, not the method's worth.
"""

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dmt_ds.commands.child_command import Command, RunningCommand
from dmt_ds.commands.readouts.frozen_encoders import PIXELS
from dmt_ds.commands.readouts.frozen_protocol import ReadoutTable
from dmt_ds.commands.readouts.knn import run_knn
from dmt_ds.config.load import load_config
from dmt_ds.config.schema import RunConfig
from dmt_ds.errors import ConfigError, DmtError
from dmt_ds.models.encoders import EncoderRecord, FrozenEncoder
from dmt_ds.models.vit import build_vit, shape_of
from dmt_ds.run_files import DONE, LOG_FILE

logger = logging.getLogger(__name__)

TEACHERS = ("mae", "moco_v3", "ibot")
STUDENT = "dmt"
SECONDS_BETWEEN_LINES = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Training:
    """One training run in processes of its own."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    processes: int


def run(output: Path, processes: int, say: Say) -> ReadoutTable:
    """Train, distil, measure; a stage that an earlier call finished is not run again.

    Args:
        output: folder of the four runs, the MLflow store and the pictures.
        processes: ranks of the distillation; the teachers are made on one.
        say: takes a line for the person who waits.

    Raises:
        ConfigError: so many processes can't share a batch; nothing was trained.
        DmtError: a training failed.
    """
    _check_processes(processes)
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    trainings = _trainings(output, processes)
    for number, training in enumerate(trainings, start=1):
        _run_training(training, output, f"[{number}/{len(trainings) + 1}]", say)
    say(f"[{len(trainings) + 1}/{len(trainings) + 1}] k-NN on 360 digits that were not trained on")
    table = _measure(output, trainings)
    say(f"\n{table}\n")
    say(_closing(output, time.monotonic() - started))
    return table


def _trainings(output: Path, processes: int) -> list[Training]:
    store = f"tracking.uri=sqlite:///{output / 'mlflow.db'}"

    def overrides(name: str) -> tuple[str, ...]:
        return (f"output_dir={output / name}", store, "tracking.experiment=quickstart")

    sources = tuple(f"teachers.models.{name}.source={output / name}" for name in TEACHERS)
    makers = [Training(name, f"quickstart_{name}", overrides(name), 1) for name in TEACHERS]
    batch = load_config("quickstart").train.global_batch_size
    share = f"train.micro_batch_size={batch // processes}"
    return [*makers, Training(STUDENT, "quickstart", (*overrides(STUDENT), *sources, share), processes)]


def _check_processes(processes: int) -> None:
    """The student's batch, which nobody gave, is told before its teachers are made."""
    batch = load_config("quickstart").train.global_batch_size
    if batch % processes:
        fitting = ", ".join(str(number) for number in range(1, batch + 1) if batch % number == 0)
        raise ConfigError(
            f"--processes {processes}: can't share the {batch} images of an update evenly: take {fitting}"
        )


def _run_training(training: Training, output: Path, position: str, say: Say) -> None:
    folder = output / training.name
    what = f"teacher {training.name}" if training.name in TEACHERS else f"student from {', '.join(TEACHERS)}"
    if (folder / DONE).exists():
        say(f"{position} {what}: done before, kept ({folder})")
        return
    say(f"{position} {what}: training on {training.processes} process{'es' if training.processes > 1 else ''} ...")
    arguments = ("pretrain", "-c", training.recipe, *training.overrides)
    command = RunningCommand(Command(arguments, folder / "output.log", _environment(), training.processes))
    code = command.wait(SECONDS_BETWEEN_LINES, lambda: say_newest_step(folder / LOG_FILE, say))
    if code != 0:
        raise DmtError(
            f"quickstart: {what} ended with code {code}; the whole output is in {command.log}\n"
            + "\n".join(command.errors()[-3:])
        )
    say(f"      done in {command.seconds:.0f} s; log: {folder / 'train.log'}")


def say_newest_step(log: Path, say: Say) -> None:
    """How far a training is, as its log has it: step, loss and speed."""
    steps = [line for line in log.read_text().splitlines() if " step " in line] if log.exists() else []
    if steps:
        figures = steps[-1].split(" INFO ")[-1].split("  ")
        told = [figure for figure in figures if figure.startswith(("step ", "loss ", "images_per_second "))]
        say(f"      {'  '.join(told)}")


def _environment() -> Mapping[str, str]:
    """On the CPU wherever it runs, one thread a process: two ranks would share a laptop's GPU, which NCCL refuses."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return {**os.environ, "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def _measure(output: Path, trainings: Sequence[Training]) -> ReadoutTable:
    configs = {training.name: load_config(training.recipe, training.overrides) for training in trainings}
    student = configs[STUDENT]
    encoders: dict[str, str | torch.nn.Module] = {"raw pixels": PIXELS}
    encoders |= {f"teacher {name}": str(output / name) for name in TEACHERS}
    encoders |= {"student, untrained": _untrained(student), "student, distilled": str(output / STUDENT)}
    table = run_knn(student.data, student.knn, encoders, torch.device("cpu"))
    (output / "results.txt").write_text(f"{table}\n")
    return table


def _untrained(config: RunConfig) -> torch.nn.Module:
    """The student as it was before its first step."""
    torch.manual_seed(config.seed)
    vit = build_vit(config.student, config.data.image_size)
    record = EncoderRecord("untrained", "dmt_ds", shape_of(vit), config.augment.mean, config.augment.std)
    return FrozenEncoder(vit, record)


def _closing(output: Path, seconds: float) -> str:
    store = f"sqlite:///{output / 'mlflow.db'}"
    pictures = output / STUDENT / "pictures"
    mlflow = Path(sys.executable).with_name("mlflow")
    return "\n".join(
        [
            "Digits are easy: raw pixels score highest, above every teacher. This shows the system at work, not the",
            "method's worth; for that, distil real teachers on photographs (README, Distil real teachers).",
            "",
            f"Done in {seconds:.0f} s. The table: {output / 'results.txt'}",
            f"Pictures: {pictures / 'losses.png'} and {pictures / 'tokens.png'}",
            f"The runs in MLflow: {mlflow} server --backend-store-uri {store} --port 5000",
            "then open http://127.0.0.1:5000/#/experiments/1?workflowType=machine_learning",
        ]
    )
