"""Rows become tensors: every token is a target once, documents and pairs stay what they were."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_assembly import END_OF_TEXT, ROW_TOKENS, training_settings, write_token_set

from fledge.core.errors import ConfigError, DataError
from fledge.model.head import IGNORE
from fledge.tokens import blocks
from fledge.tokens.shard_format import TokenSetMeta, record_shards, token_array
from fledge.tokens.shard_writer import IndexRows, Segment, ShardWriter
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.training.batches import Batch, BatchLoader, RowReader, open_rows, open_tokens
from fledge.training.phases import make_plan
from fledge.training.settings import PhaseSettings


def whole(reader: RowReader) -> Batch:
    rows = reader.all_rows()
    return reader.batch(rows, len(rows))


@given(row_tokens=st.integers(8, 90))
@settings(max_examples=30)
def test_every_token_of_a_stream_is_a_target_once(documents: TokenSet, row_tokens: int) -> None:
    reader = open_rows([documents], "train", row_tokens)
    batch = whole(reader)
    assert torch.equal(batch.token_weight, (batch.targets != IGNORE).float())
    place = 0
    for shard, source in zip(reader.shards, reader.sources, strict=True):
        count = len(shard.tokens)
        lines = slice(place, place + source.rows(row_tokens))
        tokens, targets = batch.tokens[lines].flatten(), batch.targets[lines].flatten()
        assert tokens[:count].tolist() == shard.tokens[:].tolist()
        assert targets[:count].tolist() == [*shard.tokens[1:].tolist(), END_OF_TEXT]
        assert set(targets[count:].tolist()) <= {IGNORE}
        place += source.rows(row_tokens)
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
    assert int(batch.token_weight.sum()) == int(shard.supervised[:].sum())
    ids = shard.tokens[:].reshape(-1, ROW_TOKENS).astype(np.int64)
    expected = np.where(shard.supervised[:].reshape(-1, ROW_TOKENS) == 1, ids, IGNORE)
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
    plan = make_plan(reader.sources, training_settings(steps=20), 1)
    batches = BatchLoader(plan, reader, micro_batch_rows, 0, 1, ahead=False).micro_batches(5)
    assert [len(batch.tokens) for batch in batches] == shapes
    assert torch.equal(torch.cat([batch.tokens for batch in batches])[:8], reader.batch(plan.rows(5), 8).tokens)


@pytest.mark.parametrize("world_size", [2, 3, 5, 11])
def test_processes_read_equally_many_micro_batches_and_all_rows(documents: TokenSet, world_size: int) -> None:
    reader = open_rows([documents], "train", 16)
    plan = make_plan(reader.sources, training_settings(steps=20), 1)
    shares = [BatchLoader(plan, reader, 2, rank, world_size, ahead=False).micro_batches(0) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    assert len({batch.tokens.shape for share in shares for batch in share}) == 1
    targets = torch.cat([batch.targets for share in shares for batch in share])
    targets = targets[(targets != IGNORE).any(dim=1)]
    assert torch.equal(targets, reader.batch(plan.rows(0), 8).targets)


def test_a_phase_has_micro_batches_of_as_many_tokens(documents: TokenSet) -> None:
    """`micro_batch_rows` counts the longest rows; a batch that is smaller than that is one micro-batch."""
    reader = open_rows([documents], "train", 64)
    phases = (
        PhaseSettings(until_tokens=512, sequence_length=8),
        PhaseSettings(until_tokens=1_024),
        PhaseSettings(until_tokens=2_048, batch_tokens=64),
    )
    plan = make_plan(reader.sources, training_settings(batch_rows=8, sequence_length=64, phases=phases), 1)
    loader = BatchLoader(plan, reader, 2, 0, 1, ahead=False)
    shapes = [{tuple(batch.tokens.shape) for batch in loader.micro_batches(step)} for step in range(3)]
    assert shapes == [{(16, 8)}, {(2, 64)}, {(1, 64)}]
    assert len(loader.micro_batches(0)) == len(loader.micro_batches(1)) == 4
    assert loader.micro_batch_rows == 2
    assert BatchLoader(plan, reader, None, 0, 3, ahead=False).micro_batch_rows == 3
    first = torch.cat([batch.tokens for batch in loader.micro_batches(0)])
    assert torch.equal(first, reader.with_row_tokens(8).batch(plan.rows(0), 64).tokens)


@pytest.mark.parametrize("world_size", [2, 5])
def test_processes_share_the_batches_of_every_phase(documents: TokenSet, world_size: int) -> None:
    """A last phase has fewer rows than there are processes: some of them compute rows without targets."""
    reader = open_rows([documents], "train", 64)
    phases = (PhaseSettings(until_tokens=512, sequence_length=8), PhaseSettings(until_tokens=1_024, batch_tokens=64))
    plan = make_plan(reader.sources, training_settings(batch_rows=8, sequence_length=64, phases=phases), 1)
    loaders = [BatchLoader(plan, reader, 2, rank, world_size, ahead=False) for rank in range(world_size)]
    for step in (0, 1, 8):
        shares = [loader.micro_batches(step) for loader in loaders]
        assert len({tuple(batch.tokens.shape for batch in share) for share in shares}) == 1
        targets = torch.cat([batch.targets for share in shares for batch in share])
        targets = targets[(targets != IGNORE).any(dim=1)]
        rows = plan.rows(step)
        assert torch.equal(targets, reader.with_row_tokens(plan.phase(step).row_tokens).batch(rows, len(rows)).targets)


def test_rows_of_another_length_are_the_same_text(documents: TokenSet, conversations: TokenSet) -> None:
    reader = open_rows([documents], "train", 48)
    shorter = reader.with_row_tokens(16)
    assert reader.row_tokens == 48
    assert torch.equal(whole(shorter).tokens[:3].flatten(), whole(reader).tokens[0])
    assert shorter.sources == reader.sources
    with pytest.raises(AssertionError):
        open_rows([conversations], "train", None).with_row_tokens(16)


def test_reading_ahead_gives_the_same_batches(documents: TokenSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batch, "pin", lambda self: self)
    reader = open_rows([documents], "train", 16)
    plan = make_plan(reader.sources, training_settings(steps=20), 1)
    ahead, plain = (BatchLoader(plan, reader, 4, 0, 1, ahead=ahead) for ahead in (True, False))
    for step in (0, 1, 2, 7, 8, 3, 19):
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


def test_a_set_with_nothing_to_learn_is_refused(tmp_path: Path) -> None:
    meta = TokenSetMeta("conversations", "ab" * 32, 104, ROW_TOKENS)
    writer = ShardWriter(tmp_path, "train", "questions", meta)
    writer.append(Segment("one", token_array([1] * ROW_TOKENS, meta), 0, np.zeros(ROW_TOKENS, np.uint8)))
    record_shards(tmp_path, replace(meta, shards=(writer.close(),)))
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


def test_documents_in_rows_are_read_as_they_were_packed(tmp_path: Path) -> None:
    """A whole document, then the rest of one that was cut: its first token follows from nothing, so it is no target."""
    meta = TokenSetMeta("documents", "ab" * 32, 104, 8, end_of_text=END_OF_TEXT)
    writer = ShardWriter(tmp_path, "train", "books", meta)
    tokens = token_array([END_OF_TEXT, 1, 2, 3, 4, 5, 6, 7, END_OF_TEXT, 9, 8, END_OF_TEXT, 103, 103, 103, 103], meta)
    starts, counts, text_bytes, numbers = map(np.array, ([0, 8, 10], [8, 2, 1], [7, 1, 1], [0, 1, 0]))
    rows = IndexRows(["cut", "whole", "cut"], starts, counts, text_bytes, numbers, np.array([0, 0, 1], np.int32))
    writer.append_batch(tokens, rows, np.array([1] * 8 + [1, 1, 0, 1] + [0] * 4, np.uint8))
    record_shards(tmp_path, replace(meta, shards=(writer.close(),)))
    reader = open_rows([open_token_set(tmp_path)], "train", None)
    batch = whole(reader)
    assert reader.row_tokens == 8
    assert batch.tokens.tolist() == tokens.reshape(2, 8).tolist()
    assert batch.targets.tolist() == [[1, 2, 3, 4, 5, 6, 7, IGNORE], [9, IGNORE, END_OF_TEXT, *[IGNORE] * 5]]
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0] * 8, [0, 0, 2, 2, 2, 2, 2, 2]]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks in a few kilobytes."""
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 128)


def test_a_damaged_block_is_found_by_the_step_that_first_uses_it(tmp_path: Path, small_blocks: None) -> None:
    token_set = write_token_set(tmp_path, "documents", {"books": 60})
    with (tmp_path / "train-books.tokens").open("r+b") as file:
        file.seek(64 + 5 * 128 + 17)
        file.write(b"\x63")
    reader = open_rows([token_set], "train", 16)
    plan = make_plan(reader.sources, training_settings(steps=30, batch_rows=4), 1)
    damaged = set(range(5 * 64, 6 * 64))
    # A row reaches one token further, for its last target.
    using = [step for step in range(30) if any(damaged & set(range(row.index * 16, row.index * 16 + 17)) for row in plan.rows(step))]
    loader = BatchLoader(plan, reader, None, 0, 1, ahead=False)
    assert using[0] > 0
    for step in range(using[0]):
        loader.micro_batches(step)
    reason = rf"step {using[0] + 1:,} cannot be read and was not applied: .*books\.tokens is damaged: block 5, bytes 704 to 832"
    with pytest.raises(DataError, match=reason) as error:
        loader.micro_batches(using[0])
    assert "fledge pack RECIPE --force" in error.value.remedy


def test_a_shard_that_is_cut_short_while_training_reads_it_names_the_step(tmp_path: Path) -> None:
    token_set = write_token_set(tmp_path, "conversations", {"questions": 20})
    reader = open_rows([token_set], "train", None)
    loader = BatchLoader(
        make_plan(reader.sources, training_settings(batch_rows=4, sequence_length=None), 1), reader, None, 0, 1, ahead=False
    )
    loader.micro_batches(0)
    os.truncate(tmp_path / "train-questions.supervised", 64)
    with pytest.raises(DataError, match=r"step 2 cannot be read .*questions\.supervised was cut short while it was used"):
        loader.micro_batches(1)
