"""Saves that fail, and saves behind the next steps; which checkpoints stay is test_retention.py."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from crash_assembly import ALONE, SMALL, Save, ended, forked, leftovers, run_stage, stage_settings, steps
from training_assembly import REQUEST, assembled, free_port, training_settings

from fledge.core import disk
from fledge.core.errors import DistributedError, FledgeError, MachineError, NumericsError
from fledge.core.metrics import read_metrics
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet
from fledge.training.checkpoint import Progress
from fledge.training.checkpoint_folders import CHECKPOINTS, checkpoint_folder, list_checkpoints
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import World
from fledge.training.plan import Plan
from fledge.training.saving import FAILURES_IN_A_ROW, CheckpointWriter
from fledge.training.sound_checkpoints import QUARANTINE, newest_sound, problems_of

pytestmark = pytest.mark.usefixtures("no_fail_point")

ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EIO", "EMFILE", "EROFS")}


class Told(World):
    """A process beside a main one that has not been able to save."""

    def from_main(self, number: int) -> int:
        return 1


class FailAt:
    """A fail-point that raises an error of the system at one operation, or from there on; counts what happens."""

    def __init__(self, error: int, at: int = 0, lasting: bool = False) -> None:
        self.error, self.at, self.lasting, self.count = error, at, lasting, 0
        self.hit: tuple[str, Path] | None = None

    def __call__(self, operation: str, path: Path) -> None:
        self.count += 1
        if self.count - 1 == self.at or (self.lasting and self.count > self.at):
            self.hit = operation, path
            raise OSError(self.error, os.strerror(self.error), str(path))


# ---- the disk does not take it


@pytest.mark.parametrize("name", ["ENOSPC", "EIO", "EMFILE", *(pytest.param(name, marks=pytest.mark.slow) for name in ("EDQUOT", "EROFS"))])
def test_an_error_at_any_operation_of_a_save_costs_this_save_only(
    tmp_path: Path, save: Save, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older checkpoints stay as they are, nothing half-made stays, it is counted and told, the next save succeeds."""
    before = tmp_path / "before"
    writer = CheckpointWriter(before, REQUEST, 2)
    save(writer, 1), save(writer, 2)
    seen: set[str] = set()
    number, failing = 0, None
    while failing is None or failing.hit is not None:
        folder = tmp_path / "run"
        shutil.copytree(before, folder)
        writer = CheckpointWriter(folder, REQUEST, 2)
        disk.fail_point = failing = FailAt(ERRORS[name], number)
        saved = save(writer, 3)
        disk.fail_point = None
        said = capsys.readouterr().err
        if failing.hit is not None:
            seen.add(failing.hit[0])
            removing = failing.hit[0] in {"unlink", "rmtree"} and "partial" not in str(failing.hit[1])
            assert ("older checkpoints stay" if removing else "no checkpoint of step 3") in said, failing.hit
            assert (saved is not None, writer.failures) == (removing, 0 if removing else 1), failing.hit
            assert removing or not problems_of(checkpoint_folder(folder, 1)), failing.hit
            assert not problems_of(checkpoint_folder(folder, 2)), failing.hit
            assert not leftovers(folder), failing.hit
        assert save(writer, 4) is not None
        assert steps(folder)[-1] == 4 and newest_sound(folder) is not None
        assert len(steps(folder)) == 2
        shutil.rmtree(folder)
        number += 1
    assert number > 40
    assert seen == {"mkdir", "create", "write", "fsync", "rename", "unlink", "rmtree"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_goes_on_and_counts(tmp_path: Path, documents: TokenSet, asynchronous: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """The disk is full at the first save of three; the weights are those of a run on a large disk."""
    settings = stage_settings(asynchronous_saves=asynchronous)
    run_stage(tmp_path / "undisturbed", documents, settings)

    def full(operation: str, path: Path) -> None:
        if operation == "create" and "step-000002" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run_stage(tmp_path / "full", documents, settings, full)
    assert list_checkpoints(tmp_path / "full")[-1].artifact.id == list_checkpoints(tmp_path / "undisturbed")[-1].artifact.id
    said = capsys.readouterr().err
    assert "warning: no checkpoint of step 2: no space left while writing" in said
    assert "(training goes on; the next save tries again)" in said
    counted = {record["step"]: record.get("checkpoint_failures") for record in read_metrics(tmp_path / "full") if "train/loss" in record}
    assert (counted[1], counted[2], counted[5], counted[6]) == (None, None, 1, 1)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_five_failures_in_a_row_stop_the_training(tmp_path: Path, save: Save, asynchronous: bool) -> None:
    writer = CheckpointWriter(tmp_path, REQUEST, 2, asynchronous=asynchronous)
    save(writer, 1, occasion="stop")
    disk.fail_point = FailAt(errno.ENOSPC, 0, lasting=True)
    with pytest.raises(MachineError, match=r"5 checkpoints in a row could not be written, the last before step") as error:
        for step in range(2, 9):
            save(writer, step)
    assert (error.value.exit_code, writer.failures) == (5, FAILURES_IN_A_ROW)
    disk.fail_point = None
    found = newest_sound(tmp_path)
    assert found is not None and found.step == 1


def test_a_save_that_succeeds_begins_the_count_anew(tmp_path: Path, save: Save) -> None:
    writer = CheckpointWriter(tmp_path, REQUEST, 2)
    for step in range(1, 13):
        disk.fail_point = FailAt(errno.EIO, 0, lasting=True) if step % 4 else None
        assert (save(writer, step) is None) == bool(step % 4)
    assert writer.failures == 9


@pytest.mark.parametrize("occasion", ["stop", "end"])
def test_the_last_state_must_be_saved(tmp_path: Path, save: Save, occasion: str) -> None:
    writer = CheckpointWriter(tmp_path, REQUEST, 2, asynchronous=True)
    save(writer, 1)
    writer.wait()
    disk.fail_point = FailAt(errno.ENOSPC, 5, lasting=True)
    with pytest.raises(MachineError, match=r"the state after step 2 could not be saved: no space left") as error:
        save(writer, 2, occasion=occasion)
    assert "what was saved before is as it was" in error.value.remedy
    disk.fail_point = None
    assert steps(tmp_path) == [1]


def test_every_process_learns_that_the_main_one_could_not_save(tmp_path: Path, save: Save) -> None:
    with pytest.raises(DistributedError, match="the main process could not save"):
        save(CheckpointWriter(tmp_path, REQUEST, 2), 2, world=Told(1, 2, torch.device("cpu")))


def test_a_disk_that_gives_other_bytes_back_is_noticed_at_once(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest says what was meant to be written, not what a second reading found."""
    writer = CheckpointWriter(tmp_path, REQUEST, 2)
    save(writer, 1)

    def rot(operation: str, path: Path) -> None:
        if operation == "rename" and path.name == "step-000002":
            weights = path.with_name("step-000002.partial") / "model.safetensors"
            weights.write_bytes(weights.read_bytes()[:-1] + b"\1")

    disk.fail_point = rot
    assert save(writer, 2) is None
    assert "what was written reads back differently" in capsys.readouterr().err
    disk.fail_point = None
    save(writer, 3), save(writer, 4)
    assert steps(tmp_path) == [3, 4]
    assert [path.name for path in (tmp_path / QUARANTINE).iterdir()] == ["step-000002"]


# ---- behind the next steps


@pytest.mark.parametrize("count", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_an_asynchronous_save_holds_the_state_of_its_moment(tmp_path: Path, documents: TokenSet, count: int) -> None:
    """A save at every second step, each written slowly while the next ones change every weight: the files of synchronous saves."""

    def slowly(operation: str, path: Path) -> None:
        if operation == "create" and "safetensors" in path.name:
            time.sleep(0.02)

    kept = {"steps": 2 * count, "keep_checkpoints": count, "validate_every_steps": None}
    for name, asynchronous in (("synchronous", False), ("asynchronous", True)):
        run_stage(tmp_path / name, documents, stage_settings(**kept, asynchronous_saves=asynchronous), slowly if asynchronous else None)
    ids = [[(one.step, one.artifact.id) for one in list_checkpoints(tmp_path / name)] for name in ("synchronous", "asynchronous")]
    assert ids[0] == ids[1]
    assert len(ids[0]) == count


def test_at_most_one_save_is_on_its_way_and_its_failure_is_told_at_the_next_step(
    tmp_path: Path, documents: TokenSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gate, writing = threading.Event(), []

    def hold(operation: str, path: Path) -> None:
        if operation == "mkdir" and path.name == "step-000002.partial":
            writing.append(threading.current_thread().name)
            gate.wait(10)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with assembled(tmp_path, stage_settings(asynchronous_saves=True), [documents], model=Llama(SMALL, 0)) as trainer:
        trainer.step(), trainer.step()
        disk.fail_point = hold
        trainer.save("cadence")
        trainer.step()
        assert "no checkpoint of step 2" not in capsys.readouterr().err
        assert trainer.writer._on_its_way is not None
        gate.set()
        assert trainer.writer._on_its_way[1].exception(10) is not None
        trainer.step()
        assert "no checkpoint of step 2: cannot write" in capsys.readouterr().err
        disk.fail_point = None
        trainer.save("stop")
    assert len(writing) == 1 and writing[0].startswith("checkpoint")


def test_what_is_not_finite_is_an_error_at_once_also_behind_the_next_steps(tmp_path: Path, plan: Plan) -> None:
    model = Llama(SMALL, 0)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    writer = CheckpointWriter(tmp_path, REQUEST, 2, asynchronous=True)
    with pytest.raises(NumericsError, match=r"no checkpoint is written at step 4: model\.norm\.weight"):
        writer.save(model, make_optimizer(model, training_settings()), plan, Progress(4), ALONE, "cadence")
    assert not (tmp_path / CHECKPOINTS).exists()


def test_a_run_that_fails_waits_for_the_save_on_its_way(tmp_path: Path, documents: TokenSet) -> None:
    class Fails:
        def due(self, step: int) -> bool:
            return step == 3

        def observe(self, report: object) -> dict[str, float]:
            raise MachineError("a", "b")

    with assembled(tmp_path, stage_settings(asynchronous_saves=True), [documents], model=Llama(SMALL, 0)) as trainer:
        trainer.observers = [Fails()]
        with pytest.raises(MachineError, match="a"):
            trainer.run()
        assert steps(tmp_path) == [2] and not leftovers(tmp_path)


# ---- several processes


def two_processes(folder: Path, tokens: TokenSet, fail_point: Callable[[str, Path], None], **changes: object) -> list[int]:
    """Train in two copies of this process, the main one with a fail-point; returns how they ended: 0, or our exit code."""
    port = free_port()

    def act(rank: int) -> None:
        places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in places.items()})
        disk.fail_point = fail_point if rank == 0 else None
        try:
            with assembled(folder, stage_settings(**changes), [tokens], model=Llama(SMALL, 0)) as trainer:
                trainer.run()
        except FledgeError as error:
            os._exit(error.exit_code)

    children = [forked(functools.partial(act, rank)) for rank in range(2)]
    return [ended(child) for child in children]


@pytest.mark.skipif(sys.platform != "linux", reason="forks a process that has loaded torch")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning", "ignore:.*broadcast_buffers:FutureWarning")
def test_two_processes_decide_alike_when_the_main_one_cannot_save(tmp_path: Path, documents: TokenSet) -> None:
    """One failed save: both go on. The last one fails: both stop."""

    def full_at(step: int, operation: str, path: Path) -> None:
        if operation == "create" and f"step-{step:06d}" in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert two_processes(tmp_path / "goes-on", documents, functools.partial(full_at, 2)) == [0, 0]
    assert steps(tmp_path / "goes-on")[-1] == 6
    assert two_processes(tmp_path / "stops", documents, functools.partial(full_at, 6)) == [5, 7]
    assert steps(tmp_path / "stops")[-1] == 4
