"""The corpus stage under fire: drivers and workers that are killed, ranks, Ray; each time the files of an undisturbed build."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fledge.core import artifact, disk
from fledge.corpus.engine.units import UNIT
from fledge.recipe import load_recipe
from fledge.stages import corpus as stage
from fledge.stages.run import Run
from tests.fail_points import Countdown

from ..corpus.corpus_assembly import cut_small, digests, in_a_fork, near_copy, program, texts, write_lines
from ..corpus.engine.engine_assembly import wait_until_gone, workers_of

# From Python 3.12 on, a fork beside the threads of other libraries warns; these children build a corpus and are killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
]

PIECE_BYTES = 6_000
TIMEOUT_SECONDS = 300

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources with near duplicates and bad lines; 8 pieces, 4 bands, 4 shards."""
    folder = tmp_path_factory.mktemp("recipe")
    originals = texts(60, words=60)
    write_lines(folder / "a.jsonl", originals)
    write_lines(folder / "b.jsonl", [*texts(50, seed=1, words=60), *map(near_copy, originals[:8])])
    with (folder / "b.jsonl").open("a") as file:
        file.write("bad\n")
    sources = [{"kind": "jsonl", "name": name, "path": str(folder / f"{name}.jsonl")} for name in "ab"]
    corpus = {
        "sources": sources,
        "quality": {"preset": "docs"},
        "deduplicate": {"bands": 3},
        "shard_documents": 40,
        "validation_fraction": 0.2,
        "workers": 2,
    }
    (folder / "recipe.json").write_text(json.dumps({"corpus": corpus}))
    return folder / "recipe.json"


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cut_small(monkeypatch, PIECE_BYTES)
    yield
    disk.fail_point = None


def run_of(recipe: Path, folder: Path, *overrides: str) -> Run:
    return Run(load_recipe(recipe, list(overrides))[0], folder, "recipe.json")


def finish(recipe: Path, folder: Path, *overrides: str) -> dict[str, str]:
    """Run the stage here, in this process; returns the files of the corpus."""
    stage.run(run_of(recipe, folder, "corpus.workers=1", *overrides))
    found = artifact.open_artifact(folder / "corpus" / "documents")
    assert artifact.verify(found) == []
    return digests(found.path)


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, PIECE_BYTES)
        return finish(recipe, tmp_path_factory.mktemp("undisturbed"))


@pytest.fixture
def start(tmp_path: Path, recipe: Path) -> Iterator[Start]:
    """Starts `fledge corpus` for `tmp_path/run`, with so small pieces and processes for anything."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, worth_bytes: int = 0, **environment: str) -> subprocess.Popen[str]:
        command = ("corpus", str(recipe), *arguments, "--name", str(tmp_path / "run"))
        one = program(*command, piece_bytes=PIECE_BYTES, worth_bytes=worth_bytes, folder=tmp_path, **environment)
        started.append(one)
        return one

    yield begin
    for one in started:
        one.kill()
        one.communicate()
        wait_until_gone(one.pid, seconds=5)


def wait_for(condition: Callable[[], Any], seconds: float = 300) -> Any:
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)
    return found


def require_nothing_left(folder: Path, driver: int) -> None:
    """No process, no half result, no lock."""
    wait_until_gone(driver, seconds=2)
    assert not list(folder.rglob("*.partial"))


# ---- a driver that is killed


def killed_at(operation: int, recipe: Path, folder: Path, *overrides: str) -> int:
    """Run the stage in a copy of this process, killed at an operation on the disk; returns how it ended."""

    def act() -> None:
        disk.fail_point = Countdown(operation)
        finish(recipe, folder, *overrides)
        os._exit(0)

    return in_a_fork(act)


def kill_at_every_operation(recipe: Path, folder: Path, expected: dict[str, str], *overrides: str) -> int:
    """Returns how many operations there are."""
    for operation in range(10_000):
        run = folder / str(operation)
        ended = killed_at(operation, recipe, run, *overrides)
        if ended == 0:
            return operation
        assert ended == -signal.SIGKILL
        assert finish(recipe, run, *overrides) == expected, operation
        assert not list(run.rglob("*.partial")), operation
        disk.remove(run)
    raise AssertionError("it never ends")


def one_source(recipe: Path, **options: Any) -> str:
    """An override: only the first source."""
    return f"corpus.sources={json.dumps([{'kind': 'jsonl', 'name': 'a', 'path': str(recipe.with_name('a.jsonl')), **options}])}"


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process, other than a machine, leaves all that it wrote; hundreds of builds need not wait for the device."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("keep_work", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_driver_killed_at_every_operation_on_the_disk_continues(
    tmp_path: Path, recipe: Path, keep_work: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a build with one unit of each phase."""
    cut_small(monkeypatch, 1 << 20)
    overrides = (one_source(recipe, maximum_documents=20), "corpus.deduplicate.kind=exact", "corpus.validation_fraction=0.0")
    overrides = (*overrides, f"corpus.keep_work={keep_work}")
    assert kill_at_every_operation(recipe, tmp_path, finish(recipe, tmp_path / "undisturbed", *overrides), *overrides) > 80


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_a_driver_of_many_units_killed_at_every_operation_continues(tmp_path: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cut_small(monkeypatch, 12_000)
    overrides = ("corpus.format=jsonl.zst", "corpus.deduplicate.bands=2")
    assert kill_at_every_operation(recipe, tmp_path, finish(recipe, tmp_path / "undisturbed", *overrides), *overrides) > 200


@pytest.mark.slow
@pytest.mark.usefixtures("hasty")
def test_a_corpus_made_anew_is_killed_while_it_takes_the_place_of_an_edited_one(tmp_path: Path, recipe: Path) -> None:
    """Every operation of a repair."""
    overrides = (one_source(recipe, maximum_documents=20), "corpus.deduplicate.kind=exact", "corpus.validation_fraction=0.0")
    expected = finish(recipe, tmp_path / "run", *overrides)
    for operation in range(1_000):
        shard = tmp_path / "run" / "corpus" / "documents" / "train-00000.parquet"
        shard.write_bytes(shard.read_bytes()[:-1])
        ended = killed_at(operation, recipe, tmp_path / "run", *overrides)
        assert finish(recipe, tmp_path / "run", *overrides) == expected, operation
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    assert operation > 20


def kill_at_random(start: Start, recipe: Path, folder: Path, expected: dict[str, str], draw: random.Random, seconds: float) -> None:
    one = start("corpus.workers=2")
    time.sleep(draw.uniform(0.0, seconds))
    one.kill()
    one.communicate(timeout=TIMEOUT_SECONDS)
    wait_until_gone(one.pid, seconds=5)
    assert finish(recipe, folder) == expected
    require_nothing_left(folder, one.pid)
    disk.remove(folder)


@pytest.mark.parametrize("units", [8, *(pytest.param(units, marks=pytest.mark.slow) for units in (1, 4, 12, 15))])
def test_a_driver_killed_at_work_continues(tmp_path: Path, recipe: Path, undisturbed: dict[str, str], start: Start, units: int) -> None:
    """Killed when so many of its 19 units are done, and two workers are at the next."""
    one = start("corpus.workers=2")
    wait_for(lambda: len(list((tmp_path / "run").glob(f"work/corpus/*/{UNIT}"))) >= units or one.poll() is not None)
    one.kill()
    one.communicate(timeout=TIMEOUT_SECONDS)
    assert one.returncode == -signal.SIGKILL, "it ended before"
    wait_until_gone(one.pid, seconds=5)
    assert finish(recipe, tmp_path / "run") == undisturbed
    require_nothing_left(tmp_path / "run", one.pid)


def killed_command(recipe: Path, folder: Path, seconds: float) -> None:
    """`python -m fledge corpus`, as a user starts it, killed after so long."""
    command = [sys.executable, "-m", "fledge", "corpus", str(recipe), "--name", str(folder)]
    one = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    one.kill()
    one.wait()
    wait_until_gone(one.pid, seconds=5)


def test_the_command_killed_at_random_instants_continues(
    tmp_path: Path, recipe: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, killed again and again; whole files are its pieces, which leave no trace in the corpus."""
    cut_small(monkeypatch, 1 << 26)
    draw = random.Random(2)
    began = time.monotonic()
    killed_command(recipe, tmp_path / "run", draw.uniform(0.2, 1.0))
    while not (tmp_path / "run" / "corpus" / "documents").exists() and time.monotonic() - began < 3:
        killed_command(recipe, tmp_path / "run", draw.uniform(0.8, 1.8))
    assert finish(recipe, tmp_path / "run") == undisturbed


@pytest.mark.slow
def test_a_driver_killed_at_thirty_random_instants_continues(
    tmp_path: Path, recipe: Path, undisturbed: dict[str, str], start: Start
) -> None:
    """From its first instruction to its last, with workers and without."""
    draw = random.Random(0)
    for worth_bytes in (0, 10**9):
        began = time.monotonic()
        one = start("corpus.workers=2", worth_bytes=worth_bytes)
        assert one.wait(TIMEOUT_SECONDS) == 0
        lasts_seconds = time.monotonic() - began
        assert digests(tmp_path / "run" / "corpus" / "documents") == undisturbed
        disk.remove(tmp_path / "run")
        for _ in range(15):
            kill_at_random(
                lambda *given, worth_bytes=worth_bytes: start(*given, worth_bytes=worth_bytes),  # type: ignore[misc]
                recipe, tmp_path / "run", undisturbed, draw, lasts_seconds,
            )  # fmt: skip


def test_ctrl_c_ends_all_processes_and_says_how_to_go_on(tmp_path: Path, recipe: Path, undisturbed: dict[str, str], start: Start) -> None:
    one = start("corpus.workers=2")
    wait_for(lambda: workers_of(one.pid))
    one.send_signal(signal.SIGINT)
    _, said = one.communicate(timeout=TIMEOUT_SECONDS)
    assert one.returncode == 128 + signal.SIGINT
    assert said.splitlines()[-2:] == [
        "error: stopped before this stage had finished",
        "  fix: run the same command again: what is finished is kept",
    ]
    require_nothing_left(tmp_path / "run", one.pid)
    assert finish(recipe, tmp_path / "run") == undisturbed


# ---- workers that are killed


def test_killed_workers_are_replaced_within_seconds(tmp_path: Path, recipe: Path, start: Start) -> None:
    """Where only cleaning has several units."""
    overrides = (one_source(recipe), "corpus.deduplicate.kind=none", "corpus.validation_fraction=0.0", "corpus.shard_documents=100")
    expected = finish(recipe, tmp_path / "undisturbed", *overrides)
    one = start("corpus.workers=2", *overrides)
    first = wait_for(lambda: found if len(found := workers_of(one.pid)) == 2 else None)
    for worker in first:
        os.kill(worker, signal.SIGKILL)
    wait_for(lambda: set(workers_of(one.pid)) - set(first), seconds=30)
    assert one.communicate(timeout=TIMEOUT_SECONDS)[1].count("error") == 0
    assert one.returncode == 0
    assert digests(tmp_path / "run" / "corpus" / "documents") == expected
    require_nothing_left(tmp_path / "run", one.pid)


@pytest.mark.slow
def test_workers_killed_again_and_again_end_in_the_corpus_or_in_an_error(
    tmp_path: Path, recipe: Path, undisturbed: dict[str, str], start: Start
) -> None:
    draw = random.Random(1)
    for _ in range(5):
        one = start("corpus.workers=2")
        until = time.monotonic() + TIMEOUT_SECONDS
        while one.poll() is None:
            assert time.monotonic() < until
            time.sleep(draw.uniform(0.0, 1.5))
            workers = workers_of(one.pid)
            if workers:
                os.kill(draw.choice(workers), signal.SIGKILL)
        said = one.communicate()[1]
        assert one.returncode == 0 or (one.returncode == 5 and "its worker died 3 times" in said), said
        assert finish(recipe, tmp_path / "run") == undisturbed
        require_nothing_left(tmp_path / "run", one.pid)
        disk.remove(tmp_path / "run")


# ---- many machines


def test_two_ranks_make_what_one_makes(tmp_path: Path, undisturbed: dict[str, str], start: Start) -> None:
    ranks = [start("--rank", str(rank), "--world", "2") for rank in range(2)]
    said = [one.communicate(timeout=TIMEOUT_SECONDS) for one in ranks]
    assert [one.returncode for one in ranks] == [0, 0], said
    assert digests(tmp_path / "run" / "corpus" / "documents") == undisturbed
    assert not list((tmp_path / "run").rglob("*.partial"))
    assert "corpus/documents: " in said[0][0]


@pytest.mark.slow
def test_a_killed_rank_is_no_loss(tmp_path: Path, recipe: Path, undisturbed: dict[str, str], start: Start) -> None:
    ranks = [start("--rank", str(rank), "--world", "3") for rank in range(3)]
    wait_for(lambda: list((tmp_path / "run").glob(f"work/corpus/*/{UNIT}")))
    ranks[1].kill()
    ranks[2].kill()
    assert ranks[0].wait(TIMEOUT_SECONDS) == 0, "it takes their units over"
    assert digests(tmp_path / "run" / "corpus" / "documents") == undisturbed


@pytest.mark.slow
def test_rank_0_killed_and_started_again(tmp_path: Path, recipe: Path, undisturbed: dict[str, str], start: Start) -> None:
    ranks = [start("--rank", str(rank), "--world", "2") for rank in range(2)]
    wait_for(lambda: len(list((tmp_path / "run").glob(f"work/corpus/*/{UNIT}"))) > 2)
    ranks[0].kill()
    ranks[0].wait()
    again = start("--rank", "0", "--world", "2")
    assert [one.wait(TIMEOUT_SECONDS) for one in (again, ranks[1])] == [0, 0]
    assert digests(tmp_path / "run" / "corpus" / "documents") == undisturbed


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same(tmp_path: Path, recipe: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        run = run_of(recipe, tmp_path / "run", "corpus.executor=ray")
        stage.run(run)
        assert digests(tmp_path / "run" / "corpus" / "documents") == undisturbed
        manifest = tmp_path / "run" / "corpus" / "documents" / "manifest.json"
        before = manifest.stat().st_mtime_ns
        stage.run(replace(run))
        assert manifest.stat().st_mtime_ns == before
    finally:
        ray.shutdown()
