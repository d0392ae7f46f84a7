"""What a source could not use: counted by reason, kept with its place for `rejects.jsonl`, and refused when it is too much."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from fledge.core.errors import DataError

_KEPT_REJECTS = 10_000
_SHOWN_REJECTS = 5
_SHOWN_REASONS = 20
_EARLY_UNITS = 1_000
_EARLY_SHARE = 0.5


@dataclass(frozen=True)
class Reject:
    """One line or file that was left out. `byte_offset` counts from the start of the (decompressed) file."""

    source: str
    file: str
    line: int
    byte_offset: int
    reason: str


class Malformed(Exception):
    """Why a line or file cannot be used, in a few words."""


class Rejects:
    """The rejects of a build. Every one is counted; the first 10,000 are kept with their place."""

    def __init__(self) -> None:
        self.kept: list[Reject] = []
        self.seen: Counter[str] = Counter()
        self.reasons: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def count(self, source: str) -> int:
        """Rejects of one source."""
        return self.reasons[source].total()

    def add(self, reject: Reject) -> None:
        """Count a reject, and keep it while there is room."""
        self.reasons[reject.source][reject.reason] += 1
        if len(self.kept) < _KEPT_REJECTS:
            self.kept.append(reject)

    def require_few(self, source: str, unit: str, maximum_share: float, at_end: bool) -> None:
        """Raise DataError, with the first reasons, if too large a share of the `seen` units was rejected.

        Before the end only a source that is mostly unusable is refused, so that a wrong key shows after 1,000 lines.
        """
        seen, rejected = self.seen[source], self.count(source)
        if not at_end and (seen != _EARLY_UNITS or maximum_share > _EARLY_SHARE):
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
            yield json.dumps(asdict(reject), ensure_ascii=False).encode("utf-8", errors="backslashreplace") + b"\n"

    def stats(self) -> dict[str, Any]:
        """Seen units, rejects and the most frequent reasons of each source that had any."""
        return {
            source: {"seen": self.seen[source], "rejected": reasons.total(), "reasons": dict(reasons.most_common(_SHOWN_REASONS))}
            for source, reasons in self.reasons.items()
            if reasons
        }
