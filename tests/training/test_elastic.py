"""The same bits for 1, 2 and 4 processes, and for a run that changes between them; where that cannot be had, an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_assembly import assembled, start_all, train_as_asked, training_settings

from fledge.core.errors import ConfigError
from fledge.model.tensors import read_tensors
from fledge.tokens.shards import TokenSet
from fledge.training.batches import BatchLoader, canonical_micro_batches, open_rows, rows_at_once
from fledge.training.checkpoint_folders import list_checkpoints
from fledge.training.elastic import TreeSum, described, micro_batch_seed, require_elastic
from fledge.training.parallel import MACHINE, World, settle_machine
from fledge.training.phases import make_plan

CPU = torch.device("cpu")


def bits(folder: Path) -> dict[str, torch.Tensor]:
    last = list_checkpoints(folder)[-1].path
    return {**read_tensors(last / "model.safetensors"), **read_tensors(last / "resume/optimizer.safetensors")}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_tree_adds_neighbours_first() -> None:
    leaves = [[torch.tensor(value)] for value in (1e8, 1.0, -1e8, 1.0)]
    tree = TreeSum()
    for leaf in leaves:
        tree.add([leaf[0].clone()])
    assert torch.equal(tree.total()[0], (leaves[0][0] + leaves[1][0]) + (leaves[2][0] + leaves[3][0]))
    halves = TreeSum(), TreeSum()
    for number, leaf in enumerate(leaves):
        halves[number // 2].add([leaf[0].clone()])
    assert torch.equal(halves[0].total()[0] + halves[1].total()[0], tree.total()[0])


@pytest.mark.parametrize(("batch_rows", "asked", "count", "rows"), [(32, None, 8, 4), (7, None, 8, 1), (9, None, 8, 2), (64, 2, 32, 2)])
def test_micro_batches_do_not_depend_on_the_processes(
    documents: TokenSet, batch_rows: int, asked: int | None, count: int, rows: int
) -> None:
    assert canonical_micro_batches(batch_rows, asked or batch_rows) == count
    assert {rows_at_once(batch_rows, asked, processes, elastic=True) for processes in (1, 2, 4, 8)} == {rows}
    reader = open_rows([documents], "train", 16)
    plan = make_plan(reader.sources, training_settings(batch_rows=batch_rows), 1)

    def tokens(processes: int) -> list[torch.Tensor]:
        loaders = [BatchLoader(plan, reader, asked, rank, processes, ahead=False, elastic=True) for rank in range(processes)]
        return [batch.tokens for loader in loaders for batch in loader.micro_batches(3)]

    alone = tokens(1)
    assert len(alone) == count
    for processes in (2, 4, 8):
        assert all(map(torch.equal, alone, tokens(processes)))
    assert len({micro_batch_seed(0, step, number) for step in range(50) for number in range(count)}) == 50 * count
    torch.manual_seed(micro_batch_seed(1 << 40, 1 << 30, 7))


def test_what_cannot_be_promised_is_refused() -> None:
    require_elastic(World(0, 1, torch.device("cuda"), elastic=True), "auto")
    require_elastic(World(0, 4, CPU, elastic=True), "on")
    require_elastic(World(0, 3, CPU, sharded=True), "cuda_graphs")
    for world, words in (
        (World(0, 2, CPU, sharded=True, elastic=True), "is cut"),
        (World(0, 2, torch.device("cuda"), elastic=True), "for 2 GPUs"),
        (World(0, 3, CPU, elastic=True), "3 processes cannot"),
    ):
        with pytest.raises(ConfigError, match=words):
            require_elastic(world, "auto")
    with pytest.raises(ConfigError, match="CUDA graphs need them in place"):
        require_elastic(World(0, 1, torch.device("cuda"), elastic=True), "cuda_graphs")
    assert "micro-batches of 4 rows" in described(World(0, 2, CPU, elastic=True), 4, 1_000_000)


def test_the_machine_does_not_count_processes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = training_settings(determinism="elastic", threads=None)
    torch.set_num_threads(2)
    chosen = settle_machine(tmp_path, settings, World(0, 1, CPU, elastic=True))
    assert (chosen.threads, torch.get_num_threads()) == (1, 1)
    circumstances = json.loads((tmp_path / MACHINE).read_text())["circumstances"]
    assert circumstances["determinism"] == "elastic" and "processes" not in circumstances
    assert capsys.readouterr().err == ""


def test_the_tree_changes_rounding_only(tmp_path: Path, documents: TokenSet) -> None:
    losses = []
    for determinism in ("usual", "elastic"):
        with assembled(tmp_path / determinism, training_settings(determinism=determinism), [documents], watched=False) as trainer:
            losses.append(trainer.run().recent_losses)
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


def asked(token_set: TokenSet, **changes: Any) -> dict[str, Any]:
    """Seven rows, so that one of eight micro-batches is empty."""
    common = {
        "steps": 12,
        "batch_rows": 7,
        "save_every_steps": 4,
        "keep_checkpoints": 9,
        "validate_every_steps": 4,
        "determinism": "elastic",
    }
    return {"tokens": str(token_set.folder), "determinism": "elastic", **common, **changes}


def test_two_processes_have_the_bits_of_one(tmp_path: Path, documents: TokenSet) -> None:
    """Alone; then two processes from the beginning, and two that go on where one has stopped."""
    train_as_asked(tmp_path / "alone", **asked(documents))
    train_as_asked(tmp_path / "changing", **asked(documents, stop_after=4))
    runs = [{"name": "two", **asked(documents)}, {"name": "changing", **asked(documents)}]
    start_all(tmp_path, runs, 2)
    expected = json.loads((tmp_path / "alone-result-0.json").read_text())
    for name in ("two", "changing"):
        assert same(bits(tmp_path / name), bits(tmp_path / "alone")), name
        for rank in range(2):
            found = json.loads((tmp_path / f"{name}-result-{rank}.json").read_text())
            assert (found["losses"], found["validation"]) == (expected["losses"], expected["validation"])
    assert json.loads((tmp_path / "changing" / MACHINE).read_text())["changes"] == []


@pytest.mark.slow
@pytest.mark.parametrize("content", ["documents", "conversations", "preferences"])
def test_a_run_goes_through_four_two_and_one_process(
    tmp_path: Path, documents: TokenSet, conversations: TokenSet, preferences: TokenSet, scores: Path, content: str
) -> None:
    token_set = {"documents": documents, "conversations": conversations, "preferences": preferences}[content]
    changes: dict[str, Any] = {"muon": content == "documents"}
    if content != "documents":
        changes["sequence_length"] = None
    if content == "preferences":
        changes |= {"preference": True, "scores": str(scores)}
    train_as_asked(tmp_path / "alone", **asked(token_set, **changes))
    for stop_after, processes in ((4, 4), (8, 2), (None, 1)):
        run = {"name": "changing", **asked(token_set, **changes, stop_after=stop_after)}
        if processes == 1:
            del run["name"]
            train_as_asked(tmp_path / "changing", **run)
        else:
            start_all(tmp_path, [run], processes, seconds=120)
    assert same(bits(tmp_path / "changing"), bits(tmp_path / "alone"))
