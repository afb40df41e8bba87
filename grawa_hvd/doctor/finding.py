"""What a check of the doctor says."""

from __future__ import annotations

from typing import NamedTuple

PASS, WARN, FAIL = "PASS", "WARN", "FAIL"


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        level: PASS; WARN, where a run may be slow or fail; FAIL, where it cannot work.
        about: what was looked at.
        text: what was found and, unless it is well, what to do.
    """

    level: str
    about: str
    text: str


def report(found: list[Finding]) -> str:
    """A line for each, then how many there are of each level."""
    lines = [f"{finding.level}  {finding.about}: {finding.text}" for finding in found]
    counts = ", ".join(f"{sum(finding.level == level for finding in found)} {level}" for level in (PASS, WARN, FAIL))
    return "\n".join([*lines, counts])
