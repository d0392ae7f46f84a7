"""A driver that dies, by a key or a signal, at any moment: no worker outlives it, and the next one continues."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from engine_assembly import OPERATIONS, TextUnit, ids, runs_of, text_units, tree, wait_until_gone, workers_of

from fledge.core import disk
from fledge.corpus.engine.pool import LocalExecutor
from fledge.corpus.engine.units import WorkFolder
from tests.fail_points import Countdown

# From Python 3.12 on, a fork beside the threads of other libraries warns; these children run units and are killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

Start = Callable[..., subprocess.Popen[str]]
Undisturbed = Callable[[int], tuple[list[str | None], dict[str, bytes]]]


def kill_when_busy(program: subprocess.Popen[str], log: Path, number: signal.Signals) -> None:
    """Send a signal once two workers are at work."""
    until = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2):
        assert time.monotonic() < until
        time.sleep(0.01)
    program.send_signal(number)


def require_continues(work: WorkFolder, expected: tuple[list[str | None], dict[str, bytes]], workers: int = 1) -> None:
    results = LocalExecutor(workers).run("test", text_units(len(expected[0])), work)
    until = time.monotonic() + 120
    while list(work.folder.glob("*.partial")):  # of a worker that was still dying when the driver began
        assert time.monotonic() < until
        work.discard_partials()
    assert (ids(results), tree(work.folder)) == expected


def test_ctrl_c_ends_the_workers_and_leaves_nothing_half_there(work: WorkFolder, log: Path, start: Start, undisturbed: Undisturbed) -> None:
    program = start("local:2", 8, 30)
    kill_when_busy(program, log, signal.SIGINT)
    said = program.communicate(timeout=120)[1]
    assert program.returncode == -signal.SIGINT
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert said.count("Traceback") == 1, "only the driver says so"
    assert workers_of(program.pid) == []
    assert not list(work.folder.glob("*.partial"))
    require_continues(work, undisturbed(8))


def test_ctrl_c_in_a_terminal_reaches_workers_too_and_they_ignore_it(log: Path, start: Start, undisturbed: Undisturbed) -> None:
    program = start("local:2", 4, 0.3)
    for attempt in range(10):
        # From their very first instant on.
        for worker in workers_of(program.pid):
            os.kill(worker, signal.SIGINT)
        time.sleep(0.05 * (attempt > 2))
    said = program.communicate(timeout=120)
    assert (said[0].split(), said[1]) == (undisturbed(4)[0], "")
    assert runs_of(log) == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_driver(work: WorkFolder, log: Path, start: Start, undisturbed: Undisturbed, number: signal.Signals) -> None:
    program = start("local:2", 6, 30)
    kill_when_busy(program, log, number)
    assert program.wait(timeout=120) == -number
    wait_until_gone(program.pid, seconds=20)
    require_continues(work, undisturbed(6))


def kill_at_random(start: Start, work: WorkFolder, expected: tuple[list[str | None], dict[str, bytes]], draw: random.Random) -> set[str]:
    """Kill a driver at some instant and let another continue; returns what is left when all its results are discarded."""
    program = start("local:2", len(expected[0]), 0.01)
    time.sleep(draw.uniform(0.0, 0.8))
    program.kill()
    program.wait()
    wait_until_gone(program.pid, seconds=20)
    require_continues(work, expected, workers=draw.choice([1, 2]))
    work.discard_all_but([])
    return work.names()


def test_a_driver_killed_at_random_instants_continues(work: WorkFolder, start: Start, undisturbed: Undisturbed) -> None:
    draw = random.Random(1)
    for _ in range(3):
        assert kill_at_random(start, work, undisturbed(12), draw) == set()


@pytest.mark.slow
def test_a_driver_killed_at_thirty_random_instants_continues(work: WorkFolder, start: Start, undisturbed: Undisturbed) -> None:
    draw = random.Random(2)
    for _ in range(30):
        assert kill_at_random(start, work, undisturbed(12), draw) == set()


def in_a_fork(act: Callable[[], object]) -> int:
    """Do something in a copy of this process, which must be killed by it; returns the copy's number."""
    child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(99)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    return child


def test_a_driver_killed_at_every_operation_of_its_workers_continues(tmp_path: Path, undisturbed: Undisturbed) -> None:
    expected = undisturbed(3)
    for index in range(OPERATIONS):
        work = WorkFolder(tmp_path / str(index) / "work")
        (tmp_path / str(index)).mkdir()
        units = [TextUnit(number, tmp_path / str(index) / "log", fail_at=index, kills_driver=True) for number in range(3)]
        driver = in_a_fork(lambda units=units, work=work: LocalExecutor(2).run("test", units, work))  # type: ignore[misc]
        wait_until_gone(driver, seconds=20)
        require_continues(work, expected)


def test_a_driver_killed_at_every_operation_of_its_own_continues(tmp_path: Path, undisturbed: Undisturbed) -> None:
    expected = undisturbed(2)

    def killed_at(index: int, work: WorkFolder) -> None:
        disk.fail_point = Countdown(index)
        LocalExecutor(1).run("test", text_units(2), work)

    for index in range(2 * OPERATIONS):
        work = WorkFolder(tmp_path / str(index))
        in_a_fork(lambda index=index, work=work: killed_at(index, work))  # type: ignore[misc]
        require_continues(work, expected)
