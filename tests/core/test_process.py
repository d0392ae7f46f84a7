from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fledge.core import process
from fledge.core.errors import DistributedError, MachineError
from fledge.core.process import StopSignals, run_lock


@contextmanager
def child(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A real Python process running `code`; killed at the end of the block if it is still there."""
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    started = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with started:
        try:
            yield started
        finally:
            started.kill()


def read_line(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


# ---- rank


def test_one_process_alone_is_the_main_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (process.rank(), process.world_size(), process.local_rank(), process.is_main()) == (0, 1, 0, True)


def test_the_environment_of_torchrun_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert (process.rank(), process.world_size(), process.local_rank(), process.is_main()) == (5, 8, 1, False)
    assert process.local_world_size() == 8, "of unknown places, all on this machine"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert process.local_world_size() == 4
    monkeypatch.setenv("RANK", "0")
    assert process.is_main()


def test_a_launched_process_knows_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(process.REPORT_FOLDER, raising=False)
    assert not process.is_launched()
    monkeypatch.setenv(process.REPORT_FOLDER, str(tmp_path))
    assert process.is_launched()
    assert process.report_folder() == tmp_path


@pytest.mark.parametrize("text", ["first", "-1", "1.5"])
def test_a_rank_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("RANK", text)
    with pytest.raises(DistributedError, match=f"RANK is '{text}'"):
        process.rank()


# ---- memory

_PAGE_FAULTS = """
    import resource, sys
    from fledge.core import process
    if sys.argv[1] == "keep":
        process.keep_freed_memory()
    def allocate():
        block = bytearray(64 << 20)
    allocate()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        allocate()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_is_kept() -> None:
    """A page that is asked for again costs a page fault unless malloc kept it: 4 x 64 MiB are 65,536 pages of 4 KiB."""
    faults = {}
    for way in ("keep", "default"):
        with child(_PAGE_FAULTS, way) as started:
            faults[way] = int(read_line(started))
    assert faults["default"] > 100 or faults["keep"] < 100, "huge pages may hide the faults of the default"
    assert faults["keep"] < 100


def test_another_system_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr("ctypes.CDLL", lambda name: pytest.fail("no library may be opened"))
    process.keep_freed_memory()


# ---- the parent

_CHILD = """
import itertools, os, sys, time
from fledge.core import process
print(os.getpid(), flush=True)
sys.platform = sys.argv[2]
process.end_with_parent(int(sys.argv[1]))
if sys.platform == "linux":
    max(itertools.repeat(0, 10**12))  # keeps the interpreter lock: no thread could end this process
time.sleep(300)
"""
_PARENT = """
    import os, subprocess, sys
    parent = os.getpid() if sys.argv[1] == "ours" else 1
    subprocess.Popen([sys.executable, "-c", sys.argv[3], str(parent), sys.argv[2]]).wait()
"""


def ends_soon(number: int) -> bool:
    """Whether a process ends within a minute; one that nobody waits for counts as ended."""
    until = time.monotonic() + 60
    while Path(f"/proc/{number}/cmdline").exists() and Path(f"/proc/{number}/cmdline").read_bytes():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("system", ["linux", "another"])
def test_a_child_ends_with_its_parent(number: signal.Signals, system: str) -> None:
    with child(_PARENT, "ours", system, _CHILD) as parent:
        grandchild = int(read_line(parent))
        parent.send_signal(number)
        parent.wait()
        assert ends_soon(grandchild)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_child_whose_parent_ended_before_it_looked_ends_too() -> None:
    with child(_PARENT, "another's", "linux", _CHILD) as parent:
        assert ends_soon(int(read_line(parent)))


# ---- the lock

_HOLD = """
    import sys, time
    from pathlib import Path
    from fledge.core.process import run_lock
    with run_lock(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
    print("released", flush=True)
"""


def test_a_second_process_is_refused_naming_the_first(tmp_path: Path) -> None:
    with child(_HOLD, tmp_path / "run") as holder:
        assert read_line(holder) == "held"
        with (
            pytest.raises(MachineError, match=f"run is in use by process {holder.pid} on {os.uname().nodename}"),
            run_lock(tmp_path / "run"),
        ):
            pytest.fail("two processes hold one run folder")
        assert holder.stdin is not None
        holder.stdin.close()
        assert read_line(holder) == "released"
        with run_lock(tmp_path / "run"):
            pass


def test_a_process_works_under_the_lock_of_its_parent(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run"):
        with child(_HOLD, tmp_path / "run") as launched:
            assert read_line(launched) == "held"
        with pytest.raises(MachineError, match="is in use by"), run_lock(tmp_path / "run"):
            pytest.fail("a process is not its own parent")


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    with child(_HOLD, tmp_path / "run") as holder:
        assert read_line(holder) == "held"
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with run_lock(tmp_path / "run"):
            assert str(os.getpid()) in (tmp_path / "run" / ".lock").read_text()


def test_the_lock_is_released_when_the_block_raises(tmp_path: Path) -> None:
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    with run_lock(tmp_path):
        pass


def test_other_ranks_take_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with run_lock(tmp_path / "run"), run_lock(tmp_path / "run"):
        assert not (tmp_path / "run").exists()


# ---- signals

_WORK = """
    import sys, time
    from fledge.core.process import StopSignals
    with StopSignals() as stop:
        print("ready", flush=True)
        while stop.requested is None:
            time.sleep(0.01)
        print(stop.requested, flush=True)
        sys.stdin.read()
    print("saved", flush=True)
    time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_the_first_signal_is_noted_and_the_second_harmless(number: signal.Signals) -> None:
    with child(_WORK) as worker:
        assert read_line(worker) == "ready"
        worker.send_signal(number)
        assert read_line(worker) == str(int(number))
        worker.send_signal(signal.SIGTERM)
        assert worker.stdin is not None
        worker.stdin.close()
        assert read_line(worker) == "saved"
        worker.send_signal(signal.SIGTERM)
        assert worker.wait() == -signal.SIGTERM, "after the block the old handler is back"
        assert worker.stderr is not None
        assert worker.stderr.read() == f"{number.name}: stopping after this step (two more signals stop at once)\n"


def test_the_third_signal_ends_the_process_at_once() -> None:
    with child(_WORK) as worker:
        assert read_line(worker) == "ready"
        worker.send_signal(signal.SIGINT)
        assert read_line(worker) == str(int(signal.SIGINT))
        # Two pending signals of one kind are delivered once, so the others are of two kinds.
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
        assert worker.wait(timeout=120) in {130, 143}
        assert worker.stdout is not None
        assert "saved" not in worker.stdout.read()


def test_handlers_are_restored_and_nothing_is_requested_without_a_signal() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyError), StopSignals() as stop:
        assert stop.requested is None
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] != before
        raise KeyError
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_another_thread_is_left_alone() -> None:
    seen: list[int | None] = []

    def work() -> None:
        with StopSignals() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]


def test_memory_is_told_and_its_peak_starts_anew() -> None:
    assert process.peak_resident_bytes() >= process.resident_bytes() > 1_000_000
    assert (process.available_memory_bytes() or 0) > 10_000_000
    size_bytes = 100_000_000
    held = b"x" * size_bytes
    assert process.peak_resident_bytes() >= len(held)
    del held
    if sys.platform == "linux":
        after = process.resident_bytes()
        process.restart_peak()
        assert process.peak_resident_bytes() < after + size_bytes // 2


def test_a_run_in_use_is_seen_without_taking_its_lock(tmp_path: Path) -> None:
    assert not process.is_in_use(tmp_path)
    with process.run_lock(tmp_path):
        assert process.is_in_use(tmp_path)
    assert not process.is_in_use(tmp_path)
    with process.run_lock(tmp_path):
        pass
