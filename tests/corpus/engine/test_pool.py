"""Real processes: which of them may die, when, and what is left."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow
import pytest
from engine_assembly import OPERATIONS, Surroundings, Talkative, TextUnit, ids, runs_of, text_units, tree, workers_of

from fledge.core import console
from fledge.core.errors import DataError, MachineError
from fledge.corpus.engine import pool
from fledge.corpus.engine.pool import LocalExecutor, available_cores
from fledge.corpus.engine.results import Results
from fledge.corpus.engine.telling import HowFar
from fledge.corpus.engine.units import Done, WorkFolder

# From Python 3.12 on, a fork beside the threads of other libraries warns; these children run units and are killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

Start = Callable[..., subprocess.Popen[str]]
Undisturbed = Callable[[int], tuple[list[str | None], dict[str, bytes]]]


def two_documents_in(so_far: Sequence[Done | None]) -> bool:
    return sum(done.counts["read"]["documents"] for done in so_far if done is not None) >= 20


# ---- same results for any number of workers


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_any_number_of_workers_makes_the_same(work: WorkFolder, undisturbed: Undisturbed, workers: int) -> None:
    results = LocalExecutor(workers).run("test", text_units(9), work)
    assert (ids(results), tree(work.folder)) == undisturbed(9)
    assert results[3] is not None
    assert results[3].folder == work.folder / results[3].folder.name
    assert workers_of(os.getpid()) == []


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_enough_is_enough_for_any_number_of_workers(work: WorkFolder, log: Path, undisturbed: Undisturbed, workers: int) -> None:
    units = text_units(12, log, seconds=0.02)
    results = LocalExecutor(workers).run("test", units, work, two_documents_in)
    assert ids(results) == undisturbed(12)[0][:2] + [None] * 10
    assert len(runs_of(log)) <= (2 if workers == 1 else 1 + 2 * workers), "none runs far ahead of the first that is missing"
    assert not list(work.folder.glob("*.partial"))
    # And when more is there than is needed.
    LocalExecutor(1).run("test", units[:6], work)
    assert LocalExecutor(workers).run("test", units, WorkFolder(work.folder), two_documents_in) == results


def test_no_units_no_results(work: WorkFolder) -> None:
    assert LocalExecutor(2).run("test", [], work) == []


def test_by_default_every_core_works() -> None:
    assert LocalExecutor().workers == available_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("workers", [1, 2])
def test_progress_is_shown(work: WorkFolder, workers: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_QUIET_SECONDS", 0.0)
    LocalExecutor(workers).run("clean", text_units(3, seconds=0.01), work)
    assert re.fullmatch(r"(clean: .+\n)*clean: 30 MB in [\d.]+ s\n", capsys.readouterr().err)


# ---- what is there already


def test_what_is_finished_starts_no_process(work: WorkFolder, monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    before = LocalExecutor(1).run("test", text_units(5, log), work)
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: pytest.fail("a process was started"))
    assert LocalExecutor(2).run("test", text_units(5, log), WorkFolder(work.folder)) == before
    # One unit alone is run here.
    assert LocalExecutor(2).run("test", text_units(6, log), WorkFolder(work.folder))[:5] == before
    assert runs_of(log) == dict.fromkeys(range(6), 1)


def test_small_work_starts_no_process(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [Surroundings(0), Surroundings(1)]
    monkeypatch.setattr(pool, "_WORTH_PROCESSES_BYTES", 20_000_001)
    here = LocalExecutor(2).run("test", units, work)
    monkeypatch.setattr(pool, "_WORTH_PROCESSES_BYTES", 20_000_000)
    there = LocalExecutor(2).run("test", units, WorkFolder(work.folder / "there"))
    assert [done and done.counts["process"] == os.getpid() for done in here] == [True, True]
    assert [done and done.counts["parent"] == os.getpid() for done in there] == [True, True]


def test_units_tell_how_far_they_are(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a worker as in this process; what is told more often than twice a second is left out."""
    heard: list[tuple[int, HowFar | None]] = []
    monkeypatch.setattr(Results, "hear", lambda results, index, how_far: heard.append((index, how_far)))
    for workers in (1, 2):
        LocalExecutor(workers).run("test", [Talkative(0), Talkative(1)], WorkFolder(work.folder / str(workers)))
        assert sorted({index for index, _ in heard}) == [0, 1]
        assert all(how_far == HowFar(0.5, 10, 5) for _, how_far in heard)
        assert len(heard) == 2
        heard.clear()


def test_large_results_are_verified_by_the_workers(work: WorkFolder, monkeypatch: pytest.MonkeyPatch, log: Path) -> None:
    before = LocalExecutor(1).run("test", text_units(5, log), work)
    monkeypatch.setattr(pool, "_VERIFIED_HERE_BYTES", 10_000)
    monkeypatch.setattr(WorkFolder, "make", lambda *given: pytest.fail("nothing needs to be made"))
    late = WorkFolder(work.folder)
    assert LocalExecutor(2).run("test", text_units(5, log), late) == before
    monkeypatch.setattr(subprocess, "Popen", lambda *given, **options: pytest.fail("a process was started"))
    assert LocalExecutor(2).run("test", text_units(5, log), late) == before, "this process remembers"
    assert runs_of(log) == dict.fromkeys(range(5), 1)


@pytest.mark.parametrize("verified_here_bytes", [0, 10**9])
@pytest.mark.parametrize("workers", [1, 2])
def test_exactly_what_was_damaged_runs_again(
    work: WorkFolder, log: Path, workers: int, verified_here_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_VERIFIED_HERE_BYTES", verified_here_bytes)
    before = LocalExecutor(1).run("test", text_units(6, log), work)
    files = tree(work.folder)
    assert before[1] is not None
    assert before[4] is not None
    (before[1].folder / "key").write_bytes(b"edited")
    (before[4].folder / "deep" / "text").unlink()
    assert LocalExecutor(workers).run("test", text_units(6, log), WorkFolder(work.folder)) == before
    assert tree(work.folder) == files
    assert runs_of(log) == {0: 1, 1: 2, 2: 1, 3: 1, 4: 2, 5: 1}


# ---- workers that die


def test_a_killed_worker_is_noticed_at_once_and_its_unit_repeated(work: WorkFolder, log: Path, undisturbed: Undisturbed) -> None:
    units: list[TextUnit] = text_units(6, log)
    units[2] = TextUnit(2, log, misdeed="die", only_once=True)
    results = LocalExecutor(2).run("test", units, work)
    assert (ids(results), tree(work.folder)) == undisturbed(6)
    assert runs_of(log) == {0: 1, 1: 1, 2: 2, 3: 1, 4: 1, 5: 1}, "no other unit was disturbed"
    began = [float(line.split()[2]) for line in log.read_text().splitlines() if line.startswith("2 ")]
    assert began[1] - began[0] < 30


def test_a_worker_killed_from_outside_while_all_are_busy(work: WorkFolder, log: Path, start: Start, undisturbed: Undisturbed) -> None:
    program = start("local:2", 8, 0.1)
    killed: set[str] = set()
    until = time.monotonic() + 120
    while len(killed) < 3 and time.monotonic() < until:
        for line in log.read_text().splitlines() if log.exists() else []:
            number, process, _ = line.split()
            if number in {"1", "2", "6"} - killed:
                os.kill(int(process), signal.SIGKILL)
                killed.add(number)
        time.sleep(0.01)
    assert program.communicate(timeout=120)[0].split() == undisturbed(8)[0]
    assert tree(work.folder) == undisturbed(8)[1]
    assert runs_of(log) == {0: 1, 1: 2, 2: 2, 3: 1, 4: 1, 5: 1, 6: 2, 7: 1}


def test_a_kill_of_a_worker_at_every_operation_on_the_disk(work: WorkFolder, log: Path, undisturbed: Undisturbed) -> None:
    units = [TextUnit(number, log, fail_at=number) for number in range(OPERATIONS)]
    results = LocalExecutor(2).run("test", units, work)
    assert (ids(results), tree(work.folder)) == undisturbed(OPERATIONS)
    assert len(list(log.parent.glob("killed-*"))) == OPERATIONS
    # What a worker has published before it dies is found by the next, not made again.
    assert runs_of(log) == {number: 1 if number in {0, OPERATIONS - 1} else 2 for number in range(OPERATIONS)}


@pytest.mark.parametrize(
    ("misdeed", "problem", "remedy"),
    [
        ("die", "text 1: its worker died 3 times, killed by SIGKILL", "probably memory ran out (`dmesg` tells): use fewer workers"),
        ("exit", "text 1: its worker died 3 times, with exit code 3", "with one worker it runs in this process"),
    ],
)
def test_a_unit_that_always_dies_is_named(work: WorkFolder, log: Path, misdeed: str, problem: str, remedy: str) -> None:
    units = [TextUnit(0, log), TextUnit(1, log, misdeed=misdeed), TextUnit(2, log, seconds=60)]
    with pytest.raises(MachineError) as raised:
        LocalExecutor(3).run("test", units, work)
    assert raised.value.problem == problem
    assert remedy in raised.value.remedy
    assert runs_of(log)[1] == 3
    assert workers_of(os.getpid()) == []
    assert work.find(TextUnit(0)) is not None
    assert not list(work.folder.glob("*.partial"))


# ---- units that raise


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_of_a_unit_reaches_the_caller_as_it_is(work: WorkFolder, log: Path, workers: int) -> None:
    units = [TextUnit(0, log), TextUnit(1, log, misdeed="data", seconds=0.2), TextUnit(2, log, misdeed="hang")]
    started = time.monotonic()
    with pytest.raises(DataError) as raised:
        LocalExecutor(workers).run("test", units, work)
    assert time.monotonic() - started < 20, "what runs meanwhile is stopped"
    assert (raised.value.problem, raised.value.remedy, raised.value.exit_code) == ("line 1 is bad", "mend it", 3)
    assert workers_of(os.getpid()) == []
    assert work.find(TextUnit(0)) is not None
    assert not list(work.folder.glob("*.partial"))


def test_a_mistake_of_ours_comes_with_the_traceback_of_the_worker(work: WorkFolder) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)text [01] failed in a worker:\nTraceback .*_misbehave.*ValueError: a mistake of ours"):
        LocalExecutor(2).run("test", text_units(2, misdeed="bug"), work)
    with pytest.raises(ValueError, match="a mistake of ours"):
        LocalExecutor(1).run("test", text_units(2, misdeed="bug"), work)


def test_a_unit_that_a_worker_cannot_import_is_an_error(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    class OnlyHere(TextUnit):
        pass

    module = types.ModuleType("only_here")
    OnlyHere.__module__, OnlyHere.__qualname__, module.OnlyHere = "only_here", "OnlyHere", OnlyHere  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(RuntimeError, match="cannot be unpickled: ModuleNotFoundError: No module named 'only_here'"):
        LocalExecutor(2).run("test", [OnlyHere(0), OnlyHere(1)], work)


# ---- what a worker is


def test_a_worker_uses_one_thread_and_leaves_ctrl_c_to_us(work: WorkFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "json.py").write_text("raise SystemExit('a stray file of the working directory was imported')")
    expected = {"arrow_threads": 1, "numba_threads": "1", "ignores_interrupt": True, "parent": os.getpid(), "safe_path": True}
    results = LocalExecutor(2).run("test", [Surroundings(0), Surroundings(1)], work)
    assert [done and {name: done.counts[name] for name in expected} for done in results] == [expected, expected]


def test_a_unit_in_this_process_uses_one_thread_too(work: WorkFolder) -> None:
    pyarrow.set_cpu_count(3)
    done = LocalExecutor(1).run("test", [Surroundings(0)], work)[0]
    assert done is not None
    assert done.counts["arrow_threads"] == 1
    assert pyarrow.cpu_count() == 3, "and other code here as many as before"


def test_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    """A worker is no copy of our main module, so it does not run it."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.append({str(Path(__file__).parent)!r})\n"
        "from pathlib import Path\n"
        "from engine_assembly import LocalExecutor, WorkFolder, text_units\n"
        "print(len(LocalExecutor(2).run('test', text_units(4), WorkFolder(Path(sys.argv[1])))))\n"
    )
    said = subprocess.run([sys.executable, str(script), str(tmp_path / "work")], capture_output=True, text=True, check=True)
    assert (said.stdout, said.stderr) == ("4\n", "")
