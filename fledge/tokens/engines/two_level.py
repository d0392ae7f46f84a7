"""SuperBPE in two levels: words by the fastest engine for plain byte-level BPE, superwords from their ids by our own kernel.

Libraries take the chains of `SUPERWORD_PATTERN` for single words, which makes tiktoken three times as slow, and gigatoken does not know
the pattern at all. In two levels they keep their speed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fledge.corpus.engine.pool import available_cores
from fledge.tokens.engines.reference import Encoded, Engine
from fledge.tokens.levels import split_levels
from fledge.tokens.superwords import SuperwordMerger


class TwoLevelEngine:
    """Another engine for the first level, `SuperwordMerger` for the second."""

    def __init__(self, body: Mapping[str, Any], make_word_engine: Callable[[Mapping[str, Any]], Engine]) -> None:
        """Raises ValueError if the tokenizer has no second level, and what `make_word_engine` raises."""
        levels = split_levels(body)
        self._words = make_word_engine(levels.words)
        self._merger = SuperwordMerger(levels.merges, words=len(levels.words["model"]["vocab"]))
        self.name = f"{self._words.name}, superwords"

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        words = self._words.encode_batch(texts)
        return Encoded(*self._merger.merge(words.ids, words.offsets, available_cores()))
