"""Encoders: text in, flat arrays of token ids out. The reference defines the ids; any other engine must give the same ones.

An engine is made from the body of a tokenizer: the content of `tokenizer.json` without its added tokens, so that no text can
become a control token whatever the library does with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from fledge.core.errors import DataError


@dataclass(frozen=True)
class Encoded:
    """Ids of several texts, of text t those from offsets[t] to offsets[t + 1]."""

    ids: NDArray[np.uint32]
    """(tokens,) of all texts, one behind the other."""
    offsets: NDArray[np.int64]
    """(texts + 1,)"""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, text: int) -> NDArray[np.uint32]:
        """The ids of one text."""
        return self.ids[self.offsets[text] : self.offsets[text + 1]]


class Engine(Protocol):
    """Encodes texts."""

    name: str

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        """The ids of every text. Raises DataError for text that is not valid Unicode."""


class ReferenceEngine:
    """Hugging Face tokenizers: what `transformers` encodes with, and so the definition of the ids."""

    name = "tokenizers"

    def __init__(self, body: tokenizers.Tokenizer) -> None:
        self._body = body

    def encode_batch(self, texts: Sequence[str]) -> Encoded:
        try:
            encodings = self._body.encode_batch_fast(texts, add_special_tokens=False)
        except TypeError as error:
            raise not_unicode(texts) from error
        ids = [encoding.ids for encoding in encodings]
        offsets = offsets_of(np.fromiter(map(len, ids), np.int64, len(ids)))
        return Encoded(np.fromiter((token for one in ids for token in one), np.uint32, int(offsets[-1])), offsets)


def joined(rows: Sequence[NDArray[np.uint32]]) -> Encoded:
    """The ids of several texts as one."""
    return Encoded(np.concatenate([np.empty(0, np.uint32), *rows]), offsets_of(np.array([len(row) for row in rows], np.int64)))


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """(texts + 1,) where each text begins, and the last ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def not_unicode(texts: Sequence[str]) -> DataError:
    """Python strings may hold half of a UTF-16 pair, which no UTF-8 file can."""
    for place, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            return DataError(
                f"text {place} is not valid Unicode: a lone surrogate at character {error.start}",
                "read the text as UTF-8, or replace what is invalid",
            )
    return DataError("only strings can be encoded", "hand over texts")
