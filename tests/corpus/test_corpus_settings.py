from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from fledge.core.config import Tree, identity, parse
from fledge.core.errors import ConfigError
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.settings import HubSource, JsonLinesSource, ParquetSource, PythonDocsSource, TextSource


def parsed(*sources: dict[str, Any], **values: Any) -> CorpusSettings:
    return parse(CorpusSettings, Tree({"sources": list(sources), **values}, {}))


def test_kinds_are_told_apart() -> None:
    settings = parsed(
        {"kind": "python_docs"},
        {"kind": "text", "name": "a", "path": "x"},
        {"kind": "jsonl", "name": "b", "path": "y"},
        {"kind": "parquet", "name": "c", "path": "s3://bucket/*.parquet", "cache": "none"},
        {"kind": "hub", "name": "d", "preset": "c4"},
    )
    assert [type(source) for source in settings.sources] == [PythonDocsSource, TextSource, JsonLinesSource, ParquetSource, HubSource]
    assert settings.validation_fraction == 0.05
    assert (settings.quality.preset, settings.deduplicate.kind, settings.decontaminate.evaluated) == ("none", "near", True)


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ({"kind": "xlsx", "name": "a", "path": "x"}, "xlsx"),
        ({"kind": "text", "name": "Books", "path": "x"}, "small letters"),
        ({"kind": "text", "name": "-", "path": "x"}, "small letters"),
        ({"kind": "text", "name": "a", "path": ""}, "path must name"),
        ({"kind": "text", "name": "a"}, "path"),
        ({"kind": "text", "name": "a", "path": "x", "content": "conversations"}, "content"),
        ({"kind": "text", "name": "a", "path": "x", "expect": {"files": 0}}, "files"),
        ({"kind": "python_docs", "maximum_documents": 0}, "maximum_documents"),
        ({"kind": "text", "name": "a", "path": "x", "maximum_document_characters": 0}, "maximum_document_characters"),
        ({"kind": "jsonl", "name": "a", "path": "x", "maximum_reject_share": 1.5}, "maximum_reject_share"),
        ({"kind": "jsonl", "name": "a", "path": "x", "fields": {"body": "text"}}, "body"),
        ({"kind": "parquet", "name": "a", "path": "x", "fields": {"messages": "m"}}, "a row of the form text holds text"),
        ({"kind": "jsonl", "name": "a", "path": "x", "maximum_bytes": 0}, "maximum_bytes must be at least 1"),
        ({"kind": "jsonl", "name": "a", "path": "x", "maximum_tokens_estimate": 0}, "maximum_tokens_estimate must be at least 1"),
        ({"kind": "jsonl", "name": "a", "path": "x", "content": "conversations", "maximum_bytes": 9}, "use maximum_documents"),
        ({"kind": "jsonl", "name": "a", "path": "x", "sha256": "beef"}, "64 hexadecimal digits"),
        ({"kind": "jsonl", "name": "a", "path": "https://x/y", "cache": "none", "sha256": "0" * 64}, "set cache: raw"),
        ({"kind": "hub", "name": "a"}, "either a preset or a repository"),
        ({"kind": "hub", "name": "a", "preset": "c4", "repository": "o/n"}, "either a preset or a repository"),
        ({"kind": "hub", "name": "a", "repository": "o/n"}, "files must say"),
        ({"kind": "hub", "name": "a", "repository": "no-owner", "files": "*"}, "OWNER/NAME"),
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


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"shard_documents": 0}, "shard_documents must be at least 1"),
        ({"shard_bytes": 0}, "shard_bytes must be at least 1"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"download_workers": 0}, "download_workers must be at least 1"),
        ({"format": "csv"}, "format"),
        ({"executor": "slurm"}, "executor"),
        ({"cleaning": ["spelling"]}, "cleaning"),
        ({"quality": {"preset": "wbe"}}, "preset"),
        ({"quality": {"preset": "web", "skip": ["c4_sentence"]}}, "did you mean"),
        ({"quality": {"own_rules": ["rules.py"]}}, "FILE.py:FUNCTION"),
        ({"deduplicate": {"kind": "fuzzy"}}, "kind"),
        ({"deduplicate": {"bands": 0}}, "bands must be at least 1"),
        ({"deduplicate": {"memory_bytes": 1000}}, "memory_bytes must be at least"),
        ({"decontaminate": {"shingle_words": 0}}, "shingle_words must be at least 1"),
    ],
)
def test_unusable_sections_are_refused(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parsed({"kind": "python_docs"}, **section)


def test_where_the_files_lie_is_not_part_of_the_identity() -> None:
    common = {"kind", "name", "content", "maximum_documents", "maximum_bytes", "maximum_tokens_estimate", "license"}
    assert set(identity(TextSource(name="a", path="/data/books"))) == {*common, "maximum_document_characters"}
    of_records = {*common, "fields", "form", "input_separator", "language"}
    assert set(identity(JsonLinesSource(name="a", path="/data/books"))) == of_records
    assert set(identity(HubSource(name="a", preset="c4"))) == {*of_records, "preset", "repository", "files", "revision"}
    assert set(identity(PythonDocsSource())) == {*common, "skip_documents"}


def test_how_a_corpus_is_made_is_not_part_of_its_identity() -> None:
    told = identity(parsed({"kind": "python_docs"}))
    assert not {"workers", "executor", "download_workers", "cache_folder", "keep_work"} & set(told)
    assert "memory_bytes" not in told["deduplicate"]
    assert "files" not in told["decontaminate"], "their contents count, wherever they lie"


def test_settings_load_nothing_heavy() -> None:
    code = "import sys, fledge.corpus.settings; print([name for name in ('pyarrow', 'numpy', 'pydantic', 'torch') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
