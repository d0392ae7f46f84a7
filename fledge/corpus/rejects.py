"""What a source could not use: counted by kind of reason, kept with its place for `rejects.jsonl`, and refused when it is too much.

Every piece of a source has its own. Merged in the order of the pieces they are what one reader of the whole source would have
counted and kept: a piece that ends inside a file says how many lines it read there, and so far the lines of the next are shifted.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fledge.core.errors import DataError

REJECTS_FILE = "rejects.jsonl"
"""What a corpus folder calls the file of its rejects."""

_KEPT_REJECTS = 10_000
_SHOWN_REJECTS = 5
_SHOWN_REASONS = 20
_EARLY_UNITS = 1_000
_EARLY_SHARE = 0.5


@dataclass(frozen=True)
class Reject:
    """One line, row or file that was left out."""

    source: str
    file: str
    line: int
    """Of JSON Lines from 1; of Parquet the row, from 0 as in the ids of rows; 0 for a whole file."""
    byte_offset: int
    """From the start of the (decompressed) file; 0 for Parquet."""
    reason: str
    """A kind of reason, and after it in parentheses what differs from reject to reject."""


class Malformed(Exception):
    """Why a line or file cannot be used, in a few words; what differs from line to line stands last, in parentheses."""


def value_kind(value: object) -> str:
    """What a value of a record is, in the words of JSON."""
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case dict():
            return "an object"
    return type(value).__name__


class Rejects:
    """The rejects of a piece or a source. Every one is counted; the first 10,000 are kept with their place."""

    def __init__(self) -> None:
        self.kept: list[Reject] = []
        self.seen: Counter[str] = Counter()
        """Lines, rows or files looked at, by source."""
        self.reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """Rejects by source and kind of reason."""
        self.lines_read: Counter[tuple[str, str]] = Counter()
        """By source and file, where a piece ends inside a file."""

    @classmethod
    def merged(cls, parts: Iterable[Rejects]) -> Rejects:
        """The rejects of consecutive pieces as one, lines counted from the start of each file."""
        whole = cls()
        for part in parts:
            for reject in part.kept[: _KEPT_REJECTS - len(whole.kept)]:
                before = whole.lines_read[reject.source, reject.file]
                whole.kept.append(replace(reject, line=reject.line + before))
            whole.seen.update(part.seen)
            whole.lines_read.update(part.lines_read)
            for source, reasons in part.reasons.items():
                whole.reasons[source].update(reasons)
        return whole

    @classmethod
    def read(cls, path: Path) -> Rejects:
        """Rejects that were written as JSON."""
        return cls.from_json(json.loads(path.read_text(encoding="utf-8")))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Rejects:
        """Rejects from what `as_json` returned."""
        rejects = cls()
        rejects.kept = [Reject(**reject) for reject in value["kept"]]
        rejects.seen.update(value["seen"])
        for source, reasons in value["reasons"].items():
            rejects.reasons[source].update(reasons)
        rejects.lines_read.update({(source, file): lines for source, file, lines in value["lines_read"]})
        return rejects

    def as_json(self) -> dict[str, Any]:
        """Plain JSON, from which the same rejects can be made."""
        return {
            "seen": dict(self.seen),
            "reasons": {source: dict(reasons) for source, reasons in self.reasons.items()},
            "lines_read": [[source, file, lines] for (source, file), lines in self.lines_read.items()],
            "kept": [asdict(reject) for reject in self.kept],
        }

    def count(self, source: str) -> int:
        """Rejects of one source."""
        return self.reasons[source].total()

    def add(self, reject: Reject) -> None:
        """Count a reject, and keep it while there is room."""
        reason = _printable(reject.reason)
        self.reasons[reject.source][reason.partition(" (")[0]] += 1
        if len(self.kept) < _KEPT_REJECTS:
            self.kept.append(replace(reject, reason=reason))

    def saw(self, source: str, unit: str, maximum_share: float, count: int = 1) -> None:
        """Count more lines, rows or files. Raises DataError if most of the first 1,000 were rejected, so that a wrong key shows soon."""
        early = _EARLY_UNITS - self.seen[source]
        if 0 <= early < count:
            self.seen[source] += early
            self.require_few(source, unit, maximum_share, at_end=False)
            count -= early
        self.seen[source] += count

    def require_few(self, source: str, unit: str, maximum_share: float, at_end: bool) -> None:
        """Raise DataError, with the first reasons, if too large a share of what was seen was rejected.

        Before the end only a source that is mostly unusable is refused.
        """
        seen, rejected = self.seen[source], self.count(source)
        if not at_end and maximum_share > _EARLY_SHARE:
            return
        limit = maximum_share if at_end else _EARLY_SHARE
        if rejected > limit * seen:
            first = [reject for reject in self.kept if reject.source == source][:_SHOWN_REJECTS]
            shown = "; ".join(f"{reject.file}:{reject.line}: {reject.reason}" for reject in first)
            raise DataError(
                f"source {source}: {rejected:,} of {seen:,} {unit} cannot be used ({maximum_share:.0%} may be malformed): {shown}",
                "mend them, or name the right keys in `fields`; `maximum_reject_share` of the source lets more pass",
            )

    def lines(self) -> Iterator[bytes]:
        """The kept rejects as JSON lines."""
        for reject in self.kept:
            yield json.dumps(asdict(reject), ensure_ascii=False).encode("utf-8") + b"\n"

    def stats(self) -> dict[str, Any]:
        """What was seen, rejects and the most frequent kinds of reasons of each source that had any."""
        return {
            source: {"seen": self.seen[source], "rejected": reasons.total(), "reasons": dict(reasons.most_common(_SHOWN_REASONS))}
            for source, reasons in self.reasons.items()
            if reasons
        }


def _printable(text: str) -> str:
    """Keys of a malformed line may hold anything: half a surrogate pair is no UTF-8, and a line end would forge a line of the log."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
