"""Rows of token sets as pieces: texts, borders, mask; and where a row or a document lies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fledge.core.errors import ConfigError, DataError
from fledge.corpus.document import Conversation, Document, Message
from fledge.tokens.document_packing import pack_documents
from fledge.tokens.inspection import STREAM_ROW_TOKENS, Piece, find_document, find_row, require_known, row_pieces
from fledge.tokens.packing import pack_conversations
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import Tokenizer


def test_pieces_are_the_ids_one_by_one(tokenizer: Tokenizer) -> None:
    words = tokenizer.encode("a value")
    ids = np.array([tokenizer.end_of_text, *words, tokenizer.end_of_text], np.uint16)
    supervised = np.array([0, *[1] * len(words), 0], np.uint8)
    pieces = row_pieces(ids, supervised, np.array([0, len(words) + 1]), tokenizer)
    assert [piece.id for piece in pieces] == ids.tolist()
    assert pieces[0] == Piece("<|endoftext|>", tokenizer.end_of_text, False, True, True)
    assert "".join(piece.text for piece in pieces[1:-1]) == "a value"
    assert [piece.supervised for piece in pieces] == [bool(flag) for flag in supervised]
    assert [place for place, piece in enumerate(pieces) if piece.starts_document] == [0, len(words) + 1]
    assert [place for place, piece in enumerate(pieces) if piece.is_control] == [0, len(words) + 1]


def test_without_a_mask_every_id_is_learned(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("some text"), np.uint16)
    assert all(piece.supervised for piece in row_pieces(ids, None, np.array([], np.int64), tokenizer))


def test_bytes_that_are_no_character_are_escapes(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("𝄞"), np.uint16)
    assert len(ids) > 1, "a character that the vocabulary does not hold whole"
    shown = "".join(piece.text for piece in row_pieces(ids, None, np.array([0]), tokenizer))
    assert shown == r"\xf0\x9d\x84\x9e"


def test_text_that_spells_a_control_token_is_none(tokenizer: Tokenizer) -> None:
    ids = np.array(tokenizer.encode("<|im_end|>"), np.uint16)
    pieces = row_pieces(ids, None, np.array([0]), tokenizer)
    assert "".join(piece.text for piece in pieces) == "<|im_end|>"
    assert not any(piece.is_control for piece in pieces)


def test_unknown_ids_are_named(tokenizer: Tokenizer) -> None:
    require_known([0, tokenizer.vocabulary_size - 1], tokenizer)
    for strange in (-1, tokenizer.vocabulary_size):
        with pytest.raises(DataError, match=f"^{strange} is no id"):
            require_known([0, strange], tokenizer)


def test_a_stream_is_read_in_stretches_and_by_document(tokenizer: Tokenizer, tmp_path: Path) -> None:
    texts = {"one": "a value " * 300, "two": "another list " * 100, "three": "more"}
    documents = [Document(text, name, "web", "") for name, text in texts.items()]
    pack_documents(documents, tokenizer, tmp_path, "train")
    (shard,) = shards = open_token_set(tmp_path).shards("train")
    rows = -(-len(shard.tokens) // STREAM_ROW_TOKENS)
    pieces = [piece for row in range(rows) for piece in find_row(shards, None, row).pieces(tokenizer)]
    assert [piece.id for piece in pieces] == shard.tokens[:].tolist()
    assert "".join(piece.text for piece in pieces if not piece.is_control) == "".join(texts.values())
    assert sum(piece.starts_document for piece in pieces) == len(texts)
    assert list(find_row(shards, None, 0).documents) == [0]
    assert find_row(shards, None, rows - 1).documents[-1] == 2
    with pytest.raises(ConfigError, match=f"no row {rows}, the last one is {rows - 1}"):
        find_row(shards, None, rows)
    (found,) = find_document(shards, "two")
    assert "".join(piece.text for piece in found.pieces(tokenizer) if not piece.is_control) == texts["two"]
    with pytest.raises(ConfigError, match="no document 'four'"):
        find_document(shards, "four")


def test_rows_go_on_from_one_source_to_the_next(tokenizer: Tokenizer, tmp_path: Path) -> None:
    talks = [Conversation((Message("user", f"q{n}"), Message("assistant", f"a{n}")), f"id-{n}", f"s{n}", "") for n in range(3)]
    pack_conversations(talks, tokenizer, tmp_path, "train", 64)
    shards = open_token_set(tmp_path).shards("train")
    assert [find_row(shards, 64, row).shard.source for row in range(3)] == ["s0", "s1", "s2"]
    pieces = find_row(shards, 64, 1).pieces(tokenizer)
    assert len(pieces) == 64
    assert "".join(piece.text for piece in pieces if piece.supervised) == "a1<|im_end|>"
    assert pieces[-1].id == tokenizer.padding
