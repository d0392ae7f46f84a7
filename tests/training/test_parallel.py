"""Several real processes, stops, kills, and what a machine settles on."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training_assembly import assembled, end, free_port, start, start_all, train_as_asked, training_settings

from fledge.core.errors import ArtifactError, MachineError
from fledge.model.tensors import read_tensors
from fledge.tokens.shards import TokenSet
from fledge.training.checkpoint_folders import CHECKPOINTS, list_checkpoints
from fledge.training.parallel import MACHINE, World, keep_trial, open_world, settle_machine

ALONE = World(0, 1, torch.device("cpu"))


def wait_for_checkpoint(folder: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 300
    while not list_checkpoints(folder):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until, end(process)
        time.sleep(0.01)


@pytest.fixture(scope="module")
def asked_by_content(documents: TokenSet, conversations: TokenSet, preferences: TokenSet, scores: Path) -> dict[str, dict[str, Any]]:
    """Seven rows in micro-batches of two: of two processes the second has a row less, and one that is missing."""
    common = {"steps": 20, "batch_rows": 7, "micro_batch_rows": 2, "learning_rate": 1e-3, "validate_every_steps": 5}
    return {
        "documents": {**common, "tokens": str(documents.folder)},
        "conversations": {**common, "tokens": str(conversations.folder), "sequence_length": None},
        "preferences": {**common, "tokens": str(preferences.folder), "sequence_length": None, "preference": True, "scores": str(scores)},
    }


POISONED: dict[str, Any] = {"steps": 6, "batch_rows": 7, "micro_batch_rows": 2}


@pytest.fixture(scope="module")
def two_processes(asked_by_content: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained on each content."""
    folder = tmp_path_factory.mktemp("two")
    asked = [{"name": content, "port": free_port(), **values} for content, values in asked_by_content.items()]
    asked += [{"name": f"poisoned-{rank}", "port": free_port(), **POISONED, "poison": {"rank": rank, "step": 3}} for rank in range(2)]
    for one in asked:
        one.setdefault("tokens", asked_by_content["documents"]["tokens"])
    start_all(folder, asked, 2)
    return folder


@pytest.mark.parametrize("content", ["documents", "conversations", "preferences"])
def test_two_processes_are_one(tmp_path: Path, content: str, asked_by_content: dict[str, dict[str, Any]], two_processes: Path) -> None:
    alone = train_as_asked(tmp_path / "alone", **asked_by_content[content])
    both = [json.loads((two_processes / f"{content}-result-{rank}.json").read_text()) for rank in range(2)]
    expected = torch.tensor(alone["gradients"], dtype=torch.float64)
    for result in both:
        found = torch.tensor(result["gradients"], dtype=torch.float64)
        assert float((found - expected).norm() / expected.norm()) < 1e-6
        assert max(abs(one - other) for one, other in zip(result["losses"], alone["losses"], strict=True)) < 2e-6
        for (step, one), (expected_step, other) in zip(result["validation"], alone["validation"], strict=True):
            assert step == expected_step
            assert one == pytest.approx(other, abs=2e-6)
    assert both[0]["losses"] == both[1]["losses"]
    assert [checkpoint.step for checkpoint in list_checkpoints(two_processes / content)] == [20]


def test_a_nan_in_one_process_skips_the_step_in_all(two_processes: Path) -> None:
    """Which process it is does not show: neither has applied the step, and all that follows is the same."""
    results = [
        json.loads((two_processes / f"poisoned-{poisoned}-result-{rank}.json").read_text()) for poisoned in (0, 1) for rank in (0, 1)
    ]
    assert all(result == results[0] for result in results)
    assert (results[0]["skipped"], len(results[0]["losses"])) == (1, 5)
    weights = [bits(two_processes / f"poisoned-{poisoned}") for poisoned in (0, 1)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_number_of_processes_may_continue_and_says_so(tmp_path: Path, documents: TokenSet, two_processes: Path) -> None:
    shutil.copytree(two_processes / "documents", tmp_path / "run")
    settings = training_settings(steps=20, batch_rows=7, micro_batch_rows=2)
    with assembled(tmp_path / "run", settings, [documents]) as trainer:
        assert trainer.progress.step == 20
    assert json.loads((tmp_path / "run" / MACHINE).read_text())["changes"] == ["processes: 2 -> 1", "parallel: ddp -> single"]


def bits(folder: Path) -> dict[str, torch.Tensor]:
    last = list_checkpoints(folder)[-1].path
    return {**read_tensors(last / "model.safetensors"), **read_tensors(last / "resume/optimizer.safetensors")}


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_run_ends_as_an_undisturbed_one(tmp_path: Path, documents: TokenSet, stop: signal.Signals) -> None:
    asked = {"tokens": str(documents.folder), "steps": 200, "save_every_steps": 40, "muon": True, "log_every_steps": 50}
    process = start(tmp_path, [{"name": "interrupted", **asked}])
    wait_for_checkpoint(tmp_path / "interrupted", process)
    process.send_signal(stop)
    error = end(process)
    reached = list_checkpoints(tmp_path / "interrupted")[-1].step
    assert reached < 200, "the run was over before it was stopped"
    if stop == signal.SIGTERM:
        assert f"Stopped: stopped by SIGTERM after step {reached} of 200; everything is saved" in error
    train_as_asked(tmp_path / "interrupted", **asked)
    train_as_asked(tmp_path / "undisturbed", **{**asked, "save_every_steps": None})
    found, expected = bits(tmp_path / "interrupted"), bits(tmp_path / "undisturbed")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not list((tmp_path / "interrupted" / CHECKPOINTS).glob("*.partial"))


def test_a_signal_to_one_process_stops_all_at_the_same_step(tmp_path: Path, documents: TokenSet) -> None:
    asked = [{"name": "run", "port": free_port(), "tokens": str(documents.folder), "steps": 100_000, "save_every_steps": 20}]
    first, second = (start(tmp_path, asked, rank, 2) for rank in range(2))
    wait_for_checkpoint(tmp_path / "run", first)
    second.send_signal(signal.SIGTERM)
    errors = [end(first), end(second)]
    reached = list_checkpoints(tmp_path / "run")[-1].step
    assert all(f"Stopped: stopped by SIGTERM after step {reached:,} of 100,000" in error for error in errors)


def test_a_lost_process_ends_the_others(tmp_path: Path, documents: TokenSet) -> None:
    asked = [{"name": "run", "port": free_port(), "tokens": str(documents.folder), "steps": 100_000, "save_every_steps": 20}]
    first, second = (start(tmp_path, asked, rank, 2) for rank in range(2))
    wait_for_checkpoint(tmp_path / "run", first)
    second.kill()
    end(second)
    error = end(first)
    assert first.returncode != 0
    assert "DistributedError: process 0 lost another process" in error


def test_what_was_chosen_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = settle_machine(tmp_path, training_settings(precision="bf16"), ALONE)
    assert (first.precision, first.threads) == ("bf16", 1)
    assert settle_machine(tmp_path, training_settings(precision="auto", threads=None), ALONE) == first
    assert capsys.readouterr().err == ""


def test_before_the_first_checkpoint_all_may_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settle_machine(tmp_path, training_settings(precision="bf16"), ALONE)
    changed = settle_machine(tmp_path, training_settings(precision="fp32", micro_batch_rows=4), ALONE)
    assert changed.precision == "fp32"
    assert capsys.readouterr().err == ""
    record = json.loads((tmp_path / MACHINE).read_text())
    assert record["circumstances"]["precision"] == "fp32" and record["changes"] == []


@pytest.fixture
def begun(tmp_path: Path, documents: TokenSet) -> Path:
    """A stage with a checkpoint."""
    with assembled(
        tmp_path / "run", training_settings(steps=2, precision="bf16", micro_batch_rows=4), [documents], watched=False
    ) as trainer:
        trainer.run()
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"precision": "fp32"}, "precision: bf16 -> fp32"),
        ({"micro_batch_rows": 2}, "micro_batch_rows: 4 -> 2"),
        ({"threads": 2}, "threads: 1 -> 2"),
        ({"determinism": "elastic"}, "determinism: None -> elastic"),
    ],
)
def test_other_arithmetic_than_before_is_refused_until_it_is_allowed(
    begun: Path, change: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = {"precision": "bf16", "micro_batch_rows": 4, **change}
    world = replace(ALONE, elastic="determinism" in change)
    before = (begun / MACHINE).read_bytes()
    with pytest.raises(ArtifactError, match=rf"{told}[^\n]*\n[^\n]*run\.inexact_resume=true"):
        settle_machine(begun, training_settings(**asked), world)
    assert (begun / MACHINE).read_bytes() == before
    settle_machine(begun, training_settings(**asked, inexact_resume=True), world)
    assert "no longer bitwise" in (warning := capsys.readouterr().err) and told in warning
    assert any(told in change for change in json.loads((begun / MACHINE).read_text())["changes"])
    settle_machine(begun, training_settings(**asked), world)
    assert capsys.readouterr().err == "", "it is told, and asked for, once"
    torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fledge", "0.0.1"),
        ("torch", "2.10.0"),
        ("device", "AVX10"),
        ("compiled", True),
        ("fast_fp32", "other"),
        ("attention", "FlashAttention 9"),
    ],
)
def test_what_else_computes_otherwise_is_refused_until_it_is_allowed(
    begun: Path, name: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the stage had begun so; on a CPU attention has no kernel to name."""
    record = json.loads((begun / MACHINE).read_text())
    told = f"{name}: {value} -> {record['circumstances'].get(name)}"
    record["circumstances"][name] = value
    (begun / MACHINE).write_text(json.dumps(record))
    asked = training_settings(precision="bf16", micro_batch_rows=4)
    with pytest.raises(ArtifactError, match=re.escape(told)):
        settle_machine(begun, asked, ALONE)
    settle_machine(begun, replace(asked, inexact_resume=True), ALONE)
    assert told in capsys.readouterr().err


def test_another_number_of_processes_continues(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = json.loads((begun / MACHINE).read_text())
    record["circumstances"] |= {"processes": 4, "parallel": "ddp", "threads": 7}
    (begun / MACHINE).write_text(json.dumps(record))
    settle_machine(begun, training_settings(precision="bf16", micro_batch_rows=4), ALONE)
    assert "no longer bitwise" in (warning := capsys.readouterr().err) and "processes: 4 -> 1" in warning


def test_a_model_that_did_not_compile_stays_so(tmp_path: Path, documents: TokenSet, capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for outright, failed at the first start, and started again after a checkpoint."""
    asked = training_settings(steps=2, compile="on")
    with assembled(tmp_path / "run", asked, [documents], watched=False) as trainer:
        assert trainer.machine.compiled
        keep_trial(tmp_path / "run", trainer.machine, replace(trainer.machine, compiled=False), False)
        trainer.run()
    assert not settle_machine(tmp_path / "run", asked, ALONE).compiled
    assert capsys.readouterr().err == ""
    assert settle_machine(tmp_path / "none", asked, ALONE).compiled, "where nothing is known it is tried"


def test_compiling_no_more_is_another_arithmetic(tmp_path: Path, documents: TokenSet) -> None:
    with assembled(tmp_path / "run", training_settings(steps=2, compile="on"), [documents], watched=False) as trainer:
        trainer.run()
    assert settle_machine(tmp_path / "run", training_settings(compile="on"), ALONE).compiled
    with pytest.raises(ArtifactError, match="compiled: True -> False"):
        settle_machine(tmp_path / "run", training_settings(compile="off"), ALONE)


def test_a_sharded_model_is_not_compiled(tmp_path: Path) -> None:
    assert not settle_machine(tmp_path, training_settings(compile="on"), replace(ALONE, sharded=True)).compiled


@pytest.mark.parametrize(("processes", "threads"), [(1, 2), (4, 1)])
def test_threads_are_kept_for_the_same_number_of_processes(tmp_path: Path, processes: int, threads: int) -> None:
    settle_machine(tmp_path, training_settings(threads=2), ALONE)
    torch.set_num_threads(1)
    record = json.loads((tmp_path / MACHINE).read_text())
    record["circumstances"]["processes"] = processes
    (tmp_path / MACHINE).write_text(json.dumps(record))
    assert settle_machine(tmp_path, training_settings(threads=None), ALONE).threads == threads
    torch.set_num_threads(1)


def test_a_damaged_record_of_the_machine_is_told(tmp_path: Path) -> None:
    (tmp_path / MACHINE).write_text("{}")
    with pytest.raises(MachineError, match=r"machine\.json does not say"):
        settle_machine(tmp_path, training_settings(), ALONE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_told() -> None:
    with pytest.raises(MachineError, match="torch finds no GPU"), open_world("cuda"):
        pass
    with open_world("auto") as world:
        assert world == ALONE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_is_taken() -> None:
    with open_world("auto") as world:
        assert world.device.type == "cuda"
        assert world.from_main(7) == 7
