"""What is counted while a split is packed, the same for documents, conversations and preferences, and what is said of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledge.core import console
from fledge.core.errors import DataError
from fledge.corpus.document import Content, Split
from fledge.tokens.shard_format import ShardMeta


class DocumentHashes:
    """What the token ids of every packed document hash to, by split; 8 bytes of memory a document, about 100 a conversation or pair.

    The hash is Python's own of bytes, SipHash with 64 bits and a key of this process: nobody can provoke a collision, and it takes a
    third of SHA-256's time. It is compared here and never stored.
    """

    def __init__(self) -> None:
        self._hashes: dict[Split, list[NDArray[np.int64]]] = {"train": [], "validation": []}
        self._was_truncated: dict[int, bool] = {}

    def add(self, split: Split, contents: Iterable[bytes]) -> None:
        """The ids of the next documents of a split, as bytes."""
        self._hashes[split].append(np.fromiter(map(hash, contents), np.int64))

    def repeats(self, content: bytes, truncated: bool) -> bool:
        """Whether the ids of a row's member are those of one before, of either split, because one of the two was `truncated`; notes it."""
        number = hash(content)
        known = self._was_truncated.get(number)
        self._was_truncated[number] = truncated or bool(known)
        return known is not None and (truncated or known)

    def duplicate_share(self, split: Split) -> float:
        """Share of the documents of a split that are token by token one that came before."""
        count = sum(map(len, self._hashes[split]))
        return 1 - len(self._distinct(split)) / count if count else 0.0

    def require_disjoint(self, content: Content, allowed: bool) -> None:
        """Raises DataError if the splits share a document; if that is `allowed`, only warns."""
        shared = len(np.intersect1d(self._distinct("train"), self._distinct("validation"), assume_unique=True))
        if not shared:
            return
        problem = f"{shared:,} {content} of the validation split are also in the training split, token by token"
        if not allowed:
            raise DataError(
                problem, "remove duplicates (corpus.deduplicate), split by content (pack.split), or set pack.allow_shared_documents=true"
            )
        console.warn(f"{problem}: losses on it look better than they are")

    def _distinct(self, split: Split) -> NDArray[np.int64]:
        found = self._hashes[split]
        return np.unique(np.concatenate(found)) if found else np.empty(0, np.int64)


@dataclass
class PackingFigures:
    """The figures of one split."""

    content: Content
    split: Split
    row_tokens: int | None = None
    hashes: DocumentHashes = field(default_factory=DocumentHashes)
    documents: int = 0
    """A pair counts once, and so does a document that was cut."""
    text_bytes: int = 0
    segment_tokens: int = 0
    supervised_tokens: int = 0
    cut_documents: int = 0
    dropped_too_long: int = 0
    truncated: int = 0
    """Conversations and pairs that lost exchanges to fit."""
    truncated_duplicates: int = 0
    """Left out, because truncation made them equal to others."""
    longest_tokens: int = 0

    def require_some(self) -> None:
        """Say what was left out. Raises DataError if nothing remains to train on."""
        dropped, given = self.dropped_too_long, self.dropped_too_long + self.documents
        if self.split == "train" and not self.documents:
            if not given:
                raise DataError(f"there are no {self.content} to pack", "add a source of them to corpus.sources")
            raise DataError(
                f"none of the {given:,} {self.content} to train on fits into a row of {self.row_tokens} tokens "
                f"(the longest has {self.longest_tokens:,})",
                "raise pack.sequence_length",
            )
        if dropped:
            console.warn(
                f"{dropped:,} of {given:,} {self.content} ({self.split}) are longer than a row of {self.row_tokens} tokens "
                f"(the longest has {self.longest_tokens:,}) and are left out; pack.long_turns=truncate keeps exchanges that fit"
            )

    def told(self, shards: Sequence[ShardMeta]) -> dict[str, Any]:
        """The figures as they stand in the manifest."""
        tokens = sum(shard.tokens for shard in shards)
        return {
            "documents": self.documents,
            "tokens": tokens,
            "text_bytes": self.text_bytes,
            "supervised_tokens": self.supervised_tokens,
            "padding_share": 1 - self.segment_tokens / tokens if tokens else 0.0,
            "cut_documents": self.cut_documents,
            "dropped_too_long": self.dropped_too_long,
            "truncated": self.truncated,
            "truncated_duplicates": self.truncated_duplicates,
            "duplicate_share": self.hashes.duplicate_share(self.split),
            "tokens_by_source": {shard.source: shard.tokens for shard in shards},
        }
