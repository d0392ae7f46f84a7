"""Where a process is in its work, told in a word, and the end of one that does not get on.

    trainer: at("forward", 8)  ->  a file for the process that launched this one  ->  "process 1 was ended by SIGKILL in forward of step 8"
                               ->  a clock: without another word for so many seconds, all stacks are printed and the process ends

A process that stands still makes all others wait for ever, because they meet in every step. The clock that ends it is C's
(`faulthandler`), which asks for no lock of Python's, so it also ends a process that stands still inside foreign code; a thread of ours
only sets it back whenever the work has moved on, which costs the work itself nothing.
"""

from __future__ import annotations

import faulthandler
import json
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from fledge.core import disk, process

MEETINGS = ("backward", "reduce")
"""Phases in which a process may be waiting for the others."""
_LOOKS = 20
"""In the time after which a process that stands still is ended."""


@dataclass(frozen=True)
class Place:
    """Where a process was last known to be."""

    rank: int
    phase: str
    step: int
    """Steps done before."""
    unix_seconds: float
    """Since when."""
    limit_seconds: float | None = None
    """After which a process that does not get on is ended."""

    def stood_still(self, unix_seconds: float) -> bool:
        """Whether a process that ended then may have been ended for that; half the time tells it from one that was at work."""
        return self.limit_seconds is not None and unix_seconds - self.unix_seconds > self.limit_seconds / 2

    @property
    def words(self) -> str:
        """As part of a sentence."""
        return f"in {self.phase} of step {self.step + 1:,}"


class Watch:
    """While the block lasts, `at` notes where the process is; with `seconds` it ends when that does not change for so long."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._moves = 0
        self._ended = threading.Event()
        self._looker: threading.Thread | None = None
        folder = process.report_folder()
        self._mark = None if folder is None else disk.Mark(folder / f"{process.rank()}.place")

    def at(self, phase: str, step: int) -> None:
        """The process now begins this: data, forward, backward, reduce, apply, look or save."""
        self._moves += 1
        if self._mark is not None:
            place = Place(process.rank(), phase, step, round(time.time(), 3), self._seconds)
            self._mark.write(json.dumps(asdict(place)))

    def __enter__(self) -> Watch:
        if self._seconds is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True)
            self._looker = threading.Thread(target=self._look, args=(self._seconds,), daemon=True)
            self._looker.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._looker is not None:
            self._looker.join()  # else it could set the clock once more after it was stopped
            faulthandler.cancel_dump_traceback_later()

    def _look(self, seconds: float) -> None:
        seen = self._moves
        while not self._ended.wait(seconds / _LOOKS):
            if self._moves != seen:
                seen = self._moves
                faulthandler.dump_traceback_later(seconds, exit=True)


def places(folder: Path) -> list[Place]:
    """Where processes were, by rank, as they noted it in the folder of the one that launched them."""
    found = [path.read_text(encoding="utf-8", errors="replace").strip() for path in sorted(folder.glob("*.place"))]
    return sorted((Place(**json.loads(text)) for text in found if text.endswith("}")), key=lambda place: place.rank)


def held_up(found: list[Place]) -> Place:
    """Of processes of which none gets on, the one that the others wait for: it waits for nobody, or has stood still the longest.

    In a save the first process works and the others only pass through on their way to meet it, so one of them that is still there is it.
    """
    busy = [place for place in found if place.phase not in MEETINGS]
    return min(busy or found, key=lambda place: (place.step, place.phase == "save" and place.rank == 0, place.unix_seconds))
