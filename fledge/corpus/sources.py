"""Every kind of source becomes the same rows; a new kind is one more case here and in `settings.py`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from fledge.corpus import python_docs
from fledge.corpus.document import Row
from fledge.corpus.files import files_fingerprint, find_files
from fledge.corpus.json_lines import read_json_lines
from fledge.corpus.rejects import Rejects
from fledge.corpus.settings import JsonLinesSource, PythonDocsSource, Source, TextSource
from fledge.corpus.split import Splitter
from fledge.corpus.text_files import read_text_files


def read_source(source: Source, splitter: Splitter, rejects: Rejects) -> Iterator[Row]:
    """The rows of a source in a fixed order. The embedded preference pairs need the sides to stay on them.

    Raises DataError if the source is missing, broken, or too much of it is malformed.
    """
    yield from itertools.islice(_all_rows(source, splitter, rejects), source.maximum_documents)


def fingerprint(source: Source) -> str:
    """SHA-256 over the names and contents of the files the source reads, for the artifact's key. Raises DataError."""
    if isinstance(source, PythonDocsSource):
        return python_docs.stdlib_fingerprint(python_docs.stdlib_folder())
    return files_fingerprint(find_files(source))


def _all_rows(source: Source, splitter: Splitter, rejects: Rejects) -> Iterator[Row]:
    match source:
        case PythonDocsSource():
            yield from _python_rows(source, splitter)
        case TextSource():
            yield from read_text_files(source, rejects)
        case JsonLinesSource():
            yield from read_json_lines(source, rejects)


def _python_rows(source: PythonDocsSource, splitter: Splitter) -> Iterator[Row]:
    entries = python_docs.stdlib_entries(python_docs.stdlib_folder())
    match source.content:
        case "documents":
            yield from python_docs.documents(source.name, entries)
        case "conversations":
            yield from python_docs.conversations(source.name, entries)
        case "preferences":
            yield from python_docs.preferences(source.name, entries, splitter)
