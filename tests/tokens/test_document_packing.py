"""Documents in streams and in rows: nothing is lost, nothing crosses a row, and what is no target is exactly what should be none."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.core.errors import DataError
from fledge.corpus.document import Document, Split
from fledge.tokens import document_packing
from fledge.tokens.document_packing import RowLayout, frame, pack_documents, pack_sides
from fledge.tokens.engines import Encoded
from fledge.tokens.figures import DocumentHashes
from fledge.tokens.shards import open_token_set
from fledge.tokens.sides import Budgets
from fledge.tokens.tokenizer import Tokenizer
from fledge.tokens.unpacking import token_stream, unpacked_documents

WORDS = ["the", "list", "returns", "a", "copy", "<|endoftext|>", "é", "🙂", "none", "def", "value"]


def documents(count: int, longest_words: int = 60, seed: int = 0) -> list[Document]:
    draw = random.Random(seed)
    texts = (" ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, longest_words))) for _ in range(count))
    return [Document(text, f"document-{number}", ("books", "web", "code")[number % 3], "g") for number, text in enumerate(texts)]


@settings(max_examples=200)
@given(
    st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=6), st.sampled_from([(), (100,), (101, 102)]), st.sampled_from([(), (103,)])
)
def test_frames_are_put_around_every_text(texts: list[list[int]], start: tuple[int, ...], end: tuple[int, ...]) -> None:
    offsets = np.concatenate([[0], np.cumsum([len(ids) for ids in texts])]).astype(np.int64)
    encoded = Encoded(np.array([token for ids in texts for token in ids], np.uint32), offsets)
    tokens, borders = frame(encoded, start, end, np.dtype("<u2"))
    assert tokens.dtype == np.dtype("<u2")
    assert [tokens[a:b].tolist() for a, b in pairwise(borders)] == [[*start, *ids, *end] for ids in texts]


@settings(max_examples=200)
@given(st.integers(1, 30), st.lists(st.integers(1, 100), min_size=1, max_size=40), st.sampled_from([None, 7]))
def test_rows_hold_every_token_once_and_no_document_crosses_one(row_tokens: int, lengths: list[int], closing: int | None) -> None:
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(1_000, 1_000 + offsets[-1], dtype=np.uint16)
    layout = RowLayout.of(np.array(lengths), row_tokens)
    filled, supervised = layout.fill(tokens, offsets, padding=3, closing=closing)
    assert len(filled) == len(supervised) == layout.row_count * row_tokens
    assert sorted(filled[filled >= 1_000].tolist()) == tokens.tolist()
    parts: dict[int, list[int]] = {}
    free = np.ones(len(filled), bool)
    for place in np.lexsort((layout.parts, layout.documents)).tolist():
        begin, end = int(layout.starts[place]), int(layout.starts[place] + layout.lengths[place])
        assert begin // row_tokens == (end - 1) // row_tokens
        parts.setdefault(int(layout.documents[place]), []).extend(filled[begin:end].tolist())
        assert supervised[begin] == (layout.parts[place] == 0) and supervised[begin + 1 : end].all()
        free[begin:end] = False
    assert [parts[number] for number in range(len(lengths))] == [tokens[a:b].tolist() for a, b in pairwise(offsets)]
    rows, rest = filled.reshape(-1, row_tokens), free.reshape(-1, row_tokens)
    for row, row_free, targets in zip(rows, rest, supervised.reshape(-1, row_tokens), strict=True):
        ids, flags = row[row_free].tolist(), targets[row_free].tolist()
        begins_with = [closing] if closing is not None and ids else []
        assert ids == (begins_with + [3] * len(ids))[: len(ids)]
        assert flags == ([1] * len(begins_with) + [0] * len(ids))[: len(ids)]


@pytest.mark.parametrize("row_tokens", [None, 32, 256])
def test_every_kept_document_comes_back_exactly_once(tokenizer: Tokenizer, tmp_path: Path, row_tokens: int | None) -> None:
    given = documents(1_500)
    stats = pack_documents(iter(given), tokenizer, tmp_path, "train", row_tokens)
    token_set = open_token_set(tmp_path)
    assert token_set.row_tokens == row_tokens
    found = list(unpacked_documents(token_set, tokenizer))
    assert Counter(found) == Counter((document.id, document.text) for document in given)
    for shard in token_set.shards("train"):
        stream = token_stream(shard)
        assert [tokenizer.decode(stream.tokens[a : a + n].tolist()) for a, n in zip(stream.starts, stream.lengths, strict=True)] == [
            document.text for document in given if document.source == shard.source
        ]
        assert stream.text_bytes.tolist() == [len(document.text.encode()) for document in given if document.source == shard.source]
    assert stats["text_bytes"] == sum(len(document.text.encode()) for document in given)
    assert (stats["cut_documents"] > 0) == (row_tokens == 32) and stats["dropped_too_long"] == 0


def test_small_buffers_lose_nothing_either(tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document_packing, "_BUFFER_TOKENS", 500)
    monkeypatch.setattr("fledge.tokens.packing.BATCH_DOCUMENTS", 10)
    given = documents(300)
    pack_documents(iter(given), tokenizer, tmp_path, "train", 48)
    assert sorted(unpacked_documents(open_token_set(tmp_path), tokenizer)) == sorted((one.id, one.text) for one in given)


def test_documents_with_the_same_name_are_not_mixed_up(tokenizer: Tokenizer, tmp_path: Path) -> None:
    given = [Document("a list of values " * count, "same", "books", "g") for count in (9, 7, 5, 8)]
    pack_documents(given, tokenizer, tmp_path, "train", 16)
    assert [text for _, text in unpacked_documents(open_token_set(tmp_path), tokenizer)] == [one.text for one in given]


def test_rows_report_their_padding_and_what_they_cut(tokenizer: Tokenizer, tmp_path: Path) -> None:
    given = documents(600)
    stats = pack_documents(given, tokenizer, tmp_path, "train", 64)
    shards = open_token_set(tmp_path).shards("train")
    padding = sum(len(shard.tokens) - int(shard.lengths.sum()) for shard in shards)
    assert stats["padding_share"] == pytest.approx(padding / stats["tokens"])
    assert 0 < stats["padding_share"] < 0.05
    assert stats["cut_documents"] == sum(len(tokenizer.encode(one.text)) + 1 > 64 for one in given) > 0
    assert stats["supervised_tokens"] == sum(int(np.asarray(shard.supervised).sum()) for shard in shards)


def test_the_last_document_of_a_row_ends_with_an_end_of_text_to_learn(tokenizer: Tokenizer, tmp_path: Path) -> None:
    pack_documents([Document("a copy", "only", "books", "g")], tokenizer, tmp_path, "train", 16)
    (shard,) = open_token_set(tmp_path).shards("train")
    ids = [tokenizer.end_of_text, *tokenizer.encode("a copy")]
    assert shard.tokens[:].tolist() == [*ids, tokenizer.end_of_text, *[tokenizer.padding] * (15 - len(ids))]
    assert shard.supervised is not None
    assert shard.supervised[:].tolist() == [1] * (len(ids) + 1) + [0] * (15 - len(ids))


def test_duplicates_are_counted_token_by_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    given = [Document(text, str(number), "books", "g") for number, text in enumerate(["a", "b", "a", "a", "c"])]
    assert pack_documents(given, tokenizer, tmp_path, "train")["duplicate_share"] == pytest.approx(2 / 5)


def test_sides_that_share_a_document_are_refused_unless_allowed(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sided: list[tuple[Split, Document]] = [("train", one) for one in documents(20)]
    hashes = DocumentHashes()
    pack_sides([*sided, ("validation", documents(1, seed=5)[0])], tokenizer, tmp_path / "apart", hashes=hashes)
    hashes.require_disjoint("documents", allowed=False)
    hashes = DocumentHashes()
    pack_sides([*sided, ("validation", sided[3][1])], tokenizer, tmp_path / "shared", hashes=hashes)
    with pytest.raises(DataError, match="1 documents of the validation split are also in the training split") as caught:
        hashes.require_disjoint("documents", allowed=False)
    assert caught.value.exit_code == 3 and "allow_shared_documents" in caught.value.remedy
    hashes.require_disjoint("documents", allowed=True)
    assert "also in the training split" in capsys.readouterr().err


def test_budgets_end_the_pass_and_are_met_source_by_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    read = []

    def endless() -> Iterator[tuple[Split, Document]]:
        for number, one in enumerate(documents(9_000)):
            read.append(number)
            yield ("validation" if number % 10 == 0 else "train"), one

    budgets = Budgets({"train": 9_000, "validation": 1_000}, {"books": 300, "web": 600, "code": 100})
    stats = pack_sides(endless(), tokenizer, tmp_path, budgets=budgets)
    longest = max(int(shard.lengths.max()) for split in ("train", "validation") for shard in open_token_set(tmp_path).shards(split))
    for split, total in (("train", 9_000), ("validation", 1_000)):
        for source, share in (("books", 0.3), ("web", 0.6), ("code", 0.1)):
            over = stats[split]["tokens_by_source"][source] - total * share
            assert 0 <= over < longest
    assert len(read) < 9_000, "the pass goes on though nobody has room"


@pytest.mark.slow
@pytest.mark.parametrize("row_tokens", [None, 128])
def test_fifty_thousand_documents_come_back_exactly_once(tokenizer: Tokenizer, tmp_path: Path, row_tokens: int | None) -> None:
    given = documents(50_000, longest_words=200)
    pack_documents(iter(given), tokenizer, tmp_path, "train", row_tokens)
    found = Counter(unpacked_documents(open_token_set(tmp_path), tokenizer))
    assert found == Counter((document.id, document.text) for document in given)
    assert sum(found.values()) == 50_000
