"""`fledge ARGUMENTS` in this process, through its own entry: what it says, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from fledge import cli


@dataclass(frozen=True)
class Outcome:
    exit_code: int
    said: str
    noted: str


Fledge = Callable[..., Outcome]


def run_fledge(capsys: pytest.CaptureFixture[str], *arguments: str) -> Outcome:
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        cli._application()(list(arguments), prog_name="fledge")
    captured = capsys.readouterr()
    return Outcome(int(ended.value.code or 0), captured.out, captured.err)


def expect_error(outcome: Outcome, exit_code: int, *words: str) -> None:
    """Two lines, the last ones, with these words in their order."""
    assert outcome.exit_code == exit_code, outcome.noted
    problem, remedy = outcome.noted.splitlines()[-2:]
    assert problem.startswith("error: ") and remedy.startswith("  fix: ") and len(remedy) > len("  fix: ")
    place = 0
    for word in words:
        found = f"{problem}\n{remedy}".find(word, place)
        assert found >= 0, f"{word!r} is not in its place in {problem!r}, {remedy!r}"
        place = found + len(word)
