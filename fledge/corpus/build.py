"""Sources become a corpus folder: shards of rows, split by group, what was left out, and what became of everything.

Documents go through the factory (factory.py), in units that many processes share. Conversations and preference pairs are few: they
stream, row by row, into Parquet files; what stays in memory is one row group per split and the set of groups.
"""

from __future__ import annotations

import platform
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fledge.core import console, disk
from fledge.core.errors import DataError
from fledge.corpus.card import card_page, data_card
from fledge.corpus.document import SCHEMAS, Content, Preference, Row, Split, as_columns
from fledge.corpus.duplicates import FIRST, KEEP, SIDE
from fledge.corpus.factory import Factory, Surveyed, shard_statistics, statistics
from fledge.corpus.filters.evaluation_files import EvaluationFile
from fledge.corpus.limits import limits_of
from fledge.corpus.rejects import REJECTS_FILE, Rejects
from fledge.corpus.resolve import Resolved, here_files, require_few_rejects
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.reading import cut_pieces, read_piece
from fledge.corpus.split import Splitter, assign_sides

STATS, DATA_CARD, CARD_PAGE = "stats.json", "DATA_CARD.md", "card.html"

_ROW_GROUP_ROWS = 1_024


def build_documents(
    factory: Factory,
    settings: CorpusSettings,
    sources: Sequence[Resolved],
    evaluation_files: Sequence[EvaluationFile],
    folder: Path,
) -> dict[str, Any]:
    """Fill `folder` with the shards of documents, `rejects.jsonl`, `stats.json` and the data card; returns the headline figures.

    Raises DataError if nothing is left of a source.
    """
    surveyed = factory.survey(sources)
    shards, done = factory.shards(surveyed)
    for shard, result in zip(shards, done, strict=True):
        disk.link(result.folder / shard.name, folder / shard.name)
    groups = _group_counts(surveyed)
    stats = {**statistics(settings, surveyed, evaluation_files), **shard_statistics(shards, done, surveyed, groups)}
    write_card(folder, stats)
    _write_rejects(folder, [cleaned.rejects for cleaned in surveyed.cleaned])
    _warn_of_gaps(settings, "documents", stats)
    return {**_headline(stats), **_python_version(sources)}


def write_card(folder: Path, stats: dict[str, Any]) -> None:
    """`stats.json`, `DATA_CARD.md` and `card.html`."""
    disk.write_json(folder / STATS, stats)
    disk.write_text(folder / DATA_CARD, data_card(stats))
    disk.write_text(folder / CARD_PAGE, card_page(stats))


def build_rows(settings: CorpusSettings, content: Content, sources: Sequence[Resolved], folder: Path) -> dict[str, Any]:
    """Fill `folder` with the shards of conversations or preference pairs and `rejects.jsonl`; returns the headline figures.

    A corpus too small to hold anything out gets no validation shard, and a warning. Raises DataError if there are no rows.
    """
    rejects: list[Rejects] = []
    tally = _Tally()
    splitter = Splitter(settings.validation_fraction, settings.seed)
    rows = (row for resolved in sources for row in _rows(settings, resolved, splitter, rejects))
    with (
        _ShardWriter(folder, "train", content, settings.shard_documents) as train,
        _ShardWriter(folder, "validation", content, settings.shard_documents) as validation,
    ):
        for side, row in assign_sides(rows, splitter):
            (train if side == "train" else validation).add(row)
            tally.add(side, row, splitter.draw(row.group))
    _write_rejects(folder, rejects)
    for resolved, rejected in zip(sources, rejects, strict=True):
        if not tally.rows_of(resolved.source.name):
            found = f"{rejected.seen[resolved.source.name]:,} read, {rejected.count(resolved.source.name):,} rejected"
            raise DataError(
                f"source {resolved.source.name} gives 0 {content} ({found})", "name a source with text in it, or leave this one out"
            )
    stats = tally.stats()
    _warn_of_gaps(settings, content, stats)
    told = {name: figures for rejected in rejects for name, figures in rejected.stats().items()}
    return {**stats, "rejects": told, **_python_version(sources)}


def _rows(settings: CorpusSettings, resolved: Resolved, splitter: Splitter, rejects: list[Rejects]) -> Iterator[Row]:
    """The rows of a source; its rejects are appended when all have been read."""
    source = resolved.source
    pieces = cut_pieces(source, here_files(settings, source, resolved.files))
    parts = [Rejects() for _ in pieces]
    rows = (row for piece, part in zip(pieces, parts, strict=True) for row in read_piece(source, piece, part, splitter))
    yield from limits_of(source).take(rows)
    rejects.append(Rejects.merged(parts))
    require_few_rejects(source, rejects[-1])


def _write_rejects(folder: Path, rejects: Sequence[Rejects]) -> None:
    if any(rejected.kept for rejected in rejects):
        disk.write_bytes(folder / REJECTS_FILE, (line for rejected in rejects for line in rejected.lines()))


def _warn_of_gaps(settings: CorpusSettings, content: Content, stats: dict[str, Any]) -> None:
    if settings.validation_fraction > 0 and not stats["rows"]["validation"]:
        console.warn(f"the corpus has no validation {content}: too few to hold any out, so nothing will be measured on unseen text")
    for source, sides in stats["sources"].items():
        if not sides:
            console.warn(f"nothing is left of source {source}: all its documents occur in the sources before it")


def _python_version(sources: Sequence[Resolved]) -> dict[str, str]:
    return {"python": platform.python_version()} if any(resolved.source.kind == "python_docs" for resolved in sources) else {}


def _headline(stats: dict[str, Any]) -> dict[str, Any]:
    """What the manifest tells; the rest is in `stats.json`."""
    filters = stats["filters"].values()
    read = sum(counts["read"].get("documents", 0) for counts in filters)
    dropped: Counter[str] = Counter()
    for counts in filters:
        dropped.update(counts.get("dropped", {}))
    duplicates = {name: stats["duplicates"][name] for name in ("exact", "near")}
    return {
        **{name: stats[name] for name in ("rows", "sources", "groups", "rejects")},
        "read": read,
        "dropped": dict(dropped),
        "duplicates": duplicates,
    }


def _group_counts(surveyed: Surveyed) -> dict[Split, int]:
    """Clusters with a row on each side: exact duplicates always share one, so clusters and the hashes that name groups are one to one."""
    first, keep, held_out = (np.load(surveyed.clusters.folder / name, mmap_mode="r") for name in (FIRST, KEEP, SIDE))
    return {"train": _distinct(first, keep & ~held_out), "validation": _distinct(first, keep & held_out)}


def _distinct(first: NDArray[np.int64], rows: NDArray[np.bool_]) -> int:
    """How many clusters the rows are of. Marked, not sorted: at 6 million rows np.unique of the hashes takes 520 MB and 16 s."""
    is_there = np.zeros(first.size, bool)
    is_there[first[rows]] = True
    return int(is_there.sum())


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
