"""Units shared by ranks that do not know each other, such as the tasks of a Slurm array: every rank runs the same command.

All they share is the work folder, on a file system that all of them see. A rank runs its share, then looks for the results of
the others; if none comes for some time, it takes their unfinished units over, each rank from another place on, but for those
whose partial folder shows a sign of life: a long unit that all wait for should not run on all machines at once. So no rank
waits for one that is dead, hangs or has not started, and it waits only once: the units of a rank that was waited for in vain are
taken over at once, in later phases too, until that rank publishes a result, which the time of its folder `rank-1-of-2` shows.
What two ranks do at once is done twice and published once: same key, same bytes. Every rank returns all results.

What lay in the folder before is verified by every rank in full, by hashing it; what appears meanwhile was hashed by the rank
that made it, so only its sizes are checked.
"""

from __future__ import annotations

import contextlib
import functools
import math
import threading
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from fledge.core import disk
from fledge.core.errors import ConfigError, MachineError
from fledge.corpus.engine.pool import one_arrow_thread
from fledge.corpus.engine.results import Results
from fledge.corpus.engine.telling import listening
from fledge.corpus.engine.units import Done, Enough, Unit, WorkFolder, name_of

_PATIENCE_SECONDS = 30.0
_PATIENCE_UNITS = 3
_SIGNS_PER_PATIENCE = 6
_AHEAD_UNITS_PER_RANK = 2


class RankExecutor:
    """Runs units as rank `rank` of `world` ranks, one unit at a time.

    `patience_seconds`: how long nothing new may appear before units of other ranks are taken over; by default three times as
    long as the slowest unit here took, at least 30 s. `look_seconds`: how often the folder is looked at while waiting.
    """

    def __init__(self, rank: int, world: int, patience_seconds: float | None = None, look_seconds: float = 1.0) -> None:
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} of {world} cannot be", "ranks count from 0 to below the number of ranks (--rank, --world)")
        self.rank = rank
        self.world = world
        self.patience_seconds = patience_seconds
        self.look_seconds = look_seconds
        self._silent: dict[int, int] = {}
        """Ranks that were waited for in vain, with when each had last published then."""

    def run(self, label: str, units: Sequence[Unit], work: WorkFolder, enough: Enough | None = None) -> list[Done | None]:
        work.discard_partials()
        results = Results(units, enough)
        others = _Others(results, work, self.look_seconds)
        patience_seconds = _PATIENCE_SECONDS if self.patience_seconds is None else self.patience_seconds
        # Not from the patience as it grows: that of another rank may not have.
        sign_seconds = max(patience_seconds, 0.1) / _SIGNS_PER_PATIENCE
        waiting_since: float | None = None
        with results.shown(label), one_arrow_thread():
            while not results.are_complete:
                if others.take_new():
                    waiting_since = None
                    continue
                index = self._next(results, takes_over=False)
                if index is None and others.take_earlier():
                    continue
                if index is None:
                    waiting_since = waiting_since or time.monotonic()
                    if time.monotonic() - waiting_since >= patience_seconds:
                        self._silent.update((rank, self._published(work, rank)) for rank in self._owners(results))
                    self._forget_who_published(work)
                    index = self._next(results, takes_over=True, left_out=others.at_work(patience_seconds))
                if index is None:
                    time.sleep(self.look_seconds)
                    continue
                started = time.monotonic()
                found = work.find(units[index])
                with listening(functools.partial(results.hear, index)):
                    done = found or work.make(_SignOfLife(units[index], sign_seconds))
                if found is None:
                    disk.make_folder(self._folder_of(work, self.rank))
                    disk.touch(self._folder_of(work, self.rank))
                results.add(index, done, was_found=found is not None)
                if self.patience_seconds is None:
                    patience_seconds = max(patience_seconds, _PATIENCE_UNITS * (time.monotonic() - started))
        return results.in_order()

    def _next(self, results: Results, takes_over: bool, left_out: Collection[str] = ()) -> int | None:
        ahead = _AHEAD_UNITS_PER_RANK * self.world
        missing = [index for index in results.missing() if results.may_start(index, ahead)]
        missing = [index for index in missing if name_of(results.units[index].key) not in left_out]
        if takes_over:
            missing = [index for index in missing if index % self.world in self._silent]
        return next_unit(missing, self.rank, self.world, takes_over)

    def _owners(self, results: Results) -> set[int]:
        """The ranks in whose share a unit is missing."""
        return {index % self.world for index in results.missing()}

    def _forget_who_published(self, work: WorkFolder) -> None:
        self._silent = {rank: seen for rank, seen in self._silent.items() if self._published(work, rank) == seen}

    def _published(self, work: WorkFolder, rank: int) -> int:
        """When a rank last published a result, by the clock of the file system; 0 if it never did."""
        folder = self._folder_of(work, rank)
        return folder.stat().st_mtime_ns if folder.is_dir() else 0

    def _folder_of(self, work: WorkFolder, rank: int) -> Path:
        return work.folder / f"rank-{rank}-of-{self.world}"


def next_unit(missing: Sequence[int], rank: int, world: int, takes_over: bool) -> int | None:
    """Which of the missing units a rank runs next: of its share the first; of the others' shares one at its own distance."""
    own = next((index for index in missing if index % world == rank), None)
    if own is not None or not takes_over or not missing:
        return own
    return missing[rank * len(missing) // world]


class _Others:
    """What the other ranks did, as the work folder shows it."""

    def __init__(self, results: Results, work: WorkFolder, look_seconds: float) -> None:
        self._results = results
        self._work = work
        self._look_seconds = look_seconds
        self._looked = -math.inf
        self._earlier = work.names()
        self._signs: dict[str, tuple[int, float]] = {}
        """By name of the result: what time its partial folder shows, and when, by our clock, we first saw that."""

    def take_new(self) -> bool:
        """Take the results that were published since we began; returns whether there were any. Looks only so often."""
        if time.monotonic() - self._looked < self._look_seconds:
            return False
        self._looked = time.monotonic()
        for name, touched in self._work.partials().items():
            if self._signs.get(name, (0, 0.0))[0] != touched:
                self._signs[name] = (touched, self._looked)
        new = self._work.names() - self._earlier
        taken = False
        for index in self._results.missing():
            unit = self._results.units[index]
            done = self._work.glance(unit) if name_of(unit.key) in new else None
            if done is not None:
                self._results.add(index, done, was_found=True)
                taken = True
        return taken

    def at_work(self, patience_seconds: float) -> set[str]:
        """Names of the results that others show to be at work on."""
        return {name for name, (_, seen) in self._signs.items() if time.monotonic() - seen < patience_seconds}

    def take_earlier(self) -> bool:
        """Verify one result that lay there before we began; returns whether there was one, damaged or not."""
        for index in self._results.missing():
            unit = self._results.units[index]
            if name_of(unit.key) in self._earlier:
                self._earlier.discard(name_of(unit.key))
                done = self._work.find(unit)
                if done is not None:
                    self._results.add(index, done, was_found=True)
                return True
        return False


class _SignOfLife:
    """A unit that touches its partial folder every so often while it runs."""

    def __init__(self, unit: Unit, every_seconds: float) -> None:
        self.key, self.label = unit.key, unit.label
        self.size_bytes, self.work_bytes = unit.size_bytes, unit.work_bytes
        self._unit = unit
        self._every_seconds = every_seconds

    def run(self, folder: Path) -> dict[str, Any]:
        ended = threading.Event()
        thread = threading.Thread(target=self._touch, args=(folder, ended), daemon=True)
        thread.start()
        try:
            return self._unit.run(folder)
        finally:
            ended.set()
            thread.join()

    def _touch(self, folder: Path, ended: threading.Event) -> None:
        # A disk that refuses is the unit's to report.
        with contextlib.suppress(MachineError):
            while not ended.wait(self._every_seconds):
                disk.touch(folder)
