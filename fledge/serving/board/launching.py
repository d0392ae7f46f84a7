"""What the board needs of whoever can start a run: `serving` knows neither recipes nor stages, so the verb hands this in.

Only to a server that no other machine reaches; its routes are behind the key like all of the board's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class AskedRun:
    """A run as it is to be started."""

    recipe: str
    """One of those that the launcher lists."""
    changes: dict[str, str] = field(default_factory=dict)
    """By dotted name, a value as it is typed on a command line."""
    name: str | None = None
    smoke: bool = False
    last_stage: str | None = None
    """End after it; None: with the last one."""


class Launcher(Protocol):
    """Every method raises FledgeError with words for the user."""

    def recipes(self) -> Sequence[dict[str, Any]]:
        """Name, origin and first words of each recipe."""
        ...

    def form(self, asked: AskedRun) -> dict[str, Any]:
        """Every value with its help, the run's name, and the command line; checks the changes on the way."""
        ...

    def plan(self, asked: AskedRun) -> dict[str, Any]:
        """What `fledge plan` says, as data."""
        ...

    def start(self, asked: AskedRun) -> dict[str, Any]:
        """Start it; gives the run's name and the command line."""
        ...

    def started(self) -> Sequence[dict[str, Any]]:
        """What was started from here: run, command line, whether it still works, its last lines."""
        ...

    def stop(self, run: str) -> None:
        """Ask a run that was started from here to save and end."""
        ...
