"""How much of a text repeats: duplicate lines and paragraphs, the most frequent short n-gram, and long n-grams said again.

Works on 64-bit hashes in the order of the text. The one idea: an n-gram can only repeat where the (n-1)-grams at its place and at the
next one repeat. So after the pass over all 2-grams each further n looks only at the places that are left, usually a few per cent:
n = 2 to 10 cost about as much as two full passes. Definitions of Gopher's table A1, Rae et al. 2021.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from fledge.corpus.filters.scanning import mix

TOP_GRAMS = (2, 3, 4)
DUPLICATE_GRAMS = (5, 6, 7, 8, 9, 10)

_COMPILED_IN = {"scanning": "35c21c8b30b1f5b6"}
"""What of other files is compiled into the loops here. numba keeps compiled code as long as this file stays the same and would miss a
change there; a test compares these beginnings of their SHA-256."""

_LONGEST_TOP, _LONGEST = TOP_GRAMS[-1], DUPLICATE_GRAMS[-1]
_MULTIPLIER = np.uint64(0xD6E8FEB86659FD93)


@njit(nogil=True, cache=True)
def first_equal(keys, amount, table, firsts):
    """firsts[i] = the first position whose key equals that of i. `table` has at least twice as many places, a power of two."""
    places = 16
    while places < 2 * amount:
        places *= 2
    table[:places] = 0
    mask = np.uint64(places - 1)
    for i in range(amount):
        place = keys[i] & mask
        while table[place] and keys[table[place] - 1] != keys[i]:
            place = (place + np.uint64(1)) & mask
        if table[place] == 0:
            table[place] = i + 1
        firsts[i] = table[place] - 1


@njit(nogil=True, cache=True)
def duplicates(keys, lengths, amount, table, firsts):
    """(elements equal to an earlier one, their summed lengths)."""
    first_equal(keys, amount, table, firsts)
    elements, characters = 0, 0
    for i in range(amount):
        if firsts[i] != i:
            elements += 1
            characters += np.int64(lengths[i])
    return elements, characters


@njit(nogil=True, cache=True)
def _keep_repeated(keys, positions, amount, table, firsts, repeats):
    """Drops the n-grams that occur once. Returns (those left, occurrences of the most frequent, its first position or -1)."""
    first_equal(keys, amount, table, firsts)
    repeats[:amount] = 0
    for i in range(amount):
        repeats[firsts[i]] += 1
    left, most, at = 0, 1, -1
    for i in range(amount):
        if repeats[firsts[i]] > most:
            most, at = repeats[firsts[i]], positions[firsts[i]]
        if repeats[firsts[i]] > 1:
            keys[left], positions[left] = keys[i], positions[i]
            left += 1
    return left, np.int64(most), np.int64(at)


@njit(nogil=True, cache=True)
def _said_again(keys, positions, amount, n, lengths, table, firsts, repeats):
    """Characters of the words in n-grams met before, where a repeated n-gram is stepped over as a whole."""
    first_equal(keys, amount, table, firsts)
    repeats[:amount] = 0
    characters, free = np.int64(0), 0
    for i in range(amount):
        if positions[i] < free:
            continue
        if repeats[firsts[i]]:
            for word in range(positions[i], positions[i] + n):
                characters += lengths[word]
            free = positions[i] + n
        repeats[firsts[i]] = 1
    return characters


@njit(nogil=True, cache=True)
def _lengthen(keys, positions, left, n, hashes, words):
    """From the n-grams that repeat to the (n+1)-grams that may, in place. Returns how many."""
    amount = 0
    for i in range(left):
        last = positions[i] + n
        if last < words and i + 1 < left and positions[i + 1] == positions[i] + 1:
            keys[amount] = mix(keys[i] * _MULTIPLIER + hashes[last])
            positions[amount] = positions[i]
            amount += 1
    return amount


@njit(nogil=True, cache=True)
def repeated_grams(hashes, lengths, words, keys, positions, table, firsts, repeats, out):
    """Fills out[0:3] for n = 2, 3, 4: characters of all occurrences of the most frequent n-gram, its words joined by spaces; and
    out[3:9] for n = 5 to 10: characters of n-grams said again. Arrays from `keys` on are scratch for that many words."""
    out[: _LONGEST - 1] = 0
    amount = max(words - 1, 0)
    for i in range(amount):
        keys[i] = mix(hashes[i] * _MULTIPLIER + hashes[i + 1])
        positions[i] = i
    for n in range(2, _LONGEST + 1):
        if words < n:
            break
        left, most, at = _keep_repeated(keys, positions, amount, table, firsts, repeats)
        if n <= _LONGEST_TOP:
            start = max(at, 0)
            characters = np.int64(n - 1)
            for word in range(start, start + n):
                characters += lengths[word]
            out[n - 2] = characters * most
        elif left:
            out[n - 2] = _said_again(keys, positions, left, n, lengths, table, firsts, repeats)
        amount = _lengthen(keys, positions, left, n, hashes, words)
