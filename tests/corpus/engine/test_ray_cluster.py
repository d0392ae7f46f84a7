"""On a real Ray of this machine, with workers that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from engine_assembly import TextUnit, ids, runs_of, text_units, tree

from fledge.core.errors import DataError, MachineError
from fledge.corpus.engine.pool import LocalExecutor
from fledge.corpus.engine.ray_cluster import RayExecutor
from fledge.corpus.engine.units import Done, WorkFolder

Start = Callable[..., subprocess.Popen[str]]
Undisturbed = Callable[[int], tuple[list[str | None], dict[str, bytes]]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of this machine with two cores."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_USAGE_STATS_ENABLED", "0")
        environment.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[3])]))
        context = ray.init(num_cpus=2, address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        yield context.address_info["gcs_address"]
        ray.shutdown()


def two_documents_in(so_far: Sequence[Done | None]) -> bool:
    return sum(done.counts["read"]["documents"] for done in so_far if done is not None) >= 20


def test_ray_makes_the_same(cluster: str, work: WorkFolder, log: Path, undisturbed: Undisturbed) -> None:
    results = RayExecutor().run("test", text_units(6, log), work)
    assert (ids(results), tree(work.folder)) == undisturbed(6)
    assert results == LocalExecutor(2).run("test", text_units(6, log), WorkFolder(work.folder))
    # What is finished is found, by the tasks or, where it is small, without any.
    assert RayExecutor().run("test", text_units(6, log), WorkFolder(work.folder)) == results
    assert runs_of(log) == dict.fromkeys(range(6), 1)


def test_a_killed_worker_is_replaced(
    cluster: str, work: WorkFolder, log: Path, undisturbed: Undisturbed, capfd: pytest.CaptureFixture[str]
) -> None:
    units = text_units(5, log)
    units[1] = TextUnit(1, log, misdeed="die", only_once=True)
    results = RayExecutor().run("test", units, work)
    work.discard_partials()
    assert (ids(results), tree(work.folder)) == undisturbed(5)
    assert runs_of(log)[1] == 2
    began = [float(line.split()[2]) for line in log.read_text().splitlines() if line.startswith("1 ")]
    assert began[1] - began[0] < 30
    assert capfd.readouterr() == ("", ""), "Ray's half page about each lost worker is kept away"


def test_an_error_of_a_unit_reaches_the_caller_as_it_is(cluster: str, work: WorkFolder, log: Path) -> None:
    units = [TextUnit(0, log), TextUnit(1, log, misdeed="data"), TextUnit(2, log, misdeed="hang")]
    started = time.monotonic()
    with pytest.raises(DataError) as raised:
        RayExecutor().run("test", units, work)
    assert (raised.value.problem, raised.value.remedy) == ("line 1 is bad", "mend it")
    assert time.monotonic() - started < 20


def test_enough_is_enough(cluster: str, work: WorkFolder, log: Path, undisturbed: Undisturbed) -> None:
    results = RayExecutor().run("test", text_units(12, log, seconds=0.05), work, two_documents_in)
    assert ids(results) == undisturbed(12)[0][:2] + [None] * 10
    assert len(runs_of(log)) <= 1 + 2 * 2


@pytest.mark.slow
def test_a_unit_that_always_dies_is_named(cluster: str, work: WorkFolder, log: Path) -> None:
    with pytest.raises(MachineError, match=r"text 1: its Ray worker was lost 4 times or cannot run it") as raised:
        RayExecutor().run("test", [TextUnit(0, log), TextUnit(1, log, misdeed="die")], work)
    assert "ray status" in raised.value.remedy
    assert runs_of(log)[1] == 4


def test_a_program_joins_the_cluster_that_is_there(
    cluster: str, work: WorkFolder, log: Path, start: Start, undisturbed: Undisturbed
) -> None:
    """And a worker killed in the middle, from outside, changes nothing."""
    program = start("ray", 6, 0.3, RAY_ADDRESS=cluster)
    until = time.monotonic() + 120
    while not log.exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(int(log.read_text().split()[1]), signal.SIGKILL)
    assert program.communicate(timeout=120) == (" ".join(map(str, undisturbed(6)[0])) + "\n", "")
    work.discard_partials()
    assert tree(work.folder) == undisturbed(6)[1]


# ---- without a cluster


def test_without_ray_the_way_to_get_it_is_told(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MachineError, match=r"needs the package ray.*\n.*pip install.*ray"):
        RayExecutor().run("test", text_units(1), work)


def test_without_a_cluster_the_ways_out_are_told(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")

    def none_there(**options: object) -> None:
        raise ConnectionError("Could not find any running Ray instance.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", none_there)
    with pytest.raises(MachineError, match=r"cannot join a Ray cluster at 'auto': Could not find.*\nstart one \(`ray start --head`"):
        RayExecutor().run("test", text_units(1), work)
