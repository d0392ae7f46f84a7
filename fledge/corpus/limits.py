"""How much of a source is taken: rows, bytes of text, or an estimate of tokens, from its beginning."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from fledge.corpus.document import Document, Row
from fledge.corpus.sources.settings import AnySource

BYTES_PER_TOKEN = 4
"""Of UTF-8, for estimates before there is a tokenizer: byte-level BPE of 32,000 entries has about 4 on English text."""

AnyRow = TypeVar("AnyRow", bound=Row)


@dataclass(frozen=True)
class Limits:
    """What is still to be taken; None is without end."""

    documents: int | None = None
    utf8_bytes: int | None = None

    @property
    def exhausted(self) -> bool:
        """Whether nothing more is to be taken."""
        return any(left is not None and left <= 0 for left in (self.documents, self.utf8_bytes))

    @property
    def endless(self) -> bool:
        """Whether everything is to be taken."""
        return self.documents is None and self.utf8_bytes is None

    def after(self, documents: int, utf8_bytes: int) -> Limits:
        """What is left when so much has been taken."""
        return Limits(
            None if self.documents is None else self.documents - documents,
            None if self.utf8_bytes is None else self.utf8_bytes - utf8_bytes,
        )

    def take(self, rows: Iterable[AnyRow]) -> Iterator[AnyRow]:
        """The rows up to the limits; that with which a limit on bytes is reached is the last."""
        if self.endless:
            yield from rows
        elif not self.exhausted:
            yield from self._take(rows)

    def _take(self, rows: Iterable[AnyRow]) -> Iterator[AnyRow]:
        left = self
        for row in rows:
            yield row
            size_bytes = len(row.text.encode("utf-8")) if isinstance(row, Document) and left.utf8_bytes is not None else 0
            left = left.after(1, size_bytes)
            if left.exhausted:
                return


def limits_of(source: AnySource) -> Limits:
    """The limits a source sets."""
    token_bytes = source.maximum_tokens_estimate and source.maximum_tokens_estimate * BYTES_PER_TOKEN
    sizes = [size for size in (source.maximum_bytes, token_bytes) if size is not None]
    return Limits(source.maximum_documents, min(sizes, default=None))
