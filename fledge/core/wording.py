"""Numbers as they stand in a sentence that a person reads."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """A number and its noun, which is given in the plural: `1 document`, `2,000 documents`."""
    return f"{number:,} {noun.removesuffix('s') if number == 1 else noun}"
