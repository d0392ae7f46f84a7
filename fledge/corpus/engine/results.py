"""What has come out of the units so far: in order, up to where it is enough, and as one line of progress.

All executors collect here, so that what they return, and what a person sees, does not depend on which of them ran the units.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from fledge.core import console
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
        self._read_documents = 0
        self._kept_documents = 0
        self._fresh_documents = 0
        self._found_bytes = 0
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
        """Take the result of a unit; `was_found`: it was there already, so it says nothing about our speed."""
        self._all[index] = done
        self._count(index, done, was_found)
        while self.first_missing < self._end and self._all[self.first_missing] is not None:
            self._in_order[self.first_missing] = self._all[self.first_missing]
            self.first_missing += 1
            if self._enough is not None and self._enough(self._in_order):
                self._end = self.first_missing

    def in_order(self) -> list[Done | None]:
        """What an executor returns."""
        return list(self._in_order)

    @contextlib.contextmanager
    def shown(self, label: str) -> Iterator[None]:
        """Show progress while the block lasts: bytes read or, where units read nothing, units."""
        total_bytes = sum(unit.size_bytes for unit in self.units)
        if total_bytes:
            shown = console.progress(label, total_bytes / 1e6, "MB", start=self._found_bytes / 1e6)
        else:
            shown = console.progress(label, len(self.units), "parts", start=len(self.units) - len(self.missing()))
        with shown as self._progress:
            yield

    def _count(self, index: int, done: Done, was_found: bool) -> None:
        read, kept = (int(done.counts.get(name, {}).get("documents", 0)) for name in ("read", "kept"))
        self._read_documents += read
        self._kept_documents += kept
        if not was_found:
            self._fresh_documents += read
        if self._progress is None:
            self._found_bytes += self.units[index].size_bytes
        else:
            amount = self.units[index].size_bytes / 1e6 if self._progress.unit == "MB" else 1
            self._progress.advance(amount, self._note(self._progress.elapsed_seconds))

    def _note(self, elapsed_seconds: float) -> str:
        parts = []
        if self._fresh_documents and elapsed_seconds > 0:
            parts.append(f"{console.format_count(self._fresh_documents / elapsed_seconds)} documents/s")
        if self._read_documents:
            parts.append(f"{self._kept_documents / self._read_documents:.0%} kept")
        return ", ".join(parts)
