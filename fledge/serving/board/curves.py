"""Curves from `metrics.jsonl`: everything at first, thinned to what a screen can show, then only what has been appended since.

    cursor = "FILE:OFFSET"   the file (its inode) and the byte after the last whole line that was read

A line that is not ended yet waits for the next look; one that is no record is passed over. A run that continues writes its file anew
without the steps after its checkpoint, which is another file, so the cursor does not fit and all is read again.

Thinning keeps, of every so many neighbours, the least and the greatest value: a spike of one step stays visible in a million. The
width doubles whenever there are too many, so memory stays bounded and all of a curve is equally fine. Of the counters of sources, which
are compared with each other, it keeps the first and the last of the neighbours: the same steps of each.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

from fledge.core.metrics import SOURCE_TOKENS, Record, parse_record

MOST_POINTS = 2_000
"""Of a curve."""
MOST_CURVES = 200
"""Of a stage: a file of others may have as many names as it has lines."""
_TAIL_BYTES = 256 << 10
_CURSOR = re.compile(r"(\d{1,20}):(\d{1,20})")

Point = tuple[int, float]
_step: Callable[[Point], float] = itemgetter(0)
_value: Callable[[Point], float] = itemgetter(1)


class Thinned:
    """Points in the order of steps, at most `most` of them."""

    def __init__(self, most: int = MOST_POINTS, kept_by: Callable[[Point], float] = _value) -> None:
        """`kept_by`: of neighbours, the points are kept in which it is least and greatest."""
        self._most_buckets = most // 2
        self._kept_by = kept_by
        self._width = 1
        self._buckets: list[tuple[Point, Point]] = []
        """The least and the greatest point of so many neighbours."""
        self._in_last = 0

    def add(self, point: Point) -> None:
        if self._buckets and self._in_last < self._width:
            self._buckets[-1] = self._joined(self._buckets[-1], (point, point))
            self._in_last += 1
            return
        self._buckets.append((point, point))
        self._in_last = 1
        if len(self._buckets) > self._most_buckets:
            self._halve()

    def points(self) -> list[Point]:
        """In the order of steps."""
        return [point for bucket in self._buckets for point in sorted(set(bucket))]

    def _halve(self) -> None:
        pairs = [self._buckets[place : place + 2] for place in range(0, len(self._buckets), 2)]
        if len(pairs[-1]) == 1:
            self._in_last = min(self._in_last, self._width)
        else:
            self._in_last += self._width
        self._buckets = [self._joined(pair[0], pair[-1]) for pair in pairs]
        self._width *= 2

    def _joined(self, one: tuple[Point, Point], other: tuple[Point, Point]) -> tuple[Point, Point]:
        return min(one[0], other[0], key=self._kept_by), max(one[1], other[1], key=self._kept_by)


@dataclass
class Curves:
    """What was read: by metric, its points; and how many values were not finite numbers."""

    cursor: str
    is_new_file: bool
    """Whether what was read before is void."""
    series: dict[str, Thinned] = field(default_factory=dict)
    not_finite: dict[str, int] = field(default_factory=dict)
    passed_over_lines: int = 0
    last_time: float | None = None
    last_step: int | None = None

    def add(self, record: Record) -> None:
        step = record["step"]
        for name, value in record.items():
            if name in ("step", "time") or not isinstance(value, (int, float, type(None))):
                continue
            # A file of others may hold NaN, and whole numbers that no float can hold.
            if value is None or not abs(value) <= sys.float_info.max:
                self.not_finite[name] = self.not_finite.get(name, 0) + 1
            elif name in self.series or len(self.series) < MOST_CURVES:
                kept_by = _step if name.startswith(SOURCE_TOKENS) else _value
                self.series.setdefault(name, Thinned(kept_by=kept_by)).add((step, value))
        self.last_step = step
        self.last_time = record["time"] if isinstance(record["time"], (int, float)) else None


def read_curves(path: Path | None, cursor: str | None = None) -> Curves:
    """What `path` holds, from `cursor` on if it fits the file; no file gives no curves."""
    if path is None:
        return Curves("0:0", is_new_file=cursor not in (None, "0:0"))
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        offset = _offset(cursor, status)
        file.seek(offset)
        curves = Curves("", is_new_file=cursor is not None and offset == 0)
        for line in file:
            if not line.endswith(b"\n"):
                break
            offset += len(line)
            record = parse_record(line)
            if record is None:
                curves.passed_over_lines += 1
            else:
                curves.add(record)
        curves.cursor = f"{status.st_ino}:{offset}"
    return curves


def last_record(path: Path | None, metric: str) -> Record | None:
    """The last record that has a metric, looked for at the end of the file only."""
    if path is None:
        return None
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, size_bytes - _TAIL_BYTES))
        lines = file.read().split(b"\n")
    # The first may begin in the middle of a record, and is then none.
    records = (parse_record(line) for line in reversed(lines))
    return next((record for record in records if record is not None and isinstance(record.get(metric), (int, float))), None)


def _offset(cursor: str | None, status: os.stat_result) -> int:
    found = _CURSOR.fullmatch(cursor or "")
    if found is None or int(found[1]) != status.st_ino or int(found[2]) > status.st_size:
        return 0
    return int(found[2])
