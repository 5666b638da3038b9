"""Errors of other libraries become one line, whatever they say."""

import pytest

from dmt_ds.errors import first_line


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
