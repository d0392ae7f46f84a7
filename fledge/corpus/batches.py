"""Documents flow in batches of about 4 MB: columns of Arrow, so that a document costs no Python object where nothing looks at it alone.

Larger batches leave the processor's caches and are 10 % slower. Readers that make one row at a time are gathered here, and so are
the small batches of small files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fledge.corpus.document import Document

BATCH_BYTES = 4_000_000
BATCH_DOCUMENTS = 50_000


@dataclass(frozen=True)
class Origins:
    """Where the documents of a batch come from."""

    ids: pa.StringArray
    sources: pa.StringArray
    groups: pa.StringArray
    """"" where the source names none."""

    @classmethod
    def of_source(cls, source: str, ids: Sequence[str]) -> Origins:
        """Those of documents of one source that names no groups."""
        return cls(as_strings(ids), as_strings([source] * len(ids)), as_strings([""] * len(ids)))

    def __len__(self) -> int:
        return len(self.ids)

    def chosen(self, keep: NDArray[np.bool_]) -> Origins:
        """Those of the documents that stay."""
        if keep.all():
            return self
        mask = pa.array(keep)
        return Origins(self.ids.filter(mask), self.sources.filter(mask), self.groups.filter(mask))


@dataclass(frozen=True)
class DocumentBatch:
    """Texts and their origins, one after another."""

    texts: pa.LargeStringArray
    origins: Origins

    @classmethod
    def of(cls, documents: Sequence[Document]) -> DocumentBatch:
        """The documents as columns."""
        columns = ([getattr(document, name) for document in documents] for name in ("id", "source", "group"))
        texts = pa.array([document.text for document in documents], pa.large_string())
        return cls(texts, Origins(*(pa.array(column, pa.string()) for column in columns)))

    @classmethod
    def joined(cls, batches: Sequence[DocumentBatch]) -> DocumentBatch:
        """Batches one after another; a single one is not copied."""
        if len(batches) == 1:
            return batches[0]
        origins = [batch.origins for batch in batches]
        columns = ([getattr(origin, name) for origin in origins] for name in ("ids", "sources", "groups"))
        return cls(pa.concat_arrays([batch.texts for batch in batches]), Origins(*map(pa.concat_arrays, columns)))

    def __len__(self) -> int:
        return len(self.texts)

    def merged(self, places: NDArray[np.int64], other: DocumentBatch, other_places: NDArray[np.int64]) -> DocumentBatch:
        """The documents of two batches in the order of their places."""
        order = pa.array(np.argsort(np.concatenate([places, other_places])))
        both = DocumentBatch.joined([self, other])
        origins = (column.take(order) for column in (both.origins.ids, both.origins.sources, both.origins.groups))
        return DocumentBatch(both.texts.take(order), Origins(*origins))

    def slice(self, start: int, documents: int) -> DocumentBatch:
        """Some of the documents, without a copy."""
        ids, sources, groups = (column.slice(start, documents) for column in (self.origins.ids, self.origins.sources, self.origins.groups))
        return DocumentBatch(self.texts.slice(start, documents), Origins(ids, sources, groups))

    def document(self, position: int, text: str) -> Document:
        """One of the documents, with the text it has by now."""
        origins = (column[position].as_py() for column in (self.origins.ids, self.origins.sources, self.origins.groups))
        return Document(text, *origins)

    @property
    def utf8_bytes(self) -> int:
        """Of all texts."""
        offsets = np.frombuffer(self.texts.buffers()[1], np.int64)
        return int(offsets[self.texts.offset + len(self)] - offsets[self.texts.offset]) if len(self) else 0


def as_strings(values: Sequence[str]) -> pa.StringArray:
    """What pa.array returns, which looks for pandas at every call: where that is not installed, half a millisecond."""
    encoded = [value.encode("utf-8") for value in values]
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in encoded], out=offsets[1:])
    return pa.StringArray.from_buffers(len(values), pa.py_buffer(offsets), pa.py_buffer(b"".join(encoded)))


def batches_of(documents: Iterable[Document]) -> Iterator[DocumentBatch]:
    """Batches of consecutive documents, of up to BATCH_DOCUMENTS or as soon as BATCH_BYTES characters are reached."""
    pending: list[Document] = []
    characters = 0
    for document in documents:
        pending.append(document)
        characters += len(document.text)
        if characters >= BATCH_BYTES or len(pending) == BATCH_DOCUMENTS:
            yield DocumentBatch.of(pending)
            pending, characters = [], 0
    if pending:
        yield DocumentBatch.of(pending)


def gathered(batches: Iterable[DocumentBatch]) -> Iterator[DocumentBatch]:
    """The same documents in batches of at least half of BATCH_BYTES, and of at most BATCH_DOCUMENTS."""
    pending: list[DocumentBatch] = []
    documents, utf8_bytes = 0, 0
    for batch in batches:
        pending.append(batch)
        documents += len(batch)
        utf8_bytes += batch.utf8_bytes
        if 2 * utf8_bytes >= BATCH_BYTES or documents >= BATCH_DOCUMENTS:
            yield from _cut(DocumentBatch.joined(pending))
            pending, documents, utf8_bytes = [], 0, 0
    if pending:
        yield from _cut(DocumentBatch.joined(pending))


def _cut(batch: DocumentBatch) -> Iterator[DocumentBatch]:
    return (batch.slice(start, BATCH_DOCUMENTS) for start in range(0, len(batch), BATCH_DOCUMENTS))
