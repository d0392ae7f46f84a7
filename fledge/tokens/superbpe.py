"""Learns superwords on top of a byte-level BPE, with stock libraries; the result is one ordinary `tokenizer.json`.

SuperBPE (Liu et al. 2025, arXiv 2503.13423) learns merges within words up to a transition, then merges that cross white space. Their
trainer is a fork of Hugging Face tokenizers. Here the second stage is the stock trainer on another alphabet:

    1. The first merges of a full training are the first stage: BPE adds merges one by one, so one training serves all transitions.
    2. The text becomes ids of the first stage, cut into chains where no superword may span (`levels.JoinRule`); each id is written
       as one character, a chain is a word, and the trainer learns merges of such characters, at most four long.
    3. Both lists of merges go into one vocabulary, with the split pattern that leaves chains whole.

The trainer keeps every different chain: about 25 bytes of memory per byte of text. Chains are therefore also cut between two ids that
stand together less often than the rarest superword will, where no merge of the result can reach. The bound is guessed, and lowered
until the vocabulary is full; what is learned is the same to the last merge. 100 MB of documentation and code then take 19 CPU seconds
and 1 GB besides the text itself (20 MB: 0.3 GB instead of 0.5).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers, trainers

from fledge.core import console
from fledge.core.errors import DataError
from fledge.tokens.byte_level import SUPERWORD_PATTERN, split_pipeline
from fledge.tokens.engines import Encoded, choose_engine
from fledge.tokens.levels import JoinRule, is_unsafe, word_level
from fledge.tokens.settings import BYTE_TOKENS

LONGEST_SUPERWORD_WORDS = 4
"""Tokens of the first stage in a superword. The paper allows four words; a word is one token or more."""

_MINIMUM_FREQUENCY = 2
_FIRST_CHARACTER = 0x10000
"""Ids are written from here on, clear of surrogates and of the separator."""
_SEPARATOR = " "
_BATCH_TEXTS = 1_024
_BLOCK_IDS = 1 << 20


@dataclass(frozen=True)
class _Chains:
    """Text as ids of the first stage."""

    ids: NDArray[np.uint32]
    """(N,)"""
    frequencies: NDArray[np.int64]
    """(N - 1,) how often id n and the next stand together, of all places where a superword may span them; 0 where it may not."""
    pair_counts: NDArray[np.int64]
    """The same of each pair once, the most frequent first."""


def train_superwords(
    content: Mapping[str, Any],
    transition_tokens: int,
    vocabulary_size: int,
    texts: Iterable[str],
) -> dict[str, Any]:
    """The content of a SuperBPE `tokenizer.json`, from that of a byte-level BPE trained to at least `transition_tokens` tokens.

    `vocabulary_size` counts everything, the added tokens of `content` too, which move to the top of the new vocabulary; text that has
    fewer superwords makes a smaller one. The texts are held
    in memory, with ten times as much beside them. Raises DataError without text.
    """
    tokens, merges = _first_stage(content, transition_tokens)
    chains = _read_chains(word_level(content, tokens, merges), tokens, list(texts))
    wanted = vocabulary_size - len(content["added_tokens"]) - len(tokens)
    superwords = _learn(chains, len(tokens), wanted)
    vocabulary = {token: number for number, token in enumerate(tokens)}
    for left, right in superwords:
        sides = ["".join(tokens[number] for number in side) for side in (left, right)]
        merges.append(sides)
        vocabulary.setdefault("".join(sides), len(vocabulary))
    added = sorted(content["added_tokens"], key=lambda token: int(token["id"]))
    return {
        **content,
        "added_tokens": [{**token, "id": len(vocabulary) + place} for place, token in enumerate(added)],
        "pre_tokenizer": split_pipeline(SUPERWORD_PATTERN),
        "model": {**content["model"], "vocab": vocabulary, "merges": merges},
    }


def _first_stage(content: Mapping[str, Any], count: int) -> tuple[list[str], list[list[str]]]:
    """The first `count` tokens in the order of their ids, and their merges, without those that joins would break (see `levels.py`)."""
    vocabulary: dict[str, int] = content["model"]["vocab"]
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)[:BYTE_TOKENS]
    kept, merges = set(tokens), []
    for left, right in content["model"]["merges"]:
        if len(tokens) == count:
            break
        if left in kept and right in kept and not is_unsafe(left + right):
            tokens.append(left + right)
            kept.add(left + right)
            merges.append([left, right])
    return tokens, merges


def _read_chains(words: Mapping[str, Any], tokens: Sequence[str], texts: Sequence[str]) -> _Chains:
    if not texts:
        raise DataError("there is no text to learn superwords from", "add documents to corpus.sources")
    engine = choose_engine(words, [], texts).engine
    rule = JoinRule(tokens)
    ids, joins = [], []
    with console.progress("read text for superwords", len(texts), "documents") as progress:
        for start in range(0, len(texts), _BATCH_TEXTS):
            encoded = engine.encode_batch(texts[start : start + _BATCH_TEXTS])
            ids.append(encoded.ids)
            joins.append(_joins(rule, encoded))
            progress.advance(len(encoded))
    return _chains(np.concatenate(ids), np.concatenate(joins)[:-1])


def _joins(rule: JoinRule, encoded: Encoded) -> NDArray[np.bool_]:
    """(N,) whether an id joins the one behind it; never across the end of a text."""
    joins = np.zeros(len(encoded.ids), np.bool_)
    joins[:-1] = rule.joins(encoded.ids[:-1], encoded.ids[1:])
    ends = encoded.offsets[1:][np.diff(encoded.offsets) > 0]
    joins[ends - 1] = False
    return joins


def _chains(ids: NDArray[np.uint32], joins: NDArray[np.bool_]) -> _Chains:
    keys = ids[:-1][joins].astype(np.uint64) << np.uint64(32) | ids[1:][joins]
    _, places, counts = np.unique(keys, return_inverse=True, return_counts=True)
    frequencies = np.zeros(len(joins), np.int64)
    frequencies[joins] = counts[places]
    return _Chains(ids, frequencies, np.sort(counts)[::-1])


def _learn(chains: _Chains, words: int, wanted: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """At most `wanted` superwords: the merges of two runs of ids each, in the order of their rank."""
    bound = _first_bound(chains.pair_counts, wanted)
    while True:
        merges = _train(chains, words, wanted, bound)
        if bound == _MINIMUM_FREQUENCY or len({left + right for left, right in merges}) >= wanted:
            return merges
        bound = max(bound // 2, _MINIMUM_FREQUENCY)


def _first_bound(pair_counts: NDArray[np.int64], wanted: int) -> int:
    """The count of the pair at twice the rank that is wanted, which was below the rarest superword in every case tried."""
    place = 2 * wanted
    return max(int(pair_counts[place]) if place < len(pair_counts) else 0, _MINIMUM_FREQUENCY)


def _train(chains: _Chains, words: int, wanted: int, bound: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """What the stock trainer learns from the chains, cut between ids that stand together less often than `bound`."""
    learner = tokenizers.Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(_SEPARATOR, "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=words + wanted,
        min_frequency=bound,
        # In the order of their ids, as the trainer sorts them too.
        initial_alphabet=[chr(_FIRST_CHARACTER + number) for number in range(words)],
        # The trainer compares with "less than".
        max_token_length=LONGEST_SUPERWORD_WORDS + 1,
        show_progress=False,
    )
    learner.train_from_iterator(_spelled(chains, bound), trainer)
    merges = json.loads(learner.to_str())["model"]["merges"]
    return [(_ids(left), _ids(right)) for left, right in merges]


def _spelled(chains: _Chains, bound: int) -> Iterator[str]:
    """The chains of two ids and more, an id as a character, with a separator between chains."""
    joined = chains.frequencies >= bound
    ends = np.append(np.flatnonzero(~joined), len(joined))
    start = 0
    while start < len(chains.ids):
        block_end = min(int(np.searchsorted(ends, start + _BLOCK_IDS)), len(ends) - 1)
        stop = int(ends[block_end]) + 1
        with_next = np.append(joined[start : stop - 1], False)
        with_previous = np.append(False, with_next[:-1])
        inside = with_next | with_previous
        first = ~with_previous[inside]
        spelled = np.full(len(first) + int(first.sum()), ord(_SEPARATOR), np.uint32)
        spelled[np.arange(len(first)) + np.cumsum(first)] = chains.ids[start:stop][inside] + np.uint32(_FIRST_CHARACTER)
        yield spelled.astype("<u4").tobytes().decode("utf-32-le")
        start = stop


def _ids(characters: str) -> tuple[int, ...]:
    return tuple(ord(character) - _FIRST_CHARACTER for character in characters)
