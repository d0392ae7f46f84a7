"""Waiting for what another thread or process does: as long as it may take on a busy machine, and no longer than it does."""

from __future__ import annotations

import time
from collections.abc import Callable

WAIT_SECONDS = 120.0


def until(condition: Callable[[], object], seconds: float = WAIT_SECONDS) -> None:
    """Returns when something has come true; fails if it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.005)
