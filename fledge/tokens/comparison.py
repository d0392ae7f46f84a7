"""Tokenizers side by side on the same text: how much text a token holds, how much of the vocabulary is used, how fast text is encoded.

Reads nothing and writes nothing: `fledge tokenizer --compare` brings the tokenizers and the texts. Tokens are those of the texts alone,
without the ids around documents, so that tokenizers with one and with two of them compare. Characters are Unicode code points, bytes
are UTF-8.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fledge.core.errors import DataError
from fledge.tokens.packing import in_batches
from fledge.tokens.tokenizer import Tokenizer

LONGEST_TOKENS = 10
_SHOWN_CHARACTERS = 24
_WARM_UP_TEXT = "The first call of an engine loads or compiles."


@dataclass(frozen=True)
class Compression:
    """Some text and its tokens."""

    characters: int
    text_bytes: int
    tokens: int

    @property
    def characters_per_token(self) -> float:
        return self.characters / self.tokens

    @property
    def bytes_per_token(self) -> float:
        return self.text_bytes / self.tokens

    def tokens_saved(self, other: Compression) -> float:
        """Share of the other's tokens that the same text does not need here; negative if it needs more."""
        assert (self.characters, self.text_bytes) == (other.characters, other.text_bytes), "only the same text compares"
        return 1 - self.tokens / other.tokens

    def as_json(self) -> dict[str, Any]:
        return {
            "characters": self.characters,
            "text_bytes": self.text_bytes,
            "tokens": self.tokens,
            "characters_per_token": self.characters_per_token,
            "bytes_per_token": self.bytes_per_token,
        }


@dataclass(frozen=True)
class TokenizerFigures:
    """One tokenizer on all of the text."""

    name: str
    sha256: str
    vocabulary_size: int
    engine: str
    sources: Mapping[str, Compression]
    total: Compression
    used_ids: int
    """Different ids that occur in the text."""
    usable_ids: int
    """The vocabulary without control tokens, which no text becomes."""
    longest_tokens: tuple[str, ...]
    """Of the vocabulary, most bytes first, as `printable` writes them."""
    encode_cpu_seconds: float

    @property
    def vocabulary_use(self) -> float:
        """Share of the ids that occur in the text, 0 to 1."""
        return self.used_ids / self.usable_ids

    @property
    def megabytes_per_cpu_second(self) -> float:
        """Megabytes (1e6 bytes) of text encoded in a second of one core, all threads counted."""
        return self.total.text_bytes / 1e6 / self.encode_cpu_seconds

    def as_json(self, first: TokenizerFigures) -> dict[str, Any]:
        """All figures; tokens are saved against `first`."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "vocabulary_size": self.vocabulary_size,
            "engine": self.engine,
            "megabytes_per_cpu_second": self.megabytes_per_cpu_second,
            "vocabulary_use": self.vocabulary_use,
            "used_ids": self.used_ids,
            "total": {**self.total.as_json(), "tokens_saved": self.total.tokens_saved(first.total)},
            "sources": {
                source: {**figures.as_json(), "tokens_saved": figures.tokens_saved(first.sources[source])}
                for source, figures in self.sources.items()
            },
            "longest_tokens": list(self.longest_tokens),
        }


def measure(name: str, tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> TokenizerFigures:
    """Encode the texts of every source. Raises DataError if a source has no text, or if it is not valid Unicode."""
    tokenizer.encode_arrays([_WARM_UP_TEXT])
    used = np.zeros(tokenizer.vocabulary_size, np.bool_)
    sources: dict[str, Compression] = {}
    cpu_seconds = 0.0
    for source, given in texts.items():
        tokens = 0
        for batch in in_batches(given):
            started = time.process_time()
            ids = tokenizer.encode_arrays(batch).ids
            cpu_seconds += time.process_time() - started
            used[ids] = True
            tokens += len(ids)
        if tokens == 0:
            raise DataError(f"the source {source} holds no text to compare on", "name files with text in them")
        sources[source] = Compression(sum(map(len, given)), sum(len(text.encode("utf-8")) for text in given), tokens)
    return TokenizerFigures(
        name,
        tokenizer.sha256,
        tokenizer.vocabulary_size,
        tokenizer.engine_name,
        sources,
        _sum(list(sources.values())),
        int(used.sum()),
        tokenizer.vocabulary_size - len(tokenizer.specials),
        tuple(_longest(tokenizer)),
        # The clock has steps; a text too small for them must not give an infinite speed.
        max(cpu_seconds, 1e-6),
    )


def printable(content: bytes) -> str:
    """Bytes for people, in quotes: what is no whole character, and what cannot be seen, as escapes (`\\xe2`, `\\n`).

    Four or more of one character are told by their number, as `' ' x 12`; of other long text the beginning, as `'+---...' (93 bytes)`.
    """
    text = content.decode("utf-8", "backslashreplace")
    if len(text) > 3 and len(set(text)) == 1:
        return f"'{_escaped(text[0])}' x {len(text)}"
    shown = _escaped(text)
    return f"'{shown}'" if len(shown) <= _SHOWN_CHARACTERS else f"'{shown[:_SHOWN_CHARACTERS]}...' ({len(content)} bytes)"


def _escaped(text: str) -> str:
    return "".join(piece if piece.isprintable() else piece.encode("unicode_escape").decode("ascii") for piece in text)


def _longest(tokenizer: Tokenizer) -> Iterator[str]:
    """Equal lengths in the order of the ids."""
    lengths = tokenizer.byte_lengths
    for token in np.argsort(-lengths, kind="stable")[:LONGEST_TOKENS]:
        yield printable(tokenizer.token_bytes(int(token)))


def _sum(parts: Sequence[Compression]) -> Compression:
    return Compression(sum(part.characters for part in parts), sum(part.text_bytes for part in parts), sum(part.tokens for part in parts))
