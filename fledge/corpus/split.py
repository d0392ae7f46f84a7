"""Which side of the split a row lies on: a pure function of the seed and the row's group, so no list of held-out rows is kept.

Equal groups fall on the same side, in every content and on every machine; a row added to the corpus moves no other row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from fledge.corpus.document import Row, Split

AnyRow = TypeVar("AnyRow", bound=Row)

_DRAW_BYTES = 7  # 56 bits: the quotient below stays under 1 after rounding to a float's 53


@dataclass(frozen=True)
class Splitter:
    """Sends a share of the groups to validation."""

    validation_fraction: float
    seed: int

    def draw(self, group: str) -> float:
        """A number in [0, 1), uniform over groups."""
        digest = hashlib.sha256(f"{self.seed}:{group}".encode()).digest()
        return int.from_bytes(digest[:_DRAW_BYTES], "big") / (1 << 8 * _DRAW_BYTES)

    def side(self, group: str) -> Split:
        """The side on which every row of the group lies."""
        return "validation" if self.draw(group) < self.validation_fraction else "train"


def assign_sides(rows: Iterable[AnyRow], splitter: Splitter) -> Iterator[tuple[Split, AnyRow]]:
    """Each row with its side; if every group would be held out, the one with the highest draw stays in train instead.

    Rows are held back only until the first one of the train side, so this streams.
    """
    remaining = iter(rows)
    held: list[AnyRow] = []
    for row in remaining:
        if splitter.side(row.group) == "train":
            yield from (("validation", earlier) for earlier in held)
            yield "train", row
            break
        held.append(row)
    else:
        kept = max((row.group for row in held), key=splitter.draw, default="")
        yield from (("train" if row.group == kept else "validation", row) for row in held)
    for row in remaining:
        yield splitter.side(row.group), row
