"""Units that behave and units that die, hang or fail; also run as a program, by drivers and ranks that a test kills.

python engine_assembly.py WORK EXECUTOR UNITS LOG SECONDS      EXECUTOR: local:WORKERS, rank:RANK:WORLD:PATIENCE or ray; prints the ids
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.core import console, disk
from fledge.core.errors import DataError
from fledge.corpus.engine import pool
from fledge.corpus.engine.pool import LocalExecutor
from fledge.corpus.engine.telling import HowFar, tell
from fledge.corpus.engine.units import Done, Executor, WorkFolder

OPERATIONS = 13
"""How often a unit passes the fail point, as `test_units.py` counts."""


@dataclass(frozen=True)
class TextUnit:
    """Writes two files; what else it does leaves the key, and so the bytes, as they are."""

    number: int
    log: Path | None = None
    """Gets a line "NUMBER PID TIME" for each run."""
    seconds: float = 0.0
    misdeed: str = ""
    """die: SIGKILL itself; exit: with code 3; data, bug, memory: raise; interrupt: SIGINT its parent; hang: for a minute."""
    only_once: bool = False
    """Behaves from the second run on; needs a log."""
    fail_at: int | None = None
    """Kills at this operation on the disk, counted from its arrival in a worker, once; needs a log."""
    kills_driver: bool = False

    @property
    def key(self) -> str:
        return hashlib.sha256(f"text {self.number}".encode()).hexdigest()

    @property
    def label(self) -> str:
        return f"text {self.number}"

    @property
    def size_bytes(self) -> int:
        return 10_000_000

    @property
    def work_bytes(self) -> int:
        return self.size_bytes

    def run(self, folder: Path) -> dict[str, Any]:
        runs = runs_of(self.log).get(self.number, 0) if self.log else 0
        if self.log:
            disk.append_line(self.log, f"{self.number} {os.getpid()} {time.time()}")
        time.sleep(self.seconds)
        (folder / "deep").mkdir()
        (folder / "deep" / "text").write_bytes(f"text {self.number}\n".encode() * 1000)
        if self.misdeed and not (self.only_once and runs):
            self._misbehave()
        (folder / "key").write_text(self.key)
        return {"read": {"documents": 10}, "kept": {"documents": 7}, "lengths": {5: self.number}}

    def _misbehave(self) -> None:
        match self.misdeed:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "data":
                raise DataError(f"line {self.number} is bad", "mend it")
            case "bug":
                raise ValueError("a mistake of ours")
            case "memory":
                raise MemoryError
            case "interrupt":
                os.kill(os.getppid(), signal.SIGINT)
                time.sleep(60)
            case "hang":
                time.sleep(60)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        disk.fail_point = KillOnce(self) if self.fail_at is not None else None


class Talkative(TextUnit):
    """Tells how far it is, twice in a row."""

    def run(self, folder: Path) -> dict[str, Any]:
        time.sleep(0.55)
        for share in (0.5, 0.6):
            tell(HowFar(share, read_documents=10, kept_documents=5))
        return {}


class Surroundings(TextUnit):
    """Tells about the process it runs in."""

    def run(self, folder: Path) -> dict[str, Any]:
        import pyarrow

        return {
            "arrow_threads": pyarrow.cpu_count(),
            "numba_threads": os.environ.get("NUMBA_NUM_THREADS"),
            "ignores_interrupt": signal.getsignal(signal.SIGINT) is signal.SIG_IGN,
            "process": os.getpid(),
            "parent": os.getppid(),
            "safe_path": "" not in sys.path and str(Path.cwd()) not in sys.path,
        }


class KillOnce:
    """A fail point in a worker that kills it, or the driver, at one operation."""

    def __init__(self, unit: TextUnit) -> None:
        assert unit.log is not None
        self._unit = unit
        self._mark = unit.log.with_name(f"killed-{unit.number}")
        self._passed = 0

    def __call__(self, operation: str, path: Path) -> None:
        if operation == "append" or self._mark.exists():
            return
        self._passed += 1
        if self._passed > (self._unit.fail_at or 0):
            self._mark.touch()
            os.kill(os.getppid() if self._unit.kills_driver else os.getpid(), signal.SIGKILL)
            time.sleep(60)


def text_units(count: int, log: Path | None = None, **changes: Any) -> list[TextUnit]:
    return [TextUnit(number, log, **changes) for number in range(count)]


def ids(results: Sequence[Done | None]) -> list[str | None]:
    return [done.id if done else None for done in results]


def runs_of(log: Path) -> dict[int, int]:
    """How often each unit has begun to run."""
    runs: dict[int, int] = {}
    for line in log.read_text().splitlines() if log.exists() else []:
        number = int(line.split()[0])
        runs[number] = runs.get(number, 0) + 1
    return runs


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def workers_of(driver: int) -> list[int]:
    """The process numbers of the workers that a driver started, whether or not it still lives."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fledge.corpus.engine.worker" in command and command[-2] == str(driver).encode():
            found.append(int(entry.name))
    return found


def wait_until_gone(driver: int, seconds: float) -> None:
    """Fails if workers of a driver are left after so many seconds."""
    until = time.monotonic() + seconds
    while left := workers_of(driver):
        assert time.monotonic() < until, left
        time.sleep(0.02)


def executor_named(name: str) -> Executor:
    kind, *numbers = name.split(":")
    if kind == "local":
        pool._WORTH_PROCESSES_BYTES = 0
        return LocalExecutor(int(numbers[0]))
    if kind == "rank":
        from fledge.corpus.engine.ranks import RankExecutor

        return RankExecutor(int(numbers[0]), int(numbers[1]), patience_seconds=float(numbers[2]), look_seconds=0.05)
    from fledge.corpus.engine.ray_cluster import RayExecutor

    return RayExecutor()


def main() -> None:
    work, executor, count, log, seconds = sys.argv[1:]
    units = text_units(int(count), Path(log), seconds=float(seconds))
    console.configure("warning")
    print("started", flush=True)
    print(*ids(executor_named(executor).run("test", units, WorkFolder(Path(work)))), flush=True)


if __name__ == "__main__":
    # Units must be of a module that their workers can import, which this program is not.
    sys.path.insert(0, str(Path(__file__).parent))
    import engine_assembly

    engine_assembly.main()
