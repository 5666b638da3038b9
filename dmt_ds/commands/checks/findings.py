"""What a check found, how it is shown, and the exit code that it gives; knows no check."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from dmt_ds.errors import DmtError, StorageError
from dmt_ds.storage import is_away
from dmt_ds.wording import one_line

Status = Literal["ok", "warn", "fail"]

MARKS: dict[Status, str] = {"ok": "✓", "warn": "!", "fail": "✗"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    status: Status
    what: str
    message: str
    """The result in one line, or more if an error has more; with the remedy if it is bad."""
    exit_code: int = DmtError.exit_code
    """Exit code of a process that ends with this failure: 75 if another try may help."""


def failure(what: str, error: Exception) -> Finding:
    """What an error comes to: one finding, however many lines it has."""
    if isinstance(error, DmtError):
        return Finding("fail", what, str(error), error.exit_code)
    code = StorageError.exit_code if is_away(error) else DmtError.exit_code
    return Finding("fail", what, f"{type(error).__name__}: {one_line(str(error))}", code)


def exit_code(findings: Collection[Finding]) -> int:
    """0 if nothing fails, 75 if every failure may be temporary, else 2."""
    # The smallest: 2, where another try does not help, comes before 75.
    return min((finding.exit_code for finding in findings if finding.status == "fail"), default=0)


def render(findings: list[Finding]) -> str:
    """A table of the findings, and a summary line."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        first, *more = finding.message.split("\n")
        lines += [f"{MARKS[finding.status]} {finding.what:{width}}  {first}"]
        lines += [f"{'':{width}}    {line}" for line in more]
    failed, warned = (sum(finding.status == status for finding in findings) for status in ("fail", "warn"))
    end = f"{failed} problem{'s' if failed > 1 else ''}" if failed else "ready"
    return "\n".join([*lines, "", f"{end}, {warned} warning{'s' if warned > 1 else ''}" if warned else end])
