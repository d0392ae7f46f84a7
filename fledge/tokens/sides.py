"""Which documents are packed for which side, and in which order: the corpus's own split, one by content, or one by token budgets.

Sides by content are a pure function of the text's SHA-256 and the seed: the same for every order, tokenizer and machine, and exact
copies always fall on one side. (The corpus's own split keeps near copies together too, which no function of one text can.)

A budget of t training and v validation tokens holds out v / (t + v) of the documents, so that both sides fill at the same pace.
Each source gives its share of the bytes of the corpus and is read from its beginning until it has given that; the document that
reaches the share is the last. So a side never depends on the order, what is taken of it does, and nothing has to be counted in a pass
before.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from fledge.core import console
from fledge.corpus.document import Document, Split
from fledge.corpus.split import Splitter

SHUFFLE_BLOCK_DOCUMENTS = 16_384
SHUFFLE_BLOCK_CHARACTERS = 64 << 20


def sides_by_content(documents: Iterable[Document], validation_fraction: float, seed: int) -> Iterator[tuple[Split, Document]]:
    """Each document with its side."""
    splitter = Splitter(validation_fraction, seed)
    for document in documents:
        yield splitter.side(hashlib.sha256(document.text.encode("utf-8", "surrogatepass")).hexdigest()), document


def shuffled_in_blocks(documents: Iterable[tuple[Split, Document]], seed: int) -> Iterator[tuple[Split, Document]]:
    """The documents in an order drawn by the seed, each within a block of 16,384 documents or 64 million characters.

    That is what is held in memory. It takes neighbours of the corpus apart; over the whole split it is the plan of training that
    permutes rows.
    """
    for number, block in enumerate(_blocks(documents)):
        random.Random(f"{seed}-{number}").shuffle(block)
        yield from block


def _blocks(documents: Iterable[tuple[Split, Document]]) -> Iterator[list[tuple[Split, Document]]]:
    block: list[tuple[Split, Document]] = []
    characters = 0
    for item in documents:
        block.append(item)
        characters += len(item[1].text)
        if len(block) == SHUFFLE_BLOCK_DOCUMENTS or characters >= SHUFFLE_BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    yield block


class Budgets:
    """How many tokens each source may still give to each side."""

    def __init__(self, tokens: Mapping[Split, int], source_bytes: Mapping[str, int]) -> None:
        self._asked = dict(tokens)
        total_bytes = sum(source_bytes.values())
        self._left = {
            (split, source): round(count * size_bytes / total_bytes)
            for split, count in tokens.items()
            for source, size_bytes in source_bytes.items()
        }

    @property
    def spent(self) -> bool:
        """Whether nobody has room any more."""
        return all(left <= 0 for left in self._left.values())

    def left(self, split: Split, source: str) -> int:
        """Tokens for which there is still room."""
        return max(0, self._left[split, source])

    def take(self, split: Split, source: str, lengths: NDArray[np.int64]) -> int:
        """(documents,) tokens of each -> how many of them, from the first, are taken: up to the one that fills the room."""
        before = np.cumsum(lengths) - lengths
        taken = int(np.searchsorted(before, self.left(split, source)))
        self._left[split, source] -= int(lengths[:taken].sum())
        return taken

    def warn_of_gaps(self, packed_tokens: Mapping[Split, int]) -> None:
        """Say which side the corpus was too small for."""
        for split, asked in self._asked.items():
            if packed_tokens[split] < 0.99 * asked:
                console.warn(
                    f"the corpus gave {packed_tokens[split]:,} of the {asked:,} {split} tokens asked for (pack.split.{split}_tokens)"
                )
