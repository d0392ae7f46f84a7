"""The text a tokenizer learns from: documents chosen by their hash, so many bytes of each source as its share says.

The choice does not depend on the order of the documents, on the number of files, or on chance, and it needs no memory: the corpus is read
once to count, and once more for each pass of the training. A document is in if the hash of its id lies below the share of its source
that is wanted, so a sample of twice the size holds the smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from fledge.core import console
from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.tokens.settings import DEFAULT_MAXIMUM_BYTES, TokenizerKind, TokenizerSettings

MEMORY_PER_TEXT_BYTE: dict[TokenizerKind, float] = {"byte_bpe": 4.2, "superbpe": 12, "sentencepiece_bpe": 7.8, "unigram": 21}
"""Bytes of memory that training takes for each byte of text; measured with 118.7 MB (superbpe: with 100 MB)."""

_HASHES = 1 << 64


@dataclass(frozen=True)
class TrainingText:
    """The chosen documents; every iteration gives them again, in the order of the corpus."""

    read: Callable[[], Iterable[Document]]
    fractions: Mapping[str, float]
    """How much of each source is taken, 0 to 1."""
    available_bytes: Mapping[str, int]
    """Bytes of UTF-8 that each source has."""

    taken_bytes: dict[str, int] = field(default_factory=dict)
    """Bytes of each source in the last iteration that came to its end."""

    def __iter__(self) -> Iterator[str]:
        taken = dict.fromkeys(self.fractions, 0)
        for document in self.read():
            fraction = self.fractions.get(document.source, 0.0)
            if fraction >= 1 or _place(document) < fraction * _HASHES:
                taken[document.source] += len(document.text.encode("utf-8"))
                yield document.text
        self.taken_bytes.update(taken)

    @property
    def expected_bytes(self) -> int:
        """About how many bytes that gives."""
        return round(sum(fraction * self.available_bytes[source] for source, fraction in self.fractions.items()))

    def figures(self) -> dict[str, Any]:
        """For the figures of a training that is over: what there was, and the realised share of each source in the bytes."""
        total = max(1, sum(self.taken_bytes.values()))
        shares = {name: size / total for name, size in self.taken_bytes.items()}
        return {"available_bytes": sum(self.available_bytes.values()), "source_shares": shares}


def choose_text(read: Callable[[], Iterable[Document]], settings: TokenizerSettings) -> TrainingText:
    """Choose what to train on, and say how much that is and how much memory it takes.

    Raises DataError if `settings.sources` names a source that the documents have not.
    """
    available: dict[str, int] = {}
    for document in read():
        available[document.source] = available.get(document.source, 0) + len(document.text.encode("utf-8"))
    unknown = next((name for name in settings.sources if not available.get(name)), None)
    if unknown is not None:
        raise DataError(
            f"tokenizer.sources names {unknown!r}, and no document is of this source",
            f"there are: {', '.join(sorted(available)) or 'none'}",
        )
    maximum = settings.maximum_bytes or DEFAULT_MAXIMUM_BYTES[settings.kind]
    chosen = TrainingText(read, _fractions(available, settings.sources, maximum), available)
    total, expected = sum(available.values()), chosen.expected_bytes
    memory = console.format_bytes(round(MEMORY_PER_TEXT_BYTE[settings.kind] * expected))
    console.info(
        f"tokenizer: trains on {console.format_bytes(expected)} of {console.format_bytes(total)}, with up to {memory} of memory"
        + ("" if expected >= total else f" (tokenizer.maximum_bytes is {maximum:,})" if not settings.sources else "")
    )
    return chosen


def _fractions(available: Mapping[str, int], shares: Mapping[str, float], maximum: int) -> dict[str, float]:
    """How much of each source to take, so that shares hold and `maximum` is not exceeded; as much as the scarcest source allows."""
    if not shares:
        fraction = min(1.0, maximum / max(1, sum(available.values())))
        return dict.fromkeys(available, fraction)
    total = sum(shares.values())
    budget = min(maximum, *(available[name] * total / share for name, share in shares.items()))
    return {name: min(1.0, budget * share / total / available[name]) for name, share in shares.items()}


def _place(document: Document) -> int:
    """A number from 0 to 2^64 that only the document decides."""
    digest = hashlib.blake2b(f"{document.source}\x00{document.id}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
