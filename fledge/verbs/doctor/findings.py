"""What a check says: facts -> [checks] -> findings -> the lines of `fledge doctor`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fledge.core.errors import FledgeError, MachineError

Level = Literal["ok", "note", "problem"]
"""problem: something fails here, or takes much longer than it must; note: something is missing that not everybody needs."""


@dataclass(frozen=True)
class Finding:
    """One line, and what to do about it."""

    subject: str
    level: Level
    found: str
    fix: str = ""
    """What to type; empty if there is nothing to mend."""
    error: type[FledgeError] = MachineError
    """Of a problem: the class whose exit code fits."""


def ok(subject: str, found: str) -> Finding:
    return Finding(subject, "ok", found)


def note(subject: str, found: str, fix: str) -> Finding:
    return Finding(subject, "note", found, fix)


def problem(subject: str, found: str, fix: str, error: type[FledgeError] = MachineError) -> Finding:
    return Finding(subject, "problem", found, fix, error)


def refused(subject: str, error: FledgeError) -> Finding:
    """What a command would end with, found before it is run."""
    return Finding(subject, "problem", error.problem.removeprefix(f"{subject}: "), error.remedy, type(error))
