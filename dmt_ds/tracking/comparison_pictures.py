"""Pictures of a comparison: scores as bars, metrics against images seen; draws what it is given and asks no store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dmt_ds.tracking.compared_runs import SCORE
from dmt_ds.tracking.comparison import Comparison, Row, Scores
from dmt_ds.tracking.comparison_text import label, number
from dmt_ds.tracking.figures import (
    BLUE,
    FEW_POINTS,
    GREY,
    INK,
    PALETTE,
    name_panel,
    new_figure,
    new_grid,
    save,
    smoothed,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Curve = Sequence[tuple[float, float]]
"""Images seen and value, by rising images."""
Band = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Images, mean and standard deviation, each [points]."""
_PANEL_INCHES = (3.3, 2.5)
_BAR_INCHES, _BARS_INCHES, _LETTER_INCHES = 0.3, 3.2, 0.075
_COLUMNS = 4
_DOTS_SPREAD = 0.36


def bars(comparison: Comparison, path: Path) -> None:
    """Draw a panel a metric: the mean as bar, its standard deviation, each run as dot; the table's order.

    Metrics that nobody has get none, nor do rows without any number; four panels stand beside each other.

    Teachers stand below in grey. The paper's numbers are not drawn.

    Args:
        comparison: what the table shows.
        path: PNG to write.
    """
    variants, teachers = ([row for row in rows if row.runs] for rows in (comparison.rows, comparison.teachers))
    rows = [*variants, *teachers]
    heights = [*range(len(variants)), *(n + bool(variants) for n in range(len(variants), len(rows)))]
    metrics = [name for name in comparison.metrics if any(row.scores[name].values for row in rows)]
    letters = max(len(row.title) for row in rows)
    panel = (_BARS_INCHES, 0.9 + _BAR_INCHES * (heights[-1] + 1))
    figure, axes = new_grid(len(metrics), _COLUMNS, panel, (letters * _LETTER_INCHES, 0.0), share_y=True)
    for axis, metric in zip(axes, metrics, strict=True):
        style(axis, "")
        axis.grid(visible=False, axis="y")
        axis.xaxis.set_major_formatter("{x:g}")
        name_panel(axis, label(metric))
        for height, row in zip(heights, rows, strict=True):
            _draw_bar(axis, height, row.scores[metric], metric, GREY if row in teachers else BLUE)
        _make_room(axis, rows, metric)
    for first in axes[::_COLUMNS]:
        first.set_yticks(heights, [row.title for row in rows], color=INK)
    axes[0].set_ylim(heights[-1] + 0.6, -0.6)
    save(figure, path)


def metric_curves(named: Mapping[str, Sequence[Curve]], metric: str, path: Path) -> None:
    """Draw a metric that means the same for all variants against images seen.

    Few variants share a panel, a colour each; of many each has its own, with all others in grey behind it.

    Args:
        named: title of a variant -> a curve a seed: the mean is a line, the standard deviation a band.
        metric: its name; scores are drawn in percent.
        path: PNG to write.
    """
    if len(named) > len(PALETTE):
        _draw_panels(named, metric, path, comparable=True)
        return
    figure, axes = new_figure(1, 1, (7.2, 3.6))
    axis = axes[0][0]
    for colour, (title, curves) in zip(PALETTE, named.items(), strict=False):
        _draw_band(axis, curves, colour, metric, title)
    _style_images(axis)
    name_panel(axis, label(metric))
    figure.legend(loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    save(figure, path)


def loss_curves(named: Mapping[str, Sequence[Curve]], metric: str, path: Path) -> None:
    """Draw a panel a variant, each with its own range: losses of different methods are no common measure.

    Args:
        named: title of a variant -> a curve a seed: the mean is a line, the standard deviation a band.
        metric: its name, which stands above all.
        path: PNG to write.
    """
    _draw_panels(named, metric, path, comparable=False)


def band(curves: Sequence[Curve]) -> Band:
    """Images, mean and standard deviation over seeds (n - 1; zero for one seed), where all seeds have points.

    Between its points a curve is taken as straight.
    """
    start = max(curve[0][0] for curve in curves)
    end = min(curve[-1][0] for curve in curves)
    images = np.array(sorted({x for curve in curves for x, _ in curve if start <= x <= end}), dtype=np.float64)
    values = np.stack([np.interp(images, [x for x, _ in curve], [y for _, y in curve]) for curve in curves])
    deviation = values.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros_like(images)
    return images, values.mean(axis=0), deviation


def short(images: float) -> str:
    """A number of images, with k and M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if images >= factor:
            return f"{images / factor:g}{letter}"
    return f"{images:g}"


def _draw_bar(axis: "Axes", height: float, scores: Scores, metric: str, colour: str) -> None:
    if scores.mean is None:
        axis.text(0, height, " nothing measured", va="center", fontsize=7, color=GREY)
        return
    scale = _scale(metric)
    axis.barh(height, scale * scores.mean, height=0.62, color=colour, alpha=0.35, linewidth=0)
    if scores.deviation is not None:
        spread = scale * scores.deviation
        axis.errorbar(scale * scores.mean, height, xerr=spread, color=colour, linewidth=1.4, capsize=3)
    heights = height + _DOTS_SPREAD * np.linspace(-1, 1, len(scores.values) + 2)[1:-1]  # equal values stay visible
    axis.plot([scale * value for value in scores.values], heights, "o", color=INK, markersize=2.2)
    deviation = "" if scores.deviation is None else f" ± {number(scores.deviation, metric)}"
    end = scale * max(*scores.values, scores.mean + (scores.deviation or 0.0))
    axis.annotate(
        f"{number(scores.mean, metric)}{deviation}", (max(end, 0.0), height), (5, 0), textcoords="offset points",
        va="center", fontsize=7, color=INK,
    )  # fmt: skip


def _make_room(axis: "Axes", rows: Sequence[Row], metric: str) -> None:
    """On the right, for the numbers; what is a percentage has ticks from 0 to 100, however far the room goes."""
    values = [_scale(metric) * value for row in rows for value in row.scores[metric].values]
    if values and max(values) > 0:
        axis.set_xlim(min(0.0, *values), 1.45 * max(values))
    elif SCORE.fullmatch(metric):
        axis.set_xlim(0.0, 1.0)
    if SCORE.fullmatch(metric):
        axis.set_xticks([tick for tick in axis.get_xticks() if 0 <= tick <= min(100.0, axis.get_xlim()[1])])


def _draw_panels(named: Mapping[str, Sequence[Curve]], metric: str, path: Path, comparable: bool) -> None:
    figure, axes = new_grid(len(named), _COLUMNS, _PANEL_INCHES, margin_inches=(0.0, 0.3), share_y=comparable)
    for axis, (title, curves) in zip(axes, named.items(), strict=True):
        for other in named.values() if comparable else ():
            images, mean, _ = _band(other)
            axis.plot(images, _scale(metric) * mean, color=GREY, linewidth=0.8, alpha=0.3)
        _draw_band(axis, curves, BLUE, metric, title)
        _style_images(axis)
        name_panel(axis, title)
    figure.suptitle(label(metric), fontsize=11, color=INK, x=0.01, ha="left", fontweight="bold")
    save(figure, path)


def _draw_band(axis: "Axes", curves: Sequence[Curve], colour: str, metric: str, title: str) -> None:
    images, mean, deviation = _band(curves)
    low, high = _scale(metric) * (mean - deviation), _scale(metric) * (mean + deviation)
    marker = "o" if len(images) < FEW_POINTS else ""
    axis.fill_between(images, low, high, color=colour, alpha=0.18, linewidth=0)
    axis.plot(images, (low + high) / 2, color=colour, linewidth=1.6, marker=marker, markersize=2.5, label=title)


def _band(curves: Sequence[Curve]) -> Band:
    """As `band`, smoothed where there are many points."""
    images, mean, deviation = band(curves)
    if len(images) < FEW_POINTS:
        return images, mean, deviation
    half_width = len(images) // 50
    return images, np.array(smoothed(list(mean), half_width)), np.array(smoothed(list(deviation), half_width))


def _style_images(axis: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    style(axis, "images seen")
    axis.margins(x=0.02)
    axis.xaxis.set_major_locator(MaxNLocator(5))
    axis.xaxis.set_major_formatter(lambda images, _: short(images))


def _scale(metric: str) -> float:
    return 100.0 if SCORE.fullmatch(metric) else 1.0
