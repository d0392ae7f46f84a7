"""Trying again: the one policy for every server a source is read from.

An attempt that comes to nothing is repeated after 1, 2, 4, ... seconds, or after what the server asks for in Retry-After; what
gains a byte starts the count afresh. The waits are not randomised: a run has few connections, and a rerun should do the same.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

from fledge.core import console
from fledge.core.console import format_seconds
from fledge.core.errors import DataError, MachineError

AGAIN = "run the same command again: what is there is kept"
_LOOK_AGAIN = "if it changed there, remove work/corpus/sources.json of the run to look again; else take it from elsewhere"

AnyResult = TypeVar("AnyResult")


@dataclass(frozen=True)
class Patience:
    """How long a server is waited for: with these figures about two minutes."""

    attempts: int = 8
    """In a row that gain nothing."""
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 60.0
    longest_asked_seconds: float = 900.0
    """A server that asks for a longer pause than this ends the run; the hub counts requests over five minutes."""
    silence_seconds: float = 30.0
    """A connection on which nothing comes for so long counts as broken."""


PATIENCE = Patience()

PAUSE: ContextVar[Callable[[float], None]] = ContextVar("PAUSE", default=time.sleep)
"""How this thread waits for so many seconds; one that works for others sets a way that they can end."""


class Failure(Exception):
    """An attempt that came to nothing. `is_data`: what came was wrong, rather than that nothing came."""

    def __init__(self, problem: str, wait_seconds: float = 0.0, is_data: bool = False, attempts: int | None = None) -> None:
        super().__init__(problem)
        self.wait_seconds = wait_seconds
        self.is_data = is_data
        self.attempts = attempts
        """How many of this kind are enough; None leaves it to the policy."""


class Stopped(Exception):
    """Nobody wants what this thread works at any more."""


def pause_until(stop: threading.Event, seconds: float) -> None:
    """A way to wait that raises Stopped as soon as the event is set."""
    if stop.wait(seconds):
        raise Stopped


class Attempts:
    """Counts the attempts in a row that gained nothing, and waits between them."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def failed(self, failure: Failure, gained: bool = False) -> None:
        """Wait until the next attempt is due. Raises DataError or MachineError if there have been enough."""
        patience = PATIENCE
        self._in_a_row = 1 if gained else self._in_a_row + 1
        if failure.wait_seconds > patience.longest_asked_seconds:
            asked = format_seconds(failure.wait_seconds)
            raise MachineError(f"{failure} and asks to be left alone for {asked}", f"wait so long, then {AGAIN}") from failure
        if self._in_a_row >= min(patience.attempts, failure.attempts or patience.attempts):
            problem = f"{failure} ({self._in_a_row} attempts)"
            if failure.is_data:
                raise DataError(
                    problem,
                    _LOOK_AGAIN,
                ) from failure
            raise MachineError(problem, f"see that the network and the server are up, then {AGAIN}") from failure
        own_seconds = patience.first_wait_seconds * 2 ** (self._in_a_row - 1)
        wait_seconds = max(min(own_seconds, patience.longest_wait_seconds), failure.wait_seconds)
        if self._in_a_row > 1:
            console.info(f"{failure}; attempt {self._in_a_row + 1} in {format_seconds(wait_seconds)}")
        PAUSE.get()(wait_seconds)


def retried(call: Callable[[], AnyResult]) -> AnyResult:
    """What `call` returns, called again as long as it raises Failure. Raises DataError or MachineError in the end."""
    attempts = Attempts()
    while True:
        try:
            return call()
        except Failure as failure:
            attempts.failed(failure)
