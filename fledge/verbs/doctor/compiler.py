"""Whether torch.compile works here, found out by compiling a small function in a process of its own, in a bounded time.

`CompilerTrial` starts that process and later asks how it ended; what it compiles goes into a temporary folder and away with it. Run as a
program, this module is that process.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Literal

from fledge.core.errors import MachineError

TRIAL_SECONDS = 60.0
"""A small function takes 8 s on an idle core of 2024, most of it imports."""

Outcome = Literal["works", "fails", "unknown", "skipped"]


@dataclass(frozen=True)
class Compiler:
    """How the trial ended."""

    outcome: Outcome
    """unknown: it had not ended in time."""
    reason: str = ""
    seconds: float = 0.0


class CompilerTrial:
    """A process that compiles, from its start until it is asked for."""

    def __init__(self, device: str, command: list[str] | None = None) -> None:
        """`command`: what is run instead of this module."""
        self._folder = tempfile.TemporaryDirectory(prefix="fledge-doctor-")
        self._started = time.monotonic()
        caches = {"TORCHINDUCTOR_CACHE_DIR": f"{self._folder.name}/inductor", "TRITON_CACHE_DIR": f"{self._folder.name}/triton"}
        self._process = subprocess.Popen(
            command or [sys.executable, "-m", __name__, device],
            env={**os.environ, **caches, "TORCH_LOGS": "-all"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # the C++ compiler is ended with it
        )

    def outcome(self, within_seconds: float = TRIAL_SECONDS) -> Compiler:
        """Wait until so many seconds after the start, at most."""
        left_seconds = max(0.1, within_seconds - (time.monotonic() - self._started))
        try:
            _, told = self._process.communicate(timeout=left_seconds)
        except subprocess.TimeoutExpired:
            return Compiler("unknown", f"compiling had not ended after {within_seconds:.0f} s")
        finally:
            self.close()
        seconds = time.monotonic() - self._started
        return Compiler("works", "", seconds) if self._process.returncode == 0 else Compiler("fails", reason_of(told), seconds)

    def close(self) -> None:
        """End it, whatever it is doing; leaves nothing behind. Once it has ended, its number may be another process's."""
        if self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()
        self._folder.cleanup()


def reason_of(told: str) -> str:
    """The line of a traceback that says why, without the colours and the advice that torch adds."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", told).splitlines()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Unsupported)\b", line)]
    return (errors or [line for line in lines if line] or ["it says no reason"])[-1]


def try_compiling(device: str) -> None:
    """Compile as training does, and compare with what is not compiled. Raises whatever the compiler raises, MachineError if they differ."""
    import torch

    def loss(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(x).square().sum()

    example = torch.linspace(-2.0, 2.0, 4096, device=device).reshape(64, 64)
    compiled = torch.compile(loss, dynamic=False, fullgraph=True)
    if not torch.allclose(compiled(example), loss(example), rtol=1e-4):
        raise MachineError("compiled code computes something else", "install torch and its compiler anew")


if __name__ == "__main__":
    try_compiling(sys.argv[1])
