"""Fixtures of the core tests: a fail-point that counts the operations of the disk and raises or kills at one of them."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from fledge.core import disk


class Operations:
    """The fail-point of a test: records what passes it, and acts at one operation."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Path]] = []
        self._act_at: int | None = None
        self._act: Callable[[], None] = lambda: None

    def __call__(self, operation: str, path: Path) -> None:
        self.seen.append((operation, path))
        if self._act_at == len(self.seen) - 1:
            self._act()

    def count(self, work: Callable[[], object]) -> int:
        """Do `work` undisturbed; returns of how many operations it is made."""
        self.seen, self._act_at = [], None
        work()
        return len(self.seen)

    def fill_disk_at(self, index: int) -> None:
        """From operation `index` of the next work on, the disk is full for once."""
        self.seen, self._act_at, self._act = [], index, _disk_is_full

    def undisturbed(self) -> None:
        self.seen, self._act_at = [], None

    def killed(self, work: Callable[[], object], index: int, by_signal: bool) -> bool:
        """Do `work` in a forked child that dies at operation `index`; returns whether it died there."""
        child = os.fork()
        if child == 0:
            self.seen, self._act_at, self._act = [], index, _kill_by_signal if by_signal else _exit_at_once
            try:
                work()
            finally:
                os._exit(99)
        status = os.waitpid(child, 0)[1]
        return os.WTERMSIG(status) == signal.SIGKILL if by_signal else os.waitstatus_to_exitcode(status) == 7


def _disk_is_full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _exit_at_once() -> None:
    os._exit(7)


def _kill_by_signal() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def operations(monkeypatch: pytest.MonkeyPatch) -> Operations:
    recorder = Operations()
    monkeypatch.setattr(disk, "fail_point", recorder)
    return recorder
