"""What the tests of several packages hang into `disk.fail_point`."""

from __future__ import annotations

import os
import signal
from pathlib import Path


class Countdown:
    """A fail point that kills this process after so many operations."""

    def __init__(self, left: int) -> None:
        self._left = left

    def __call__(self, operation: str, path: Path) -> None:
        self._left -= 1
        if self._left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
