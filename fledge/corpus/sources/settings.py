"""The kinds of sources a corpus can be made of; all are light to import."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Literal

from fledge.core.config import operation, settings

Content = Literal["documents", "conversations", "preferences"]

FIELDS_OF: dict[Content, tuple[str, ...]] = {
    "documents": ("text",),
    "conversations": ("messages",),
    "preferences": ("prompt", "chosen", "rejected"),
}
"""What a line of a JSON Lines file, or a row of a Parquet file, holds, by content."""

_SOURCE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1 or unset, not {value}")


def _check_fields(fields: dict[str, str], content: Content) -> None:
    unknown = sorted(set(fields) - set(FIELDS_OF[content]))
    if unknown:
        raise ValueError(f"fields names {unknown[0]!r}, but a row of {content} holds {', '.join(FIELDS_OF[content])}")


@settings
class Expect:
    """What a source must have before work begins."""

    files: int | None = None
    """At least so many files."""
    bytes: int | None = None
    """At least so many bytes, as the files lie there (compressed, if they are)."""

    def __post_init__(self) -> None:
        for name in ("files", "bytes"):
            _require_positive(name, getattr(self, name))


@settings
class AnySource:
    """What every kind of source has."""

    name: str
    """Label of the source; unique in a corpus; small letters, digits and hyphens."""
    content: Content = "documents"
    """What a row holds: documents a text; conversations a list of messages; preferences a prompt, a chosen and a rejected answer."""
    maximum_documents: int | None = None
    """Take at most this many rows, from the beginning; None takes all."""
    maximum_bytes: int | None = None
    """Stop after the row with which the texts reach this many bytes of UTF-8; None takes all. Documents only."""
    maximum_tokens_estimate: int | None = None
    """Stop after the row with which the texts reach about this many tokens, at four bytes of UTF-8 each. Documents only."""
    license: str = "not stated"
    """Licence of the texts; it goes into the data card."""

    def __post_init__(self) -> None:
        if not _SOURCE_NAME.fullmatch(self.name):
            raise ValueError(f"the source name {self.name!r} must consist of small letters, digits and hyphens between them")
        for name in ("maximum_documents", "maximum_bytes", "maximum_tokens_estimate"):
            _require_positive(name, getattr(self, name))
            if name != "maximum_documents" and getattr(self, name) is not None and self.content != "documents":
                raise ValueError(f"{name} counts the text of documents; for {self.content} use maximum_documents")


@settings
class PythonDocsSource(AnySource):
    """The documentation of the Python that runs Fledge: docstrings and help topics of its standard library. Needs no download."""

    kind: Literal["python_docs"] = "python_docs"
    name: str = "python-docs"
    """Label of the source; unique in a corpus; small letters, digits and hyphens."""
    license: str = "PSF-2.0"
    """Licence of the texts; it goes into the data card."""


@settings
class FileSource(AnySource):
    """What every source of files has."""

    expect: Expect = operation(Expect())
    """Refuse to build from less than this."""
    cache: Literal["raw", "none"] = operation("raw")
    """For what lies elsewhere. raw: download whole files and keep them; none: read piece by piece and keep nothing on disk."""
    maximum_reject_share: float = operation(0.05)
    """Share of lines, rows or files that may be unusable (0 to 1) before the build is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.maximum_reject_share <= 1:
            raise ValueError(f"maximum_reject_share must be between 0 and 1, not {self.maximum_reject_share}")


@settings
class PathSource(FileSource):
    """What every source of files with a path or an address has."""

    path: str = operation()
    """A file, a folder (its files of this kind, at any depth), a glob such as books/**/*.txt, or an address: https://, s3://."""
    sha256: str | None = operation(None)
    """SHA-256 that the file must have, if `path` names one file; checked before it is used."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ValueError("path must name a file, a folder, a glob or an address")
        if self.sha256 is not None and not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"sha256 must be 64 hexadecimal digits in lower case, not {self.sha256!r}")
        if self.sha256 is not None and self.cache == "none" and "://" in self.path:
            raise ValueError("sha256 of a remote file is checked when it is downloaded; set cache: raw, or leave sha256 out")


@settings
class TextSource(PathSource):
    """Plain UTF-8 text files (.txt, .md; also .gz and .zst of them); every file is a document, and a long file several."""

    kind: Literal["text"] = "text"
    content: Literal["documents"] = "documents"
    """Text files hold documents."""
    maximum_document_characters: int = 8_000
    """A longer file is cut into documents of at most this many characters: at blank lines, else at line ends, else anywhere."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.maximum_document_characters < 1:
            raise ValueError(f"maximum_document_characters must be at least 1, not {self.maximum_document_characters}")


@settings
class JsonLinesSource(PathSource):
    """One JSON object per line, plain (.jsonl) or compressed (.jsonl.gz, .jsonl.zst)."""

    kind: Literal["jsonl"] = "jsonl"
    fields: dict[str, str] = field(default_factory=dict)
    """Key in the file for each of text, messages, prompt, chosen, rejected, where it has another name: {text: body}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fields(self.fields, self.content)


@settings
class ParquetSource(PathSource):
    """Parquet files; one row is one document, conversation or preference pair."""

    kind: Literal["parquet"] = "parquet"
    fields: dict[str, str] = field(default_factory=dict)
    """Column for each of text, messages, prompt, chosen, rejected, where it has another name: {text: content}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fields(self.fields, self.content)


@settings
class HubSource(FileSource):
    """A dataset of the Hugging Face hub, in Parquet or JSON Lines files: a preset, or a repository and which of its files."""

    kind: Literal["hub"] = "hub"
    preset: str | None = None
    """A dataset that Fledge knows by name; `fledge corpus --list` shows them."""
    repository: str | None = None
    """A dataset repository, OWNER/NAME, instead of a preset."""
    files: str | None = None
    """Which files of the repository, as a glob such as sample/10BT/*.parquet; required with `repository`, narrows a preset."""
    revision: str = "main"
    """Branch, tag or commit; what it names at the first build is kept, so that a rerun reads the same."""
    fields: dict[str, str] = field(default_factory=dict)
    """Key or column for each of text, messages, prompt, chosen, rejected, where it has another name: {text: content}."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_fields(self.fields, self.content)
        if (self.preset is None) == (self.repository is None):
            raise ValueError("give either a preset or a repository")
        if self.repository is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.repository):
            raise ValueError(f"repository must be OWNER/NAME, not {self.repository!r}")
        if self.repository is not None and self.files is None:
            raise ValueError("files must say which files of the repository to read, like data/*.parquet")


Source = PythonDocsSource | TextSource | JsonLinesSource | ParquetSource | HubSource
