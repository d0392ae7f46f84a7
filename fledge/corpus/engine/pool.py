"""Units on the cores of this machine: a pool of processes of which any may die at any instant.

Each worker has a connection of its own and one unit at a time. So the end of a worker is seen at once, as the end of its
connection, it is known which unit it had, and no other worker is disturbed. A pool whose workers share a queue can do
neither: `concurrent.futures` ends all its processes when one dies and cannot say which unit was to blame, and a worker that
dies while it holds the queue's lock, or half-way through a message, leaves the others waiting for ever (datatrove's local
executor was seen to hang when a worker was killed).

A worker is a plain program (`worker.py`), not a fork or a copy of our main module: it starts in 0.1 s of CPU time before the
units' own imports, works from a script without a `__main__` guard, and gets an environment in which libraries use one thread.
It never outlives this process, however that ends (`process.end_with_parent`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from fledge.core.errors import MachineError
from fledge.core.limits import group_limits
from fledge.corpus.engine.results import Results
from fledge.corpus.engine.telling import HowFar, listening
from fledge.corpus.engine.units import Attempt, Done, Enough, Unit, WorkFolder

_DEATHS = 3
_AHEAD_UNITS_PER_WORKER = 2
_ENDING_SECONDS = 2.0
# Verified here before any process is started: about 50 ms at 1.5 GB/s, less than the start of a worker.
_VERIFIED_HERE_BYTES = 64_000_000
# A worker needs about a second for its imports. Two of them clean 124 MB in the time of this process alone, and write 400 MB.
_WORTH_PROCESSES_BYTES = 128_000_000
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "RAYON_NUM_THREADS")


class LocalExecutor:
    """Runs units in `workers` processes of this machine, or in this very process if one is enough.

    A unit whose process dies is repeated; after three deaths MachineError. What a unit raises reaches the caller, and the
    units that run meanwhile are stopped: their processes are killed, and a later run repeats them.
    """

    def __init__(self, workers: int | None = None) -> None:
        self.workers = workers or available_cores()

    def run(self, label: str, units: Sequence[Unit], work: WorkFolder, enough: Enough | None = None) -> list[Done | None]:
        work.discard_partials()
        results = Results(units, enough)
        if self.workers > 1:
            find_here(results, work)
        with results.shown(label):
            if self.workers == 1 or len(results.missing()) <= 1 or _is_small(results):
                _run_here(results, work)
            else:
                _Pool(self.workers, results, work).run()
        return results.in_order()


def available_cores() -> int:
    """How many cores this process may use, by the system's choice of cores and by the share of time that a container gives it."""
    allowed = getattr(os, "sched_getaffinity", None)
    count = len(allowed(0)) if allowed else os.cpu_count() or 1
    share = group_limits().cores
    return count if share is None else min(count, max(1, math.ceil(share)))


def find_here(results: Results, work: WorkFolder) -> None:
    """Find what is small enough that no process is worth starting for it."""
    left_bytes = _VERIFIED_HERE_BYTES
    for index in results.missing():
        stored_bytes = work.stored_bytes(results.units[index])
        if stored_bytes is not None and (left_bytes := left_bytes - stored_bytes) < 0:
            return
        done = work.find(results.units[index])
        if done is not None:
            results.add(index, done, was_found=True)
        if results.are_complete:
            return


def _is_small(results: Results) -> bool:
    return sum(results.units[index].work_bytes for index in results.missing()) < _WORTH_PROCESSES_BYTES


def _run_here(results: Results, work: WorkFolder) -> None:
    with one_arrow_thread():
        while not results.are_complete:
            index = results.first_missing
            unit = results.units[index]
            found = work.find(unit)
            with listening(functools.partial(results.hear, index)):
                results.add(index, found or work.make(unit), was_found=found is not None)


@contextlib.contextmanager
def one_arrow_thread() -> Iterator[None]:
    """One worker is one core, as it is in a process of its own. Other libraries' threads cannot be limited once they run."""
    arrow = sys.modules.get("pyarrow")
    if arrow is None:
        yield
        return
    before = arrow.cpu_count()
    arrow.set_cpu_count(1)
    try:
        yield
    finally:
        arrow.set_cpu_count(before)


class _Worker:
    """A process and our end of its connection."""

    def __init__(self) -> None:
        self.connection, self._theirs = multiprocessing.Pipe()
        self.unit = -1
        """Number of the unit it works on."""
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        theirs = self._theirs.fileno()
        # -P: a file of the working directory must not hide a module. What this process imports from is what the worker does.
        command = [sys.executable, "-P", "-m", "fledge.corpus.engine.worker", str(theirs), str(os.getpid())]
        import_path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1"), "PYTHONPATH": import_path}
        # A blocked signal is inherited: Ctrl-C must neither meet a worker that cannot ignore it yet, nor lose us its number.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process = subprocess.Popen(command, env=environment, pass_fds=[theirs], stdin=subprocess.DEVNULL)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._theirs.close()

    def kill(self) -> None:
        """End the process, if it is still there; whatever it is doing may be cut off anywhere."""
        self.connection.close()
        self._theirs.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def exit_status(self) -> int:
        """How the process ended, whose connection has. The end of a connection comes a little before that of the process."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._process.wait(_ENDING_SECONDS)
        self.kill()
        return self._process.wait()


class _Pool:
    """One run of units in workers, which are started when there is a unit for them."""

    def __init__(self, size: int, results: Results, work: WorkFolder) -> None:
        self._size = size
        self._results = results
        self._work = work
        self._waiting = deque(results.missing())
        self._deaths: Counter[int] = Counter()
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._busy: dict[Connection, _Worker] = {}

    def run(self) -> None:
        try:
            while not self._results.are_complete:
                self._hand_out()
                for connection in multiprocessing.connection.wait(list(self._busy)):
                    assert isinstance(connection, Connection)
                    self._take_from(self._busy.pop(connection))
        finally:
            for worker in self._workers:
                worker.kill()
            if len(self._idle) < len(self._workers):
                self._work.discard_partials()

    def _hand_out(self) -> None:
        ahead = _AHEAD_UNITS_PER_WORKER * self._size
        while self._waiting and len(self._busy) < self._size and self._results.may_start(self._waiting[0], ahead):
            worker = self._idle.pop() if self._idle else self._started_worker()
            worker.unit = self._waiting.popleft()
            self._busy[worker.connection] = worker
            # One that died meanwhile is noticed where all are: its connection is at an end.
            with contextlib.suppress(OSError):
                worker.connection.send((self._work, self._results.units[worker.unit]))

    def _started_worker(self) -> _Worker:
        worker = _Worker()
        self._workers.append(worker)
        worker.start()
        return worker

    def _take_from(self, worker: _Worker) -> None:
        unit = self._results.units[worker.unit]
        try:
            came: Attempt | HowFar = worker.connection.recv()
        except (EOFError, OSError):
            self._bury(worker, unit)
            return
        if isinstance(came, HowFar):
            self._results.hear(worker.unit, came)
            self._busy[worker.connection] = worker
            return
        self._idle.append(worker)
        done = came.result(unit)
        self._work.remember(done)
        self._results.add(worker.unit, done, came.was_found)

    def _bury(self, worker: _Worker, unit: Unit) -> None:
        status = worker.exit_status()
        worker.kill()
        self._workers.remove(worker)
        self._results.hear(worker.unit, None)
        self._work.discard_partials()
        self._deaths[worker.unit] += 1
        if self._deaths[worker.unit] == _DEATHS:
            raise MachineError(f"{unit.label}: its worker died {_DEATHS} times, {_manner(status)}", _remedy(status))
        self._waiting.appendleft(worker.unit)


def _manner(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"with exit code {status}"


def _remedy(status: int) -> str:
    if status == -signal.SIGKILL:
        return "probably memory ran out (`dmesg` tells): use fewer workers, or a machine with more memory, and run the same command again"
    return "see what it printed above; with one worker it runs in this process and shows where it fails"
