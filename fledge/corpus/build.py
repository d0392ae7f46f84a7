"""Sources become a corpus folder: shards of rows, split by group, and the rejects; the same input gives the same bytes.

Rows stream from the sources into Parquet files; what stays in memory is one row group per split and the set of groups.
"""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq

from fledge.core import console, disk
from fledge.core.config import identity
from fledge.core.errors import DataError
from fledge.corpus.document import SCHEMAS, Content, Preference, Row, Split, as_columns
from fledge.corpus.rejects import Rejects
from fledge.corpus.settings import CorpusSettings, PythonDocsSource, Source
from fledge.corpus.sources import fingerprint, read_source
from fledge.corpus.split import Splitter, assign_sides

__all__ = ["Content", "build_corpus", "contents", "identity_with_fingerprints"]

REJECTS = "rejects.jsonl"

_ROW_GROUP_ROWS = 1_024


def contents(settings: CorpusSettings) -> tuple[Content, ...]:
    """Which contents the sources name, in the order documents, conversations, preferences."""
    named = {source.content for source in settings.sources}
    return tuple(content for content in get_args(Content) if content in named)


def identity_with_fingerprints(settings: CorpusSettings, content: Content) -> dict[str, Any]:
    """What decides the rows of one content, as plain JSON for the artifact's key: settings and what the sources hold now."""
    decisive = identity(settings)
    sources = [{**identity(source), "fingerprint": fingerprint(source)} for source in _sources(settings, content)]
    return {**decisive, "sources": sources, "content": content}


def build_corpus(settings: CorpusSettings, content: Content, folder: Path) -> dict[str, Any]:
    """Fill `folder` with the shards of one content and `rejects.jsonl`; returns the headline figures.

    A corpus too small to hold anything out gets no validation shard, and a warning. Raises DataError if there are no rows.
    """
    rejects, tally = Rejects(), _Tally()
    splitter = Splitter(settings.validation_fraction, settings.seed)
    sources = _sources(settings, content)
    rows = (row for source in sources for row in read_source(source, splitter, rejects))
    with (
        _ShardWriter(folder, "train", content, settings.shard_documents) as train,
        _ShardWriter(folder, "validation", content, settings.shard_documents) as validation,
    ):
        for side, row in assign_sides(rows, splitter):
            (train if side == "train" else validation).add(row)
            tally.add(side, row, splitter.draw(row.group))
    if rejects.kept:
        disk.write_bytes(folder / REJECTS, rejects.lines())
    _require_rows(content, sources, tally, rejects)
    if settings.validation_fraction > 0 and not tally.rows["validation"]:
        console.warn(f"the corpus has no validation {content}: too few to hold any out, so nothing will be measured on unseen text")
    python = {"python": platform.python_version()} if any(isinstance(source, PythonDocsSource) for source in sources) else {}
    return {**tally.stats(), "rejects": rejects.stats(), **python}


def _sources(settings: CorpusSettings, content: Content) -> list[Source]:
    return [source for source in settings.sources if source.content == content]


def _require_rows(content: Content, sources: list[Source], tally: _Tally, rejects: Rejects) -> None:
    for source in sources:
        if not tally.rows_of(source.name):
            found = f"{rejects.seen[source.name]:,} read, {rejects.count(source.name):,} rejected"
            raise DataError(f"source {source.name} gives 0 {content} ({found})", "name a source with text in it, or leave this one out")


class _ShardWriter:
    """Writes the rows of one split to `SPLIT-00000.parquet`, `SPLIT-00001.parquet`, ... of `shard_rows` rows."""

    def __init__(self, folder: Path, split: Split, content: Content, shard_rows: int) -> None:
        self._folder, self._split, self._content, self._shard_rows = folder, split, content, shard_rows
        self._pending: list[dict[str, Any]] = []
        self._shard: pq.ParquetWriter | None = None
        self._rows_in_shard = 0
        self._shards = 0

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._close_shard()

    def add(self, row: Row) -> None:
        """Append a row."""
        self._pending.append(as_columns(row))
        if len(self._pending) == min(_ROW_GROUP_ROWS, self._shard_rows - self._rows_in_shard):
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._shard is None:
            path = self._folder / f"{self._split}-{self._shards:05d}.parquet"
            self._shard = pq.ParquetWriter(path, SCHEMAS[self._content], compression="zstd")
            self._shards += 1
        self._shard.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMAS[self._content]))
        self._rows_in_shard += len(self._pending)
        self._pending = []
        if self._rows_in_shard == self._shard_rows:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard, self._rows_in_shard = None, 0


class _Tally:
    """Counts rows, characters and UTF-8 bytes per source and split, and the groups."""

    def __init__(self) -> None:
        self.rows: Counter[Split] = Counter()
        self._sources: defaultdict[str, dict[Split, Counter[str]]] = defaultdict(lambda: {"train": Counter(), "validation": Counter()})
        self._groups: dict[Split, set[float]] = {"train": set(), "validation": set()}
        self._damages: dict[Split, Counter[str]] = {"train": Counter(), "validation": Counter()}

    def add(self, side: Split, row: Row, group: float) -> None:
        """Count a row; `group` is any number that stands for its group."""
        texts = list(_texts(as_columns(row)))
        counts = self._sources[row.source][side]
        counts["rows"] += 1
        counts["characters"] += sum(map(len, texts))
        counts["utf8_bytes"] += sum(len(text.encode("utf-8")) for text in texts)
        self.rows[side] += 1
        self._groups[side].add(group)
        if isinstance(row, Preference) and row.damage:
            self._damages[side][row.damage] += 1

    def rows_of(self, source: str) -> int:
        """Rows of a source on both sides."""
        return sum(counts["rows"] for counts in self._sources[source].values())

    def stats(self) -> dict[str, Any]:
        """Plain JSON."""
        damages = {side: dict(sorted(counts.items())) for side, counts in self._damages.items() if counts}
        return {
            "rows": {side: self.rows[side] for side in get_args(Split)},
            "sources": {
                source: {side: dict(counts) for side, counts in sides.items() if counts} for source, sides in self._sources.items()
            },
            "groups": {side: len(groups) for side, groups in self._groups.items()},
            **({"damages": damages} if damages else {}),
        }


def _texts(columns: dict[str, Any]) -> Iterator[str]:
    """The texts of a row, without its id, source, group and damage."""
    for name in ("text", "chosen", "rejected"):
        if name in columns:
            yield columns[name]
    for name in ("messages", "prompt"):
        yield from (message["content"] for message in columns.get(name, ()))
