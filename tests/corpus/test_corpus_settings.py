from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from fledge.core.config import Tree, identity, parse
from fledge.core.errors import ConfigError
from fledge.corpus.settings import CorpusSettings, JsonLinesSource, PythonDocsSource, TextSource


def parsed(*sources: dict[str, Any], **values: Any) -> CorpusSettings:
    return parse(CorpusSettings, Tree({"sources": list(sources), **values}, {}))


def test_kinds_are_told_apart() -> None:
    settings = parsed({"kind": "python_docs"}, {"kind": "text", "name": "a", "path": "x"}, {"kind": "jsonl", "name": "b", "path": "y"})
    assert [type(source) for source in settings.sources] == [PythonDocsSource, TextSource, JsonLinesSource]
    assert settings.validation_fraction == 0.05


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"kind": "csv", "name": "a", "path": "x"}, "csv"),
        ({"kind": "text", "name": "Books", "path": "x"}, "small letters"),
        ({"kind": "text", "name": "-", "path": "x"}, "small letters"),
        ({"kind": "text", "name": "a", "path": ""}, "path must name"),
        ({"kind": "text", "name": "a"}, "path"),
        ({"kind": "text", "name": "a", "path": "x", "content": "conversations"}, "content"),
        ({"kind": "text", "name": "a", "path": "x", "expect_files": 0}, "expect_files"),
        ({"kind": "python_docs", "maximum_documents": 0}, "maximum_documents"),
        ({"kind": "text", "name": "a", "path": "x", "maximum_document_characters": 0}, "maximum_document_characters"),
        ({"kind": "jsonl", "name": "a", "path": "x", "maximum_reject_share": 1.5}, "maximum_reject_share"),
        ({"kind": "jsonl", "name": "a", "path": "x", "fields": {"body": "text"}}, "body"),
    ],
)
def test_unusable_sources_are_refused(source: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parsed(source)


@pytest.mark.parametrize(("fraction", "accepted"), [(0.0, True), (0.99, True), (1.0, False), (-0.1, False)])
def test_validation_fraction(fraction: float, accepted: bool) -> None:
    if accepted:
        assert parsed({"kind": "python_docs"}, validation_fraction=fraction).validation_fraction == fraction
    else:
        with pytest.raises(ConfigError, match="validation_fraction"):
            parsed({"kind": "python_docs"}, validation_fraction=fraction)


def test_names_are_unique_and_there_is_a_source() -> None:
    with pytest.raises(ConfigError, match="two sources are named 'python-docs'"):
        parsed({"kind": "python_docs"}, {"kind": "python_docs", "content": "conversations"})
    with pytest.raises(ConfigError, match="at least one source"):
        parsed()
    with pytest.raises(ConfigError, match="shard_documents"):
        parsed({"kind": "python_docs"}, shard_documents=0)


def test_where_the_files_lie_is_not_part_of_the_identity() -> None:
    source = TextSource(name="a", path="/data/books")
    assert set(identity(source)) == {"kind", "name", "content", "maximum_documents", "maximum_document_characters"}


def test_settings_load_nothing_heavy() -> None:
    code = "import sys, fledge.corpus.settings; print([name for name in ('pyarrow', 'numpy', 'pydantic', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
