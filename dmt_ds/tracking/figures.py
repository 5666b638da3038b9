"""How the project's figures look: their colours, axes and size; knows no run and no metric."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GREY, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN, PURPLE = "#2166ac", "#d6604d", "#1b7837", "#762a83"
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, "#b8860b", "#17807e", "#a6407a", "#5b6770")
FEW_POINTS = 30
"""A curve of fewer points is drawn as it is, each point marked."""
_DPI = 150


def new_figure(
    num_columns: int, num_rows: int, size: tuple[float, float], share_y: bool = False
) -> "tuple[Figure, list[list[Axes]]]":
    """A figure that no window system and no global state of pyplot knows of.

    Args:
        num_columns: panels beside each other.
        num_rows: panels below each other.
        size: width and height in inches.
        share_y: all panels have one range of y, written once a row.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, sharey=share_y).tolist()


def new_grid(
    num_panels: int,
    most_columns: int,
    panel_inches: tuple[float, float],
    margin_inches: tuple[float, float] = (0.0, 0.0),
    share_y: bool = False,
) -> "tuple[Figure, list[Axes]]":
    """A figure of panels of one size, row after row; what the last row has too many stays empty.

    Args:
        num_panels: at least one.
        most_columns: panels beside each other.
        panel_inches: width and height of one.
        margin_inches: width and height beside all panels.
        share_y: all panels have one range of y, written once a row.
    """
    num_columns = min(most_columns, num_panels)
    num_rows = math.ceil(num_panels / num_columns)
    size = (panel_inches[0] * num_columns + margin_inches[0], panel_inches[1] * num_rows + margin_inches[1])
    figure, rows = new_figure(num_columns, num_rows, size, share_y=share_y)
    panels = [axis for row in rows for axis in row]
    for axis in panels[num_panels:]:
        axis.set_axis_off()
    return figure, panels[:num_panels]


def printable(text: str) -> str:
    """A name in letters that a font has: a question mark for each line break or other control character.

    Two dollar signs in it are no formula: draw it with `parse_math=False`.
    """
    return "".join(character if character.isprintable() else "?" for character in text)


def style(axis: "Axes", x_label: str) -> None:
    """Small grey numbers, a faint grid, no frame but the line below."""
    axis.set_xlabel(x_label, fontsize=8, color=GREY)
    axis.tick_params(labelsize=8, colors=GREY, length=0)
    axis.yaxis.set_major_formatter("{x:g}")
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    for side, spine in axis.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(GRID)


def name_panel(axis: "Axes", text: str) -> None:
    """Write a name above the panel, on the left."""
    axis.set_title(text, fontsize=10, color=INK, loc="left")


def smoothed(values: Sequence[float], half_width: int) -> list[float]:
    """Running mean; towards both ends the window shrinks (to 3 on a side), so that it stays centred."""
    numbers, last = np.asarray(values, dtype=np.float64), len(values) - 1
    halves = (max(3, min(half_width, index, last - index)) for index in range(len(values)))
    # A difference of running sums would be quicker, but after one huge value all later windows were rounding.
    with np.errstate(invalid="ignore", over="ignore"):  # of a diverged run
        return [float(numbers[max(0, index - half) : index + half + 1].mean()) for index, half in enumerate(halves)]


def save(figure: "Figure", path: Path) -> None:
    """Write the figure as PNG; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
