"""One picture of what the teachers gave to a run, from its `teachers/` points; knows their names, and no model.

What each curve is, stands with the metrics: `distill.diagnostics`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dmt_ds.tracking.figures import (
    BLUE,
    FEW_POINTS,
    GREY,
    INK,
    ORANGE,
    PALETTE,
    name_panel,
    new_grid,
    save,
    style,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_PANEL_INCHES = (3.8, 2.9)

Series = dict[str, tuple[list[int], list[float]]]
"""Metric name -> its steps and its values."""


class Curve(NamedTuple):
    """One metric in a panel."""

    label: str
    metric: str
    colour: str
    dotted: bool = False


class Panel(NamedTuple):
    """Curves that share a y-axis."""

    title: str
    y_label: str
    curves: list[Curve]
    top: float = 1
    """The y-axis reaches from 0 to here at least."""


def diagnostic_curves(points: Iterable[Mapping[str, Any]], path: Path, title: str = "") -> bool:
    """Draw shares of the sum, agreement of teachers, entropy of the target, and how near the student is, over steps.

    Args:
        points: lines of `metrics.jsonl` (`tracker.read_points(output_dir)`): `step` and `metrics`.
        path: PNG to write.
        title: name of the run.

    Returns:
        Whether there was anything to draw; else nothing is written.
    """
    series = _series(points)
    panels = [panel for panel in panels_of(set(series)) if panel.curves]
    if not panels:
        return False
    figure, axes = new_grid(len(panels), _COLUMNS, _PANEL_INCHES)
    for axis, panel in zip(axes, panels, strict=True):
        _draw(axis, panel, series)
    if title:
        figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left", fontweight="bold")
    save(figure, path)
    return True


def panels_of(metrics: set[str]) -> list[Panel]:
    """The panels for the metrics that there are; one without curves stands for what the run could not measure."""
    of_teachers = (name for name in metrics if name.startswith("teachers/") and name.endswith("/moving"))
    teachers = sorted(name.split("/")[1] for name in of_teachers)
    targets = sorted(name.split("/")[1] for name in metrics if name.endswith("/tfd_entropy"))
    colours = dict(zip(teachers, _colours(), strict=False))
    shares = [Curve(name, f"teachers/{name}/share_centred", colours[name]) for name in teachers]
    raw_shares = [Curve("", f"teachers/{name}/share", colours[name], dotted=True) for name in teachers]
    moving = [Curve(name, f"teachers/{name}/moving", colours[name]) for name in teachers]
    student = [Curve(name, f"teachers/{name}/student_cosine", colours.get(name, INK)) for name in targets]
    panels = [
        Panel("share of the fused sum (dotted: not centred)", "share, patch tokens", shares + raw_shares, top=0),
        Panel("agreement of teachers", "cosine, centred patch tokens", _pairs(metrics, "teachers/agreement_centred/")),
        Panel("likeness of teachers", "linear CKA, patch tokens", _pairs(metrics, "teachers/cka/")),
        Panel("teachers' energy around their mean", "share of all, patch tokens", moving),
        Panel("entropy of the target's softmax", "share of the largest", _entropies(targets, colours)),
        Panel("student and target", "cosine, all tokens", student),
    ]
    return [panel._replace(curves=[curve for curve in panel.curves if curve.metric in metrics]) for panel in panels]


def _pairs(metrics: set[str], prefix: str) -> list[Curve]:
    """From the palette's other end, since a pair is no teacher."""
    names = sorted(name.removeprefix(prefix) for name in metrics if name.startswith(prefix))
    return [Curve(name, prefix + name, colour) for name, colour in zip(names, _colours(reverse=True), strict=False)]


def _entropies(targets: list[str], colours: Mapping[str, str]) -> list[Curve]:
    if len(targets) == 1:
        tfd, sfd = f"teachers/{targets[0]}/tfd_entropy", f"teachers/{targets[0]}/sfd_entropy"
        return [Curve("TFD, over channels", tfd, BLUE), Curve("SFD, over positions", sfd, ORANGE)]
    kinds = (("TFD", "tfd_entropy", False), ("SFD", "sfd_entropy", True))
    return [
        Curve(f"{name} {loss}", f"teachers/{name}/{metric}", colours.get(name, INK), dotted)
        for loss, metric, dotted in kinds
        for name in targets
    ]


def _colours(reverse: bool = False) -> Iterator[str]:
    """The palette, over and over."""
    palette = PALETTE[::-1] if reverse else PALETTE
    while True:
        yield from palette


def _series(points: Iterable[Mapping[str, Any]]) -> Series:
    series: Series = {}
    for point in points:
        for name, value in point["metrics"].items():
            if name.startswith("teachers/"):
                steps, values = series.setdefault(name, ([], []))
                steps.append(point["step"])
                values.append(value)
    return series


def _draw(axis: "Axes", panel: Panel, series: Series) -> None:
    for curve in panel.curves:
        steps, values = series[curve.metric]
        axis.plot(
            steps,
            values,
            color=curve.colour,
            label=curve.label or None,
            linestyle=":" if curve.dotted else "-",
            linewidth=1.4,
            marker="o" if len(values) < FEW_POINTS else "",
            markersize=2.5,
        )
    style(axis, "step")
    name_panel(axis, panel.title)
    axis.set_ylabel(panel.y_label, fontsize=8, color=GREY)
    axis.margins(x=0.02)
    bottom, top = axis.get_ylim()
    axis.set_ylim(min(bottom, 0), max(top, panel.top))
    # Below the panel: the curves are mostly flat, and inside it a legend would hide one.
    axis.legend(
        fontsize=8, labelcolor=INK, frameon=False, handlelength=1.4, ncols=3, columnspacing=1.2,
        loc="upper left", bbox_to_anchor=(-0.02, -0.17), borderaxespad=0,
    )  # fmt: skip
