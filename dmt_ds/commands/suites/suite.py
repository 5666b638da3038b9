"""`dmt-ds suite`: named variants of a recipe, with seeds, made and judged alike; goes on where it stopped."""

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dmt_ds.commands.suites.suite_check import check_batches, check_finished, check_follow_ups, check_inputs
from dmt_ds.commands.suites.suite_local import LocalSuite, Say
from dmt_ds.commands.suites.suite_state import SCORE, is_finished, scores_of, state_of
from dmt_ds.config.load import COMMAND_LINE
from dmt_ds.config.suite import load_suite
from dmt_ds.config.suite_follow_ups import sort_given
from dmt_ds.config.suite_plan import SuitePlan, findings
from dmt_ds.config.suite_run import SuiteRun
from dmt_ds.config.yaml_text import parse_value
from dmt_ds.errors import ConfigError, DmtError
from dmt_ds.tracking.mlflow_tracker import describe_parent
from dmt_ds.tracking.tracker import Status

logger = logging.getLogger(__name__)


def open_plan(suite: str, overrides: Sequence[str], output: Path | None) -> SuitePlan:
    """All runs of a suite, resolved and checked.

    Args:
        suite: name of a shipped suite, or a path.
        overrides: `key=value` for every run; `segment.set.key=value` for what is done with their encoders.
        output: folder of the runs; None takes `runs/NAME`.

    Raises:
        ConfigError: something is wrong; one line a finding, all findings at once.
    """
    given, of_follow_ups = sort_given(_given(overrides))
    file = load_suite(suite).model_copy(update={"given": of_follow_ups})
    folder = (output or Path("runs", file.suite.name)).absolute()
    has_store = "tracking.uri" in given or bool(os.environ.get("MLFLOW_TRACKING_URI"))
    plan = SuitePlan(file, folder, given, None if has_store else f"sqlite:///{folder / 'mlflow.db'}")
    if found := findings(plan, select(plan, ())):
        raise ConfigError("\n".join(found))
    return plan


def select(plan: SuitePlan, only: Sequence[str]) -> list[SuiteRun]:
    """The runs to make, in order: teachers, tuning, seeds.

    Args:
        plan: all of the suite.
        only: names of variants, each with its teachers and its tuning, or of teachers; none means all.

    Raises:
        ConfigError: there is no such variant.
    """
    suite = plan.file.suite
    if unknown := [name for name in only if name not in suite.variants and name not in suite.teachers]:
        known = ", ".join([*suite.variants, *suite.teachers])
        raise ConfigError(f"--only {unknown[0]}: no such variant or teacher in {plan.file.label}; there are: {known}")
    students = [run for run in [*plan.tuning(), *plan.variants({})] if not only or run.owner in only]
    needed = {name for run in students for name in plan.teachers_of(run)} if only else set(suite.teachers)
    return [*(run for run in plan.teachers() if run.owner in needed or run.owner in only), *students]


def run(plan: SuitePlan, runs: Sequence[SuiteRun], jobs: int, ranks: int, say: Say) -> None:
    """Make what is not finished yet, and end with what failed.

    Raises:
        ConfigError: as `look_before`.
        DmtError: some runs failed; one line a cause. All others were made.
        KeyboardInterrupt: Ctrl-C or a signal; all runs saved before.
    """
    name = plan.file.suite.name
    look_before(plan, runs, ranks)
    say(f"{name}: {len(runs)} runs, {sum(map(is_finished, runs))} of them finished, in {plan.output}")
    note_on_parent(plan, "RUNNING")
    local = LocalSuite(plan, runs, jobs, ranks, say)
    local.make_all()
    unfinished = [run.label for run in select(plan, ()) if not is_finished(run)]
    status: Status = "KILLED" if local.was_stopped else "FAILED" if local.failures else "FINISHED"
    note_on_parent(plan, "RUNNING" if status == "FINISHED" and unfinished else status)
    if local.was_stopped:
        raise KeyboardInterrupt
    if local.failures:
        raise DmtError("\n".join(by_cause(local.failures)))
    say(f"{name}: all of it is finished" if not unfinished else f"{name}: {len(unfinished)} runs are still to do")


def look_before(plan: SuitePlan, runs: Sequence[SuiteRun], ranks: int) -> None:
    """Make all checks that need no run, before anything is started, and log what was checked.

    Raises:
        ConfigError: a finished run has other settings than the suite asks for now, a batch can't be shared by so many
            processes, what follows can't be done, or images or teachers are not there.
    """
    check_finished(plan, runs)
    check_batches(plan, runs, lambda _: ranks)
    check_follow_ups(runs)
    check_inputs(plan, runs)
    left = sum(not is_finished(run) for run in runs)
    looked_at = f"images, teachers, batches and follow-ups of the {left} still to run" if left else "all are finished"
    logger.info("%s: settings of %d runs, %s: no problems found", plan.file.suite.name, len(runs), looked_at)


def note_on_parent(plan: SuitePlan, status: Status | Literal["RUNNING"]) -> None:
    """Note the suite in MLflow on the run that all runs stand under; variants of other stores have one there."""
    suite = plan.file.suite
    tags = {"suite": suite.name, "variants": ",".join(suite.variants)}
    if suite.paper is not None:
        tags["paper_metric"] = suite.paper.metric
    runs = {(run.config.tracking.uri, run.config.tracking.experiment): run for run in select(plan, ())}
    for run in runs.values():
        describe_parent(run.config.tracking, run.folder, tags, status)


def table(plan: SuitePlan, runs: Sequence[SuiteRun]) -> str:
    """Runs with state and score, a line each."""
    rows = [(run.label, _percent(scores_of(run)), state_of(run)) for run in runs]
    width = max(len("run"), *(len(label) for label, _, _ in rows))
    lines = [
        f"{'run':{width}}  k-NN %  state",
        *(f"{label:{width}}  {score:>6}  {state}" for label, score, state in rows),
    ]
    return "\n".join([*lines, f"{sum(map(is_finished, runs))} of {len(runs)} finished, in {plan.output}"])


def by_cause(failures: Mapping[str, str]) -> list[str]:
    """A line a cause, with the labels of all that failed of it."""
    labels: dict[str, list[str]] = {}
    for label, why in failures.items():
        labels.setdefault(why, []).append(label)
    return [f"{', '.join(found)}: {why}" for why, found in labels.items()]


def _percent(scores: Mapping[str, float]) -> str:
    return f"{100 * scores[SCORE]:.2f}" if SCORE in scores else "-"


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    """The command line's settings by key, their values as text or lists.

    Raises:
        ConfigError: one is not key=value, or is given twice.
    """
    given: dict[str, Any] = {}
    found = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            found.append(f"{COMMAND_LINE}: {override}: must be key=value, such as data.path=/data/imagenet")
        elif key in given:
            found.append(f"{COMMAND_LINE}: {key} is given twice; keep one")
        else:
            given[key] = parse_value(text, f"{COMMAND_LINE}: {override}")
    if found:
        raise ConfigError("\n".join(found))
    return given
