"""Runs set side by side: means and deviations over seeds, what is left out and what else to know; asks no store."""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dmt_ds.tracking.compared_runs import (
    TEACHER,
    VARIANT,
    ComparedRun,
    choose_metrics,
    choose_roles,
    compared_runs,
    remedy,
)
from dmt_ds.tracking.differences import Difference, differences, differing, told_settings
from dmt_ds.tracking.mlflow_compare import RecordedStudy

_MANY_KEYS = 3


@dataclass(frozen=True)
class Scores:
    """One metric of one variant, over its seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean of the runs; None where no run has the metric."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """Standard deviation of a sample: divided by n - 1; None for fewer than two runs."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One variant.

    Attributes:
        runs: those that count.
        left_out: those that don't.
        paper: the paper's number as its authors write it; never computed with.
    """

    group: str | None
    title: str
    runs: tuple[ComparedRun, ...]
    scores: dict[str, Scores]
    paper: str | None
    left_out: tuple[ComparedRun, ...]

    @property
    def has_a_seed_twice(self) -> bool:
        """Whether its runs are of fewer seeds than they are, and a deviation is no seed's doing alone."""
        seeds = [run.run.params["seed"] for run in self.runs if "seed" in run.run.params]
        return len(set(seeds)) < len(seeds)

    @property
    def images_seen(self) -> tuple[float, ...]:
        """Images that its runs have seen, rising, equal ones once."""
        seen = {run.budget.images_seen for run in self.runs}
        return tuple(sorted(images for images in seen if images is not None))

    @property
    def device_hours(self) -> float | None:
        """Mean device hours of a run."""
        hours = [run.budget.device_hours for run in self.runs if run.budget.device_hours is not None]
        return statistics.fmean(hours) if hours else None

    @property
    def unit(self) -> str:
        """Unit of `device_hours`; several where its runs ran on different devices."""
        return "/".join(dict.fromkeys(run.budget.unit for run in self.runs))


@dataclass(frozen=True)
class Comparison:
    """All that a table says.

    Attributes:
        by: what rows are grouped by: `variant`, a parameter or a tag.
        rows: runs of the roles that were asked for.
        teachers: rows of the runs with the role teacher, where that was not among them.
        differences: settings that are not equal in all of `rows`; of one row there are none.
        left_out: name of a run of these rows, and why it is in no mean, or not in that of a metric.
        notes: what else a reader must know.
        paper_metric: what the paper's numbers are.
        runs: all runs, those of other roles too.
    """

    name: str
    experiment: str
    by: str
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    teachers: tuple[Row, ...]
    differences: tuple[Difference, ...]
    left_out: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    paper_metric: str | None
    runs: tuple[ComparedRun, ...]

    @property
    def repeats(self) -> str:
        """What the runs of a row are: `seeds`, or plain `runs` where one of its seeds stands in it twice."""
        return "runs" if any(row.has_a_seed_twice for row in (*self.rows, *self.teachers)) else "seeds"


def compare(study: RecordedStudy, metrics: Sequence[str], by: str = VARIANT, roles: Sequence[str] = ()) -> Comparison:
    """Group runs, and take the means of those that have finished.

    Args:
        study: the runs.
        metrics: names; none takes all top-1 and mIoU scores that the runs have, or the loss where they have none.
        by: `variant`, which falls back on the run's name without `-seedN`; or a tag or parameter.
        roles: values of the tag `role` for the main table; none takes variant. Runs without the tag are variants.

    Raises:
        TrackingError: no run has such a metric, tag or parameter, or such a role.
    """
    roles = choose_roles(study, roles)
    names = choose_metrics(study, metrics, roles)
    runs = compared_runs(study, names, by)
    shown = [run for run in runs if run.role in roles]
    teachers = [run for run in runs if run.role == TEACHER and run not in shown]
    parent_tags = {} if study.parent is None else study.parent.tags
    order = parent_tags.get("variants", "").split(",")
    rows = _rows(shown, names, by, order)
    teachers_names = [name for name in names if any(name in run.run.metrics for run in teachers)]
    return Comparison(
        name=study.name,
        experiment=study.experiment,
        by=by,
        metrics=names,
        rows=rows,
        teachers=_rows(teachers, names, VARIANT, order),
        differences=_between(rows, by),
        left_out=(*_left_out(shown, names), *_left_out(teachers, teachers_names)),
        notes=tuple(_notes(rows, runs, roles, by)),
        paper_metric=parent_tags.get("paper_metric"),
        runs=runs,
    )


def _rows(runs: Sequence[ComparedRun], metrics: Sequence[str], by: str, first: Sequence[str]) -> tuple[Row, ...]:
    """A row a group, those of `first` first, others as they were started; also one whose runs are all left out."""
    there = dict.fromkeys(run.group for run in runs)
    rows: list[Row] = []
    for group in dict.fromkeys([*(name for name in first if name in there), *there]):
        members = [run for run in runs if run.group == group]
        counted = tuple(run for run in members if run.why_not is None)
        scores = {
            metric: Scores(tuple(value for run in counted if (value := run.score(metric)) is not None))
            for metric in metrics
        }
        titles = [run.run.tags["title"] for run in members if run.run.tags.get("title")] if by == VARIANT else []
        papers = [run.run.tags["paper"] for run in members if run.run.tags.get("paper")] if by == VARIANT else []
        title = titles[-1] if titles else group or f"(no {by})"
        if title in {row.title for row in rows}:
            title = f"{title} ({group})"
        others = tuple(run for run in members if run.why_not is not None)
        rows.append(Row(group, title, counted, scores, " / ".join(dict.fromkeys(papers)) or None, others))
    return tuple(rows)


def _between(rows: Sequence[Row], by: str) -> tuple[Difference, ...]:
    """What differs between rows by the runs that count; a row without any is told by the others."""
    if len(rows) < 2:
        return ()
    return differences([[run.run for run in row.runs or row.left_out] for row in rows], by)


def _left_out(runs: Iterable[ComparedRun], metrics: Sequence[str]) -> Iterable[tuple[str, str]]:
    found = list(runs)
    for run in found:
        if run.why_not is not None:
            yield run.run.name, run.why_not
            continue
        missing = [metric for metric in metrics if run.score(metric) is None]
        no_numbers = [metric for metric in missing if metric in run.run.metrics]
        # What nobody of its stage has is no gap: a detector has no k-NN, and a dash in the table says it.
        like_it = [other.run.metrics for other in found if other.run.tags.get("stage") == run.run.tags.get("stage")]
        gaps = [name for name in missing if name not in no_numbers and any(name in measured for measured in like_it)]
        for names, lack in ((no_numbers, "not a number"), (gaps, "not measured")):
            if names:
                verb = "are" if len(names) > 1 else "is"
                yield run.run.name, f"{', '.join(names)} {verb} {lack}; counts in the others{remedy(run.run, names)}"


def _notes(rows: Sequence[Row], runs: Sequence[ComparedRun], roles: Sequence[str], by: str) -> Iterable[str]:
    for row in rows:
        if keys := [key for key in differing([told_settings(run.run) for run in row.runs]) if key != by]:
            more = f" and {len(keys) - _MANY_KEYS} more" if len(keys) > _MANY_KEYS else ""
            yield f"{row.title}: its runs differ in {', '.join(keys[:_MANY_KEYS])}{more}, and not in their seeds alone"
    others: dict[str, int] = {}
    for run in runs:
        if run.role not in (*roles, TEACHER):
            others[run.role] = others.get(run.role, 0) + 1
    for role, number in others.items():
        yield f"not shown: {number} run{'s' if number > 1 else ''} with the role {role}; --roles {role} shows them"
