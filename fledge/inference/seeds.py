"""One seed for several texts: each is a draw of its own, and no other seed near it draws the same."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from fledge.inference.settings import GenerationSettings


def of_sample(settings: GenerationSettings, number: int) -> GenerationSettings:
    """Those of the text of this number, from 0, which keeps the seed itself. By a sum seed 1 would share its second text with seed 2."""
    if settings.seed is None or number == 0:
        return settings
    digest = hashlib.sha256(f"sample:{settings.seed}:{number}".encode()).digest()
    return replace(settings, seed=int.from_bytes(digest[:8], "little") >> 1)
