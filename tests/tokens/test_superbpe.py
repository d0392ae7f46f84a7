from __future__ import annotations

import json
import re
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import tokenizers

from fledge.core.errors import DataError
from fledge.tokens import superbpe
from fledge.tokens.byte_level import SPLIT_PATTERN, SUPERWORD_PATTERN, byte_alphabet, split_pipeline
from fledge.tokens.engines import ReferenceEngine
from fledge.tokens.engines.kernel import KernelEngine
from fledge.tokens.engines.two_level import TwoLevelEngine
from fledge.tokens.levels import JoinRule, is_unsafe, split_levels
from fledge.tokens.superbpe import train_superwords

from .conftest import HARD_TEXTS, body_of, spliced_texts

Content = dict[str, Any]
TEXTS = [topics[name] for name in sorted(topics)]


def _reference(content: Content) -> ReferenceEngine:
    return ReferenceEngine(tokenizers.Tokenizer.from_str(json.dumps(body_of(content))))


def _assert_two_levels_are_one(content: Content, texts: list[str]) -> None:
    expected = _reference(content).encode_batch(texts)
    found = TwoLevelEngine(body_of(content), KernelEngine).encode_batch(texts)
    differing = [text for place, text in enumerate(texts) if not np.array_equal(expected[place], found[place])]
    assert not differing, repr(differing[0])
    assert np.array_equal(expected.offsets, found.offsets)


def test_one_pass_and_two_levels_give_the_same_ids(super_content: Content) -> None:
    _assert_two_levels_are_one(super_content, [*HARD_TEXTS, *TEXTS[:60], *spliced_texts(1_500)])


@pytest.mark.slow
def test_one_pass_and_two_levels_give_the_same_ids_20_000_times(super_content: Content) -> None:
    _assert_two_levels_are_one(super_content, spliced_texts(20_000))


def test_the_result_is_one_ordinary_tokenizer(plain_content: Content, super_content: Content) -> None:
    vocabulary, plain = super_content["model"]["vocab"], plain_content["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(2_044))
    assert [token["id"] for token in super_content["added_tokens"]] == [2_044, 2_045, 2_046, 2_047]
    assert [token["content"] for token in super_content["added_tokens"]] == [token["content"] for token in plain_content["added_tokens"]]
    assert super_content["pre_tokenizer"] == split_pipeline(SUPERWORD_PATTERN)
    first = [token for token in sorted(plain, key=plain.__getitem__) if not is_unsafe(token)][:1_200]
    assert sorted(vocabulary, key=vocabulary.__getitem__)[:1_200] == first
    assert any("\u0120" in token[1:] for token in vocabulary)
    whole = tokenizers.Tokenizer.from_str(json.dumps(super_content))
    text = "in the case of <|endoftext|>"
    assert whole.decode(whole.encode(text).ids, skip_special_tokens=False) == text


def test_text_becomes_shorter_and_comes_back(super_content: Content) -> None:
    words, superwords = (_reference(content).encode_batch(TEXTS) for content in (split_levels(super_content).words, super_content))
    assert len(superwords.ids) < 0.9 * len(words.ids)
    whole = tokenizers.Tokenizer.from_str(json.dumps(body_of(super_content)))
    for text in [*HARD_TEXTS, *spliced_texts(100)]:
        assert whole.decode(whole.encode(text).ids) == text


def test_every_superword_is_reached_and_has_at_most_four_words(super_content: Content) -> None:
    levels = split_levels(body_of(super_content))
    words = len(levels.words["model"]["vocab"])
    assert words == 1_200
    lengths = dict.fromkeys(range(words), 1)
    for merge in levels.merges:
        lengths[merge.merged] = lengths[merge.left] + lengths[merge.right]
    assert max(lengths.values()) == superbpe.LONGEST_SUPERWORD_WORDS
    values = {character: value for value, character in enumerate(byte_alphabet())}
    superwords = {token: number for token, number in super_content["model"]["vocab"].items() if number >= words}
    texts = [bytes(values[character] for character in token).decode("utf-8") for token in superwords]
    encoded = _reference(super_content).encode_batch(texts)
    assert encoded.ids.tolist() == list(superwords.values())
    # The colon ends a superword, digits stand alone, and a line end can only be the last of it.
    assert not [text for text in texts if re.search(r": |\d|[\r\n][^\r\n]", text)]


def test_words_reached_before_are_reached_still(super_content: Content) -> None:
    words = split_levels(body_of(super_content)).words
    plain, whole = _reference(words), _reference(super_content)
    values = {character: value for value, character in enumerate(byte_alphabet())}
    spelled = [bytes(values[character] for character in token) for token in words["model"]["vocab"]]
    texts = [piece.decode("utf-8") for piece in spelled if piece.decode("utf-8", "ignore").encode() == piece]
    assert len(texts) > 1_000
    one, other = plain.encode_batch(texts), whole.encode_batch(texts)
    alone = [place for place in range(len(texts)) if len(one[place]) == 1]
    assert len(alone) > 1_000
    assert all(np.array_equal(one[place], other[place]) for place in alone)


def test_cutting_rare_neighbours_changes_no_merge(plain_content: Content, super_content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    bounds = []
    train = superbpe._train

    def noted(*arguments: Any) -> Any:
        bounds.append(arguments[-1])
        return train(*arguments)

    monkeypatch.setattr(superbpe, "_train", noted)
    assert train_superwords(plain_content, 1_200, 2_048, TEXTS) == super_content
    assert bounds[0] > 2
    # A bound that is too high is lowered until the vocabulary is full; one of 2 cuts nothing that could be merged.
    for first in (10_000, 2):
        monkeypatch.setattr(superbpe, "_first_bound", lambda *_, first=first: first)
        assert train_superwords(plain_content, 1_200, 2_048, TEXTS) == super_content


def test_little_text_makes_a_smaller_vocabulary(plain_content: Content) -> None:
    content = train_superwords(plain_content, 1_200, 2_048, ["in the end, in the end"])
    vocabulary = content["model"]["vocab"]
    assert 1_200 <= len(vocabulary) < 1_210
    assert [token["id"] for token in content["added_tokens"]] == [*range(len(vocabulary), len(vocabulary) + 4)]


def test_without_text_there_is_nothing_to_learn(plain_content: Content) -> None:
    with pytest.raises(DataError, match="no text to learn superwords from"):
        train_superwords(plain_content, 1_200, 2_048, [])


def test_tokens_that_begin_inside_a_character_stay_out_of_the_first_level() -> None:
    """A letter whose last byte begins such a token would merge with the punctuation behind it, if all were one word."""
    alphabet = byte_alphabet()

    def spelled(text: bytes) -> str:
        return "".join(alphabet[value] for value in text)

    cutting = spelled(b"\xa6,")
    vocabulary = {token: number for number, token in enumerate([*alphabet, cutting, spelled(b" a")])}
    merges = [[spelled(b"\xa6"), ","], [spelled(b" "), "a"]]
    content = {
        "normalizer": None, "added_tokens": [], "post_processor": None, "decoder": None, "pre_tokenizer": split_pipeline(SPLIT_PATTERN),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }  # fmt: skip
    assert is_unsafe(cutting) and not is_unsafe(spelled(b"\xc3\xa6,")) and not is_unsafe(spelled(b"\xa6a")) and not is_unsafe(",")
    made = train_superwords(content, 258, 260, ["b\u00e6, a a a, a a a"])
    assert cutting not in made["model"]["vocab"]
    _assert_two_levels_are_one(made, ["b\u00e6, a a", "\u1de6, a"])
    with pytest.raises(ValueError, match="begins inside a character"):
        split_levels({**content, "pre_tokenizer": split_pipeline(SUPERWORD_PATTERN)})


def test_what_joins_is_seen_in_two_tokens() -> None:
    alphabet = byte_alphabet()
    texts = ["the", " of", ",", " ", "a1", "x:", "\n", " 7", "\u00e9", "'s", " (", "\u3002", " \u00a0"]
    tokens = ["".join(alphabet[value] for value in text.encode()) for text in texts]
    rule = JoinRule([*tokens, alphabet[0xC3]])
    number = {text: place for place, text in enumerate(texts)} | {"broken": len(texts)}

    def joins(left: str, right: str) -> bool:
        return bool(rule.joins(np.array([number[left]], np.uint32), np.array([number[right]], np.uint32))[0])

    assert joins("the", " of") and joins("the", ",") and joins("\u00e9", "'s") and joins(",", " (") and joins("\u3002", " of")
    wrong = [("a1", " of"), ("x:", " of"), ("\n", " of"), (" ", " of"), (",", ","), ("the", "the"), ("the", " "), ("the", " 7")]
    wrong += [("the", "\u3002"), ("the", " \u00a0"), ("broken", " of"), ("the", "broken")]
    assert not [pair for pair in wrong if joins(*pair)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content: content.update(pre_tokenizer=split_pipeline(SPLIT_PATTERN)), "does not split text"),
        (lambda content: content["model"]["merges"].reverse(), "do not come after"),
        (lambda content: content["model"]["vocab"].update(extra=5_000), "gaps"),
    ],
)
def test_other_tokenizers_have_no_two_levels(super_content: Content, change: Any, reason: str) -> None:
    content = json.loads(json.dumps(body_of(super_content)))
    change(content)
    with pytest.raises(ValueError, match=reason):
        split_levels(content)
