"""Phases 2 and 3 of a corpus: which of the kept documents are the same, which one stays, and on which side of the split it lies.

Rows are numbered over all clean units in their order. An `EdgeUnit` finds the rows that share a key (of one band, in one part of the
key space, so memory is bounded); the one `ClusterUnit` joins them to clusters and decides, in about 63 bytes of memory per row (577 MB
for 6 million rows, the process itself with them). Its folder holds, per row:

    first.npy    (n,) int64: the first row of its cluster
    keep.npy     (n,) bool: whether it stays
    side.npy     (n,) bool: whether it is held out
    groups.npy   (n, 2) uint64: exact hash of its cluster's first row, which names the group
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from fledge.core.artifact import hash_json
from fledge.corpus.clean import BANDS, BATCH_ROWS, CHARACTERS, DOCUMENTS, DRAWS, EXACT, GIVEN
from fledge.corpus.dedup.clusters import components, edges, parts_needed, survivors
from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.dedup.signatures import similarity
from fledge.corpus.engine.units import Done, Unit

EDGES, FIRST, KEEP, SIDE, GROUPS = "edges.npy", "first.npy", "keep.npy", "side.npy", "groups.npy"

_FORMAT = 1
_SAMPLES = 12
_EXCERPT_CHARACTERS = 1_500
_SIZE_BORDERS = (2, 3, 5, 10, 100, 1_000)


@dataclass(frozen=True)
class EdgeUnit:
    """Pairs of rows with the same key."""

    clean: tuple[Done, ...]
    band: int | None
    """None: the exact hash."""
    part: int
    parts: int

    @functools.cached_property
    def key(self) -> str:
        return hash_json([_FORMAT, "edges", [done.id for done in self.clean], self.band, self.part, self.parts])

    @property
    def label(self) -> str:
        return f"duplicates, {'exact' if self.band is None else f'band {self.band}'}, part {self.part + 1} of {self.parts}"

    @property
    def size_bytes(self) -> int:
        return 8 * _total_rows(self.clean) // self.parts

    @property
    def work_bytes(self) -> int:
        return self.size_bytes

    def run(self, folder: Path) -> dict[str, Any]:
        if self.band is None:
            found = self._exact_edges()
        else:
            found = edges([_load(done, BANDS)[self.band] for done in self.clean], self.part, self.parts)
        np.save(folder / EDGES, found, allow_pickle=False)
        return {"edges": int(found.shape[1])}

    def _exact_edges(self) -> NDArray[np.int64]:
        """Pairs that agree in the first half of the hash, less those that differ in the second."""
        halves = [_load(done, EXACT) for done in self.clean]
        found = edges([half[:, 0] for half in halves], self.part, self.parts)
        rows, places = np.unique(found, return_inverse=True)
        ends = np.cumsum([len(half) for half in halves])
        borders = np.searchsorted(rows, ends)
        pieces = np.split(rows, borders[:-1])
        second = np.concatenate([half[piece - end + len(half), 1] for half, piece, end in zip(halves, pieces, ends, strict=True)])
        one, other = second[places.reshape(found.shape)]
        return found[:, one == other]


@dataclass(frozen=True)
class ClusterUnit:
    """Joins the pairs to clusters and decides about every row."""

    clean: tuple[Done, ...]
    edges: tuple[Done, ...]
    keep: Literal["first", "longest", "all"]
    validation_fraction: float

    @functools.cached_property
    def key(self) -> str:
        inputs = [[done.id for done in self.clean], [done.id for done in self.edges]]
        return hash_json([_FORMAT, "clusters", inputs, self.keep, self.validation_fraction])

    @property
    def label(self) -> str:
        return "clusters of duplicates"

    @property
    def size_bytes(self) -> int:
        return sum(8 * done.counts["edges"] for done in self.edges)

    @property
    def work_bytes(self) -> int:
        return self.size_bytes

    def run(self, folder: Path) -> dict[str, Any]:
        rows = _total_rows(self.clean)
        first = components(rows, (_load(done, EDGES) for done in self.edges))
        keep = np.ones(rows, bool) if self.keep == "all" else survivors(first, _joined(self.clean, CHARACTERS), self.keep)
        exact = np.concatenate([np.empty((0, 2), np.uint64), *(_load(done, EXACT) for done in self.clean)])
        for name, array in ((FIRST, first), (KEEP, keep), (SIDE, self._held_out(first, keep)), (GROUPS, exact[first])):
            np.save(folder / name, array, allow_pickle=False)
        return {"rows": rows, "kept": {"documents": int(keep.sum())}, **_duplicate_counts(first, keep, exact)}

    def _held_out(self, first: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The side of every row, by the draw of its group; if all would be held out, those with the highest draw are not.

        A cluster that holds a row whose source named a group goes with the first such row.
        """
        own, given = _joined(self.clean, DRAWS), _joined(self.clean, GIVEN)
        leaders = np.arange(first.size)
        last_first = np.flatnonzero(given)[::-1]
        leaders[first[last_first]] = last_first
        draws = np.where(given, own, own[leaders[first]])
        held_out = draws < self.validation_fraction
        if keep.any() and held_out[keep].all():
            held_out &= draws < draws[keep].max()
        return held_out


def edge_units(clean: tuple[Done, ...], settings: DeduplicateSettings) -> list[Unit]:
    """The search for equal keys: by exact hash always (it also decides the split), by bands for near duplicates."""
    parts = parts_needed(_total_rows(clean), settings.memory_bytes)
    bands = range(settings.bands) if settings.kind == "near" else ()
    return [EdgeUnit(clean, band, part, parts) for band in (None, *bands) for part in range(parts)]


def samples(clean: Sequence[Done], clusters: Done, shingle_words: int) -> list[dict[str, Any]]:
    """A few pairs of a dropped document and the one that stayed: of the largest clusters, and of others by hash."""
    first, keep = np.load(clusters.folder / FIRST, mmap_mode="r"), np.load(clusters.folder / KEEP, mmap_mode="r")
    groups = np.load(clusters.folder / GROUPS, mmap_mode="r")
    dropped = np.flatnonzero(~keep)
    if not dropped.size:
        return []
    representatives, positions, sizes = np.unique(first[dropped], return_index=True, return_counts=True)
    largest = np.lexsort((representatives, -sizes))[: _SAMPLES // 3]
    by_hash = np.argsort(groups[representatives, 0], kind="stable")
    chosen = list(dict.fromkeys([*largest.tolist(), *by_hash.tolist()]))[:_SAMPLES]
    stayed = np.full(first.size, -1, np.int64)
    survivors_of = np.flatnonzero(keep)
    stayed[first[survivors_of]] = survivors_of
    result = []
    for index in chosen:
        places = [_place(clean, row) for row in (int(stayed[representatives[index]]), int(dropped[positions[index]]))]
        kept, lost = (next(iter_rows(done, row, row + 1)).to_pylist()[0] for done, row in places)
        exact = [_load(done, EXACT)[row].tolist() for done, row in places]
        alike = similarity(kept["text"], lost["text"], shingle_words)
        shown = [{"id": row["id"], "text": row["text"][:_EXCERPT_CHARACTERS]} for row in (kept, lost)]
        told = {"similarity": round(alike, 3), "exact": exact[0] == exact[1], "cluster": int(sizes[index]) + 1}
        result.append({"kept": shown[0], "dropped": shown[1], **told})
    return result


def _place(clean: Sequence[Done], row: int) -> tuple[Done, int]:
    """The unit that holds a row, and the number of the row in it."""
    for done in clean:
        if row < row_count(done):
            return done, row
        row -= row_count(done)
    raise AssertionError(f"no such row: {row} more than there are")


def iter_rows(done: Done, start: int, end: int) -> Iterator[pa.RecordBatch]:
    """The record batches of a clean unit that hold the rows from `start` to before `end`, cut to these."""
    behind = np.cumsum(_load(done, BATCH_ROWS))
    with pa.memory_map(str(done.folder / DOCUMENTS)) as mapped:
        file = pa.ipc.open_file(mapped)
        for index in range(int(np.searchsorted(behind, start, side="right")), len(behind)):
            rows = file.get_batch(index)
            begin = int(behind[index]) - rows.num_rows
            if begin >= end:
                return
            low, high = max(start, begin), min(end, int(behind[index]))
            yield rows.slice(low - begin, high - low)


def row_count(done: Done) -> int:
    """Documents that a clean unit kept."""
    return int(done.counts["kept"].get("documents", 0))


def _total_rows(clean: Sequence[Done]) -> int:
    return sum(map(row_count, clean))


def _load(done: Done, name: str) -> Any:
    return np.load(done.folder / name, mmap_mode="r", allow_pickle=False)


def _joined(clean: Sequence[Done], name: str) -> NDArray[Any]:
    return np.concatenate([_load(done, name) for done in clean])


def _duplicate_counts(first: NDArray[np.int64], keep: NDArray[np.bool_], exact: NDArray[np.uint64]) -> dict[str, Any]:
    """Dropped rows, exact ones apart (their words are those of the row that stayed), and how large the clusters are."""
    stayed = np.full(first.size, -1, np.int64)
    kept_rows = np.flatnonzero(keep)
    stayed[first[kept_rows]] = kept_rows
    dropped = np.flatnonzero(~keep)
    same = (exact[dropped] == exact[stayed[first[dropped]]]).all(axis=1)
    sizes = np.bincount(first, minlength=1) if first.size else np.zeros(1, np.int64)
    several = sizes[sizes > 1]
    borders = [*_SIZE_BORDERS, np.iinfo(np.int64).max]
    histogram = {_range_name(low, high - 1): int(((several >= low) & (several < high)).sum()) for low, high in itertools.pairwise(borders)}
    return {
        "exact": int(same.sum()),
        "near": int(dropped.size - same.sum()),
        "clusters": int(several.size),
        "largest": int(several.max(initial=1)),
        "sizes": {name: count for name, count in histogram.items() if count},
    }


def _range_name(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,}-{high:,}" if high < 1 << 60 else f"{low:,} or more"
