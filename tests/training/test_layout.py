"""A model that several processes share: the same losses whichever way, and checkpoints that go from one way to another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmark_rows import write_benchmarks
from training_assembly import start_all, train_as_asked

from fledge.core.metrics import read_metrics
from fledge.model.folder import read_weights
from fledge.model.tensors import read_tensors
from fledge.tokens.shards import TokenSet
from fledge.training.checkpoint_folders import CHECKPOINTS, list_checkpoints
from fledge.training.layout import choose_layout, device_bytes, is_sharded, part_of, whole
from fledge.training.parallel import MACHINE

HALF, STEPS = 4, 8
NOISE = 2e-6

GB = 10**9


@pytest.mark.parametrize(
    ("wanted", "processes", "trained", "frozen", "device_bytes", "layout"),
    [
        ("auto", 1, 10**12, 0, 24 * GB, "single"),
        ("fsdp", 1, 10**12, 0, 24 * GB, "single"),
        ("auto", 2, 750_000_000, 0, 24 * GB, "ddp"),
        ("auto", 2, 750_000_001, 0, 24 * GB, "fsdp"),
        ("auto", 8, 1_000_000_000, 0, 80 * GB, "ddp"),
        ("ddp", 2, 10**12, 0, 24 * GB, "ddp"),
        ("fsdp", 2, 1, 0, 24 * GB, "fsdp"),
        ("auto", 2, 5_000_000, 2_980_000_000, 24 * GB, "ddp"),  # an adapter
        ("auto", 2, 5_000_001, 2_980_000_000, 24 * GB, "fsdp"),
    ],
)
def test_the_layout_follows_from_what_half_a_device_holds(
    wanted: Any, processes: int, trained: int, frozen: int, device_bytes: int, layout: str
) -> None:
    assert choose_layout(wanted, processes, trained, frozen, device_bytes) == layout


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_machine = device_bytes(torch.device("cpu"))
    monkeypatch.setenv("WORLD_SIZE", "16")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert whole_machine // 4 == device_bytes(torch.device("cpu")) > 0


def test_what_is_not_cut_is_whole() -> None:
    tensor = torch.arange(6.0)
    assert not is_sharded(tensor)
    assert whole(tensor) is tensor
    copy = part_of(tensor, like=torch.zeros(6))
    assert torch.equal(copy, tensor)
    assert copy.data_ptr() != tensor.data_ptr()


@pytest.fixture(scope="module")
def asked(documents: TokenSet, preferences: TokenSet, scores: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Seven rows in micro-batches of two, so gradients accumulate and the last process has a row less; a checkpoint half-way."""
    benchmarks = str(write_benchmarks(tmp_path_factory.mktemp("rows") / "benchmarks"))
    common = {"steps": STEPS, "batch_rows": 7, "micro_batch_rows": 2, "validate_every_steps": HALF, "save_every_steps": HALF}
    of_pairs = {"tokens": str(preferences.folder), "scores": str(scores), "preference": True, "sequence_length": None}
    return {
        "documents": {**common, "tokens": str(documents.folder), "benchmarks": benchmarks, "benchmark_every_steps": HALF},
        "muon": {**common, "tokens": str(documents.folder), "muon": True},
        "preferences": {**common, **of_pairs, "learning_rate": 1e-3},
        "adapter": {**common, "tokens": str(documents.folder), "lora": {"rank": 3, "weight_decomposed": True}},
    }


@pytest.fixture(scope="module")
def alone(asked: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which one process has trained each."""
    folder = tmp_path_factory.mktemp("alone")
    for name, values in asked.items():
        train_as_asked(folder / name, **values)
    return folder


@pytest.fixture(scope="module")
def sharing(asked: dict[str, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have trained each, holding a part of it."""
    folder = tmp_path_factory.mktemp("sharing")
    runs = [{"name": name, "parallel": "fsdp", **values} for name, values in asked.items()]
    start_all(folder, [*runs, {"name": "ddp", "parallel": "ddp", **asked["documents"]}], 2)
    return folder


def result(folder: Path, name: str, rank: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}-result-{rank}.json").read_text())
    return found


def require_same_course(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert len(found["losses"]) == STEPS
    assert found["losses"] == pytest.approx(expected["losses"], abs=NOISE)
    assert [step for step, _ in found["validation"]] == [HALF, STEPS]
    assert [loss for _, loss in found["validation"]] == pytest.approx([loss for _, loss in expected["validation"]], abs=NOISE)


def state_at(folder: Path, step: int) -> dict[str, torch.Tensor]:
    [path] = [checkpoint.path for checkpoint in list_checkpoints(folder) if checkpoint.step == step]
    return {**read_weights(path), **read_tensors(path / "resume/optimizer.safetensors")}


def half_way(folder: Path, target: Path) -> None:
    """A copy of a run as it was after half of its steps."""
    shutil.copytree(folder, target)
    shutil.rmtree(target / CHECKPOINTS / f"step-{STEPS:06d}")
    assert [checkpoint.step for checkpoint in list_checkpoints(target)] == [HALF]


@pytest.mark.parametrize("name", ["documents", "muon", "preferences", "adapter"])
def test_processes_that_share_a_model_are_one(alone: Path, sharing: Path, name: str) -> None:
    expected = result(alone, name)
    for rank in range(2):
        found = result(sharing, name, rank)
        require_same_course(found, expected)
        gradients, whole_gradients = (torch.tensor(one["gradients"], dtype=torch.float64) for one in (found, expected))
        assert float((gradients - whole_gradients).norm() / whole_gradients.norm()) < 1e-6
    assert json.loads((sharing / name / MACHINE).read_text())["circumstances"]["parallel"] == "fsdp"


@pytest.mark.parametrize("name", ["documents", "ddp"])
def test_benchmarks_have_the_same_figures_however_the_model_is_shared(alone: Path, sharing: Path, name: str) -> None:
    found, expected = (
        {(record["step"], key): value for record in read_metrics(folder) for key, value in record.items() if key.startswith("benchmark/")}
        for folder in (sharing / name, alone / "documents")
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-5), key
    for step in (HALF, STEPS):
        assert (expected[step, "benchmark/lambada_openai/acc/n"], expected[step, "benchmark/text/bits_per_byte/n"]) == (5, 2)


@pytest.mark.parametrize("name", ["documents", "muon", "adapter"])
def test_a_shared_model_is_saved_whole(alone: Path, sharing: Path, name: str) -> None:
    found, expected = state_at(sharing / name, HALF), state_at(alone / name, HALF)
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].shape == tensor.shape
        torch.testing.assert_close(found[key], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["documents", "muon", "adapter"])
def test_one_process_continues_what_several_shared(tmp_path: Path, sharing: Path, asked: dict[str, Any], name: str) -> None:
    half_way(sharing / name, tmp_path / name)
    require_same_course(train_as_asked(tmp_path / name, **asked[name]), result(sharing, name))
    assert json.loads((tmp_path / name / MACHINE).read_text())["changes"] == ["processes: 2 -> 1", "parallel: fsdp -> single"]


def test_layouts_continue_one_another_and_themselves(tmp_path: Path, alone: Path, sharing: Path, asked: dict[str, Any]) -> None:
    """Each to the same losses; with the layout and the number of processes it had to the same bits."""
    continued = [
        ("documents", sharing / "documents", "ddp"),
        ("documents", alone / "documents", "fsdp"),
        ("muon", alone / "muon", "fsdp"),
        ("documents", sharing / "documents", "fsdp"),
        ("muon", sharing / "muon", "fsdp"),
        ("documents", sharing / "ddp", "ddp"),
    ]
    for number, (_, before, _) in enumerate(continued):
        half_way(before, tmp_path / str(number))
    runs = [{"name": str(number), "parallel": how, **asked[name]} for number, (name, _, how) in enumerate(continued)]
    runs[0]["inexact_resume"] = True  # another layout of as many processes is a choice, another number of them is not
    start_all(tmp_path, runs, 2)
    for number, (name, before, how) in enumerate(continued):
        require_same_course(result(tmp_path, str(number)), result(alone, name))
        if json.loads((before / MACHINE).read_text())["circumstances"]["parallel"] == how:
            found, undisturbed = state_at(tmp_path / str(number), STEPS), state_at(before, STEPS)
            assert all(torch.equal(found[key], tensor) for key, tensor in undisturbed.items())
            assert number >= 3


@pytest.mark.slow
def test_four_processes_are_one(tmp_path: Path, alone: Path, sharing: Path, asked: dict[str, dict[str, Any]]) -> None:
    """Of seven rows the fourth process has one; and four continue what two shared."""
    half_way(sharing / "documents", tmp_path / "more")
    runs = [{"name": f"{name}-{layout}", "parallel": layout, **values} for name, values in asked.items() for layout in ("ddp", "fsdp")]
    start_all(tmp_path, [*runs, {"name": "more", "parallel": "fsdp", **asked["documents"]}], 4, seconds=300)
    for run in runs:
        require_same_course(result(tmp_path, run["name"]), result(alone, run["name"].partition("-")[0]))
    require_same_course(result(tmp_path, "more"), result(alone, "documents"))
