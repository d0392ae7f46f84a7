"""Which documents count as the same, and which of them stays."""

from __future__ import annotations

from typing import Literal

from fledge.core.config import operation, settings


@settings
class DeduplicateSettings:
    """Exact duplicates have the same words; near duplicates share most of their word 5-grams (MinHash with banded hashing)."""

    kind: Literal["near", "exact", "none"] = "near"
    """near: both; exact: those with the same words in the same order; none: keep all."""
    keep: Literal["first", "longest"] = "first"
    """Which document of a cluster stays: the first in the order of the sources, or the longest (the first of them)."""
    bands: int = 14
    """Groups of hashes of which one must agree. 14 bands of 8 find 98 % of the pairs with similarity 0.8 to 0.9."""
    rows: int = 8
    """Hashes in a band, all of which must agree."""
    shingle_words: int = 5
    """Words in a shingle; in scripts without spaces, characters."""
    seed: int = 1
    """Decides the hash functions."""
    memory_bytes: int = operation(500_000_000)
    """Working memory of one process while it looks for equal hashes; more documents than fit are searched in parts."""

    def __post_init__(self) -> None:
        for name in ("bands", "rows", "shingle_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.memory_bytes < 1 << 20:
            raise ValueError(f"memory_bytes must be at least {1 << 20}, not {self.memory_bytes}")
