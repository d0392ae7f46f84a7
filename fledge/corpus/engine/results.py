"""What has come out of the units so far: in order, up to where it is enough, and as one line of progress.

All executors collect here, so that what they return, and what a person sees, does not depend on which of them ran the units.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fledge.core import console
from fledge.corpus.engine.telling import HowFar
from fledge.corpus.engine.units import Done, Enough, Unit


class Results:
    """Collects results that arrive in any order."""

    def __init__(self, units: Sequence[Unit], enough: Enough | None = None) -> None:
        self.units = units
        self.first_missing = 0
        """Number of the first unit without a result."""
        self._enough = enough
        self._end = len(units)
        self._all: list[Done | None] = [None] * len(units)
        self._in_order: list[Done | None] = [None] * len(units)
        """Those before the first that is missing: all that `enough` may see."""
        self._finished = _Amounts()
        self._fresh_documents = 0
        """Read by ourselves: what was found there says nothing about our speed."""
        self._running: dict[int, HowFar] = {}
        self._progress: console.Progress | None = None

    @property
    def are_complete(self) -> bool:
        return self.first_missing >= self._end

    def missing(self) -> list[int]:
        """The numbers of the units that still need a result, in order."""
        return [index for index in range(self.first_missing, self._end) if self._all[index] is None]

    def may_start(self, index: int, ahead: int) -> bool:
        """Whether to run this unit now: where a few may be enough, not more than `ahead` units after the first that is missing."""
        return self._enough is None or index < self.first_missing + ahead

    def add(self, index: int, done: Done, was_found: bool) -> None:
        """Take the result of a unit; `was_found`: it was there already."""
        self._all[index] = done
        self._running.pop(index, None)
        read, kept = (int(done.counts.get(name, {}).get("documents", 0)) for name in ("read", "kept"))
        self._finished = self._finished.plus(1.0, self.units[index].size_bytes, read, kept)
        if not was_found:
            self._fresh_documents += read
        self._show()
        while self.first_missing < self._end and self._all[self.first_missing] is not None:
            self._in_order[self.first_missing] = self._all[self.first_missing]
            self.first_missing += 1
            if self._enough is not None and self._enough(self._in_order):
                self._end = self.first_missing

    def hear(self, index: int, how_far: HowFar | None) -> None:
        """Take what a unit tells of itself while it runs; None: it runs no more, and has no result."""
        if how_far is None:
            self._running.pop(index, None)
        else:
            self._running[index] = how_far
        self._show()

    def in_order(self) -> list[Done | None]:
        """What an executor returns."""
        return list(self._in_order)

    @contextlib.contextmanager
    def shown(self, label: str) -> Iterator[None]:
        """Show progress while the block lasts: bytes read or, where units read nothing, units."""
        total_bytes = sum(unit.size_bytes for unit in self.units)
        if total_bytes:
            shown = console.progress(label, total_bytes / 1e6, "MB", start=self._finished.size_bytes / 1e6)
        else:
            shown = console.progress(label, len(self.units), "parts", start=self._finished.units)
        with shown as self._progress:
            yield

    def _show(self) -> None:
        if self._progress is None:
            return
        now, fresh_documents = self._finished, self._fresh_documents
        for index, how_far in self._running.items():
            size_bytes = how_far.share * self.units[index].size_bytes
            now = now.plus(how_far.share, size_bytes, how_far.read_documents, how_far.kept_documents)
            fresh_documents += how_far.read_documents
        notes = []
        if fresh_documents and self._progress.elapsed_seconds > 0:
            notes.append(f"{console.format_count(fresh_documents / self._progress.elapsed_seconds)} documents/s")
        if now.read_documents:
            notes.append(f"{now.kept_documents / now.read_documents:.0%} kept")
        reached = now.size_bytes / 1e6 if self._progress.unit == "MB" else now.units
        self._progress.advance(reached - self._progress.done, ", ".join(notes))


@dataclass(frozen=True)
class _Amounts:
    """What units have done together; those that still run count in part."""

    units: float = 0
    size_bytes: float = 0
    read_documents: int = 0
    kept_documents: int = 0

    def plus(self, units: float, size_bytes: float, read_documents: int, kept_documents: int) -> _Amounts:
        return _Amounts(
            self.units + units,
            self.size_bytes + size_bytes,
            self.read_documents + read_documents,
            self.kept_documents + kept_documents,
        )
