"""Rows become tensors: every token is a target once, documents and pairs stay what they were."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_assembly import END_OF_TEXT, ROW_TOKENS, write_token_set

from fledge.core.errors import ConfigError, DataError
from fledge.model.head import IGNORE
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.training.batches import Batch, BatchLoader, RowReader, open_rows, open_tokens
from fledge.training.plan import make_plan


def whole(reader: RowReader) -> Batch:
    rows = reader.all_rows()
    return reader.batch(rows, len(rows))


@given(row_tokens=st.integers(8, 90))
@settings(max_examples=30, deadline=None)
def test_every_token_of_a_stream_is_a_target_once(documents: TokenSet, row_tokens: int) -> None:
    reader = open_rows([documents], "train", row_tokens)
    batch = whole(reader)
    assert torch.equal(batch.token_weight, (batch.targets != IGNORE).float())
    place = 0
    for shard, source in zip(reader.shards, reader.sources, strict=True):
        count = len(shard.tokens)
        lines = slice(place, place + source.rows)
        tokens, targets = batch.tokens[lines].flatten(), batch.targets[lines].flatten()
        assert tokens[:count].tolist() == shard.tokens.tolist()
        assert targets[:count].tolist() == [*shard.tokens[1:].tolist(), END_OF_TEXT]
        assert set(targets[count:].tolist()) <= {IGNORE}
        place += source.rows
    assert place == len(batch.tokens)


@pytest.mark.parametrize("row_tokens", [8, 16, 37])
def test_documents_can_be_unpacked_again(documents: TokenSet, row_tokens: int) -> None:
    reader = open_rows([documents], "train", row_tokens)
    batch = whole(reader)
    assert batch.documents is not None
    for line, row in enumerate(reader.all_rows()):
        shard, start = reader.shards[row.source], row.index * row_tokens
        for column in range(min(row_tokens, len(shard.tokens) - start)):
            opening = shard.starts[shard.starts <= start + column].max()
            assert int(batch.documents[line, column]) == max(0, opening - start)
            if opening >= start:
                assert int(batch.tokens[line, opening - start]) == END_OF_TEXT


def test_isolation_can_be_left_out_but_not_for_preferences(documents: TokenSet, preferences: TokenSet) -> None:
    assert whole(open_rows([documents], "train", 16, isolate_documents=False)).documents is None
    assert whole(open_rows([preferences], "train", None, isolate_documents=False)).documents is not None


def test_only_supervised_tokens_of_conversations_are_targets(conversations: TokenSet) -> None:
    reader = open_rows([conversations], "train", None)
    batch, (shard,) = whole(reader), reader.shards
    assert shard.supervised is not None
    assert int(batch.token_weight.sum()) == int(shard.supervised.sum())
    ids = shard.tokens.reshape(-1, ROW_TOKENS).astype(np.int64)
    expected = np.where(shard.supervised.reshape(-1, ROW_TOKENS) == 1, ids, IGNORE)
    assert batch.targets[:, :-1].tolist() == expected[:, 1:].tolist()
    assert set(batch.targets[:, -1].tolist()) == {IGNORE}


def test_pairs_stay_together(preferences: TokenSet) -> None:
    reader = open_rows([preferences], "train", None)
    rows = reader.all_rows()[4:9]
    batch, (shard,) = reader.batch(rows, 6), reader.shards
    assert batch.pairs is not None
    assert batch.pairs.count == 5
    for pair in range(5):
        for side in (0, 1):
            segment = 2 * (4 + pair) + side
            answer = shard.tokens[shard.starts[segment] + 3 : shard.starts[segment] + shard.lengths[segment]]
            assert batch.targets[batch.pairs.answers == 1 + 2 * pair + side].tolist() == answer.tolist()
    assert bool(((batch.pairs.answers == 0) == (batch.targets == IGNORE)).all())


def test_references_follow_their_pairs(preferences: TokenSet) -> None:
    (shard,) = preferences.shards("train")
    values = np.arange(len(shard.starts), dtype=np.float32).reshape(-1, 2)
    reader = open_rows([preferences], "train", None, scores={"pairs": values})
    rows = [reader.all_rows()[index] for index in (7, 2)]
    batch = reader.batch(rows, 2)
    assert batch.pairs is not None
    assert batch.pairs.reference is not None
    assert batch.pairs.reference.tolist() == [[14, 15], [4, 5]]
    with pytest.raises(DataError, match="do not fit the 30 pairs of the source 'pairs'"):
        open_rows([preferences], "train", None, scores={"pairs": values[1:]})


def test_missing_rows_are_rows_without_targets(documents: TokenSet) -> None:
    batch = open_rows([documents], "train", 16).batch([], 3)
    assert batch.tokens.shape == batch.targets.shape == (3, 16)
    assert float(batch.token_weight.sum()) == 0


@pytest.mark.parametrize(("micro_batch_rows", "shapes"), [(None, [8]), (3, [3, 3, 3]), (8, [8]), (20, [8]), (1, [1] * 8)])
def test_micro_batches_have_one_shape_and_all_rows(documents: TokenSet, micro_batch_rows: int | None, shapes: list[int]) -> None:
    reader = open_rows([documents], "train", 16)
    plan = make_plan(reader.sources, None, 8, 16, seed=0)
    batches = BatchLoader(plan, reader, micro_batch_rows, 0, 1, ahead=False).micro_batches(5)
    assert [len(batch.tokens) for batch in batches] == shapes
    assert torch.equal(torch.cat([batch.tokens for batch in batches])[:8], reader.batch(plan.rows(5), 8).tokens)


@pytest.mark.parametrize("world_size", [2, 3, 5, 11])
def test_processes_read_equally_many_micro_batches_and_all_rows(documents: TokenSet, world_size: int) -> None:
    reader = open_rows([documents], "train", 16)
    plan = make_plan(reader.sources, None, 8, 16, seed=0)
    shares = [BatchLoader(plan, reader, 2, rank, world_size, ahead=False).micro_batches(0) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert len({batch.tokens.shape for share in shares for batch in share}) == 1
    targets = torch.cat([batch.targets for share in shares for batch in share])
    targets = targets[(targets != IGNORE).any(dim=1)]
    assert torch.equal(targets, reader.batch(plan.rows(0), 8).targets)


def test_reading_ahead_gives_the_same_batches(documents: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "pin", lambda self: self)
    reader = open_rows([documents], "train", 16)
    plan = make_plan(reader.sources, None, 8, 16, seed=0)
    ahead, plain = (BatchLoader(plan, reader, 4, 0, 1, ahead=ahead) for ahead in (True, False))
    for step in (0, 1, 2, 7, 8, 3):
        for first, second in zip(ahead.micro_batches(step), plain.micro_batches(step), strict=True):
            assert torch.equal(first.tokens, second.tokens)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_reach_the_gpu_pinned(preferences: TokenSet) -> None:
    batch = whole(open_rows([preferences], "train", None))
    moved = batch.pin().to(torch.device("cuda"))
    assert torch.equal(moved.tokens.cpu(), batch.tokens)


def test_sets_that_do_not_go_together_are_refused(tmp_path: Path, documents: TokenSet, conversations: TokenSet) -> None:
    with pytest.raises(DataError, match="content is conversations and documents"):
        open_rows([documents, conversations], "train", 16)
    with pytest.raises(DataError, match="tokenizer_sha256"):
        open_rows([documents, replace(documents, meta=replace(documents.meta, tokenizer_sha256="cd" * 32))], "train", 16)
    with pytest.raises(DataError, match="the source 'manual' is in more than one"):
        open_rows([documents, documents], "train", 16)
    other = write_token_set(tmp_path, "documents", {"other": 3})
    assert [source.name for source in open_rows([documents, other], "train", 16).sources] == ["manual", "letters", "other"]


def test_the_length_of_rows_has_one_home(documents: TokenSet, conversations: TokenSet) -> None:
    with pytest.raises(ConfigError, match="sequence_length is not set"):
        open_rows([documents], "train", None)
    with pytest.raises(ConfigError, match=r"sequence_length is 16, but .* packed in rows of 24 tokens"):
        open_rows([conversations], "train", 16)
    assert open_rows([conversations], "train", 24).row_tokens == 24


def test_a_set_with_nothing_to_learn_is_refused(tmp_path: Path, conversations: TokenSet) -> None:
    for path in conversations.folder.iterdir():
        content = path.read_bytes()
        if path.name == "train-questions.supervised":
            content = content[:64] + bytes(len(content) - 64)
        (tmp_path / path.name).write_bytes(content)
    with pytest.raises(DataError, match="nothing to learn: no token of its training split is a target") as error:
        open_rows([open_token_set(tmp_path)], "train", None)
    assert error.value.exit_code == 3


def test_sources_with_the_same_rows_have_the_same_digest(documents: TokenSet) -> None:
    first, second = (open_rows([documents], "train", 16).sources for _ in range(2))
    validation = open_rows([documents], "validation", 16).sources
    assert first == second
    assert {source.content for source in first} & {source.content for source in validation} == set()


def test_open_tokens_gives_batches_to_iterate(documents: TokenSet) -> None:
    train, validation, info = open_tokens(documents.folder, batch_rows=10, validation_fraction=0.2, seed=3, sequence_length=16)
    counted = [sum(int((batch.token_weight[:, 0] > 0).sum()) for batch in part) for part in (train, validation)]
    assert [info.train_rows, info.validation_rows] == counted
    assert info.vocabulary_size == documents.vocabulary_size
    assert len(train) == len(list(train)) == -(-info.train_rows // 10)
    once, again = ([batch.tokens for batch in train] for _ in range(2))
    assert all(torch.equal(first, second) for first, second in zip(once, again, strict=True))
    rows = [tuple(row) for part in (train, validation) for batch in part for row in batch.tokens.tolist() if any(row)]
    expected = whole(open_rows([documents], "train", 16)).tokens.tolist()
    assert sorted(rows) == sorted(tuple(row) for row in expected)
    with pytest.raises(DataError, match="too few to hold"):
        open_tokens(documents.folder, validation_fraction=0.9, sequence_length=100_000)
