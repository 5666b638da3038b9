"""How far each run of a suite is, read from its folder; starts nothing and asks no store."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dmt_ds.commands.run_folder import settings_of
from dmt_ds.commands.suites.suite_record import other_inputs
from dmt_ds.config.load import flatten, to_yaml
from dmt_ds.config.resume import COMPARED_BY_RECORD, SEEDS_MAY_DIFFER, differences
from dmt_ds.config.schema import TEACHER_TASKS, RunConfig
from dmt_ds.config.suite import TuneSpec
from dmt_ds.config.suite_follow_ups import FollowUp, follow_ups_of
from dmt_ds.config.suite_plan import SuitePlan, value_text
from dmt_ds.config.suite_run import SuiteRun, as_overrides
from dmt_ds.engine.checkpoints.checkpoint import CheckpointFolder
from dmt_ds.errors import ConfigError
from dmt_ds.run_files import CHECKPOINTS_FOLDER, DONE, EVALUATION_FILE, FAILURE_FILE, RECORDS_FILE, SETTINGS_FILE
from dmt_ds.tracking.journal import read_lines, write_atomically

SCORE = "eval/knn_top1"
"""What lines for people show of a run."""
_OF_FROZEN_ENCODERS = ("knn", "linear")
"""Sections by which neither an encoder nor what is done with it is trained: they judge what was trained."""


def is_trained(run: SuiteRun) -> bool:
    """Whether its encoder is there."""
    return (run.folder / DONE).exists()


def is_judged(run: SuiteRun) -> bool:
    """Whether it is trained, and its frozen encoder judged."""
    return is_trained(run) and (run.folder / EVALUATION_FILE).exists()


def left_of(run: SuiteRun) -> list[FollowUp]:
    """What the suite asks for with its encoder and is not done yet."""
    return [follow_up for follow_up in follow_ups_of(run) if not (follow_up.folder / DONE).exists()]


def is_finished(run: SuiteRun) -> bool:
    """Whether it is judged, and all is done that the suite asks for with its encoder."""
    return is_judged(run) and not left_of(run)


def scores_of(run: SuiteRun) -> dict[str, float]:
    """What its evaluation found, by metric; empty where there is none yet."""
    try:
        scores = json.loads((run.folder / EVALUATION_FILE).read_text())["scores"]
    except (FileNotFoundError, ValueError, KeyError):
        return {}
    return {name: float(value) for name, value in scores.items()}


def state_of(run: SuiteRun) -> str:
    """One of: finished, evaluated but not what follows, trained, failed: WHY, saved at step N, not started."""
    if is_finished(run):
        return "finished"
    reached = [_reached(run)] if is_trained(run) else []
    failed = [f"failed: {why}"] if (why := _failure(run)) else []
    return "; ".join([*reached, *failed]) or _state_of_training(run)


def _reached(run: SuiteRun) -> str:
    """What became of the encoder of a trained run."""
    if not is_judged(run):
        return "trained, not evaluated"
    return ", ".join(["evaluated", *(f"not {left.kind.done}" for left in left_of(run))])


def _failure(run: SuiteRun) -> str:
    """Why its last attempt failed; empty where it did not."""
    file = run.folder / FAILURE_FILE
    return file.read_text().strip() if file.exists() else ""


def _state_of_training(run: SuiteRun) -> str:
    statuses = [line["status"] for line in read_lines(run.folder / RECORDS_FILE) if "status" in line]
    if statuses[-1:] == ["FAILED"]:
        return "failed"
    newest = CheckpointFolder(run.folder / CHECKPOINTS_FOLDER, keep=1).newest()
    if newest is not None:
        return f"saved at step {newest.state.step}"
    return "started" if statuses else "not started"


def changed(run: SuiteRun, only_what_is_here: bool = False) -> str | None:
    """How a trained run, or what was done with its encoder, differs from what the suite asks for now, in one line.

    None where nothing does.

    Args:
        run: finished or not.
        only_what_is_here: pass over images and weights that can't be looked at here, for others will look.

    Raises:
        ConfigError: a config.yaml can't be read.
        StorageError: checkpoints can't be read.
    """
    trained = _changed(run.folder, run.config, only_what_is_here) if is_trained(run) else None
    return trained or _judged_otherwise(run) or changed_follow_up(run, only_what_is_here)


def changed_follow_up(run: SuiteRun, only_what_is_here: bool = False) -> str | None:
    """How what was done with an encoder differs from what is asked for now; what the encoder gives is not compared."""
    done = (follow_up for follow_up in follow_ups_of(run) if (follow_up.folder / DONE).exists())
    lines = (
        _changed(follow_up.folder, follow_up.config, only_what_is_here, follow_up.given_by_encoder)
        for follow_up in done
    )
    return next((line for line in lines if line is not None), None)


def _changed(
    folder: Path, asked_for: RunConfig, only_what_is_here: bool, given_by_encoder: Sequence[str] = ()
) -> str | None:
    saved = _saved(folder)
    if saved is None:
        return None
    ignore = (*SEEDS_MAY_DIFFER, *COMPARED_BY_RECORD, *_OF_FROZEN_ENCODERS, *given_by_encoder)
    inputs = other_inputs(folder, saved, asked_for)
    found = differences(_relevant(saved), _relevant(asked_for), ignore)
    if found := [*found, *(other.line for other in inputs if other.was_seen)]:
        return (
            f"{folder}: was trained with other settings than the suite asks for now (then -> now): "
            f"{'; '.join(found)}; choose another -o, or remove the folder"
        )
    unseen = [other.line for other in inputs if not other.was_seen]
    if not unseen or only_what_is_here:
        return None
    return (
        f"{folder}: can't be compared on this machine with what the suite asks for now (then -> now): "
        f"{'; '.join(unseen)}; point the suite at existing files, or restore the previous setting. If only compute "
        "nodes see them, DMT_DS_DOCTOR=0 with --submit skips this check"
    )


def _judged_otherwise(run: SuiteRun) -> str | None:
    """How the readouts of a judged run differ from those that the suite asks for; nobody compares a teacher's."""
    saved = _saved(run.folder) if is_judged(run) and run.role != "teacher" else None
    if saved is None:
        return None
    now = flatten(run.config)
    found = differences(_of_readouts(flatten(saved)), _of_readouts(now), SEEDS_MAY_DIFFER)
    if not found:
        return None
    keys = [line.partition(":")[0] for line in found]
    if run.config.data.source != "digits" and saved.data.path != run.config.data.path:
        keys.append("data.path")
    command = ["dmt-ds", "evaluate", "-e", str(run.folder), *as_overrides({key: now[key] for key in keys})]
    return (
        f"{run.folder}: was evaluated with other settings than the suite asks for (then -> now): {'; '.join(found)}; "
        "restore the previous setting. To evaluate this encoder with others, outside the suite, run "
        f"`{shlex.join(command)}` (repeat -e for one table)"
    )


def _of_readouts(settings: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in settings.items() if key.partition(".")[0] in _OF_FROZEN_ENCODERS}


def judge_as_asked(run: SuiteRun) -> None:
    """Have a trained run that is to be judged say so by the readouts that the suite asks for now.

    `dmt-ds evaluate` keeps scores with a run where they are by the run's own settings. No training looks at these.

    Raises:
        ConfigError: its config.yaml can't be read.
    """
    saved = _saved(run.folder)
    if saved is None:
        return
    asked_for = saved.model_copy(update={name: getattr(run.config, name) for name in _OF_FROZEN_ENCODERS})
    if asked_for != saved:
        write_atomically(run.folder / SETTINGS_FILE, to_yaml(asked_for))


def _saved(folder: Path) -> RunConfig | None:
    """What the folder's run was asked for; None where it does not say."""
    return settings_of(folder) if (folder / SETTINGS_FILE).exists() else None


def _relevant(config: RunConfig) -> dict[str, object]:
    """The settings, without those of teachers that the run does not use: they come and go with other variants."""
    used = config.teachers.used() if config.task in TEACHER_TASKS else {}
    prefixes = tuple(f"teachers.models.{name}." for name in used)
    mine = config.model_copy(update={"teachers": config.teachers.model_copy(update={"use": tuple(used)})})
    flat = flatten(mine)
    return {k: v for k, v in flat.items() if not k.startswith("teachers.models.") or k.startswith(prefixes)}


def check_teachers(plan: SuitePlan, run: SuiteRun) -> None:
    """Whether what it starts from is there.

    Raises:
        ConfigError: a teacher of the suite is not trained.
    """
    folders = {name: plan.teachers_folder / name for name in plan.teachers_of(run)}
    missing = [name for name, folder in folders.items() if not (folder / DONE).exists()]
    if missing:
        raise ConfigError(f"not started: it needs teacher {missing[0]}, which is not finished")


def is_tuned(plan: SuitePlan, run: SuiteRun) -> bool:
    """Whether one of its settings is chosen by runs before it."""
    suite = plan.file.suite
    return run.role == "variant" and suite.tune is not None and suite.variants[run.owner].tune


@dataclass(frozen=True)
class Choice:
    """The tuned value of one variant.

    Attributes:
        tried: value -> score, of the runs that finished.
        failed: values whose runs did not.
    """

    variant: str
    key: str
    metric: str
    value: float
    tried: Mapping[float, float]
    failed: Sequence[float]

    @property
    def is_at_the_edge(self) -> bool:
        """Whether a better value may lie beyond the grid."""
        return self.value in (min([*self.tried, *self.failed]), max([*self.tried, *self.failed]))

    def __str__(self) -> str:
        tried = ", ".join(f"{value_text(value)}: {score:.4f}" for value, score in sorted(self.tried.items()))
        failed = f"; failed: {', '.join(value_text(value) for value in self.failed)}" if self.failed else ""
        return f"{self.variant}: {self.key}={value_text(self.value)} is best by {self.metric} ({tried}{failed})"

    def as_record(self) -> dict[str, Any]:
        """The choice as JSON has it."""
        return {
            "variant": self.variant,
            "key": self.key,
            "metric": self.metric,
            "value": self.value,
            "is_at_the_edge": self.is_at_the_edge,
            "tried": {value_text(value): score for value, score in self.tried.items()},
            "failed": [value_text(value) for value in self.failed],
        }


def choose(plan: SuitePlan, tune: TuneSpec, variant: str) -> Choice:
    """The value with the highest score; of equal ones the smaller. Kept in `tune/VARIANT.json`.

    Raises:
        ConfigError: no run finished, or none has the metric.
    """
    runs = plan.tried(variant)
    scores = {run.value: scores_of(run) for run in runs if run.value is not None and is_finished(run)}
    if not scores:
        raise ConfigError(f"{variant}: none of the tuning runs finished: {', '.join(run.label for run in runs)}")
    without = next((found for found in scores.values() if tune.metric not in found), None)
    if without is not None:
        raise ConfigError(
            f"{plan.file.label}: tune.metric={tune.metric}: not measured; there are: {', '.join(without)}"
        )
    tried = {value: found[tune.metric] for value, found in scores.items()}
    best = min(tried, key=lambda value: (-tried[value], value))
    failed = [run.value for run in runs if run.value is not None and run.value not in tried]
    choice = Choice(variant, tune.key, tune.metric, best, tried, failed)
    write_atomically(_choice_file(plan, variant), json.dumps(choice.as_record(), indent=1) + "\n")
    return choice


def _choice_file(plan: SuitePlan, variant: str) -> Path:
    return plan.output / "tune" / f"{variant}.json"
