"""Threads that lend a hand where there is more to compute than one is quick at: a piece of the work at a time, to whoever is free.

Whoever has work takes its pieces itself, one after another; helpers that are free take pieces too. At the end it waits for pieces that a
helper is at, never for a helper to come. Loops divided into equal parts wait for the slowest thread instead, and where other processes
want the cores too each wait is as long as a turn of the scheduler: 24 ms, 100 times the work (measured).
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from itertools import count

Work = Callable[[int], None]
"""Does the piece with this number, in any thread and beside other pieces."""


class Crew:
    """So many helpers; whoever calls `divide` is one more. May be called from any thread, and from inside a piece."""

    def __init__(self, helpers: int) -> None:
        self._helpers = helpers
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        for number in range(helpers):
            threading.Thread(target=self._help, name=f"fledge-helper-{number}", daemon=True).start()

    def divide(self, pieces: int, work: Work) -> None:
        """Returns when `work` has done all pieces, from 0 on. Raises what a piece raised, when the others are done."""
        if pieces < 1:
            return
        job = _Job(pieces, work)
        for _ in range(min(self._helpers, pieces - 1)):
            self._jobs.put(job)
        job.take_part()
        job.wait()

    def _help(self) -> None:
        while True:
            self._jobs.get().take_part()


class _Job:
    def __init__(self, pieces: int, work: Work) -> None:
        self._pieces, self._work = pieces, work
        self._numbers = count()
        self._left, self._lock = pieces, threading.Lock()
        self._all_done = threading.Event()
        self._error: BaseException | None = None

    def take_part(self) -> None:
        """Pieces, until all have been taken."""
        while (number := next(self._numbers)) < self._pieces:
            try:
                self._work(number)
            except BaseException as error:  # whatever it is, whoever has the work must hear of it, and must not wait for ever
                self._error = error
            with self._lock:
                self._left -= 1
                if not self._left:
                    self._all_done.set()

    def wait(self) -> None:
        self._all_done.wait()
        if self._error is not None:
            raise self._error


def crew(threads: int) -> Crew:
    """The one of this process for so many threads, the caller's among them; it lasts as long as the process."""
    with _crews_lock:  # two who ask at once would make two, whose helpers never end
        if threads not in _crews:
            _crews[threads] = Crew(threads - 1)
        return _crews[threads]


_crews: dict[int, Crew] = {}
_crews_lock = threading.Lock()


def _begin_anew() -> None:
    """In a child: it has no threads but its own, and nobody who would let go of a lock that was held."""
    global _crews_lock
    _crews_lock = threading.Lock()
    _crews.clear()


if hasattr(os, "register_at_fork"):  # else there is no fork
    os.register_at_fork(after_in_child=_begin_anew)
