"""What a check found, and how it is told; knows no check."""

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]

MARKS: dict[Status, str] = {"ok": "✓", "warn": "!", "fail": "✗"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    status: Status
    what: str
    message: str
    """How it stands, in one line; the remedy where it does not stand well."""


def render(findings: list[Finding]) -> str:
    """A table, and what it comes to."""
    width = max(len(finding.what) for finding in findings)
    lines = [f"{MARKS[finding.status]} {finding.what:{width}}  {finding.message}" for finding in findings]
    failed, warned = (sum(finding.status == status for finding in findings) for status in ("fail", "warn"))
    end = f"{failed} will fail" if failed else "ready"
    return "\n".join([*lines, "", f"{end}, {warned} to look at" if warned else end])
