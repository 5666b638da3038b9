"""`dmt-ds quickstart`: the whole path on real images in minutes: make three teachers, distil them, measure, show.

The digits are small and easy: raw pixels win there. It shows the machine at work, not the method's worth.
"""

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from dmt_ds.commands.knn import PIXELS, KnnTable, add_to_run, run_knn
from dmt_ds.config.load import load_config
from dmt_ds.config.schema import RunConfig
from dmt_ds.engine.checkpoint import DONE
from dmt_ds.errors import DmtError
from dmt_ds.models.teachers import TeacherModel, TeacherRecord
from dmt_ds.models.vit import build_vit, describe

logger = logging.getLogger(__name__)

TEACHERS = ("mae", "moco_v3", "ibot")
STUDENT = "dmt"
SECONDS_BETWEEN_LINES = 10.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """One training run in processes of its own."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    processes: int


def run(output: Path, processes: int, say: Say) -> KnnTable:
    """Train, distil, measure; a stage that an earlier call finished is not run again.

    Args:
        output: folder of the four runs, the MLflow store and the pictures.
        processes: ranks of the distillation; the teachers are made on one.
        say: takes a line for the person who waits.
    """
    output = output.absolute()
    output.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    stages = _stages(output, processes)
    for number, stage in enumerate(stages, start=1):
        _run_stage(stage, output, f"[{number}/{len(stages) + 1}]", say)
    say(f"[{len(stages) + 1}/{len(stages) + 1}] k-NN on 360 digits that nobody trained on")
    table = _measure(output, stages)
    say(f"\n{table}\n")
    say(_closing(output, time.monotonic() - started))
    return table


def _stages(output: Path, processes: int) -> list[Stage]:
    store = f"tracking.uri=sqlite:///{output / 'mlflow.db'}"

    def overrides(name: str) -> tuple[str, ...]:
        return (f"output_dir={output / name}", store, "tracking.experiment=quickstart")

    sources = tuple(f"teachers.models.{name}.source={output / name}" for name in TEACHERS)
    makers = [Stage(name, f"quickstart_{name}", overrides(name), 1) for name in TEACHERS]
    batch = load_config("quickstart").train.global_batch_size
    share = f"train.micro_batch_size={max(1, batch // processes)}"
    return [*makers, Stage(STUDENT, "quickstart", (*overrides(STUDENT), *sources, share), processes)]


def _run_stage(stage: Stage, output: Path, position: str, say: Say) -> None:
    folder = output / stage.name
    what = f"teacher {stage.name}" if stage.name in TEACHERS else f"student from {', '.join(TEACHERS)}"
    if (folder / DONE).exists():
        say(f"{position} {what}: done before, kept ({folder})")
        return
    say(f"{position} {what}: training on {stage.processes} process{'es' if stage.processes > 1 else ''} ...")
    started = time.monotonic()
    folder.mkdir(exist_ok=True)
    log = folder / "output.log"
    with log.open("a") as out:
        process = subprocess.Popen(_command(stage), stdout=out, stderr=out, env=_environment())
        code = _wait(process, folder / "train.log", say)
    if code != 0:
        lines = log.read_text().strip().splitlines()
        errors = [line for line in lines if "error:" in line] or lines[-3:]
        raise DmtError(
            f"quickstart: {what} ended with code {code}; the whole output is in {log}\n" + "\n".join(errors[-3:])
        )
    say(f"      done in {time.monotonic() - started:.0f} s; log: {folder / 'train.log'}")


def _wait(process: subprocess.Popen[bytes], log: Path, say: Say) -> int:
    """Exit code of a stage; its newest step is shown every few seconds. Ctrl-C reaches the stage too, which saves."""
    while True:
        try:
            return process.wait(SECONDS_BETWEEN_LINES)
        except subprocess.TimeoutExpired:
            steps = [line for line in log.read_text().splitlines() if " step " in line] if log.exists() else []
            if steps:
                say(f"      {steps[-1].split(' INFO ')[-1][:100]}")


def _command(stage: Stage) -> list[str]:
    program: Sequence[str] = ("-m", "dmt_ds", "pretrain", "-c", stage.recipe, *stage.overrides)
    if stage.processes == 1:
        return [sys.executable, *program]
    launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={stage.processes}")
    return [sys.executable, *launcher, *program]


def _environment() -> Mapping[str, str]:
    """On the CPU wherever it runs, one thread a process: two ranks would share a laptop's GPU, which NCCL refuses."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return {**os.environ, "OMP_NUM_THREADS": threads, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def _measure(output: Path, stages: Sequence[Stage]) -> KnnTable:
    configs = {stage.name: load_config(stage.recipe, stage.overrides) for stage in stages}
    student = configs[STUDENT]
    encoders: dict[str, str | torch.nn.Module] = {"raw pixels": PIXELS}
    encoders |= {f"teacher {name}": str(output / name) for name in TEACHERS}
    encoders |= {"student, untrained": _untrained(student), "student, distilled": str(output / STUDENT)}
    table = run_knn(student.data, student.knn, encoders, torch.device("cpu"))
    folders = {f"teacher {name}": output / name for name in TEACHERS} | {"student, distilled": output / STUDENT}
    for row in table.rows:
        if row.encoder in folders:
            add_to_run(folders[row.encoder], row.scores)
    (output / "results.txt").write_text(f"{table}\n")
    return table


def _untrained(config: RunConfig) -> torch.nn.Module:
    """The student as it was before its first step."""
    torch.manual_seed(config.seed)
    vit = build_vit(config.student, config.data.image_size)
    record = TeacherRecord("untrained", "dmt_ds", describe(vit), config.augment.mean, config.augment.std)
    return TeacherModel(vit, record)


def _closing(output: Path, seconds: float) -> str:
    store = f"sqlite:///{output / 'mlflow.db'}"
    pictures = output / STUDENT / "pictures"
    mlflow = Path(sys.executable).with_name("mlflow")
    return "\n".join(
        [
            "Digits are easy: raw pixels score highest, above every teacher. This shows the machine at work, not the",
            "method's worth; for that, distil real teachers on photographs (README, Recipes).",
            "",
            f"Done in {seconds:.0f} s. The table: {output / 'results.txt'}",
            f"Pictures: {pictures / 'losses.png'} and {pictures / 'tokens.png'}",
            f"The runs in MLflow: {mlflow} server --backend-store-uri {store} --port 5000",
            "then open http://127.0.0.1:5000",
        ]
    )
