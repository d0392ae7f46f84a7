"""The text that tokenizers are compared on: files that are named, else what a run held out, else the documentation of Python."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.core import artifact, console
from fledge.core.errors import ConfigError, DataError
from fledge.corpus.document import Document, read_documents
from fledge.corpus.rejects import Rejects
from fledge.corpus.resolve import require_few_rejects
from fledge.corpus.sources import python_docs
from fledge.corpus.sources.inputs import Fingerprints, resolve
from fledge.corpus.sources.reading import cut_pieces, read_piece
from fledge.corpus.sources.settings import JsonLinesSource, ParquetSource, TextSource
from fledge.corpus.split import Splitter

MAXIMUM_TEXT_BYTES = 64 << 20
"""Enough for four digits of any figure; all of it is held in memory."""
_WHOLE_FILE_CHARACTERS = 1 << 20


@dataclass(frozen=True)
class ComparisonText:
    """Texts by source, with what they are in words."""

    description: str
    sources: dict[str, list[str]]


def given_text(paths: Sequence[str]) -> ComparisonText:
    """Files by path; each is a source. Raises ConfigError for an address, DataError for what cannot be read or holds no text."""
    documents: dict[str, list[Document]] = {}
    for path in paths:
        documents[path] = _read_file(path)
    return _limited("the files given", ((path, document.text) for path in documents for document in documents[path]))


def held_out_text(folders: Sequence[Path]) -> ComparisonText | None:
    """The held-out documents of the corpus that the first of these was made from; None if there are none."""
    for folder in folders:
        corpus = _corpus_of(folder)
        if corpus is not None:
            documents = read_documents(corpus, "validation")
            text = _limited(f"the held-out documents of {corpus}", ((document.source, document.text) for document in documents))
            if text.sources:
                return text
    return None


def python_text() -> ComparisonText:
    """The documentation of the Python that runs this."""
    documents = python_docs.documents("python-docs", python_docs.stdlib_entries(python_docs.stdlib_folder()))
    return _limited("the documentation of Python", ((document.source, document.text) for document in documents))


def _limited(description: str, texts: Iterable[tuple[str, str]]) -> ComparisonText:
    sources: dict[str, list[str]] = {}
    size_bytes = 0
    for source, text in texts:
        if size_bytes >= MAXIMUM_TEXT_BYTES:
            console.warn(f"compared on the first {console.format_bytes(size_bytes)} of {description}")
            break
        sources.setdefault(source, []).append(text)
        size_bytes += len(text.encode("utf-8"))
    return ComparisonText(description, sources)


def _read_file(path: str) -> list[Document]:
    if "://" in path:
        raise ConfigError(f"--text {path} is an address", "download it first; only a corpus fetches text")
    source = _source(path)
    rejects = Rejects()
    pieces = cut_pieces(source, resolve(source, Fingerprints(None)))
    rows = [row for piece in pieces for row in read_piece(source, piece, rejects, Splitter(0.0, 0))]
    require_few_rejects(source, rejects)
    documents = [row for row in rows if isinstance(row, Document) and row.text]
    if not documents:
        raise DataError(f"--text {path} holds no text", "name a file with text in it")
    return documents


def _source(path: str) -> TextSource | JsonLinesSource | ParquetSource:
    name = re.sub(r"[^a-z0-9]+", "-", Path(path).name.lower()).strip("-") or "text"
    if re.search(r"\.jsonl(\.gz|\.zst)?$", path.lower()):
        return JsonLinesSource(path=path, name=name)
    if path.lower().endswith(".parquet"):
        return ParquetSource(path=path, name=name)
    return TextSource(path=path, name=name, maximum_document_characters=_WHOLE_FILE_CHARACTERS)


def _corpus_of(folder: Path) -> Path | None:
    """The first corpus of documents in the lineage of a folder."""
    if not (folder / artifact.MANIFEST).is_file():
        return None
    for _, _, given, found in artifact.lineage(artifact.open_artifact(folder)):
        if given.kind == "corpus" and found is not None and found.manifest.settings["content"] == "documents":
            return found.path
    return None
