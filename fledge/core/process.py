"""The process a run lives in: its rank, its lock on the run folder, the signals that stop it, its parent, and how it keeps memory.

`torchrun` and `accelerate launch` describe a process by the environment (RANK, WORLD_SIZE, LOCAL_RANK); this module is the only
one that reads it, so the rest of the code asks `rank()` and behaves the same with one process and with many.

A stop signal never interrupts a step: `StopSignals` notes it, and the trainer looks at the note where nothing can be lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from fledge.core import disk
from fledge.core.errors import DistributedError, MachineError
from fledge.core.limits import group_limits

LOCK = ".lock"
REPORT_FOLDER = "FLEDGE_REPORT_FOLDER"
"""The environment variable by which a process that Fledge launches knows it; see `verbs.launching`."""

# The names glibc gives these numbers in malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4
# From Linux' prctl.h.
_PR_SET_PDEATHSIG = 1
_PARENT_LOOK_SECONDS = 0.25


def rank() -> int:
    """Which process of all this is, from 0."""
    return _environment_count("RANK", 0)


def world_size() -> int:
    """How many processes train together."""
    return _environment_count("WORLD_SIZE", 1)


def local_rank() -> int:
    """Which process of this machine this is, from 0: the number of its device."""
    return _environment_count("LOCAL_RANK", 0)


def local_world_size() -> int:
    """How many processes train together on this machine."""
    return _environment_count("LOCAL_WORLD_SIZE", world_size())


def is_main() -> bool:
    """Whether this is the process that writes and speaks."""
    return rank() == 0


def restarts() -> int:
    """How often torchrun has started these processes again; told apart on one machine only, where all have the same count."""
    return _environment_count("TORCHELASTIC_RESTART_COUNT", 0) if local_world_size() == world_size() else 0


def _environment_count(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    if not text.isdecimal():
        raise DistributedError(f"the environment variable {name} is {text!r}, not a number", "start with torchrun, or unset it")
    return int(text)


def report_folder() -> Path | None:
    """Where a process that Fledge itself launched says why it failed; None: it was started in another way."""
    given = os.environ.get(REPORT_FOLDER)
    return Path(given) if given else None


def is_launched() -> bool:
    """Whether another process of Fledge started this one, and speaks for it."""
    return report_folder() is not None


def keep_freed_memory() -> None:
    """Make malloc keep what is freed for the next step instead of giving it back to the system, which would zero it anew.

    Training frees and asks again for the same large tensors in every step. Measured on two cores: a step of a 110M model is 1.4
    to 1.5 times as fast. The price: the process stays at its high-water mark. glibc only; elsewhere this does nothing. It acts
    on what is allocated afterwards, so call it before the first large tensor.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return
    libc.malloc_trim(0)  # what came before, such as another stage, leaves nothing behind
    # M_MMAP_THRESHOLD would say it more plainly, but glibc refuses values above 32 MiB.
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_TOP_PAD, 64 << 20)


def resident_bytes() -> int:
    """Memory of this process that lies in RAM now; its peak where the system tells no more."""
    return _status_bytes("VmRSS") or _lifetime_peak_bytes()


def peak_resident_bytes() -> int:
    """The most memory of this process that lay in RAM at once, since `restart_peak` where the system can do that, else since it began."""
    # The kernel notes the peak now and then only, so what is there now may be more.
    return max(_status_bytes("VmHWM") or _lifetime_peak_bytes(), _status_bytes("VmRSS") or 0)


def restart_peak() -> None:
    """Let `peak_resident_bytes` count from now on, on Linux."""
    with contextlib.suppress(OSError):
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
        try:
            os.write(descriptor, b"5")  # resets VmHWM, says proc(5)
        finally:
            os.close(descriptor)


def available_memory_bytes() -> int | None:
    """Memory that this machine can give this process without swapping, within its limits; None if it does not say."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free_bytes = 1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:")))
        limit_bytes = group_limits().free_memory_bytes
        return free_bytes if limit_bytes is None else min(free_bytes, limit_bytes)
    with contextlib.suppress(OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _status_bytes(name: str) -> int | None:
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
    return None


def _lifetime_peak_bytes() -> int:
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


@contextlib.contextmanager
def only_new_garbage() -> Iterator[None]:
    """While the block lasts, collections look only at what is made in it; what is garbage before stays as long.

    Going through all loaded modules again and again took a fifth of the time of a unit of the corpus.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def end_with_parent(parent: int) -> None:
    """Make this process end within a second of `parent`, the process that started it, however that one ended.

    Linux does it itself, even while this process is deep in foreign code; it goes by the thread that started this process, so
    that thread has to stay. Elsewhere a thread of ours looks.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)  # it ended before the system was told
    threading.Thread(target=_end_when_orphaned, args=(parent,), daemon=True).start()


def _end_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_PARENT_LOOK_SECONDS)
    os._exit(1)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keep a run folder for this process while the block lasts; the folder is made if it is missing.

    The system releases the lock when the process ends, however it ends. Raises MachineError naming the holder. Ranks other
    than 0 write nothing of their own and take no lock; a process whose parent holds it works under the parent's.
    """
    if not is_main():
        yield
        return
    path = folder / LOCK
    descriptor = disk.try_lock(path, _holder_name(os.getpid()))
    if descriptor is None and _holder(path) == _holder_name(os.getppid()):
        yield
        return
    if descriptor is None:
        raise MachineError(f"{folder} is in use by {_holder(path)}", "wait for it to end, stop it, or choose another --name")
    try:
        yield
    finally:
        os.close(descriptor)


def is_in_use(folder: Path) -> bool:
    """Whether a process holds the lock of a run folder. The lock is only looked at, for microseconds in which nobody else gets it."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _holder_name(process_number: int) -> str:
    return f"process {process_number} on {socket.gethostname()}"


def _holder(path: Path) -> str:
    # Between taking the lock and writing its name a holder is anonymous for some microseconds.
    return path.read_text(encoding="utf-8", errors="replace").strip() or "another process"


class StopSignals:
    """While the block lasts, SIGINT, SIGTERM and SIGUSR1 are noted in `requested` instead of ending the process; a third ends it at once.

    SIGUSR1 is what a Slurm job is warned by. Two signals are needed for one wish: Ctrl-C reaches every rank by the terminal, and then
    torchrun sends SIGTERM as well. Outside the main thread Python cannot handle signals; there nothing is ever requested.
    """

    _SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, until: str = "this step") -> None:
        """`until`: what is still brought to its end, for the line that answers a signal."""
        self._until = until
        self.requested: int | None = None
        """The number of the first signal that came."""
        self._count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self._SIGNALS}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._count += 1
        if self._count >= 3:
            os._exit(128 + number)
        if self.requested is None:
            self.requested = number
            if is_main():
                # A handler may run inside another write to the same stream, which the buffered writers refuse.
                name = signal.Signals(number).name
                os.write(2, f"{name}: stopping after {self._until} (two more signals stop at once)\n".encode())
