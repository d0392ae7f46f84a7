"""Ranks that know of each other only what lies in the work folder: real processes where they die, threads where they only wait."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engine_assembly import TextUnit, ids, runs_of, text_units, tree

from fledge.core import console
from fledge.core.errors import ConfigError, DataError
from fledge.corpus.engine.pool import LocalExecutor
from fledge.corpus.engine.ranks import RankExecutor, next_unit
from fledge.corpus.engine.units import Done, Enough, WorkFolder

Start = Callable[..., subprocess.Popen[str]]
Undisturbed = Callable[[int], tuple[list[str | None], dict[str, bytes]]]


def run_ranks(
    ranks: Sequence[int], world: int, units: Sequence[TextUnit], work: WorkFolder, patience_seconds: float, enough: Enough | None = None
) -> list[list[Done | None]]:
    """What each of these ranks returns, side by side."""
    executors = [RankExecutor(rank, world, patience_seconds, look_seconds=0.02) for rank in ranks]
    with ThreadPoolExecutor(len(ranks)) as threads:
        started = [threads.submit(executor.run, "test", units, WorkFolder(work.folder), enough) for executor in executors]
        return [one.result() for one in started]


def three_documents_in(so_far: Sequence[Done | None]) -> bool:
    return sum(done.counts["read"]["documents"] for done in so_far if done is not None) >= 30


# ---- who runs what


def test_a_rank_runs_its_share_first_and_then_what_is_left_at_its_distance() -> None:
    missing = list(range(10))
    assert [next_unit(missing, rank, 3, takes_over=False) for rank in range(3)] == [0, 1, 2]
    others = [1, 2, 4, 5, 7, 8]  # the share of rank 0 of 3 is done
    assert next_unit(others, 0, 3, takes_over=False) is None
    assert next_unit(others, 0, 3, takes_over=True) == 1
    assert next_unit([4, 7], 2, 3, takes_over=True) == 7
    assert next_unit([4], 2, 3, takes_over=True) == 4
    assert next_unit([], 2, 3, takes_over=True) is None
    # All the others are dead: the living ranks begin at different places.
    left = [index for index in range(60) if index % 6 == 0]
    assert len({next_unit(left, rank, 6, takes_over=True) for rank in range(1, 6)}) == 5


@pytest.mark.parametrize(("rank", "world"), [(-1, 2), (2, 2), (0, 0)])
def test_a_rank_that_cannot_be_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match=f"rank {rank} of {world} cannot be"):
        RankExecutor(rank, world)


def test_a_rank_that_was_waited_for_in_vain_is_waited_for_once(work: WorkFolder) -> None:
    executor = RankExecutor(1, 2, patience_seconds=0.3, look_seconds=0.02)
    started = time.monotonic()
    executor.run("test", text_units(3), work)
    assert time.monotonic() - started >= 0.3
    executor.patience_seconds = 30.0
    for phase in range(1, 4):
        assert None not in executor.run("test", text_units(12)[3 * phase : 3 * phase + 3], work)
    assert time.monotonic() - started < 30.0


def test_a_rank_that_publishes_again_is_waited_for_again(log: Path, work: WorkFolder) -> None:
    """The other one, still dead, is not."""
    executor = RankExecutor(0, 3, patience_seconds=0.5, look_seconds=0.02)
    executor.run("test", text_units(3), work)
    run_ranks([1], 3, [TextUnit(number) for number in range(3, 6)], work, 0.0)
    started = time.time()
    executor.run("test", [TextUnit(number, log) for number in range(6, 9)], work)
    seconds = {int(line.split()[0]): float(line.split()[2]) - started for line in log.read_text().splitlines()}
    assert list(seconds) == [6, 8, 7]
    assert seconds[7] >= 0.5


# ---- together


def test_ranks_share_the_work_and_all_return_all(log: Path, work: WorkFolder, start: Start, undisturbed: Undisturbed) -> None:
    ranks = [start(f"rank:{rank}:3:30", 9, 0.05) for rank in range(3)]
    said = [rank.communicate(timeout=120) for rank in ranks]
    assert [one[0].split() for one in said] == [undisturbed(9)[0]] * 3
    assert [one[1] for one in said] == [""] * 3
    assert tree(work.folder) == undisturbed(9)[1]
    assert runs_of(log) == dict.fromkeys(range(9), 1)


def test_one_rank_alone_does_all(log: Path, work: WorkFolder, undisturbed: Undisturbed) -> None:
    assert ids(run_ranks([1], 3, text_units(7, log), work, 0.1)[0]) == undisturbed(7)[0]
    shares = [int(line.split()[0]) % 3 for line in log.read_text().splitlines()]
    assert shares[:2] == [1, 1], "its own share first"


def test_a_rank_starts_late_and_finds_its_share_done(log: Path, work: WorkFolder) -> None:
    first = run_ranks([0], 2, text_units(4, log), work, 0.0)
    assert run_ranks([1], 2, text_units(4, log), work, 60) == first
    assert runs_of(log) == dict.fromkeys(range(4), 1)


def test_the_units_of_a_killed_rank_are_taken_over(log: Path, work: WorkFolder, start: Start, undisturbed: Undisturbed) -> None:
    ranks = [start(f"rank:{rank}:3:0.6", 9, 0.2) for rank in range(3)]
    until = time.monotonic() + 120
    while not (log.exists() and "\n1 " in "\n" + log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.01)
    ranks[1].send_signal(signal.SIGKILL)
    assert [ranks[rank].communicate(timeout=120)[0].split() for rank in (0, 2)] == [undisturbed(9)[0]] * 2
    WorkFolder(work.folder).discard_partials()
    assert tree(work.folder) == undisturbed(9)[1]


def test_a_long_unit_is_left_to_the_rank_that_is_at_it(log: Path, work: WorkFolder) -> None:
    """Otherwise every machine would run the one long unit that all wait for."""
    results = run_ranks([0, 1, 2], 3, text_units(1, log, seconds=2), work, patience_seconds=0.6)
    assert results[0] == results[1] == results[2]
    assert runs_of(log) == {0: 1}


def test_a_unit_without_a_sign_of_life_is_taken_over(log: Path, work: WorkFolder) -> None:
    """A partial folder that nobody touches: of a dead rank on another machine, or of one that hangs."""
    work.make(TextUnit(1))
    stuck = work.folder / f"{TextUnit(0).key[:32]}.00000000.1.elsewhere-1.partial"
    stuck.mkdir()
    started = time.monotonic()
    results = run_ranks([1], 2, text_units(2, log), work, patience_seconds=0.3)
    assert None not in results[0]
    assert time.monotonic() - started > 0.3
    assert runs_of(log) == {0: 1}


def test_patience_grows_with_the_units(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank whose own unit took 0.3 s waits three times as long for the unit of another."""
    monkeypatch.setattr("fledge.corpus.engine.ranks._PATIENCE_SECONDS", 0.1)
    started = time.monotonic()
    RankExecutor(0, 2, look_seconds=0.02).run("test", text_units(2, seconds=0.3), work)
    assert time.monotonic() - started > 0.3 + 0.9 + 0.3


@pytest.mark.parametrize("together", [True, False])
def test_enough_is_the_same_for_all_ranks(log: Path, work: WorkFolder, undisturbed: Undisturbed, together: bool) -> None:
    units, expected = text_units(12, log, seconds=0.01), undisturbed(12)[0][:3] + [None] * 9
    if together:
        results = run_ranks([0, 1], 2, units, work, 5, three_documents_in)
    else:
        results = [run_ranks([rank], 2, units, work, 0.05, three_documents_in)[0] for rank in (1, 0)]
    assert [ids(one) for one in results] == [expected] * 2
    assert len(runs_of(log)) <= 3 + 2 * 2, "no rank runs far ahead of the first unit that is missing"


# ---- what lay there before


def test_what_lay_there_before_is_verified_whosever_share_it_is(log: Path, work: WorkFolder) -> None:
    before = LocalExecutor(1).run("test", text_units(6, log), work)
    assert before[3] is not None
    (before[3].folder / "key").write_text("0" * 64)  # of the same size
    assert run_ranks([0], 2, text_units(6, log), work, 0.1) == [before]
    assert runs_of(log) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}


def test_an_error_ends_the_rank_and_the_others_meet_it_too(log: Path, work: WorkFolder) -> None:
    before = threading.active_count()
    units = [TextUnit(0, log), TextUnit(1, log, misdeed="data"), TextUnit(2, log)]
    for rank in (0, 1):
        with pytest.raises(DataError, match="line 1 is bad"):
            run_ranks([rank], 2, units, work, 0.1)
    assert threading.active_count() == before, "no sign of life outlives its unit"


def test_progress_counts_what_the_others_did(work: WorkFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console, "_QUIET_SECONDS", 0.0)
    run_ranks([0], 2, text_units(3), work, 0.0)
    assert "test: 30 MB in " in capsys.readouterr().err
