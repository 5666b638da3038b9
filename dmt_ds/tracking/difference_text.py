"""The settings in which rows differ as tables of text; decides what fits, and computes no difference."""

import textwrap
from collections import Counter
from collections.abc import Sequence

from dmt_ds.tracking.differences import NOTHING, Difference

Grid = list[list[str]]
"""Lines of cells; the first line is the head."""
_MANY_ROWS, _MANY_SETTINGS, _MANY_COLUMNS = 4, 20, 10
_LETTERS, _LINES_OF_A_SCREEN = 28, 40


def settings_grids(
    differences: Sequence[Difference], titles: Sequence[str], by: str, width: int | None
) -> tuple[list[Grid], str]:
    """A line a setting and a column a row; of many or broad rows a line a row, in as many tables as the width asks for.

    Rows that would fill more than a screen so are told by what is unlike in most rows.

    Args:
        differences: with a value a row.
        titles: of the rows.
        by: what makes the rows, which stands above them.
        width: letters of a line; None where lines have no end.

    Returns:
        The tables, and what is said of the settings that have no place in them; empty where all have.
    """
    shown = [[told.setting, *map(_clipped, told.values)] for told in differences[:_MANY_SETTINGS]]
    lines = [["setting", *titles], *shown]
    if len(titles) <= _MANY_ROWS and (width is None or _width(lines) <= width):
        return [lines], _left_over(len(differences) - _MANY_SETTINGS)
    tables = _tables_of_columns([by, *titles], shown[:_MANY_COLUMNS], width)
    if width is not None and sum(map(len, tables)) > _LINES_OF_A_SCREEN:
        return [_unlike_most([by, *titles], shown, width)], _left_over(len(differences) - _MANY_SETTINGS)
    return tables, _left_over(len(differences) - _MANY_COLUMNS)


def _tables_of_columns(first: list[str], columns: Sequence[list[str]], width: int | None) -> list[Grid]:
    tables = []
    table = [first]
    for column in columns:
        if width is not None and len(table) > 1 and _width(_turned([*table, column])) > width:
            tables.append(_turned(table))
            table = [first]
        table.append(column)
    return [*tables, _turned(table)]


def _unlike_most(first: list[str], columns: Sequence[list[str]], width: int) -> Grid:
    """The commonest value of each setting, and of each row what it has otherwise."""
    usual = [Counter(column[1:]).most_common(1)[0][0] for column in columns]
    grid = [[first[0], "settings"]]
    told = {"(most of them)": list(zip([column[0] for column in columns], usual, strict=True))}
    for number, title in enumerate(first[1:], start=1):
        own = [(column[0], column[number], most) for column, most in zip(columns, usual, strict=True)]
        told[title] = [(name, value) for name, value, most in own if value != most]
    room = max(_LETTERS, width - 2 - max(map(len, told)))
    for title, settings in told.items():
        known = [f"{name}={value}" for name, value in settings if value != NOTHING]
        wrapped = textwrap.wrap(", ".join(known), room, break_long_words=False, break_on_hyphens=False)
        without = "as most" if not settings else "has none of the settings that it differs in"
        grid += [[title if not n else "", line] for n, line in enumerate(wrapped or [without])]
    return grid


def _left_over(number: int) -> str:
    return f"and {number} more: compare.csv" if number > 0 else ""


def _turned(grid: Grid) -> Grid:
    return [list(column) for column in zip(*grid, strict=True)]


def _width(grid: Grid) -> int:
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    return sum(widths) + 2 * (len(widths) - 1)


def _clipped(value: str) -> str:
    return value if len(value) <= _LETTERS else f"{value[: _LETTERS - 1]}…"
