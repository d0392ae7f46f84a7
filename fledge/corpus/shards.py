"""Phase 4 of a corpus: the rows that stay become shards, `train-00000.parquet`, ..., each written by a unit of its own.

A shard is a stretch of the kept rows of one side, in the order of the sources; where it ends follows from the rows alone, so any
number of processes writes the same files.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fledge.core.artifact import hash_json
from fledge.corpus.clean import CHARACTERS, UTF8_BYTES, group_names
from fledge.corpus.document import SCHEMAS, Split
from fledge.corpus.duplicates import GROUPS, KEEP, SIDE, iter_rows, row_count
from fledge.corpus.engine.units import Done
from fledge.corpus.settings import CorpusSettings, ShardFormat

_FORMAT = 1
_ROW_GROUP_ROWS = 1_024
_ROW_GROUP_BYTES = 32 << 20


@dataclass(frozen=True)
class Stretch:
    """Rows of one clean unit that may belong to a shard."""

    clean: Done
    start: int
    end: int
    offset: int
    """Number of the unit's first row over all clean units."""


@dataclass(frozen=True)
class ShardUnit:
    """Writes one shard."""

    split: Split
    number: int
    format: ShardFormat
    stretches: tuple[Stretch, ...]
    clusters: Done
    selection: str
    """SHA-256 of which rows are taken and of their groups."""
    size_bytes: int

    @functools.cached_property
    def key(self) -> str:
        rows = [[stretch.clean.id, stretch.start, stretch.end] for stretch in self.stretches]
        return hash_json([_FORMAT, self.name, pa.__version__, rows, self.selection])

    @property
    def name(self) -> str:
        """File name of the shard."""
        return f"{self.split}-{self.number:05d}.{self.format}"

    @property
    def label(self) -> str:
        return f"shard {self.name}"

    @property
    def work_bytes(self) -> int:
        return self.size_bytes

    def run(self, folder: Path) -> dict[str, Any]:
        with _writer(folder / self.name, self.format) as write:
            for rows in _regrouped(self._rows()):
                write(rows)
        return {"sources": self._counts()}

    def _counts(self) -> dict[str, dict[str, int]]:
        """Rows and their lengths by source, from what the clean units wrote; each is of one source."""
        counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        for stretch in self.stretches:
            chosen = _selected(self.clusters, self.split, stretch)
            rows = slice(stretch.start, stretch.end)
            lengths = (np.load(stretch.clean.folder / name, mmap_mode="r")[rows][chosen] for name in (CHARACTERS, UTF8_BYTES))
            characters, utf8_bytes = (int(length.sum()) for length in lengths)
            source = next(iter_rows(stretch.clean, stretch.start, stretch.end))["source"][0].as_py()
            counts[source].update(rows=int(chosen.sum()), characters=characters, utf8_bytes=utf8_bytes)
        return {source: dict(count) for source, count in sorted(counts.items())}

    def _rows(self) -> Iterator[pa.Table]:
        for stretch in self.stretches:
            chosen = _selected(self.clusters, self.split, stretch)
            groups = np.load(self.clusters.folder / GROUPS, mmap_mode="r")[stretch.offset + stretch.start : stretch.offset + stretch.end]
            position = 0
            for batch in iter_rows(stretch.clean, stretch.start, stretch.end):
                taken = np.flatnonzero(chosen[position : position + batch.num_rows])
                names = group_names(groups[position + taken])
                position += batch.num_rows
                rows = batch.take(pa.array(taken))
                given = rows["group"].to_pylist()
                group = [known or name for known, name in zip(given, names, strict=True)]
                columns = [rows["text"].cast(pa.string()), rows["id"], rows["source"], pa.array(group, pa.string())]
                yield pa.Table.from_arrays(columns, schema=SCHEMAS["documents"])


def shard_units(clean: Sequence[Done], clusters: Done, settings: CorpusSettings) -> list[ShardUnit]:
    """The shards of both sides; a side without rows has none."""
    splits: tuple[Split, ...] = ("train", "validation")
    return [unit for split in splits for unit in _units_of(clean, clusters, settings, split)]


def _units_of(clean: Sequence[Done], clusters: Done, settings: CorpusSettings, split: Split) -> Iterator[ShardUnit]:
    cutter = _Cutter(settings.shard_documents, settings.shard_bytes)
    stretches: list[list[Stretch]] = []
    sizes: list[int] = []
    offset = 0
    for done in clean:
        rows = row_count(done)
        taken = np.flatnonzero(_selected(clusters, split, Stretch(done, 0, rows, offset)))
        bytes_of = np.load(done.folder / UTF8_BYTES, mmap_mode="r")[taken]
        for number, low, high in cutter.cut(bytes_of):
            if number == len(stretches):
                stretches.append([])
                sizes.append(0)
            stretches[number].append(Stretch(done, int(taken[low]), int(taken[high - 1]) + 1, offset))
            sizes[number] += int(bytes_of[low:high].sum())
        offset += rows
    for number, parts in enumerate(stretches):
        yield ShardUnit(split, number, settings.format, tuple(parts), clusters, _digest(clusters, split, parts), sizes[number])


class _Cutter:
    """Deals rows out to shards in order: a shard ends with its last row, or with the row that fills its bytes."""

    def __init__(self, rows: int, size_bytes: int | None) -> None:
        self._rows, self._bytes = rows, size_bytes
        self._number, self._rows_in, self._bytes_in = 0, 0, 0

    def cut(self, sizes: NDArray[np.int64]) -> Iterator[tuple[int, int, int]]:
        """The next rows, by their bytes, as (shard, first row, behind the last row)."""
        total = np.cumsum(sizes)
        low = 0
        while low < len(sizes):
            if self._is_full():
                self._number, self._rows_in, self._bytes_in = self._number + 1, 0, 0
            before = int(total[low - 1]) if low else 0
            high = min(len(sizes), low + self._rows - self._rows_in)
            if self._bytes is not None:
                high = min(high, int(np.searchsorted(total, before + self._bytes - self._bytes_in)) + 1)
            self._rows_in += high - low
            self._bytes_in += int(total[high - 1]) - before
            yield self._number, low, high
            low = high

    def _is_full(self) -> bool:
        return self._rows_in == self._rows or (self._bytes is not None and self._bytes_in >= self._bytes)


def _selected(clusters: Done, split: Split, stretch: Stretch) -> NDArray[np.bool_]:
    """Which rows of a stretch stay and lie on this side."""
    rows = slice(stretch.offset + stretch.start, stretch.offset + stretch.end)
    keep, held_out = (np.load(clusters.folder / name, mmap_mode="r")[rows] for name in (KEEP, SIDE))
    return np.asarray(keep & (held_out == (split == "validation")))


def _digest(clusters: Done, split: Split, stretches: Sequence[Stretch]) -> str:
    """Only what concerns these rows, so that an edit elsewhere does not touch this shard."""
    digest = hashlib.sha256()
    groups = np.load(clusters.folder / GROUPS, mmap_mode="r")
    for stretch in stretches:
        chosen = _selected(clusters, split, stretch)
        digest.update(np.packbits(chosen).tobytes())
        digest.update(np.ascontiguousarray(groups[stretch.offset + stretch.start : stretch.offset + stretch.end][chosen]).tobytes())
    return digest.hexdigest()


def _regrouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of one row group each, which is what is held in memory."""
    cutter = _Cutter(_ROW_GROUP_ROWS, _ROW_GROUP_BYTES)
    pending: list[pa.Table] = []
    pending_number = 0
    for table in tables:
        sizes = np.asarray(pc.binary_length(table["text"]), np.int64)
        for number, low, high in cutter.cut(sizes):
            if number > pending_number:
                yield pa.concat_tables(pending)
                pending, pending_number = [], number
            pending.append(table.slice(low, high - low))
    if pending:
        yield pa.concat_tables(pending)


@contextlib.contextmanager
def _writer(path: Path, form: ShardFormat) -> Iterator[Callable[[pa.Table], None]]:
    if form == "parquet":
        # A dictionary of texts or ids is tried and thrown away for every row group; their minimum and maximum help nobody.
        with pq.ParquetWriter(
            path, SCHEMAS["documents"], compression="zstd", use_dictionary=["source"], write_statistics=["source"]
        ) as parquet:
            yield parquet.write_table
        return
    with pa.output_stream(path, compression="zstd" if form == "jsonl.zst" else None) as stream:
        yield lambda rows: stream.write(b"".join(orjson.dumps(row) + b"\n" for row in rows.to_pylist()))
