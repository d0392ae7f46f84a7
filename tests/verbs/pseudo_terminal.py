"""A process at a real pseudo-terminal: keys go in, what a screen would get comes out."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_PATIENCE_SECONDS = 120.0
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x01\x02]")


class Terminal:
    """The person's end."""

    def __init__(self, descriptor: int, process: subprocess.Popen[bytes]) -> None:
        self._descriptor, self.process = descriptor, process
        self.raw = ""
        """All that came, with its colours."""
        self._seen = 0

    def type(self, text: str) -> None:
        """Keys as they are: a line ends with Enter, which is a carriage return."""
        os.write(self._descriptor, text.encode())

    def interrupt(self) -> None:
        """Ctrl-C, as the kernel turns it into a signal."""
        self.type("\x03")

    def wait_for(self, text: str) -> str:
        """What has come since the last call, up to this text, without colours."""
        end = time.monotonic() + _PATIENCE_SECONDS
        while text not in (since := _CODES.sub("", self.raw[self._seen :])):
            assert time.monotonic() < end and self._read(), f"{text!r} did not come, but {since!r}"
        # Counted in raw characters: the shortest beginning that holds the text.
        place = next(place for place in range(self._seen, len(self.raw) + 1) if text in _CODES.sub("", self.raw[self._seen : place]))
        before, self._seen = _CODES.sub("", self.raw[self._seen : place]), place
        return before

    def wait_for_any(self) -> None:
        """Until something other than white space has come since the last call."""
        end = time.monotonic() + _PATIENCE_SECONDS
        # A code that has come in part is none yet.
        while not re.sub(r"\x1b[^A-Za-z]*$", "", _CODES.sub("", self.raw[self._seen :])).strip():
            assert time.monotonic() < end and self._read(), "nothing came"

    def wait_for_end(self) -> int:
        """The exit code."""
        while self._read():
            pass
        return self.process.wait(_PATIENCE_SECONDS)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._descriptor], [], [], 1.0)
        if not ready:
            return self.process.poll() is None
        try:
            content = os.read(self._descriptor, 1 << 16)
        except OSError:  # Linux says so when the other end is closed
            return False
        self.raw += content.decode(errors="replace")
        return bool(content)


@contextmanager
def fledge_at_terminal(
    arguments: Sequence[str], folder: Path, columns: int = 100, rows: int = 40, environment: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """`fledge ARGUMENTS` with a terminal of this size as its keyboard and screen."""
    descriptor, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-m", "fledge", *arguments],
        cwd=folder,
        env={**inherited, "TERM": "xterm-256color", "INPUTRC": os.devnull, **(environment or {})},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    try:
        yield Terminal(descriptor, process)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        os.close(descriptor)
