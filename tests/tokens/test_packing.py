from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.core.errors import DataError
from fledge.corpus.document import Conversation, Document, Message, Preference
from fledge.tokens.best_fit import best_fit
from fledge.tokens.chat import render
from fledge.tokens.document_packing import pack_documents
from fledge.tokens.figures import DocumentHashes
from fledge.tokens.packing import pack_conversations, pack_preferences
from fledge.tokens.shards import TokenShard, open_token_set
from fledge.tokens.tokenizer import Tokenizer

WORDS = ["the", "list", "dict", "returns", "a", "new", "copy", "of", "value", "raises", "error", "if", "<|im_end|>", "é", "🙂", "none"]


def _sentence(draw: random.Random, longest_words: int = 30) -> str:
    return " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, longest_words)))


def _documents(count: int) -> list[Document]:
    draw = random.Random(0)
    return [Document(_sentence(draw), f"document-{number}", ("books", "web")[number % 3 == 1], "g") for number in range(count)]


def _conversations(count: int, longest_words: int = 30) -> list[Conversation]:
    draw = random.Random(1)
    result = []
    for number in range(count):
        messages = [Message("user", f" {_sentence(draw, longest_words)}\n"), Message("assistant", _sentence(draw, longest_words))]
        if number % 4 == 0:
            messages += [Message("user", "more"), Message("assistant", f"{_sentence(draw, longest_words)}\n")]
        result.append(Conversation(tuple(messages), f"conversation-{number}", ("questions", "talk")[number % 5 == 2], "g"))
    return result


def _preferences(count: int, longest_words: int = 12) -> list[Preference]:
    draw = random.Random(2)
    result = []
    for number in range(count):
        prompt = (Message("user", "first"), Message("assistant", "earlier"), Message("user", _sentence(draw, longest_words)))
        chosen = _sentence(draw, longest_words)
        damage = ("cut", "stutter")[number % 2]
        result.append(Preference(prompt, chosen, chosen[:-1] + "!", damage, f"pair-{number}", "pairs", "g"))
    return result


def _segments(shard: TokenShard) -> list[list[int]]:
    return [shard.tokens[start : start + length].tolist() for start, length in zip(shard.starts, shard.lengths, strict=True)]


def test_documents_become_one_stream_per_source_and_lose_nothing(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = _documents(2_500)
    stats = pack_documents(iter(documents), tokenizer, tmp_path, "train")
    opened = open_token_set(tmp_path)
    assert (opened.content, opened.tokenizer_sha256) == ("documents", tokenizer.sha256)
    assert [shard.source for shard in opened.shards("train")] == ["books", "web"]
    for shard in opened.shards("train"):
        expected = [document for document in documents if document.source == shard.source]
        assert shard.document_ids.to_pylist() == [document.id for document in expected]
        assert shard.text_bytes.tolist() == [len(document.text.encode()) for document in expected]
        segments = _segments(shard)
        assert all(segment[0] == tokenizer.end_of_text for segment in segments)
        assert [tokenizer.decode(segment) for segment in segments] == [document.text for document in expected]
        assert np.flatnonzero(shard.tokens[:] == tokenizer.end_of_text).tolist() == shard.starts.tolist()
        assert shard.starts[-1] + shard.lengths[-1] == len(shard.tokens) == stats["tokens_by_source"][shard.source]
    assert stats["documents"] == 2_500
    assert stats["tokens"] == stats["supervised_tokens"] == sum(len(shard.tokens) for shard in opened.shards("train"))
    assert stats["text_bytes"] == sum(len(document.text.encode()) for document in documents)
    assert stats["padding_share"] == 0 and stats["dropped_too_long"] == 0


def test_both_splits_lie_in_one_set(tokenizer: Tokenizer, tmp_path: Path) -> None:
    documents = _documents(10)
    pack_documents(documents[:8], tokenizer, tmp_path, "train")
    pack_documents(documents[8:], tokenizer, tmp_path, "validation")
    opened = open_token_set(tmp_path)
    held_out = [name for shard in opened.shards("validation") for name in shard.document_ids.to_pylist()]
    assert sorted(held_out) == ["document-8", "document-9"]


@pytest.mark.parametrize("text", ["x", ""])
def test_one_document_and_nothing_held_out(tokenizer: Tokenizer, tmp_path: Path, text: str) -> None:
    pack_documents([Document(text, "only", "books", "g")], tokenizer, tmp_path, "train")
    stats = pack_documents([], tokenizer, tmp_path, "validation")
    opened = open_token_set(tmp_path)
    assert opened.shards("validation") == () and stats["tokens"] == 0 and stats["padding_share"] == 0
    (shard,) = opened.shards("train")
    assert shard.tokens[:].tolist() == [tokenizer.end_of_text, *tokenizer.encode(text)]
    parts = ("documents", "tokens", "tokens.crc32")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokens.json", *(f"train-books.{part}" for part in parts)]


def test_nothing_to_train_on_is_an_error(tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no documents to pack"):
        pack_documents([], tokenizer, tmp_path, "train")
    with pytest.raises(DataError, match="no conversations to pack"):
        pack_conversations([], tokenizer, tmp_path, "train", 64)
    with pytest.raises(DataError, match="no preferences to pack"):
        pack_preferences([], tokenizer, tmp_path, "train", 64)


def test_conversations_stay_whole_in_their_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    conversations = _conversations(300)
    stats = pack_conversations(iter(conversations), tokenizer, tmp_path, "train", row_tokens=512)
    opened = open_token_set(tmp_path)
    assert opened.row_tokens == 512 and stats["dropped_too_long"] == 0 and stats["documents"] == 300
    by_id = {conversation.id: conversation for conversation in conversations}
    seen: list[str] = []
    for shard in opened.shards("train"):
        assert len(shard.tokens) % 512 == 0 and shard.supervised is not None
        used = np.zeros(len(shard.tokens), dtype=bool)
        for place, (name, segment) in enumerate(zip(shard.document_ids.to_pylist(), _segments(shard), strict=True)):
            start, end = shard.starts[place], shard.starts[place] + shard.lengths[place]
            rendered = render(tokenizer, by_id[name].messages)
            assert segment == rendered.ids and by_id[name].source == shard.source
            assert shard.supervised[start:end].tolist() == rendered.supervised
            assert start // 512 == (end - 1) // 512
            answers = "".join(message.content.strip() for message in by_id[name].messages if message.role == "assistant")
            assert shard.text_bytes[place] == len(answers.encode())
            used[start:end] = True
            seen.append(name)
        assert (shard.tokens[:][~used] == tokenizer.padding).all() and not shard.supervised[:][~used].any()
    assert sorted(seen) == sorted(by_id)
    assert stats["supervised_tokens"] == sum(sum(render(tokenizer, one.messages).supervised) for one in conversations)
    assert 0 < stats["padding_share"] < 0.1


def test_conversations_longer_than_a_row_are_left_out_and_counted(
    tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conversations = _conversations(100)
    lengths = [len(render(tokenizer, conversation.messages).ids) for conversation in conversations]
    row_tokens = sorted(lengths)[60]
    stats = pack_conversations(conversations, tokenizer, tmp_path, "train", row_tokens)
    kept = [one.id for one, length in zip(conversations, lengths, strict=True) if length <= row_tokens]
    names = [name for shard in open_token_set(tmp_path).shards("train") for name in shard.document_ids.to_pylist()]
    assert sorted(names) == sorted(kept)
    assert stats["dropped_too_long"] == 100 - len(kept) > 0 and stats["documents"] == len(kept)
    assert f"{100 - len(kept)} of 100 conversations" in capsys.readouterr().err


def test_if_every_conversation_is_too_long_training_is_refused_and_validation_empty(tokenizer: Tokenizer, tmp_path: Path) -> None:
    conversations = _conversations(5)
    shortest = min(len(render(tokenizer, conversation.messages).ids) for conversation in conversations)
    pack_conversations(conversations, tokenizer, tmp_path / "fits", "train", 1_024)
    stats = pack_conversations(conversations[:1], tokenizer, tmp_path / "fits", "validation", 1_024)
    assert stats["documents"] == 1
    with pytest.raises(DataError, match=f"none of the 5 conversations .* row of {shortest - 1} tokens") as caught:
        pack_conversations(conversations, tokenizer, tmp_path / "train", "train", shortest - 1)
    assert "pack.sequence_length" in caught.value.remedy
    stats = pack_conversations(conversations, tokenizer, tmp_path / "validation", "validation", shortest - 1)
    assert stats["dropped_too_long"] == 5 and stats["tokens"] == 0


def test_both_answers_of_a_pair_share_a_row_the_chosen_one_first(tokenizer: Tokenizer, tmp_path: Path) -> None:
    preferences = _preferences(200)
    stats = pack_preferences(iter(preferences), tokenizer, tmp_path, "train", row_tokens=400)
    (shard,) = open_token_set(tmp_path).shards("train")
    assert stats["documents"] == 200 and len(shard.starts) == 400
    assert shard.supervised is not None and shard.damages is not None
    names, damages, segments = shard.document_ids.to_pylist(), shard.damages.to_pylist(), _segments(shard)
    by_id = {pair.id: pair for pair in preferences}
    assert sorted(names) == sorted([*by_id, *by_id])
    assert (shard.starts[0::2] // 400 == (shard.starts[1::2] + shard.lengths[1::2] - 1) // 400).all()
    for place, (name, damage, segment) in enumerate(zip(names, damages, segments, strict=True)):
        pair = by_id[name]
        answer = pair.rejected if place % 2 else pair.chosen
        assert damage == pair.damage
        assert segment == render(tokenizer, (*pair.prompt, Message("assistant", answer))).ids
        start = shard.starts[place]
        flags = shard.supervised[start : start + shard.lengths[place]]
        prompt_tokens = len(render(tokenizer, pair.prompt, answer_follows=True).ids)
        assert not flags[:prompt_tokens].any() and flags[prompt_tokens:].all()
        assert shard.text_bytes[place] == len(answer.strip().encode())


def test_a_pair_longer_than_a_row_is_left_out_though_each_answer_fits(tokenizer: Tokenizer, tmp_path: Path) -> None:
    preferences = _preferences(20)
    whole = [(*pair.prompt, Message("assistant", pair.chosen)) for pair in preferences]
    row_tokens = max(len(render(tokenizer, messages).ids) for messages in whole) + 2
    stats = pack_preferences(preferences, tokenizer, tmp_path, "train", row_tokens)
    assert 0 < stats["dropped_too_long"] < 20 and stats["documents"] + stats["dropped_too_long"] == 20
    with pytest.raises(DataError, match="none of the 20 preferences"):
        pack_preferences(preferences, tokenizer, tmp_path / "none", "train", 16)


def _long_talk(exchanges: int, system: bool = False) -> tuple[Message, ...]:
    turns = [Message("system", "Be brief.")] if system else []
    for number in range(exchanges):
        turns += [Message("user", f"Question {number}?"), Message("assistant", f"Answer {number}.")]
    return tuple(turns)


@pytest.mark.parametrize("system", [False, True])
def test_a_conversation_that_is_too_long_keeps_the_exchanges_that_fit(tokenizer: Tokenizer, tmp_path: Path, system: bool) -> None:
    whole, part = _long_talk(9, system), _long_talk(4, system)
    row_tokens = len(render(tokenizer, part).ids)
    given = [Conversation(whole, "long", "s", "g"), Conversation(part[:-2], "short", "s", "h")]
    stats = pack_conversations(given, tokenizer, tmp_path / "cut", "train", row_tokens, truncate=True)
    assert (stats["documents"], stats["truncated"], stats["dropped_too_long"]) == (2, 1, 0)
    (shard,) = open_token_set(tmp_path / "cut").shards("train")
    assert _segments(shard) == [render(tokenizer, messages).ids for messages in (part, part[:-2])]
    one = len(render(tokenizer, _long_talk(1, system)).ids)
    with pytest.raises(DataError, match="none of the 2 conversations"):
        pack_conversations(given, tokenizer, tmp_path / "none", "train", one - 1, truncate=True)


@pytest.mark.parametrize("truncate", [True, False])
def test_what_truncation_makes_equal_is_a_duplicate_on_either_side_of_the_split(
    tokenizer: Tokenizer, tmp_path: Path, truncate: bool
) -> None:
    """Two that were equal before are told as ever: the corpus has been asked to allow them."""
    part = _long_talk(4)
    row_tokens = len(render(tokenizer, part).ids)
    hashes = DocumentHashes()
    figures = {}
    for split, talks in {"train": [_long_talk(9), part, _long_talk(8)], "validation": [part, _long_talk(7), _long_talk(1)]}.items():
        given = [Conversation(talk, f"{split}-{number}", "s", "g") for number, talk in enumerate(talks)]
        figures[split] = pack_conversations(given, tokenizer, tmp_path, split, row_tokens, hashes, truncate=truncate)  # type: ignore[arg-type]
    counted = {split: (one["documents"], one["truncated"], one["truncated_duplicates"]) for split, one in figures.items()}
    if truncate:
        assert counted == {"train": (1, 1, 2), "validation": (1, 0, 2)}
        hashes.require_disjoint("conversations", allowed=False)
        return
    assert counted == {"train": (1, 0, 0), "validation": (2, 0, 0)}
    with pytest.raises(DataError, match="1 conversations of the validation split are also in the training split"):
        hashes.require_disjoint("conversations", allowed=False)


def test_pairs_that_truncation_makes_equal_are_duplicates(tokenizer: Tokenizer, tmp_path: Path) -> None:
    part = (*_long_talk(9)[-2:], Message("user", "So?"))
    pairs = [Preference((*_long_talk(number), *part), "good", "bad", "", str(number), "s", "g") for number in (0, 8, 7)]
    row_tokens = sum(len(render(tokenizer, (*part, Message("assistant", answer))).ids) for answer in ("good", "bad"))
    stats = pack_preferences(pairs, tokenizer, tmp_path, "train", row_tokens, truncate=True)
    assert (stats["documents"], stats["truncated"], stats["truncated_duplicates"]) == (1, 0, 2)


def test_a_prompt_that_is_too_long_keeps_its_last_exchanges(tokenizer: Tokenizer, tmp_path: Path) -> None:
    whole = (Message("system", "Be brief."), *_long_talk(6), Message("user", "So?"))
    part = (whole[0], *whole[-3:])
    pair = Preference(whole, "good", "bad", "", "one", "s", "g")
    row_tokens = sum(len(render(tokenizer, (*part, Message("assistant", answer))).ids) for answer in ("good", "bad"))
    stats = pack_preferences([pair], tokenizer, tmp_path / "cut", "train", row_tokens, truncate=True)
    assert (stats["documents"], stats["truncated"]) == (1, 1)
    (shard,) = open_token_set(tmp_path / "cut").shards("train")
    assert _segments(shard)[0] == render(tokenizer, (*part, Message("assistant", "good"))).ids
    with pytest.raises(DataError, match="none of the 1 preferences"):
        pack_preferences([pair], tokenizer, tmp_path / "none", "train", 24, truncate=True)


def test_all_of_a_conversation_can_be_learned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    messages = _long_talk(2)
    stats = pack_conversations([Conversation(messages, "a", "s", "g")], tokenizer, tmp_path, "train", 256, everything=True)
    assert stats["supervised_tokens"] == len(render(tokenizer, messages).ids)
    assert stats["text_bytes"] == sum(len(message.content.encode()) for message in messages)


def test_the_same_corpus_gives_the_same_bytes(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name in ("first", "second"):
        pack_documents(_documents(100), tokenizer, tmp_path / name / "documents", "train")
        pack_conversations(_conversations(100), tokenizer, tmp_path / name / "conversations", "train", 512)
        pack_preferences(_preferences(100), tokenizer, tmp_path / name / "preferences", "train", 512)
    files = [path for path in (tmp_path / "first").rglob("*") if path.is_file()]
    assert len(files) == 7 + 11 + 6
    for path in files:
        assert path.read_bytes() == (tmp_path / "second" / path.relative_to(tmp_path / "first")).read_bytes()


@settings(max_examples=300)
@given(st.integers(1, 40).flatmap(lambda capacity: st.tuples(st.just(capacity), st.lists(st.integers(1, capacity), max_size=60))))
def test_best_fit_places_everything_once_in_few_rows(case: tuple[int, list[int]]) -> None:
    capacity, lengths = case
    rows = best_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= capacity for row in rows)
    assert all(row == sorted(row) for row in rows) and [row[0] for row in rows] == sorted(row[0] for row in rows)
    # Best-fit decreasing needs at most 11/9 of the optimum and 6/9 of a row; the optimum is at least the sum over the capacity.
    assert len(rows) == len(_plain_best_fit(lengths, capacity))


def test_best_fit_of_a_hundred_thousand_leaves_little_room() -> None:
    draw = random.Random(3)
    lengths = [min(2_048, 1 + int(draw.lognormvariate(5, 1))) for _ in range(100_000)]
    rows = best_fit(lengths, 2_048)
    assert sum(lengths) / (2_048 * len(rows)) > 0.99


def _plain_best_fit(lengths: list[int], capacity: int) -> list[int]:
    """The rooms left when best-fit decreasing is done the obvious, quadratic way."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        sufficing = [place for place, room in enumerate(rooms) if room >= length]
        if sufficing:
            rooms[min(sufficing, key=lambda place: rooms[place])] -= length
        else:
            rooms.append(capacity - length)
    return rooms
