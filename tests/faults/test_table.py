"""The table of docs/reliability.md names tests that exist, and has a line for each fault."""

import re
from pathlib import Path

from tests.faults.table import DOCUMENT, FAULTS, SOAK_BEGIN, SOAK_END, SOAK_ROWS

TESTS = Path(__file__).parents[1]


def test_each_fault_is_shown_by_tests_that_exist() -> None:
    for fault in FAULTS:
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert re.search(rf"^def {name}\(", (TESTS / file).read_text(), re.MULTILINE), test


def test_the_document_has_a_line_for_each_fault_and_none_that_failed() -> None:
    text = DOCUMENT.read_text()
    assert all(f"\n| {fault.what} | {fault.promise} |" in text for fault in FAULTS)
    assert "FAILED" not in text


def test_the_document_has_each_figure_of_the_soak_and_none_that_shows_a_loss() -> None:
    told = DOCUMENT.read_text().partition(SOAK_BEGIN)[2].partition(SOAK_END)[0]
    assert all(f"\n| {what} |" in told for what in SOAK_ROWS) and "NO" not in told
