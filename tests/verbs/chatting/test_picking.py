"""The tables to choose a checkpoint from: what each line names, and what happens where nothing can be chosen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fledge.core.errors import CheckpointError, ConfigError
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.verbs.chatting import picking
from tests.verbs.chatting.conftest import MakeCheckpoint


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_every_line_names_its_checkpoint_and_the_first_is_what_the_run_means(make_checkpoint: MakeCheckpoint) -> None:
    folders = {make_checkpoint("demo", stage, step) for stage, step in (("pretrain", 100), ("pretrain", 50), ("sft", 10), ("sft", 20))}
    choices = picking.checkpoints("demo", Path("runs/demo"))
    named = [find_checkpoint(choice.reference).absolute() for choice in choices]
    assert set(named) == folders and named[0] == find_checkpoint("demo").absolute()
    assert choices[0].cells == ("sft", "20", "4.800", "latest, best")
    assert [choice.cells[:2] for choice in choices[1:]] == [("sft", "10"), ("pretrain", "100"), ("pretrain", "50")]


def test_runs_are_listed_by_what_changed_last(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run under runs has a checkpoint"):
        picking.runs()
    for place, run in enumerate(("b", "a", "c")):
        os.utime(make_checkpoint(run), (1_000_000 + place, 1_000_000 + place))
    (tmp_path / "runs" / "empty").mkdir()
    assert [choice.reference for choice in picking.runs()] == ["c", "a", "b"]


def test_nobody_is_asked_without_a_terminal() -> None:
    with pytest.raises(ConfigError, match="no checkpoint is given"):
        picking.pick_checkpoint(None, lambda prompt: "1")
    assert picking.pick_checkpoint("demo", lambda prompt: "2") == "demo"


def test_only_a_choice_is_asked_for(make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint("one")
    make_checkpoint("two", step=10)
    make_checkpoint("two", step=20)
    monkeypatch.setattr(picking, "is_interactive", lambda: True)
    answers = iter(["0", "3", "two", None])
    with pytest.raises(ConfigError, match="no checkpoint was chosen"):
        picking.pick_checkpoint(None, lambda prompt: next(answers))
    assert picking.pick_checkpoint("one", lambda prompt: None) == "one/sft@10", "there is only one"
    assert picking.pick_checkpoint("two", lambda prompt: "2") == "two/sft@10"
    assert picking.pick_checkpoint("two@20", lambda prompt: None) == "two@20"
    assert picking.pick_checkpoint("nowhere", lambda prompt: None) == "nowhere", "opening it says what there is"
