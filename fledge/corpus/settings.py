"""What the corpus is made of: sources, the held-out share, and the seed of the split."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Annotated, Literal

from fledge.core.config import ByKind, operation, settings

Content = Literal["documents", "conversations", "preferences"]

FIELDS_OF: dict[Content, tuple[str, ...]] = {
    "documents": ("text",),
    "conversations": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
}
"""What a line of a JSON Lines file holds, by content."""

_SOURCE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@settings
class PythonDocsSource:
    """The documentation of the Python that runs Fledge: docstrings and help topics of its standard library. Needs no download."""

    kind: Literal["python_docs"] = "python_docs"
    name: str = "python-docs"
    """Label of the source; unique in a corpus; small letters, digits and hyphens."""
    content: Content = "documents"
    """documents: docstrings and help topics; conversations: a question per name; preferences: the answer and a damaged copy."""
    maximum_documents: int | None = None
    """Take at most this many rows, from the beginning; None takes all."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_maximum(self.maximum_documents)


@settings
class TextSource:
    """Plain UTF-8 text files; every file is a document, and a long file several."""

    kind: Literal["text"] = "text"
    name: str
    """Label of the source; unique in a corpus; small letters, digits and hyphens."""
    content: Literal["documents"] = "documents"
    """Text files hold documents."""
    maximum_documents: int | None = None
    """Take at most this many rows, from the beginning; None takes all."""
    path: str = operation()
    """A file, a folder (its .txt and .md files, at any depth), or a glob such as books/**/*.txt."""
    expect_files: int | None = operation(None)
    """Refuse to build from fewer files than this; None accepts one."""
    maximum_document_characters: int = 8_000
    """A longer file is cut into documents of at most this many characters: at blank lines, else at line ends, else anywhere."""
    maximum_reject_share: float = operation(0.05)
    """Share of files that may be unreadable as text (0 to 1) before the build is refused."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_maximum(self.maximum_documents)
        _check_files(self.path, self.expect_files, self.maximum_reject_share)
        if self.maximum_document_characters < 1:
            raise ValueError(f"maximum_document_characters must be at least 1, not {self.maximum_document_characters}")


@settings
class JsonLinesSource:
    """One JSON object per line, plain (.jsonl) or compressed (.jsonl.gz)."""

    kind: Literal["jsonl"] = "jsonl"
    name: str
    """Label of the source; unique in a corpus; small letters, digits and hyphens."""
    content: Content = "documents"
    """What a line holds: documents a text; conversations a list of messages; preferences a prompt, a chosen and a rejected answer."""
    maximum_documents: int | None = None
    """Take at most this many rows, from the beginning; None takes all."""
    path: str = operation()
    """A file, a folder (its .jsonl and .jsonl.gz files, at any depth), or a glob."""
    expect_files: int | None = operation(None)
    """Refuse to build from fewer files than this; None accepts one."""
    fields: dict[str, str] = field(default_factory=dict)
    """Key in the file for each of text, messages, prompt, chosen, rejected, where it has another name: {text: body}."""
    maximum_reject_share: float = operation(0.05)
    """Share of lines that may be malformed (0 to 1) before the build is refused."""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_maximum(self.maximum_documents)
        _check_files(self.path, self.expect_files, self.maximum_reject_share)
        unknown = sorted(set(self.fields) - set(FIELDS_OF[self.content]))
        if unknown:
            raise ValueError(f"fields names {unknown[0]!r}, but a line of {self.content} holds {', '.join(FIELDS_OF[self.content])}")

    def key(self, name: str) -> str:
        """The key in the file of one of our fields."""
        return self.fields.get(name, name)


Source = PythonDocsSource | TextSource | JsonLinesSource


@settings
class CorpusSettings:
    """Each content the sources name becomes a folder of shards with the splits train and validation."""

    sources: tuple[Annotated[PythonDocsSource | TextSource | JsonLinesSource, ByKind()], ...]
    """Where the documents, conversations and preference pairs come from."""
    validation_fraction: float = 0.05
    """Share of the groups of near duplicates that is held out (0 to below 1)."""
    seed: int = 0
    """Decides which groups are held out and how rejected answers are damaged."""
    shard_documents: int = 10_000
    """Rows in one Parquet file."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one source")
        names = [source.name for source in self.sources]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"two sources are named {repeated!r}; give each its own name")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, not {self.validation_fraction}")
        if self.shard_documents < 1:
            raise ValueError(f"shard_documents must be at least 1, not {self.shard_documents}")


def _check_name(name: str) -> None:
    if not _SOURCE_NAME.fullmatch(name):
        raise ValueError(f"the source name {name!r} must consist of small letters, digits and hyphens between them")


def _check_maximum(maximum_documents: int | None) -> None:
    if maximum_documents is not None and maximum_documents < 1:
        raise ValueError(f"maximum_documents must be at least 1 or unset, not {maximum_documents}")


def _check_files(path: str, expect_files: int | None, maximum_reject_share: float) -> None:
    if not path:
        raise ValueError("path must name a file, a folder or a glob")
    if expect_files is not None and expect_files < 1:
        raise ValueError(f"expect_files must be at least 1, not {expect_files}")
    if not 0 <= maximum_reject_share <= 1:
        raise ValueError(f"maximum_reject_share must be between 0 and 1, not {maximum_reject_share}")
