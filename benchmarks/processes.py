"""Processes that the benchmarks measure: each in a fresh folder, on given cores, with CPU seconds and memory."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
import os
import platform
import re
import select
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PEERS = Path(__file__).with_name("corpus_peers.py")
_WATCH_SECONDS = 0.1


def python_path() -> str:
    """For the environment of a process: Fledge as it lies here, before whatever is on the path already."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


@dataclass(frozen=True)
class Measured:
    """One process and its children."""

    cpu_seconds: float
    wall_seconds: float
    driver_megabytes: float | None
    """Most memory that the process itself held at once, as its resident set; None where it was not watched."""
    worker_megabytes: float | None
    """The same of the child process that held most."""
    told: dict[str, Any]
    """What the run says of itself: of Fledge its stats.json, of a peer what it printed."""


def made_environment(folder: Path, packages: Sequence[str]) -> Path:
    """The Python of an environment that has the peers, made if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    return python


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = next((line.split(":")[1].strip() for line in flags.splitlines() if line.startswith("model name")), platform.processor())
    return {"cpu": model, "cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 2)}


class Bench:
    """Runs engines, each time in a fresh folder and process."""

    def __init__(self, peer_python: Path | None, folder: Path) -> None:
        self.peer_python = peer_python
        self._folder = folder
        self._numbers = itertools.count()
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

    @contextlib.contextmanager
    def fledge(
        self, text: Path, settings: Mapping[str, Any], cores: int = 1, variables: Mapping[str, str] | None = None, watch: bool = False
    ) -> Iterator[tuple[Measured, Path]]:
        """Build a corpus of the JSON Lines in a folder; also the folder of the documents, which is there while the block lasts."""
        with self.fresh() as place:
            source = {"kind": "jsonl", "name": "text", "path": str(text / "part-*.jsonl"), "license": "various"}
            constant = {"cleaning": [], "validation_fraction": 0, "workers": 1, "cache_folder": str(place / "cache")}
            recipe = place / "recipe.yaml"
            recipe.write_text(json.dumps({"corpus": {"sources": [source], **constant, **settings}}))
            command = [sys.executable, "-m", "fledge", "corpus", str(recipe), "--name", str(place / "run")]
            measured = self.measured(command, cores, {"PYTHONPATH": str(ROOT), **(variables or {})}, watch)
            documents = place / "run" / "corpus" / "documents"
            measured.told.update(json.loads((documents / "stats.json").read_text()))
            yield measured, documents

    def peer(self, arguments: Sequence[str], text: Path) -> Measured:
        """Run a peer's pipeline over the JSON Lines in a folder."""
        engine, *options = arguments
        # Neither engine is to report its use while it is measured.
        quiet = {"DO_NOT_TRACK": "true", "SCARF_NO_ANALYTICS": "true", "DAFT_ANALYTICS_ENABLED": "0"}
        with self.fresh() as place:
            command = [str(self.peer_python), str(PEERS), engine, str(text), str(place / "out"), *options]
            return self.measured(command, 1, quiet, watch=False)

    def ask_peer(self, *arguments: str) -> dict[str, Any]:
        """What the peers' side answers to something that is not measured."""
        return self.measured([str(self.peer_python), str(PEERS), *arguments], 1, {}, watch=False).told

    @contextlib.contextmanager
    def fresh(self) -> Iterator[Path]:
        """A new folder, gone behind the block."""
        place = self._folder / str(next(self._numbers))
        place.mkdir(parents=True)
        yield place
        shutil.rmtree(place)

    def measured(self, command: Sequence[str], cores: int, variables: Mapping[str, str], watch: bool) -> Measured:
        """Run a command on so many cores; its last line on standard output is JSON."""
        pin = functools.partial(os.sched_setaffinity, 0, self._cores[-cores:]) if self._cores else None
        # An installed program keeps its compiled modules; where that is switched off, every start would compile all of them.
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
            started = time.monotonic()
            process = subprocess.Popen(command, stdout=output, stderr=errors, env={**inherited, **variables}, preexec_fn=pin)
            with _memory_of(process.pid if watch else None) as peaks:
                # The usage is that of the process and of all descendants that were waited for, killed ones too.
                _, status, usage = os.wait4(process.pid, 0)
            seconds = time.monotonic() - started
            process.returncode = os.waitstatus_to_exitcode(status)
            said, complained = (_read(stream) for stream in (output, errors))
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}:\n{said[-2_000:]}{complained[-4_000:]}")
        last = said.strip().rpartition("\n")[2]
        told = json.loads(last) if last.startswith("{") else {}
        driver = peaks.pop(process.pid, None)
        return Measured(usage.ru_utime + usage.ru_stime, seconds, driver, max(peaks.values(), default=None), told)


class Contestant:
    """A process that reads what to do, a line each, and answers each with a line of JSON; it says something first when it is ready."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path | None = None) -> None:
        """`variables`: of its environment, besides where Fledge lies and that nobody asks the hub; `log`: for what it prints otherwise."""
        environment = {**os.environ, "PYTHONPATH": python_path(), "HF_HUB_OFFLINE": "1", **variables}
        self._log = log
        with log.open("w") if log is not None else contextlib.nullcontext(subprocess.DEVNULL) as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment
            )

    def hear(self, until: float = math.inf) -> Any:
        """The next thing that it says; None if it ends, or if the time of `time.monotonic` is over before."""
        assert self._process.stdout is not None
        left = None if until == math.inf else max(0.0, until - time.monotonic())
        if not select.select([self._process.stdout], [], [], left)[0]:
            return None
        line = self._process.stdout.readline()
        return json.loads(line) if line else None

    def ask(self, task: str, until: float = math.inf) -> dict[str, Any]:
        """What it answers. Raises SystemExit if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{task}\n")
        self._process.stdin.flush()
        found: dict[str, Any] | None = self.hear(until)
        if found is None:
            raise SystemExit(f"a contestant ended early, or time was over: {self.last_words()}")
        return found

    def last_words(self) -> str:
        """Why it ended, by its log."""
        return last_words(self._log) if self._log is not None else "it has no log"

    def close(self) -> None:
        """It ends when nothing more is asked."""
        with self._process:  # closes its pipes, and waits
            pass

    def kill(self) -> None:
        """It ends at once."""
        self._process.kill()
        self.close()


def last_words(log: Path) -> str:
    """The last error that a log names, else that there is none, with its last line: a line that comes after an error explains nothing."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    error = next((line for line in reversed(lines) if re.match(r"[\w.]*(?:Error|Exception|Exit)\b:?", line)), None)
    if error is not None:
        return error[:300]
    return f"not ready in time, no error in its log; last line: {lines[-1][:200]}" if lines else "not ready in time"


@contextlib.contextmanager
def _memory_of(root: int | None) -> Iterator[dict[int, float]]:
    """Megabytes that a process and its descendants held at most, by process id; filled while the block runs, where /proc is.

    The kernel keeps the high-water mark, so looking now and then misses only what comes after the last look. The figure that
    `wait4` gives would hold the memory of this process too, from before the child became another program.
    """
    peaks: dict[int, float] = {}
    if root is None or not Path("/proc").is_dir():
        yield peaks
        return
    ended = threading.Event()

    def look() -> None:
        while not ended.wait(_WATCH_SECONDS):
            _note_peaks(root, peaks)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def _note_peaks(process: int, peaks: dict[int, float]) -> None:
    folder = Path("/proc") / str(process)
    with contextlib.suppress(OSError):
        status = (folder / "status").read_text()
        line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), None)
        if line is not None:
            peaks[process] = max(peaks.get(process, 0.0), int(line.split()[1]) * 1_024 / 1e6)
        children = [int(child) for task in (folder / "task").iterdir() for child in (task / "children").read_text().split()]
        for child in children:
            _note_peaks(child, peaks)


def _read(stream: Any) -> str:
    stream.seek(0)
    return str(stream.read().decode(errors="replace"))
