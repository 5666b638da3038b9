"""`dmt-ds judge`: scores of a run's model with its head on images of one's choice; trains nothing, builds no engine."""

import datetime
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dmt_ds.commands.annotations.annotated import Scene
from dmt_ds.commands.annotations.judged_run import draw_or_warn
from dmt_ds.commands.image_progress import ImageProgress
from dmt_ds.commands.output_files import refuse_earlier, written_whole
from dmt_ds.commands.readouts.frozen_encoders import named_images
from dmt_ds.commands.readouts.judge_source import JudgedModel, find_model_to_judge
from dmt_ds.commands.run_folder import add_to_run
from dmt_ds.commands.training.memory_remedies import what_to_lower
from dmt_ds.config.deepspeed import named_ds_config, precision
from dmt_ds.data.sources import ImageSource, left_out
from dmt_ds.engine import determinism, dist
from dmt_ds.engine.deepspeed import ds_engine
from dmt_ds.engine.ranks.memory_errors import explained
from dmt_ds.engine.ranks.peers import Peers
from dmt_ds.engine.task import AnnotatedTask
from dmt_ds.errors import ConfigError, DataError, WeightsError
from dmt_ds.models.vit import prefer_written_attention
from dmt_ds.redact import masked
from dmt_ds.run_files import SETTINGS_FILE
from dmt_ds.tracking.environment import environment_tags, library_versions
from dmt_ds.wording import first_line

logger = logging.getLogger(__name__)

SCORES_FILE = "scores.json"
OWN_NAMES = ("eval", "perf", "system", "teachers", "train")
"""What stands before the slash in the metrics that a run logs itself."""


@dataclass(frozen=True)
class Report:
    """What was judged, on what, and what it comes to; `str` gives what the command line prints.

    Attributes:
        precision: number format of the weights, `bf16` or `fp32`.
        fingerprint: of the images.
        scores: shares, 0 to 1, by name.
        baselines: what no learning would reach, by name.
    """

    model: JudgedModel
    precision: str
    fingerprint: str
    num_images: int
    scores: Mapping[str, float]
    baselines: Mapping[str, float]

    def as_record(self) -> dict[str, Any]:
        """All of it as JSON has it, with date and versions."""
        model, data = self.model, self.model.config.data
        return {
            "scores": dict(self.scores),
            "baselines": dict(self.baselines),
            "model": {
                "source": model.source,
                "run": model.config.name,
                "task": model.config.task,
                "step": model.step,
                "running_mean": model.is_running_mean,
                "precision": self.precision,
            },
            "data": {
                "source": data.source,
                "path": data.path,
                "split": data.val_split,
                "fingerprint": self.fingerprint,
                "num_images": self.num_images,
            },
            "settings": [masked(override) for override in model.overrides],
            "date": datetime.date.today().isoformat(),
            "git_commit": environment_tags(os.environ).get("git.commit"),
            "libraries": library_versions(),
        }

    def __str__(self) -> str:
        """A line on model and images, then a score a line, in percent."""
        model, data = self.model, self.model.config.data
        weights = f"step {model.step}{', running mean of the weights' if model.is_running_mean else ''}"
        split = "" if data.source == "digits" else f", split {data.val_split}"
        rows = {**self.scores, **self.baselines}
        width = max(len("metric"), *map(len, rows))
        lines = [
            f"{model.called} of {model.source} ({weights}) on {named_images(data)}{split}: {self.num_images} images",
            f"{'metric':{width}}  {'%':>6}",
        ]
        return "\n".join([*lines, *(f"{name:{width}}  {100 * score:6.2f}" for name, score in rows.items())])


def run(source: str, overrides: Sequence[str], out: Path | None) -> Report | None:
    """Judge on all ranks; the report on rank 0, None on the others.

    Args:
        source: a run, a checkpoint in it, or its model's folder.
        overrides: KEY=VALUE, which win over the run's settings.
        out: folder for `scores.json` and the pictures that a run leaves at its end.

    Raises:
        ConfigError: there is no such model with a head, or a setting would be another model's.
        DataError: the images are not there, can't be read, or have other classes than the model.
        ExportError: `out` has one of the files already.
        WeightsError: the model can't be loaded.
    """
    model = find_model_to_judge(source, overrides)
    config = model.config
    if config.train.deterministic:
        determinism.switch_on()
    device = ds_engine.start(config.train.hang_timeout_seconds)
    with Peers().together(), explained(partial(what_to_lower, config)):
        report = _judge(dist.from_main(model), out, device)
    ds_engine.stop()
    return report


def check_log_name(name: str) -> None:
    """Whether scores may stand under it in a run's record.

    Raises:
        ConfigError: they may not.
    """
    if name in OWN_NAMES:
        raise ConfigError(f"--log-as {name}: {name}/* are the run's own metrics; take another word, such as test")
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", name):
        raise ConfigError(f"--log-as {name}: is no plain word of letters, digits, _ and -; take one, such as test")


def log(report: Report, name: str) -> None:
    """Add the scores to the record of the model's run, as `NAME/top1`, at the model's step.

    Raises:
        TrackingError: the store can't be used at all.
    """
    scores = {f"{name}/{key}": score for key, score in report.scores.items()}
    add_to_run(report.model.run, scores, report.model.step)


def _judge(model: JudgedModel, out: Path | None, device: torch.device) -> Report | None:
    config, kind = model.config, model.kind
    number_format = precision(named_ds_config(config.train.deepspeed))
    # On rank 0 before the others: a data set's cache is made once.
    dist.decided_by_main(lambda: _look_at(kind.open_validation(config)))
    images = kind.open_validation(config)
    task = _restored(model, device, number_format)
    _check_classes(images.class_names, task.class_names, kind.may_lack_classes)
    progress = ImageProgress(len(images)) if dist.is_main() else None
    judge = kind.build_judge(task, images, Scene(config, _unheard, _unheard if progress is None else progress.advance))
    if out is not None:
        dist.decided_by_main(partial(refuse_earlier, [out / name for name in (SCORES_FILE, *judge.drawn)]))
    # As the trainer judges a running mean: weights of float32 that compute in bf16.
    mean_of_half = number_format == "bf16" and model.is_running_mean
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=mean_of_half):
        judgement = judge.judge(task.module, "judging")
    if progress is not None:
        progress.close()
    draw = None if out is None else judge.pictures(judgement)
    if not dist.is_main():
        return None
    report = Report(model, number_format, images.fingerprint, len(images), judgement.scores, judgement.baselines)
    for line in judgement.told:
        logger.info("%s", line)  # should the folder not take them
    if out is not None and draw is not None:
        with written_whole(out, (SCORES_FILE, *judge.drawn)) as folder:
            draw_or_warn(draw, folder)
            (folder / SCORES_FILE).write_text(json.dumps(report.as_record(), indent=1) + "\n")
    return report


def _unheard(_told: object) -> None:
    """Nobody waits for a beat where nothing is trained."""


def _look_at(images: ImageSource) -> None:
    if line := left_out(images):
        logger.warning("%s", line)


def _restored(model: JudgedModel, device: torch.device, number_format: str) -> AnnotatedTask:
    """The task on its device, as the trainer's engine had it at that step."""
    try:
        task: AnnotatedTask = model.kind.restore(model.config, model.folder)
    except (KeyError, RuntimeError) as error:
        raise WeightsError(
            f"{model.folder}: is not the model that {model.run / SETTINGS_FILE} describes ({first_line(error)}); copy "
            "both from the same run"
        ) from error
    if device.type == "cpu":
        prefer_written_attention(task.module)
    half = number_format == "bf16" and not model.is_running_mean
    task.module.to(device, torch.bfloat16 if half else torch.float32).eval()
    return task


def _check_classes(of_images: Sequence[str], of_model: Sequence[str], may_lack: bool) -> None:
    """A class number must mean the same to the model and in the images.

    Raises:
        DataError: it does not; names the first difference.
    """
    remedy = "take images sorted into the model's classes, all of them, by the same names"
    for number, (theirs, ours) in enumerate(zip(of_images, of_model, strict=False)):
        if theirs != ours:
            raise dist.alike_on_all(
                DataError(f"class {number} is '{theirs}' of the images and '{ours}' of the model: {remedy}")
            )
    if len(of_images) > len(of_model) or (len(of_images) < len(of_model) and not may_lack):
        told = f"the images have {len(of_images)} classes, the model has {len(of_model)}: {remedy}"
        raise dist.alike_on_all(DataError(told))
