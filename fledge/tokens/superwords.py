"""The second level of SuperBPE: words, as ids of the first level, are merged to superwords. Exact BPE, without reading text again.

Merges of the second level rank behind all of the first, so byte-pair encoding of a chain of words first makes the words and then
only looks at their ids. Most neighbours can never end in one token: a merge may span a border only if the pair (last word of its
left side, first word of its right side) is that of some merge. Borders with other pairs cut the stream into chains of few ids, which
`merging.py` merges.

Of 13.7 MB of documentation and code, 3.6 million ids, it merges 155 MB of text per CPU second; with gigatoken for the words, 98 MB.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fledge.tokens.merging import hash_table, merge_texts, pair_keys

_IDS_PER_THREAD = 1 << 18


@dataclass(frozen=True)
class Merge:
    """Two neighbouring ids that become one; earlier merges of a list go first."""

    left: int
    right: int
    merged: int


class SuperwordMerger:
    """Applies a list of merges to arrays of ids."""

    def __init__(self, merges: Sequence[Merge], words: int) -> None:
        """Ids below `words` are those of the first level; every merge makes another id from two that are words or made before."""
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for merge in merges:
            assert merge.merged >= words, "a merge of words makes a superword"
            first.setdefault(merge.merged, first.get(merge.left, merge.left))
            last.setdefault(merge.merged, last.get(merge.right, merge.right))
        table = np.array([(merge.left, merge.right, merge.merged) for merge in merges], np.uint64).reshape(-1, 3)
        borders = {(last.get(merge.left, merge.left), first.get(merge.right, merge.right)) for merge in merges}
        self._keys, self._ranks = hash_table(pair_keys(table[:, 0], table[:, 1]))
        self._merged = table[:, 2].astype(np.uint32)
        crossed = np.array(sorted(borders), np.uint64).reshape(-1, 2)
        self._borders, _ = hash_table(pair_keys(crossed[:, 0], crossed[:, 1]))

    def merge(self, ids: NDArray[np.uint32], offsets: NDArray[np.int64], threads: int = 1) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        """The superwords of several texts, of text t from ids[offsets[t]] to ids[offsets[t + 1]], in the same form."""
        parts = max(1, min(threads, len(ids) // _IDS_PER_THREAD, len(offsets) - 1))
        bounds = np.searchsorted(offsets, np.linspace(offsets[0], offsets[-1], parts + 1)[1:-1]).tolist()
        ranges = list(zip([0, *bounds], [*bounds, len(offsets) - 1], strict=True))
        if parts == 1:
            return self._merge_part(ids, offsets)
        with ThreadPoolExecutor(parts) as pool:
            done = list(pool.map(lambda part: self._merge_part(ids, offsets[part[0] : part[1] + 1]), ranges))
        lengths = np.concatenate([np.diff(part_offsets) for _, part_offsets in done])
        return np.concatenate([part_ids for part_ids, _ in done]), np.concatenate([[0], np.cumsum(lengths)])

    def _merge_part(self, ids: NDArray[np.uint32], offsets: NDArray[np.int64]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
        out = np.empty(int(offsets[-1] - offsets[0]), np.uint32)
        out_offsets = np.zeros(len(offsets), np.int64)
        count = merge_texts(ids, offsets, self._keys, self._ranks, self._merged, self._borders, out, out_offsets)
        return out[:count], out_offsets
