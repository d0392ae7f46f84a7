"""One seed for several texts: each is a draw of its own, and no other seed near it draws the same.

What a seed becomes for the text, or the row, of a number is hashed of both.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fledge.inference.settings import GenerationSettings


def of_sample(settings: GenerationSettings, number: int) -> GenerationSettings:
    """Those of the text of this number, from 0, which keeps the seed itself. By a sum seed 1 would share its second text with seed 2."""
    if settings.seed is None or number == 0:
        return settings
    return replace(settings, seed=hashed(f"sample:{settings.seed}:{number}"))


def hashed(name: str) -> int:
    """The seed, of 63 bits, that belongs to a name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little") >> 1
