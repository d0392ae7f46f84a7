"""The two levels of a SuperBPE tokenizer, found in its one ordinary `tokenizer.json`: words, and the superwords made of them.

The first level is plain byte-level BPE with `SPLIT_PATTERN`. A superword joins up to four of its tokens across borders that the join
rule of `byte_level.py` allows. No token of the first level contains such a border, so a merge belongs to the second level exactly if
its two sides join there, and everything can be read back from the merges.

One kind of token would break this, and is left out of the first level: one that begins inside a character and goes on with a space
or ASCII punctuation (`b"\\xb7'\\n"`, learned from closing quotes of Chinese text). The character that it cuts may be a letter elsewhere,
and then it would merge across a border that the first level keeps. Among 65,536 tokens 10 are so.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import pre_tokenizers

from fledge.tokens.byte_level import SPLIT_PATTERN, SUPERWORD_PATTERN, byte_alphabet, split_pipeline
from fledge.tokens.superwords import Merge

_BEGINS_INSIDE_A_CHARACTER = re.compile(rb"[\x80-\xbf]{1,3}[ !-/:-@\[-`{-~]")
_ASCII_PUNCTUATION = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")


@dataclass(frozen=True)
class Levels:
    """A SuperBPE tokenizer in two parts."""

    words: dict[str, Any]
    """Content of a `tokenizer.json`: the first level, without added tokens; its ids are those of the whole."""
    merges: tuple[Merge, ...]
    """What makes superwords, in the order of their rank."""


class JoinRule:
    """Which tokens of a vocabulary may stand side by side in a superword; tokens are given by id."""

    def __init__(self, tokens: Sequence[str]) -> None:
        """`tokens`: the vocabulary as `tokenizer.json` spells it. What letters and digits are is asked of the library that splits text."""
        texts = [_text(token) for token in tokens]
        characters = "".join(sorted({character for text in texts for character in text[:2] + text[-1:]}))
        letters = _matching(r"\p{L}", characters)
        broken = _matching(r"[\s\p{N}]", characters)
        self._opens_with_space = np.array([text[:1] == " " and text[1:2] not in {"", *broken} for text in texts], np.bool_)
        self._opens_with_mark = np.array([text[:1] in _ASCII_PUNCTUATION for text in texts], np.bool_)
        self._ends_open = np.array([text[-1:] not in {"", ":", *broken} for text in texts], np.bool_)
        self._ends_with_letter = np.array([text[-1:] in letters for text in texts], np.bool_)

    def joins(self, left: NDArray[np.uint32], right: NDArray[np.uint32]) -> NDArray[np.bool_]:
        """For each pair of neighbours: whether they may be in one superword."""
        by_space = self._opens_with_space[right] & self._ends_open[left]
        return by_space | (self._opens_with_mark[right] & self._ends_with_letter[left])


def split_levels(content: Mapping[str, Any]) -> Levels:
    """The levels of the content of a `tokenizer.json`. Raises ValueError if it is no SuperBPE tokenizer of this form."""
    if content["pre_tokenizer"] != split_pipeline(SUPERWORD_PATTERN):
        raise ValueError("it does not split text as SuperBPE does")
    vocabulary: dict[str, int] = content["model"]["vocab"]
    pairs: list[Sequence[str]] = content["model"]["merges"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise ValueError("its ids have gaps")
    sides = np.array([(vocabulary[left], vocabulary[right]) for left, right in pairs], np.uint32).reshape(-1, 2)
    joined = JoinRule(tokens).joins(sides[:, 0], sides[:, 1])
    word_merges = int(joined.argmax()) if joined.any() else len(pairs)
    merges = [Merge(vocabulary[left], vocabulary[right], vocabulary[left + right]) for left, right in pairs[word_merges:]]
    words = min((merge.merged for merge in merges), default=len(tokens))
    if not joined[word_merges:].all() or any(vocabulary[left + right] >= words for left, right in pairs[:word_merges]):
        raise ValueError("its superwords do not come after all of its words")
    if any(is_unsafe(token) for token in tokens[:words]):
        raise ValueError("a token begins inside a character")
    return Levels(word_level(content, tokens[:words], pairs[:word_merges]), tuple(merges))


def word_level(content: Mapping[str, Any], tokens: Sequence[str], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    """The content of a `tokenizer.json` with this vocabulary, in the order of the ids, and `SPLIT_PATTERN`; without added tokens."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    model = {**content["model"], "vocab": vocabulary, "merges": [list(merge) for merge in merges]}
    return {**content, "added_tokens": [], "post_processor": None, "pre_tokenizer": split_pipeline(SPLIT_PATTERN), "model": model}


def is_unsafe(token: str) -> bool:
    """Whether a token begins inside a character and goes on with what may open the right side of a join."""
    return _BEGINS_INSIDE_A_CHARACTER.match(_bytes(token)) is not None


def _text(token: str) -> str:
    """What a token spells; nothing if that is no whole text."""
    try:
        return _bytes(token).decode("utf-8")
    except UnicodeDecodeError:
        return ""


def _bytes(token: str) -> bytes:
    values = _byte_values()
    return bytes(values[character] for character in token)


@functools.cache
def _byte_values() -> dict[str, int]:
    return {character: value for value, character in enumerate(byte_alphabet())}


def _matching(pattern: str, characters: str) -> frozenset[str]:
    """The characters that match a pattern of one character, by the regular expressions of `tokenizers`."""
    kept = pre_tokenizers.Split(tokenizers.Regex(pattern), "removed").pre_tokenize_str(characters)
    return frozenset(characters) - frozenset("".join(piece for piece, _ in kept))
