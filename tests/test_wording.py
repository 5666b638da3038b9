"""Pieces of messages: errors of other libraries become one line, long lists are cut."""

import pytest

from dmt_ds.wording import few, few_counted, first_line, one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("bad magic number"), "bad magic number"),
        (RuntimeError("\n  Error(s) in loading:\n\tMissing key"), "Error(s) in loading:"),
        (EOFError(), "EOFError"),
        (OSError(" \n"), "OSError"),
    ],
)
def test_the_first_line_of_an_error_is_never_empty(error: Exception, line: str) -> None:
    assert first_line(error) == line


def test_line_breaks_become_spaces() -> None:
    assert one_line(" a\n\t b  c\n") == "a b c"


@pytest.mark.parametrize(
    ("most", "dots", "counted"),
    [(1, "a, ...", "a and 2 more"), (2, "a, b, ...", "a, b and 1 more"), (3, "a, b, c", "a, b, c")],
)
def test_of_many_names_the_first_are_shown_and_whether_there_are_more(most: int, dots: str, counted: str) -> None:
    assert (few("abc", most), few_counted("abc", most)) == (dots, counted)
