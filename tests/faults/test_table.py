"""The table of docs/reliability.md names tests that exist, and has a line for each fault."""

import json
import re
from pathlib import Path

import pytest

from tests.faults.table import DOCUMENT, FAULTS, SOAK_BEGIN, SOAK_END, SOAK_ROWS, Fault, outcomes, row

TESTS = Path(__file__).parents[1]


def test_each_fault_is_shown_by_tests_that_exist() -> None:
    for fault in FAULTS:
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), test


@pytest.mark.parametrize(
    ("noted", "soak", "times", "lost"),
    [
        ({"a": "passed", "b": "passed"}, {}, "2", "nothing"),
        ({"a": "passed", "b": "skipped"}, {}, "1", "nothing; not run: `b`"),
        ({"a": "passed"}, {}, "1", "nothing; not run: `b`"),
        ({"a[0]": "passed", "a[1]": "skipped", "b": "passed"}, {}, "2", "nothing; not run: `a` in 1 of 2 instances"),
        ({"a": "skipped"}, {"kill": 3}, "0 + 3 in the soak", "nothing; not run: `a`, `b`"),
        ({"a": "skipped", "b": "skipped"}, {}, "0", "not run yet"),
        ({"a": "failed", "b": "skipped"}, {}, "0", "FAILED: tests/x.py::a; not run: `b`"),
    ],
)
def test_a_row_tells_which_of_its_tests_did_not_run(
    tmp_path: Path, noted: dict[str, str], soak: dict[str, int], times: str, lost: str
) -> None:
    lines = [json.dumps({"test": f"tests/x.py::{name}", "outcome": outcome}) for name, outcome in noted.items()]
    (tmp_path / "outcomes.jsonl").write_text("\n".join(lines))
    fault = Fault("harm", "promise", ("x.py::a", "x.py::b"), ("kill",))
    told = row(fault, outcomes(tmp_path / "outcomes.jsonl"), soak)
    assert told == f"| harm | promise | `a` (x.py), `b` (x.py) | {times} | {lost} |"


def test_the_document_has_a_line_for_each_fault_and_none_that_failed() -> None:
    text = DOCUMENT.read_text()
    assert all(f"\n| {fault.what} | {fault.promise} |" in text for fault in FAULTS)
    assert "FAILED" not in text


def test_the_document_has_each_figure_of_the_soak_and_none_that_shows_a_loss() -> None:
    told = DOCUMENT.read_text().partition(SOAK_BEGIN)[2].partition(SOAK_END)[0]
    assert all(f"\n| {what} |" in told for what in SOAK_ROWS) and "NO" not in told
    for what, nothing in (("steps reached", r"\d+; 0; 0"), ("unfinished files", "0"), ("times that a checkpoint", "0")):
        cells = re.search(rf"^\| {what}[^|]*\| ([^|]*) \| ([^|]*) \|$", told, re.MULTILINE)
        assert cells and all(re.fullmatch(nothing, cell) for cell in cells.groups()), what
