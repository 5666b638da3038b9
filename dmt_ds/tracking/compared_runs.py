"""Which runs a comparison is of, what groups them, and which of them count; takes no mean and asks no store."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, nan

from dmt_ds.errors import TrackingError
from dmt_ds.tracking.budget import Budget, budget_of
from dmt_ds.tracking.differences import SEED
from dmt_ds.tracking.mlflow_compare import RecordedRun, RecordedStudy

VARIANT, TEACHER = "variant", "teacher"
SCORE = re.compile(r"eval/(.+_)?(top1|top5|miou|macc|aacc|(box|mask)_ap(50|75|_small|_medium|_large)?)")
"""Metrics in [0, 1] that are shown in percent."""
# What select_ begins chooses settings, and judges nothing.
_MAIN_SCORE = re.compile(r"eval/(?!select_)(\w+_)?(top1|miou|(box|mask)_ap)")
_OF_FROZEN = re.compile(r"eval/(knn|linear)_(patch_)?top[15]")
_ORDER = (
    "eval/knn_top1",
    "eval/knn_patch_top1",
    "eval/linear_top1",
    "eval/linear_patch_top1",
    "eval/finetune_top1",
    "eval/segment_miou",
    "eval/detect_box_ap",
    "eval/detect_mask_ap",
    "eval/top1",
    "eval/miou",
    "eval/box_ap",
    "eval/mask_ap",
)
_WITHOUT_SCORES = "train/loss"
NO_SETTINGS = ("output_dir", "name", "tracking.")


@dataclass(frozen=True)
class ComparedRun:
    """One run, and whether it counts.

    Attributes:
        group: value of what the runs are grouped by; None where the run has none.
        why_not: why it is left out of every mean; None where it counts.
    """

    run: RecordedRun
    group: str | None
    role: str
    budget: Budget
    why_not: str | None

    def score(self, metric: str) -> float | None:
        """The last value, where it is a number."""
        value = self.run.metrics.get(metric)
        return value if value is not None and isfinite(value) else None


def choose_metrics(study: RecordedStudy, metrics: Sequence[str], roles: Sequence[str]) -> tuple[str, ...]:
    """The metrics to show: those that were asked for, else the scores of the runs that are shown.

    Args:
        roles: of the main table; teachers are shown in any case.

    Raises:
        TrackingError: no run has such a metric.
    """
    there = {name for run in study.runs for name in run.metrics}
    for name in metrics:
        if name not in there:
            kept = sorted(name for name in there if not name.startswith("system/"))
            raise TrackingError(f"{study.name}: no run has a metric '{name}'; there are: {', '.join(kept) or 'none'}")
    if metrics:
        return tuple(dict.fromkeys(metrics))
    shown = (run for run in study.runs if run.tags.get("role", VARIANT) in (*roles, TEACHER))
    scores = sorted({name for run in shown for name in run.metrics if _MAIN_SCORE.fullmatch(name)})
    if scores:
        return tuple(sorted(scores, key=lambda name: _ORDER.index(name) if name in _ORDER else len(_ORDER)))
    return (_WITHOUT_SCORES,)


def group_of(run: RecordedRun, by: str) -> str | None:
    """The row that a run belongs to."""
    if by == VARIANT:
        return run.tags.get(VARIANT) or SEED.sub("", run.name)
    return run.params.get(by, run.tags.get(by))


def choose_roles(study: RecordedStudy, roles: Sequence[str]) -> tuple[str, ...]:
    """What was asked for, else variants; with teachers alone there is a table too."""
    there = {run.tags.get("role", VARIANT) for run in study.runs}
    if not there & (set(roles) or {VARIANT, TEACHER}):
        wanted = " or ".join(roles or (VARIANT,))
        raise TrackingError(f"{study.name}: no run has the role {wanted}; --roles takes: {', '.join(sorted(there))}")
    return tuple(roles) or (VARIANT,)


def compared_runs(study: RecordedStudy, metrics: Sequence[str], by: str) -> tuple[ComparedRun, ...]:
    """All runs, in the order in which they were started.

    Raises:
        TrackingError: no run has such a parameter or tag.
    """
    groups = [group_of(run, by) for run in study.runs]
    if not any(groups):
        raise TrackingError(_unknown_key(study, by))
    budgets = [budget_of(run) for run in study.runs]
    reasons = [_why_not(run, budget, metrics) for run, budget in zip(study.runs, budgets, strict=True)]
    found: list[ComparedRun] = []
    newer: set[tuple[object, ...]] = set()
    for run, group, budget, why_not in reversed(list(zip(study.runs, groups, budgets, reasons, strict=True))):
        if why_not is None and "seed" in run.params:
            settings = (group, *sorted(item for item in run.params.items() if not item[0].startswith(NO_SETTINGS)))
            if settings in newer:  # a seed that was trained twice is no second seed
                why_not = f"was trained again later, with the same settings and seed {run.params['seed']}"
            newer.add(settings)
        found.append(ComparedRun(run, group, run.tags.get("role", VARIANT), budget, why_not))
    return tuple(reversed(found))


def _unknown_key(study: RecordedStudy, by: str) -> str:
    known = sorted({key for run in study.runs for key in (*run.params, *run.tags) if not key.startswith("mlflow.")})
    near = difflib.get_close_matches(by, known, n=3) or [key for key in known if by in key][:3]
    remedy = f"did you mean {' or '.join(near)}?" if near else "--by takes a setting such as distill.fusion, or a tag"
    return f"{study.name}: no run has a parameter or tag '{by}'; {remedy}"


def _why_not(run: RecordedRun, budget: Budget, metrics: Sequence[str]) -> str | None:
    seen = f"{budget.images_seen:,.0f} images" if budget.images_seen else "its first images"
    if run.status == "FAILED":
        log = f"; see {run.params['output_dir']}/train.log" if "output_dir" in run.params else ""
        return f"failed after {seen}{log}"
    if run.status == "KILLED":
        return f"was stopped after {seen} and not resumed"
    if run.status == "RUNNING":
        return f"is marked as running, after {seen}"
    if run.status != "FINISHED":
        return f"is {run.status.lower()}"
    if not any(isfinite(run.metrics.get(metric, nan)) for metric in metrics):
        return f"finished, but has no number for {', '.join(metrics)}{remedy(run, metrics)}"
    return None


def remedy(run: RecordedRun, metrics: Sequence[str]) -> str:
    """The command that measures what is missing, where frozen readouts do and the run's folder is known."""
    if "output_dir" not in run.params or not any(_OF_FROZEN.fullmatch(metric) for metric in metrics):
        return ""
    return f"; to measure: dmt-ds evaluate -e {run.params['output_dir']}"
