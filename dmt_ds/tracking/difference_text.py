"""The settings in which rows differ as tables of text; decides what fits, and computes no difference."""

from collections.abc import Sequence

from dmt_ds.tracking.differences import Difference

Grid = list[list[str]]
"""Lines of cells; the first line is the head."""
_MANY_ROWS, _MANY_LINES, _MANY_COLUMNS = 4, 20, 10
_LETTERS = 28


def settings_grids(differences: Sequence[Difference], titles: Sequence[str], by: str, width: int | None) -> list[Grid]:
    """A line a setting and a column a row; of many or broad rows a line a row, in as many tables as the width asks for.

    Args:
        titles: of the rows.
        by: what makes the rows, which stands above them.
        width: letters of a line; None where lines have no end.
    """
    shown = [[difference.setting, *map(_clipped, difference.values)] for difference in differences]
    lines = [["setting", *titles], *shown[:_MANY_LINES]]
    if len(titles) <= _MANY_ROWS and (width is None or _width(lines) <= width):
        return [lines]
    columns = [[by, *titles]]
    grids = []
    for column in shown[:_MANY_COLUMNS]:
        if width is not None and len(columns) > 1 and _width(_turned([*columns, column])) > width:
            grids.append(_turned(columns))
            columns = columns[:1]
        columns.append(column)
    return [*grids, _turned(columns)]


def left_over(differences: Sequence[Difference], grids: Sequence[Grid]) -> str:
    """What is said of the settings that have no place in the tables; empty where all have."""
    names = {cell for grid in grids for cell in (*grid[0], *(line[0] for line in grid))}
    number = sum(difference.setting not in names for difference in differences)
    return f"and {number} more: compare.csv" if number else ""


def _turned(grid: Grid) -> Grid:
    return [list(column) for column in zip(*grid, strict=True)]


def _width(grid: Grid) -> int:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return sum(widths) + 2 * (len(widths) - 1)


def _clipped(value: str) -> str:
    return value if len(value) <= _LETTERS else f"{value[: _LETTERS - 1]}…"
