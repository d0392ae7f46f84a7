"""What every kind of tokenizer promises: lossless, safe from its own control tokens, linear, and the same in transformers."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.corpus.document import Conversation, Document, Message
from fledge.tokens.chat import render
from fledge.tokens.document_packing import pack_documents
from fledge.tokens.packing import pack_conversations
from fledge.tokens.probes import PROBES, generated_texts
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import Tokenizer, copy_tokenizer, open_tokenizer

from .conftest import TIME_LIMIT_SECONDS, open_in_transformers
from .kinds import IMPORTED, TRAINED, make_kind

GROUPED = 1_000


@pytest.fixture(scope="module", params=[*TRAINED, *IMPORTED])
def any_kind(request: pytest.FixtureRequest, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_kind(request.param, texts, tmp_path_factory.mktemp(request.param))


def _in_groups(texts: Iterator[str]) -> Iterator[list[str]]:
    while group := [text for _, text in zip(range(GROUPED), texts, strict=False)]:
        yield group


def _kept(tokenizer: Tokenizer, text: str) -> str:
    """What comes back: SentencePiece models of others write a space as U+2581."""
    return text if tokenizer.definition.spelling.space == " " else text.replace("\u2581", " ")


def _check_round_trip(tokenizer: Tokenizer, count: int) -> None:
    for group in _in_groups(generated_texts(count, seed=1)):
        encoded = tokenizer.encode_arrays(group)
        assert not np.isin(encoded.ids, list(tokenizer.specials.values())).any()
        for place, text in enumerate(group):
            ids = encoded[place].tolist()
            assert tokenizer.decode(ids) == _kept(tokenizer, text), repr(text)
            expected_bytes = len(_kept(tokenizer, text).encode()) + tokenizer.prefix_bytes * bool(text)
            assert int(tokenizer.byte_lengths[ids].sum()) == expected_bytes, repr(text)


def test_every_text_comes_back(any_kind: Tokenizer) -> None:
    _check_round_trip(any_kind, 2_000)


@pytest.mark.slow
def test_two_hundred_thousand_texts_come_back(any_kind: Tokenizer) -> None:
    _check_round_trip(any_kind, 200_000)


def _spellings(tokenizer: Tokenizer, count: int) -> Iterator[str]:
    draw = random.Random(2)
    names = [*tokenizer.specials, "<0x41>", "<0x0A>", "<0xFF>", "<unk>", "<s>"]
    glue = ["", " ", "\u2581", "\n", "<", ">", "<|", "|>", "a", "0x41>", "\u00e9"]
    for _ in range(count):
        yield "".join(draw.choice(glue) + draw.choice(names) for _ in range(draw.randrange(1, 5))) + draw.choice(glue)


def _check_spellings(tokenizer: Tokenizer, count: int) -> None:
    for group in _in_groups(_spellings(tokenizer, count)):
        encoded = tokenizer.encode_arrays(group)
        assert not np.isin(encoded.ids, list(tokenizer.specials.values())).any()
        for place, text in enumerate(group):
            assert tokenizer.decode(encoded[place].tolist()) == _kept(tokenizer, text), repr(text)


def test_no_text_spells_a_control_token(any_kind: Tokenizer) -> None:
    _check_spellings(any_kind, 2_000)


@pytest.mark.slow
def test_a_hundred_thousand_texts_spell_none(any_kind: Tokenizer) -> None:
    _check_spellings(any_kind, 100_000)


HOSTILE_CHARACTERS = ["a", " ", "\n", "<", "\u00e9", "\U0001f642"]


def _cpu_seconds_for_a_megabyte(tokenizer: Tokenizer, character: str) -> float:
    text = character * (1_000_000 // len(character.encode()))
    started = time.process_time()
    ids = tokenizer.encode(text)
    taken = time.process_time() - started
    assert tokenizer.decode(ids) == text
    return taken


@pytest.mark.parametrize("character", HOSTILE_CHARACTERS)
def test_a_megabyte_of_one_character_takes_linear_time(any_kind: Tokenizer, character: str) -> None:
    assert _cpu_seconds_for_a_megabyte(any_kind, character) < TIME_LIMIT_SECONDS


@pytest.mark.slow
@pytest.mark.parametrize("character", HOSTILE_CHARACTERS)
def test_a_megabyte_of_one_character_takes_two_seconds_at_most(any_kind: Tokenizer, character: str) -> None:
    # CPU time does not count what other processes take, but their use of the cache it does: so the better of two.
    assert min(_cpu_seconds_for_a_megabyte(any_kind, character) for _ in range(2)) < 2


def test_streaming_gives_whole_characters_and_the_text_of_decoding(any_kind: Tokenizer) -> None:
    for text in [*PROBES, *generated_texts(300, seed=3)]:
        ids = any_kind.encode(text)
        stream, pieces = any_kind.stream(), []
        for token in ids:
            pieces.append(stream.push(token))
            assert "\ufffd" not in pieces[-1] or "\ufffd" in text
        assert "".join(pieces) + stream.finish() == any_kind.decode(ids) == _kept(any_kind, text)


def test_an_answer_that_goes_on_keeps_its_space(any_kind: Tokenizer) -> None:
    ids = any_kind.encode("once more")
    stream = any_kind.stream(continued=True)
    assert "".join(map(stream.push, ids)) == " " * any_kind.prefix_bytes + "once more"


def test_transformers_gives_the_same_ids_and_text_from_a_checkpoint(any_kind: Tokenizer, tmp_path: Path) -> None:
    copy_tokenizer(any_kind, True, tmp_path, maximum_tokens=128)
    theirs = open_in_transformers(tmp_path)
    assert len(theirs) == any_kind.vocabulary_size and theirs.eos_token_id == any_kind.turn_end
    assert (theirs.bos_token_id, theirs.pad_token_id) == (any_kind.document_start[0], any_kind.padding)
    texts = [text for text in [*PROBES, *generated_texts(500, seed=4)] if not any(name in text for name in any_kind.specials)]
    for text, ids in zip(texts, any_kind.encode_batch(texts), strict=True):
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids, skip_special_tokens=True) == any_kind.decode(ids) == _kept(any_kind, text)
    theirs.save_pretrained(tmp_path / "again")
    (tmp_path / "again" / "tokenizer_meta.json").write_bytes((tmp_path / "tokenizer_meta.json").read_bytes())
    assert open_tokenizer(tmp_path / "again").sha256 == any_kind.sha256


def test_documents_and_conversations_are_packed(any_kind: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    documents = [Document(text[:400], f"document-{number}", "topics", "g") for number, text in enumerate(texts[:20])]
    stats = pack_documents(documents, any_kind, tmp_path / "documents", "train")
    (shard,) = open_token_set(tmp_path / "documents").shards("train")
    start, end = list(any_kind.document_start), list(any_kind.document_end)
    for place, document in enumerate(documents):
        ids = shard.tokens[shard.starts[place] : shard.starts[place] + shard.lengths[place]].tolist()
        assert ids == [*start, *any_kind.encode(document.text), *end] and any_kind.decode(ids) == document.text
    assert int(any_kind.document_byte_lengths[shard.tokens].sum()) == stats["text_bytes"]
    turns = (Message("user", "What is\n it?"), Message("assistant", " A text: caf\u00e9, \U0001f642 12.5\n"))
    stats = pack_conversations([Conversation(turns, "one", "talk", "g")], any_kind, tmp_path / "conversations", "train", 128)
    assert stats["documents"] == 1


def test_the_mask_of_an_answer_is_exact(any_kind: Tokenizer) -> None:
    answers = [text.strip() for text in generated_texts(200, seed=5)]
    for answer in answers:
        rendered = render(any_kind, [Message("user", "Say it."), Message("assistant", answer)])
        learned = [token for token, supervised in zip(rendered.ids, rendered.supervised, strict=True) if supervised]
        assert learned[-1] == any_kind.turn_end
        spoken = b"".join(any_kind.definition.pieces[token] for token in learned[:-1]).decode()
        assert spoken == _kept(any_kind, answer) or spoken in ("\n" + answer, answer)


def test_ids_fill_the_vocabulary(any_kind: Tokenizer) -> None:
    assert any_kind.vocabulary_size == len(any_kind.byte_lengths) == any_kind.meta.vocabulary_size
    assert not any_kind.byte_lengths[list(any_kind.specials.values())].any()
    ordinary = sorted(set(range(any_kind.vocabulary_size)) - set(any_kind.specials.values()))
    assert any_kind.byte_lengths[ordinary].all()
    assert any_kind.meta.special_tokens == dict(any_kind.specials)


@pytest.mark.parametrize("kind", TRAINED)
def test_the_same_text_gives_the_same_tokenizer(kind: Any, texts: list[str], tmp_path: Path) -> None:
    first, second = (make_kind(kind, texts[:20], tmp_path / name) for name in ("first", "second"))
    for path in first.folder.iterdir():
        assert path.read_bytes() == (second.folder / path.name).read_bytes(), path.name
    assert first.specials["<|reserved_1|>"] == first.vocabulary_size - 1
