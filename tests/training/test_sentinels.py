"""What is told before a run is worth nothing: batches without targets, answers without an end, a first loss that does not belong here."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from training_assembly import PADDING, ROW_TOKENS, VOCABULARY, training_settings

from fledge.core.artifact import Artifact, Manifest
from fledge.core.errors import DataError
from fledge.tokens.shard_format import TokenSetMeta, record_shards, token_array
from fledge.tokens.shard_writer import Segment, ShardWriter
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.training.batches import open_rows
from fledge.training.phases import make_plan
from fledge.training.plan import Plan
from fledge.training.sentinels import Expected, FirstLoss, expected_loss, require_stop_token, require_targets
from fledge.training.settings import PreferenceSettings
from fledge.training.trainer import StepReport

STOP = 101


def conversations(folder: Path, learned: list[bool], stop_is_learned: bool = True) -> TokenSet:
    """A row each, which is learned or not; the last of its five tokens is the stop token."""
    meta = TokenSetMeta("conversations", "ab" * 32, VOCABULARY - 24, ROW_TOKENS)
    writer = ShardWriter(folder, "train", "questions", meta)
    for number, is_learned in enumerate(learned):
        mask = np.array([0, 0, is_learned, is_learned, is_learned and stop_is_learned], dtype=np.uint8)
        writer.append(Segment(f"{number}", token_array([1, 2, 3, 4, STOP], meta), 2, mask, None))
        writer.pad(PADDING, ROW_TOKENS - 5)
    record_shards(folder, TokenSetMeta(meta.content, meta.tokenizer_sha256, meta.vocabulary_size, ROW_TOKENS, (writer.close(),)))
    return open_token_set(folder)


def plan_of(token_set: TokenSet, batch_rows: int) -> Plan:
    reader = open_rows([token_set], "train", None)
    return make_plan(reader.sources, training_settings(sequence_length=None, batch_rows=batch_rows, steps=6), 1)


def test_a_batch_without_targets_is_told_before_step_0(tmp_path: Path, documents: TokenSet) -> None:
    some = conversations(tmp_path / "some", [True, False] * 6)
    with pytest.raises(DataError, match=r"step \d+ would have nothing to learn"):
        require_targets(plan_of(some, 1), some.shards("train"))
    require_targets(plan_of(some, 7), some.shards("train"))
    require_targets(make_plan(open_rows([documents], "train", 16).sources, training_settings(), 1), documents.shards("train"))


def test_a_stop_token_that_is_never_learned_is_told(tmp_path: Path) -> None:
    require_stop_token(conversations(tmp_path / "good", [True] * 3).shards("train"), STOP, "<|end|>")
    without = conversations(tmp_path / "bad", [True] * 3, stop_is_learned=False)
    with pytest.raises(DataError, match=r"<\|end\|> is never a target"):
        require_stop_token(without.shards("train"), STOP, "<|end|>")


def parent(stage: str, loss: float) -> Artifact:
    manifest = Manifest(1, "checkpoint", "key", "id", "0", {"stage": "training", "settings": {"stage": stage}}, {}, {}, {"loss": loss})
    return Artifact(Path("parent"), manifest)


@pytest.mark.parametrize(
    ("expected", "good", "bad"),
    [
        (expected_loss("pretrain", None, 1_024, None), math.log(1_024) + 0.1, 9.0),
        (expected_loss("dpo", PreferenceSettings(), 1_024, parent("sft", 2.0)), math.log(2), 0.8),
        (expected_loss("dpo", PreferenceSettings(loss="ipo", beta=0.1), 1_024, parent("sft", 2.0)), 25.0, 0.7),
        (expected_loss("pretrain", None, 1_024, parent("pretrain", 2.0)), 2.5, 3.5),
        (expected_loss("sft", None, 1_024, parent("pretrain", 2.0)), 4.0, 7.0),
    ],
)
def test_a_first_loss_that_does_not_belong_here_is_told(
    expected: Expected, good: float, bad: float, documents: TokenSet, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = make_plan(open_rows([documents], "train", 16).sources, training_settings(), 1)
    observer = FirstLoss(expected, plan, is_main=True)
    assert [step for step in range(4) if observer.due(step)] == [1]
    assert not FirstLoss(None, plan, is_main=True).due(1) and not FirstLoss(expected, plan, is_main=False).due(1)
    for loss in (good, bad):
        zero = torch.zeros(())
        observer.observe(StepReport(1, 0.1, zero, {"loss": torch.tensor(loss)}, 0, 0.0, 0.0, 0.0, None))
        warning = capsys.readouterr().err
        assert (f"the first loss is {loss:.3f}" in warning) is (loss == bad)
    assert expected.reason in warning
