"""The kinds of sources a corpus can be made of; all are light to import."""

from __future__ import annotations

import re
from dataclasses import field
from typing import Literal

from fledge.core.config import operation, settings

Content = Literal["documents", "conversations", "preferences"]

Form = Literal["text", "messages", "instructions", "tree", "pairs", "dialogues"]

FORMS_OF: dict[Content, tuple[Form, ...]] = {
    "documents": ("text",),
    "conversations": ("messages", "instructions", "tree"),
    "preferences": ("pairs", "dialogues"),
}
"""How a row may hold each content; the first is what is taken without saying."""

FIELDS_OF: dict[Form, tuple[str, ...]] = {
    "text": ("text",),
    "messages": ("messages",),
    "instructions": ("instruction", "output"),
    "tree": ("message_id", "parent_id", "role", "text"),
    "pairs": ("chosen", "rejected"),
    "dialogues": ("chosen", "rejected"),
}
"""What a row of each form holds."""

FURTHER_FIELDS_OF: dict[Form, tuple[str, ...]] = {
    "text": (),
    "messages": ("system",),
    "instructions": ("input", "system"),
    "tree": ("rank", "language"),
    "pairs": ("prompt", "system"),
    "dialogues": (),
}
"""What it may hold besides."""

REPOSITORY_NAME = "/".join([r"[A-Za-z0-9_][A-Za-z0-9_.-]*"] * 2)
"""OWNER/NAME on the hub."""
_SOURCE_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def _require_positive(name: str, value: int | None) -> None:
    if value is not None and value < 1:
        raise ValueError(f"{name} must be at least 1 or unset, not {value}")


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
    skip_documents: int = 0
    """Leave out so many rows at the beginning: several sources of a corpus then have texts of their own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.skip_documents < 0:
            raise ValueError(f"skip_documents must not be negative, not {self.skip_documents}")


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
class RecordFields:
    """How the records of a source hold its content."""

    form: Form | None = None
    """messages: a list of {role, content}, of {from, value} (ShareGPT) or of texts in turn; instructions: instruction, input, output
    (Alpaca, Dolly, question and answer); tree: one message a row (OASST1); pairs: prompt, chosen, rejected; dialogues: both answers with
    all before them as one text (HH-RLHF). None: text, messages or pairs."""
    fields: dict[str, str] = field(default_factory=dict)
    """Key or column for each field of the form, where it has another name: {text: body}, {instruction: question, output: answer}; in JSON
    also a path, {output: instances.0.output}."""
    input_separator: str = "\n\n"
    """instructions: what stands between instruction and input; for the template alpaca a blank line, ### Input: and a line end."""
    language: str | None = None
    """tree: take conversations that begin in this language only, such as en."""

    def check_form(self, content: Content) -> None:
        """Raises ValueError if the options do not belong together."""
        if self.form is not None and self.form not in FORMS_OF[content]:
            raise ValueError(f"form {self.form} is none of {content}, which have {', '.join(FORMS_OF[content])}")
        form = self.form_of(content)
        unknown = sorted(set(self.fields) - set(FIELDS_OF[form]) - set(FURTHER_FIELDS_OF[form]))
        if unknown:
            known = ", ".join((*FIELDS_OF[form], *FURTHER_FIELDS_OF[form]))
            raise ValueError(f"fields names {unknown[0]!r}, but a row of the form {form} holds {known}")

    def form_of(self, content: Content) -> Form:
        """The form, said or not."""
        return self.form or FORMS_OF[content][0]


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
class RecordSource(PathSource, RecordFields):
    """What every source of files of records has."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_form(self.content)


@settings
class JsonLinesSource(RecordSource):
    """One JSON object per line, plain (.jsonl) or compressed (.jsonl.gz, .jsonl.zst)."""

    kind: Literal["jsonl"] = "jsonl"


@settings
class ParquetSource(RecordSource):
    """Parquet files; one row is one document, conversation or preference pair."""

    kind: Literal["parquet"] = "parquet"


@settings
class JsonSource(RecordSource):
    """A JSON file that is one list of objects (.json, also .gz and .zst of it), read whole."""

    kind: Literal["json"] = "json"


@settings
class CsvSource(RecordSource):
    """A table as text with a line of column names (.csv, .tsv, also .gz and .zst of them)."""

    kind: Literal["csv"] = "csv"
    delimiter: str = ","
    """What stands between two values; \\t in tables with tabs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.delimiter) != 1:
            raise ValueError(f"delimiter must be one character, not {self.delimiter!r}")


@settings
class HubSource(FileSource, RecordFields):
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.preset is None:
            self.check_form(self.content)
        if (self.preset is None) == (self.repository is None):
            raise ValueError("give either a preset or a repository")
        if self.repository is not None and not re.fullmatch(REPOSITORY_NAME, self.repository):
            raise ValueError(f"repository must be OWNER/NAME, not {self.repository!r}")
        if self.repository is not None and self.files is None:
            raise ValueError("files must say which files of the repository to read, like data/*.parquet")


TableSource = JsonLinesSource | JsonSource | CsvSource | ParquetSource | HubSource
"""Whose files hold records."""
PlacedSource = TextSource | JsonLinesSource | JsonSource | CsvSource | ParquetSource
"""Whose files have a path or an address."""
Source = PythonDocsSource | TextSource | TableSource
