"""Compiled loops of byte-pair encoding: pieces of text to words of a byte-level vocabulary, and ids of words to superwords.

A piece is looked up among those met before, by its bytes; only new ones are merged. In a short chain of ids the merge of lowest rank
is found by looking at all pairs; a long one (text can be made to have one) keeps its candidates in a heap, so that time grows with
n log n. Ties are broken from the left, as in Hugging Face tokenizers.

The kernels that call one another are all in this file: numba keeps compiled code until the file of the outermost function changes.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

CACHE_COLUMNS = 8
"""Numbers of 64 bits in an entry of the cache, one line of a processor's: 16 bytes of text, their count with that of the ids, ids."""
_CACHED_BYTES = 16
_CACHED_IDS = 10

_U64 = np.uint64
_ZERO, _ONE = _U64(0), _U64(1)
_HALF_BITS = _U64(32)
_LOW_HALF = _U64(0xFFFFFFFF)
_GOLDEN = _U64(0x9E3779B97F4A7C15)
_MURMUR = _U64(0xFF51AFD7ED558CCD)
_EMPTY = _U64(0xFFFFFFFFFFFFFFFF)
_NO_MERGE = np.int64(-1)

_SHORT_CHAIN = 24
"""Longest chain in which all pairs are looked at for each merge; beyond, a heap is faster."""


def pair_keys(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One number for each pair of ids."""
    return left << _HALF_BITS | right


def hash_table(keys: NDArray[np.uint64]) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Open addressing, at most half full: keys, and for each the place of its first occurrence in `keys`."""
    size = 16
    while size < 2 * len(keys):
        size *= 2
    table, places = np.full(size, _EMPTY), np.zeros(size, np.int64)
    _fill_table(keys, table, places)
    return table, places


def word_cache(entries: int) -> NDArray[np.uint64]:
    """An empty cache for `encode_pieces`; `entries` is a power of two. Only one thread may use it at a time."""
    return np.zeros((entries, CACHE_COLUMNS), np.uint64)


@njit(nogil=True, cache=True)
def encode_pieces(
    data: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    stops: NDArray[np.int64],
    byte_ids: NDArray[np.uint32],
    keys: NDArray[np.uint64],
    ranks: NDArray[np.int64],
    merged: NDArray[np.uint32],
    cache: NDArray[np.uint64],
    out: NDArray[np.uint32],
    out_offsets: NDArray[np.int64],
) -> int:
    """Fills out and out_offsets with the words of each text, whose pieces end at `stops`; the number of ids."""
    count, piece = 0, 0
    pair_ranks = np.empty(_SHORT_CHAIN, np.int64)
    last_entry = _U64(cache.shape[0] - 1)
    for text in range(offsets.size - 1):
        position = offsets[text]
        while position < offsets[text + 1]:
            stop = stops[piece]
            piece += 1
            size = stop - position
            low, high = _ZERO, _ZERO
            if size <= _CACHED_BYTES:
                low, high = _first_bytes(data, position, size), _first_bytes(data, position + 8, size - 8)
                mixed = (low ^ high * _MURMUR ^ _U64(size)) * _GOLDEN
                home = (mixed ^ mixed >> _U64(32)) & last_entry
                entry = home if cache[home, 0] == low and cache[home, 1] == high else home ^ _ONE
                found = cache[entry, 2]
                if cache[entry, 0] == low and cache[entry, 1] == high and found & _U64(0xFF) == _U64(size):
                    ids = int(np.int64(found >> _U64(8)))
                    for place in range(ids):
                        out[count + place] = np.uint32(cache[entry, 3 + (place >> 1)] >> _U64(32 * (place & 1)) & _LOW_HALF)
                    count += ids
                    position = stop
                    continue
            ids = _merge_bytes(data, position, size, byte_ids, keys, ranks, merged, out, count, pair_ranks)
            if size <= _CACHED_BYTES and ids <= _CACHED_IDS:
                # The new one goes to its home, and what was there next to it: of two, the one met longer ago is lost.
                for column in range(CACHE_COLUMNS):
                    cache[home ^ _ONE, column] = cache[home, column]
                cache[home, 0], cache[home, 1], cache[home, 2] = low, high, _U64(size) | _U64(ids) << _U64(8)
                for place in range(ids):
                    number = _U64(out[count + place])
                    column = 3 + (place >> 1)
                    cache[home, column] = number if place & 1 == 0 else cache[home, column] | number << _HALF_BITS
            count += ids
            position = stop
        out_offsets[text + 1] = count
    return count


@njit(nogil=True, cache=True)
def _first_bytes(data: NDArray[np.uint8], position: int, size: int) -> np.uint64:
    """Up to eight bytes as one number, the first lowest; 0 of none."""
    if size <= 0:
        return _ZERO
    if position + 8 > data.size:
        number = _ZERO
        for place in range(min(size, 8)):
            number |= _U64(data[position + place]) << _U64(8 * place)
        return number
    # Of eight loads of a byte at unsigned positions the compiler makes one of eight bytes.
    first = _U64(position)
    number = _U64(data[first]) | _U64(data[first + _ONE]) << _U64(8)
    number |= _U64(data[first + _U64(2)]) << _U64(16) | _U64(data[first + _U64(3)]) << _U64(24)
    upper = _U64(data[first + _U64(4)]) | _U64(data[first + _U64(5)]) << _U64(8)
    upper |= _U64(data[first + _U64(6)]) << _U64(16) | _U64(data[first + _U64(7)]) << _U64(24)
    number |= upper << _HALF_BITS
    return number if size >= 8 else number & ((_ONE << _U64(8 * size)) - _ONE)


@njit(nogil=True, cache=True)
def _merge_bytes(
    data: NDArray[np.uint8],
    start: int,
    size: int,
    byte_ids: NDArray[np.uint32],
    keys: NDArray[np.uint64],
    ranks: NDArray[np.int64],
    merged: NDArray[np.uint32],
    out: NDArray[np.uint32],
    first: int,
    pair_ranks: NDArray[np.int64],
) -> int:
    """Writes the ids of one piece of text from out[first] on; their number."""
    chain = out[first : first + size]
    for place in range(size):
        chain[place] = byte_ids[data[start + place]]
    if size <= _SHORT_CHAIN:
        return _merge_short(chain, keys, ranks, merged, pair_ranks)
    return _merge_long(chain, keys, ranks, merged)


@njit(nogil=True, cache=True)
def _fill_table(keys: NDArray[np.uint64], table: NDArray[np.uint64], places: NDArray[np.int64]) -> None:
    for place in range(keys.size):
        slot = _slot(table, keys[place])
        if table[slot] == _EMPTY:
            table[slot] = keys[place]
            places[slot] = place


@njit(nogil=True, cache=True)
def _slot(table: NDArray[np.uint64], key: np.uint64) -> np.uint64:
    """Where a key is, or where it would be put."""
    last = _U64(table.size - 1)
    mixed = (key ^ key >> _U64(31)) * _GOLDEN
    slot = (mixed ^ mixed >> _U64(29)) & last
    while table[slot] != _EMPTY and table[slot] != key:
        slot = (slot + _U64(1)) & last
    return slot


@njit(nogil=True, cache=True)
def _rank(keys: NDArray[np.uint64], ranks: NDArray[np.int64], left: np.uint32, right: np.uint32) -> np.int64:
    """Rank of the merge of two ids, or _NO_MERGE."""
    key = _U64(left) << _HALF_BITS | _U64(right)
    slot = _slot(keys, key)
    return ranks[slot] if keys[slot] == key else _NO_MERGE


@njit(nogil=True, cache=True)
def merge_texts(
    ids: NDArray[np.uint32],
    offsets: NDArray[np.int64],
    keys: NDArray[np.uint64],
    ranks: NDArray[np.int64],
    merged: NDArray[np.uint32],
    borders: NDArray[np.uint64],
    out: NDArray[np.uint32],
    out_offsets: NDArray[np.int64],
) -> int:
    """Fills out and out_offsets; the number of ids."""
    count = 0
    pair_ranks = np.empty(_SHORT_CHAIN, np.int64)
    for text in range(offsets.size - 1):
        start, end = offsets[text], offsets[text + 1]
        while start < end:
            stop = start + 1
            while stop < end:
                border = _U64(ids[stop - 1]) << _HALF_BITS | _U64(ids[stop])
                if borders[_slot(borders, border)] != border:
                    break
                stop += 1
            length = stop - start
            chain = out[count : count + length]
            for place in range(length):
                chain[place] = ids[start + place]
            if length > 1:
                if length <= _SHORT_CHAIN:
                    length = _merge_short(chain, keys, ranks, merged, pair_ranks)
                else:
                    length = _merge_long(chain, keys, ranks, merged)
            count += length
            start = stop
        out_offsets[text + 1] = count
    return count


@njit(nogil=True, cache=True)
def _merge_short(
    chain: NDArray[np.uint32],
    keys: NDArray[np.uint64],
    ranks: NDArray[np.int64],
    merged: NDArray[np.uint32],
    pair_ranks: NDArray[np.int64],
) -> int:
    """Merges a chain in place, looking at all pairs for each merge; its new length."""
    length = chain.size
    for place in range(length - 1):
        pair_ranks[place] = _rank(keys, ranks, chain[place], chain[place + 1])
    while True:
        best, best_rank = -1, np.int64(0)
        for place in range(length - 1):
            rank = pair_ranks[place]
            if rank != _NO_MERGE and (best < 0 or rank < best_rank):
                best, best_rank = place, rank
        if best < 0:
            return length
        chain[best] = merged[best_rank]
        length -= 1
        for place in range(best + 1, length):
            chain[place] = chain[place + 1]
            pair_ranks[place - 1] = pair_ranks[place]
        if best < length - 1:
            pair_ranks[best] = _rank(keys, ranks, chain[best], chain[best + 1])
        if best > 0:
            pair_ranks[best - 1] = _rank(keys, ranks, chain[best - 1], chain[best])


@njit(nogil=True, cache=True)
def _merge_long(chain: NDArray[np.uint32], keys: NDArray[np.uint64], ranks: NDArray[np.int64], merged: NDArray[np.uint32]) -> int:
    """The same with a linked list and a heap of (rank, place): candidates that no longer hold are dropped when they come up."""
    length = chain.size
    following, previous = np.arange(1, length + 1), np.arange(-1, length - 1)
    alive = np.ones(length, np.bool_)
    heap, size = np.empty(3 * length, np.uint64), 0
    for place in range(length - 1):
        rank = _rank(keys, ranks, chain[place], chain[place + 1])
        if rank != _NO_MERGE:
            size = _push(heap, size, _U64(rank) << _HALF_BITS | _U64(place))
    while size > 0:
        entry = heap[0]
        size = _pop(heap, size)
        place, rank = int(np.int64(entry & _LOW_HALF)), np.int64(entry >> _HALF_BITS)
        after = following[place]
        if not alive[place] or after >= length or _rank(keys, ranks, chain[place], chain[after]) != rank:
            continue
        chain[place] = merged[rank]
        alive[after] = False
        beyond, before = following[after], previous[place]
        following[place] = beyond
        if beyond < length:
            previous[beyond] = place
            rank = _rank(keys, ranks, chain[place], chain[beyond])
            if rank != _NO_MERGE:
                size = _push(heap, size, _U64(rank) << _HALF_BITS | _U64(place))
        if before >= 0:
            rank = _rank(keys, ranks, chain[before], chain[place])
            if rank != _NO_MERGE:
                size = _push(heap, size, _U64(rank) << _HALF_BITS | _U64(before))
    count = 0
    for place in range(length):
        if alive[place]:
            chain[count] = chain[place]
            count += 1
    return count


@njit(nogil=True, cache=True)
def _push(heap: NDArray[np.uint64], size: int, entry: np.uint64) -> int:
    """Adds to a binary heap, the lowest first; its new size."""
    place = size
    while place > 0:
        parent = (place - 1) >> 1
        if heap[parent] <= entry:
            break
        heap[place] = heap[parent]
        place = parent
    heap[place] = entry
    return size + 1


@njit(nogil=True, cache=True)
def _pop(heap: NDArray[np.uint64], size: int) -> int:
    """Takes the lowest entry away; the new size."""
    size -= 1
    entry, place = heap[size], 0
    while True:
        child = 2 * place + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= entry:
            break
        heap[place] = heap[child]
        place = child
    heap[place] = entry
    return size
