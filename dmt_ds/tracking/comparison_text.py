"""A comparison as text: for a terminal, as Markdown, CSV and JSON; computes nothing that is not in it."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dmt_ds.tracking.compared_runs import SCORE, ComparedRun
from dmt_ds.tracking.comparison import Comparison, Row, Scores
from dmt_ds.tracking.difference_text import Grid, settings_grids
from dmt_ds.tracking.differences import NOTHING

PAPER = "paper: "
DIFFERENCES = "What differs"


def terminal_table(comparison: Comparison, width: int = 120) -> str:
    """What a person reads at once: the variants, the teachers below, what differs, what was left out and why.

    Args:
        comparison: what to tell.
        width: letters of a line, which the table of settings keeps to.
    """
    parts = [_heading(comparison)]
    parts += [_aligned(grid) if name is None else f"{name}\n{_aligned(grid)}" for name, grid in _grids(comparison)]
    if comparison.differences:
        tables, more = _settings(comparison, width)
        told = [_aligned(grid, has_numbers=False) for grid in tables] + [more] * bool(more)
        parts.append(f"{DIFFERENCES}\n" + "\n\n".join(told))
    for name, lines in _remarks(comparison):
        parts.append("\n".join([name, *(f"  {line}" for line in lines)]))
    return "\n\n".join(parts)


def markdown(comparison: Comparison, pictures: Sequence[str]) -> str:
    """The comparison as Markdown, with pictures that lie beside the file."""
    parts = [f"# {_heading(comparison)}"]
    parts += [_piped(grid) if name is None else f"## {name}\n\n{_piped(grid)}" for name, grid in _grids(comparison)]
    if comparison.differences:
        tables, more = _settings(comparison, None)
        parts += [f"## {DIFFERENCES}", *(_piped(grid, has_numbers=False) for grid in tables), *([more] * bool(more))]
    for name, lines in _remarks(comparison):
        parts.append(f"## {name}\n\n" + "\n".join(f"- {line}" for line in lines))
    parts += [f"![{picture.removesuffix('.png')}]({picture})" for picture in pictures]
    return "\n\n".join(parts) + "\n"


def runs_as_csv(comparison: Comparison) -> str:
    """A line a run, of every role and status; scores as MLflow has them, not in percent.

    Behind them stand the parameters that are not equal in all runs, as `params.KEY`.
    """
    text = io.StringIO()
    params = [run.run.params for run in comparison.runs]
    there = {key for found in params for key in found if key != "seed"}
    keys = [key for key in sorted(there) if len({found.get(key) for found in params}) > 1]
    lines = [
        _flat(run, comparison) | {f"params.{key}": run.run.params.get(key) for key in keys} for run in comparison.runs
    ]
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything, for programs; scores as MLflow has them, not in percent."""
    titles = [row.title for row in comparison.rows]
    content = {
        "name": comparison.name,
        "experiment": comparison.experiment,
        "by": comparison.by,
        "metrics": comparison.metrics,
        "paper_metric": comparison.paper_metric,
        "rows": [_row_content(row) for row in comparison.rows],
        "teachers": [_row_content(row) for row in comparison.teachers],
        "differences": [
            {"setting": told.setting, "values": dict(zip(titles, told.values, strict=True))}
            for told in comparison.differences
        ],
        "left_out": [{"run": name, "why": why} for name, why in comparison.left_out],
        "notes": comparison.notes,
        "runs": [{**_flat(run, comparison), "params": run.run.params} for run in comparison.runs],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def cell(scores: Scores, metric: str, num_runs: int) -> str:
    """Mean ± standard deviation; how many runs they are of, where that is not all of the row's."""
    if scores.mean is None:
        return NOTHING
    spread = NOTHING if scores.deviation is None else number(scores.deviation, metric)
    fewer = f" ({len(scores.values)} of {num_runs})" if len(scores.values) < num_runs else ""
    return f"{number(scores.mean, metric)} ± {spread}{fewer}"


def number(value: float, metric: str) -> str:
    """A score in percent with two decimals, anything else with four digits."""
    return f"{100 * value:.2f}" if SCORE.fullmatch(metric) else f"{value:.4g}"


def label(metric: str) -> str:
    """A metric as head of a column."""
    return f"{metric.removeprefix('eval/')} %" if SCORE.fullmatch(metric) else metric


def _heading(comparison: Comparison) -> str:
    where = "" if comparison.experiment == comparison.name else f" (experiment {comparison.experiment})"
    counted = sum(len(row.runs) for row in (*comparison.rows, *comparison.teachers))
    counts = f"{counted} of {len(comparison.runs)} runs count"
    return f"{comparison.name}{where}: {counts}; mean ± standard deviation over {comparison.repeats}"


def _grids(comparison: Comparison) -> list[tuple[str | None, Grid]]:
    """The tables: without a name the main one."""
    grids: list[tuple[str | None, Grid]] = []
    if comparison.rows:
        grids.append((None, _grid(comparison.rows, comparison, comparison.by)))
    if comparison.teachers:
        grids.append(("Teachers", _grid(comparison.teachers, comparison, "teacher")))
    return grids


def _grid(rows: Sequence[Row], comparison: Comparison, first: str) -> Grid:
    # A column in which nobody has anything tells nothing, but in the main table it tells that it is missing.
    metrics = [m for m in comparison.metrics if first != "teacher" or any(row.scores[m].values for row in rows)]
    units = list(dict.fromkeys(run.budget.unit for row in rows for run in row.runs)) or ["device-h"]
    has_paper = any(row.paper for row in rows)
    paper = [f"{PAPER}{comparison.paper_metric or 'its number'}"] if has_paper else []
    head = [
        first,
        comparison.repeats,
        *map(label, metrics),
        "images seen",
        units[0] if len(units) == 1 else "device-h",
        *paper,
    ]
    grid = [head]
    for row in rows:
        scores = [cell(row.scores[metric], metric, len(row.runs)) for metric in metrics]
        hours = _hours(row, with_unit=len(units) > 1)
        grid.append(
            [row.title, str(len(row.runs)), *scores, _images(row), hours, *([row.paper or NOTHING] * has_paper)]
        )
    return grid


def _settings(comparison: Comparison, width: int | None) -> tuple[list[Grid], str]:
    return settings_grids(comparison.differences, [row.title for row in comparison.rows], comparison.by, width)


def _images(row: Row) -> str:
    """Of a run; from the least to the most where they differ."""
    ends = dict.fromkeys((row.images_seen[0], row.images_seen[-1])) if row.images_seen else ()
    return " to ".join(f"{images:,.0f}" for images in ends) or NOTHING


def _hours(row: Row, with_unit: bool) -> str:
    if row.device_hours is None:
        return NOTHING
    return _three_digits(row.device_hours) + (f" {row.unit}" if with_unit else "")


def _three_digits(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:#.3g}".rstrip(".") if hours else "0"


def _remarks(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """What stands below the tables."""
    rows = (*comparison.rows, *comparison.teachers)
    units = {run.budget.unit for row in rows for run in row.runs}
    lines = ["images seen and hours: of one run's training; what its teachers' training cost is not in them"]
    if "CPU-h" in units:
        lines.append("CPU-h: hours x ranks x threads")
    if any(row.paper for row in rows):
        lines.append("paper: the number that the paper reports, on other data and with another budget than these runs")
    remarks = [("Notes", [*lines, *comparison.notes])]
    if comparison.left_out:
        remarks.insert(0, ("Left out", [f"{name}: {why}" for name, why in comparison.left_out]))
    return remarks


def _aligned(grid: Grid, has_numbers: bool = True) -> str:
    """Columns of equal width, numbers to the right; names, and the paper's below their long head, to the left."""
    left = {0, len(grid[0]) - 1} if grid[0][-1].startswith(PAPER) else {0}
    left = left if has_numbers else set(range(len(grid[0])))
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = (
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join(padded).rstrip()

    return "\n".join([line(grid[0]), "-" * (sum(widths) + 2 * len(widths) - 2), *map(line, grid[1:])])


def _piped(grid: Grid, has_numbers: bool = True) -> str:
    head, *lines = [[text.replace("|", "\\|") for text in cells] for cells in grid]
    rule = ["---", *["---:" if has_numbers else "---"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def _flat(compared: ComparedRun, comparison: Comparison) -> dict[str, Any]:
    """What is told of a run, in one line; the paper's number stands under a name of its own, at the end."""
    run, budget = compared.run, compared.budget
    return {
        "run": run.name,
        "run_id": run.run_id,
        "group": compared.group,
        "title": run.tags.get("title"),
        "role": compared.role,
        "seed": run.params.get("seed"),
        "status": run.status,
        "counts": compared.why_not is None,
        "why_not": compared.why_not,
        **{metric: compared.score(metric) for metric in comparison.metrics},
        "images_seen": budget.images_seen,
        "device_hours": budget.device_hours,
        "device_unit": budget.unit,
        "restarts": run.restarts,
        "paper": run.tags.get("paper"),
    }


def _row_content(row: Row) -> Mapping[str, Any]:
    return {
        "group": row.group,
        "title": row.title,
        "runs": [run.run.name for run in row.runs],
        "metrics": {
            metric: {"mean": scores.mean, "deviation": scores.deviation, "values": scores.values}
            for metric, scores in row.scores.items()
        },
        "images_seen": row.images_seen,
        "device_hours": row.device_hours,
        "device_unit": row.unit,
        "paper": row.paper,
    }
