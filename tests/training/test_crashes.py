"""Killed at any instant, a stage ends bit for bit as if undisturbed; damaged in any bit, a checkpoint is found and not used.

A killed process is a fork of this one, so a kill costs a fraction of a second; what it leaves on the disk is real. What the system has
not yet written to the device is not lost with a process, so `fsync` is left out here; its places are checked by tests/core/test_disk.py.
"""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from crash_assembly import KillAt, ended, forked, in_a_fork, leftovers, operations, outcome, published, run_stage, stage_settings, wait

from fledge.core import artifact, disk
from fledge.core.errors import CheckpointError
from fledge.tokens.shards import TokenSet
from fledge.training import parallel
from fledge.training.checkpoint_folders import CHECKPOINTS, checkpoint_folder, list_checkpoints
from fledge.training.settings import TrainingSettings
from fledge.training.sound_checkpoints import QUARANTINE, newest_sound, problems_of

# From Python 3.12 on, a fork beside the threads of other libraries warns; these children train on one thread and are killed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning"),
    pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch"),
]

LEAST_POINTS = 120
RANDOM_SEED = 20


@pytest.fixture(autouse=True)
def steady(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is measured, so nothing can come out differently; nothing is waited for."""
    monkeypatch.setattr(parallel, "use_fast_fp32", lambda device: False)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    # Looking through all modules of this process would take longer than the run.
    monkeypatch.setattr(gc, "collect", lambda: 0)
    yield
    disk.fail_point = None


@pytest.fixture
def undisturbed(tmp_path: Path, documents: TokenSet) -> dict[str, Any]:
    run_stage(tmp_path / "undisturbed", documents, stage_settings())
    return outcome(tmp_path / "undisturbed")


def points(done: list[tuple[str, Path]]) -> list[int]:
    """The operations to kill at: all, but of the writes of one file that are neither its first nor its last every fourth."""
    inner = {number for number in range(1, len(done) - 1) if done[number - 1] == done[number] == done[number + 1]}
    return [number for number in range(len(done)) if number not in inner or number % 4 == 0]


def kill_and_finish(folder: Path, tokens: TokenSet, settings: TrainingSettings, fail_point: KillAt) -> dict[str, Any]:
    """What comes of a run that is killed and started again; what was published before the kill must not be lost."""
    assert in_a_fork(lambda: run_stage(folder, tokens, settings, fail_point)) == -signal.SIGKILL
    reached = published(folder)
    started_at = run_stage(folder, tokens, settings)
    assert started_at is None or started_at >= reached
    assert not leftovers(folder) and not (folder / QUARANTINE).exists()
    return outcome(folder)


@pytest.mark.parametrize("steps", [4, pytest.param(6, marks=pytest.mark.slow)])
def test_a_stage_killed_at_every_operation_on_the_disk_ends_as_if_undisturbed(
    tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str], steps: int
) -> None:
    """Start, saves, the removal of old checkpoints, the commit."""
    settings = stage_settings(steps=steps)
    done = operations(tmp_path / "undisturbed", documents, settings, tmp_path / "log")
    expected = outcome(tmp_path / "undisturbed")
    for number in points(done):
        folder = tmp_path / "killed"
        assert kill_and_finish(folder, documents, settings, KillAt(number)) == expected, done[number]
        shutil.rmtree(folder)
    with capsys.disabled():
        print(f"killed at {len(points(done))} of {len(done)} operations on the disk")
    assert len(points(done)) >= LEAST_POINTS
    assert {operation for operation, _ in done} >= {"create", "write", "fsync", "rename", "mkdir", "append", "unlink", "rmtree"}


def test_a_write_torn_in_the_middle_is_no_file(tmp_path: Path, documents: TokenSet, undisturbed: dict[str, Any]) -> None:
    settings = stage_settings()
    done = operations(tmp_path / "noted", documents, settings, tmp_path / "log")
    writes = {path: number for number, (operation, path) in enumerate(done) if operation == "write"}
    second = [number for path, number in writes.items() if "step-000004" in str(path) or path.parent == tmp_path / "noted"]
    for number in second:
        folder = tmp_path / "killed"
        assert kill_and_finish(folder, documents, settings, KillAt(number, torn=True)) == undisturbed, done[number]
        shutil.rmtree(folder)
    assert len(second) >= 9


def test_an_asynchronous_save_killed_at_its_operations_is_as_good(tmp_path: Path, documents: TokenSet, undisturbed: dict[str, Any]) -> None:
    settings = stage_settings(asynchronous_saves=True)
    done = operations(tmp_path / "noted", documents, settings, tmp_path / "log")
    assert outcome(tmp_path / "noted") == undisturbed
    for number in points(done)[20::9]:
        folder = tmp_path / "killed"
        assert kill_and_finish(folder, documents, settings, KillAt(number)) == undisturbed, done[number]
        shutil.rmtree(folder)


def test_a_resume_killed_at_every_operation_is_repeated(tmp_path: Path, documents: TokenSet) -> None:
    """With all that a resume may meet: a damaged newest, a half-written and a half-removed one, records after the checkpoint."""
    settings = stage_settings(keep_checkpoints=3)
    run_stage(tmp_path / "undisturbed", documents, settings)
    expected = outcome(tmp_path / "undisturbed")
    start = tmp_path / "start"
    shutil.copytree(tmp_path / "undisturbed", start)
    (start / artifact.MANIFEST).unlink()
    shutil.copytree(checkpoint_folder(start, 6), start / CHECKPOINTS / "step-000005.partial")
    (checkpoint_folder(start, 2) / artifact.MANIFEST).unlink()
    flip(checkpoint_folder(start, 6) / "model.safetensors", 2_000)
    shutil.copytree(start, tmp_path / "noted")
    done = operations(tmp_path / "noted", documents, settings, tmp_path / "log")
    upto = next(number for number, (_, path) in enumerate(done) if "step-000006.partial" in str(path))
    assert upto >= 8
    for number in range(upto):
        folder = tmp_path / "killed"
        shutil.copytree(start, folder)
        assert in_a_fork(lambda: run_stage(folder, documents, settings, KillAt(number))) == -signal.SIGKILL  # noqa: B023
        run_stage(folder, documents, settings)
        found = outcome(folder)
        assert (found["final"], found["stage"], found["records"]) == (expected["final"], expected["stage"], expected["records"]), done[
            number
        ]
        assert [path.name for path in (folder / QUARANTINE).iterdir()] == ["step-000006"]
        shutil.rmtree(folder)


@pytest.mark.parametrize("kills", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_a_stage_killed_at_random_instants_ends_as_if_undisturbed(
    tmp_path: Path, documents: TokenSet, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str], kills: int
) -> None:
    """Each run is killed again and again until it ends; half of the saves are asynchronous."""
    draw = random.Random(RANDOM_SEED)
    killed = runs = 0
    while killed < kills:
        folder = tmp_path / f"run-{runs}"
        while not (folder / artifact.MANIFEST).exists():
            settings = stage_settings(asynchronous_saves=bool(draw.getrandbits(1)))
            child = forked(lambda: run_stage(folder, documents, settings))  # noqa: B023
            # Saves take most of such a short run, so every tenth may run to its end, lest no run ever ends.
            if killed < kills and draw.random() < 0.9:
                wait(draw.uniform(0.0, 0.25))
                os.kill(child, signal.SIGKILL)
            code = ended(child)
            assert code in (0, -signal.SIGKILL), "it ended by itself, and not well"
            reached = 0 if code == 0 else published(folder)
            killed += int(reached or not (folder / artifact.MANIFEST).exists())
            assert published(folder) >= reached
        assert outcome(folder) == undisturbed
        assert not leftovers(folder) and not (folder / QUARANTINE).exists()
        runs += 1
    with capsys.disabled():
        print(f"killed at {killed} instants in {runs} runs")


# ---- what has rotted


def flip(path: Path, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory: pytest.TempPathFactory, documents: TokenSet) -> Path:
    folder = tmp_path_factory.mktemp("two") / "run"
    run_stage(folder, documents, stage_settings(keep_checkpoints=2, validate_every_steps=None))
    (folder / artifact.MANIFEST).unlink()
    return folder


def test_any_flipped_bit_of_the_newest_checkpoint_is_found(two_checkpoints: Path) -> None:
    """1,000 of them, evenly over all bytes of all files, so that each file has its share; each is flipped back."""
    newest = list_checkpoints(two_checkpoints)[-1].path
    files = sorted(path for path in newest.rglob("*") if path.is_file())
    draw, found = random.Random(0), 0
    chosen = [
        (path, draw.randrange(8 * path.stat().st_size)) for path in draw.choices(files, [path.stat().st_size for path in files], k=800)
    ]
    chosen += [(path, draw.randrange(8 * path.stat().st_size)) for path in draw.choices(files, k=200)]
    for path, bit in chosen:
        flip(path, bit)
        found += bool(problems_of(newest))
        flip(path, bit)
    assert problems_of(newest) == []
    assert found == len(chosen) == 1_000


def damages(path: Path) -> Iterator[Callable[[], object]]:
    """Each kind of damage to a checkpoint, to be applied to a fresh copy."""
    for file in sorted(one for one in path.rglob("*") if one.is_file()):
        size_bytes = file.stat().st_size
        for kept_bytes in sorted({0, 1, size_bytes - 1, *range(4096, size_bytes, 4096)}):
            yield lambda file=file, kept_bytes=kept_bytes: os.truncate(file, kept_bytes)  # type: ignore[misc]
        yield file.unlink
        yield lambda file=file: file.write_bytes(file.read_bytes() + b"\0")  # type: ignore[misc]
    yield lambda: (path / "pytorch_model.bin").write_bytes(b"")
    yield lambda: (path / "resume" / "more.py").write_text("print()")
    yield lambda: shutil.copy(path.parent / "step-000004" / artifact.MANIFEST, path / artifact.MANIFEST)
    yield lambda: [shutil.copy(path.parent / "step-000004" / name, path / name) for name in ("model.safetensors", artifact.MANIFEST)]


def test_what_is_cut_off_gone_or_strange_is_found_and_the_one_before_is_used(two_checkpoints: Path, tmp_path: Path) -> None:
    newest = list_checkpoints(two_checkpoints)[-1].path.relative_to(two_checkpoints)
    count = len(list(damages(two_checkpoints / newest)))
    for number in range(count):
        folder = tmp_path / "damaged"
        shutil.copytree(two_checkpoints, folder)
        list(damages(folder / newest))[number]()
        found = newest_sound(folder)
        assert found is not None and found.step == 4, number
        shutil.rmtree(folder)
    assert count > 25


def test_the_checkpoint_of_another_run_or_step_is_strange_here(two_checkpoints: Path, tmp_path: Path, documents: TokenSet) -> None:
    folder = tmp_path / "run"
    shutil.copytree(two_checkpoints, folder)
    newest = list_checkpoints(folder)[-1].path
    newest.rename(newest.with_name("step-000008"))
    assert "belongs elsewhere: its step are not those" in problems_of(newest.with_name("step-000008"))[0]
    stage = folder / artifact.STARTED
    stage.write_text(stage.read_text().replace('"toy"', '"another"'))
    with pytest.raises(CheckpointError, match="only damaged ones"):
        newest_sound(folder)


def test_a_damaged_newest_checkpoint_costs_its_steps_and_no_bit(
    tmp_path: Path, documents: TokenSet, undisturbed: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, settings = tmp_path / "damaged", stage_settings(keep_checkpoints=2)
    run_stage(folder, documents, settings)
    (folder / artifact.MANIFEST).unlink()
    flip(list_checkpoints(folder)[-1].path / "resume/optimizer.safetensors", 9_999)
    run_stage(folder, documents, settings)
    found = outcome(folder)
    assert (found["final"], found["stage"], found["records"]) == tuple(undisturbed[name] for name in ("final", "stage", "records"))
    assert "the checkpoint of step 6 is damaged" in capsys.readouterr().err
