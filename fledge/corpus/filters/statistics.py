"""Counts everything about a document that a rule compares with a threshold, in compiled loops over its UTF-8.

What is counted stands in COUNTS; `rules.py` says which rule divides which count by which. Definitions are those of datatrove 0.10's
filters with the words of `scanning.py`:

    lines       as `str.splitlines` cuts; bullets and ellipses are looked for without the white space around a line
    segments    what runs of newlines separate, an empty one before a first or after a last newline included
    paragraphs  what two or more newlines separate, of the text without the white space around it
    rows        what single newlines separate and is not only white space, as FineWeb's rules count lines
    words       a word without a letter, numeral or mark is a symbol

An English document of 3 KB takes about 20 microseconds. A first pass measures words, a second lines and paragraphs, a third n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray

from fledge.corpus.filters import repetition
from fledge.corpus.filters.repetition import duplicates, first_equal, repeated_grams
from fledge.corpus.filters.scanning import (
    BREAK,
    BYTE_TRAITS,
    COUNTED,
    LETTER,
    MARK,
    NON_ASCII,
    NUMERAL,
    SPACE,
    TERMINAL,
    UNSPACED,
    Texts,
    as_bytes,
    code_point_traits,
    count_characters,
    eight_bytes,
    hash_bytes,
    hash_short,
    last_character,
    skip_space,
    strip_end,
    trait_at,
    word_end,
)

COUNTS = (
    "characters", "words", "plain_words", "plain_word_characters", "letter_words", "unspaced_words", "stop_words", "hashes", "ellipses",
    "lines", "bullet_lines", "ellipsis_lines",
    "segments", "duplicate_segments", "duplicate_segment_characters",
    "paragraphs", "duplicate_paragraphs", "duplicate_paragraph_characters",
    "newlines", "characters_in_rows", "rows", "terminal_rows", "short_rows", "duplicate_row_characters",
    *(f"top_{n}_gram_characters" for n in repetition.TOP_GRAMS),
    *(f"duplicate_{n}_gram_characters" for n in repetition.DUPLICATE_GRAMS),
)  # fmt: skip
"""plain_words: those that are no symbol. stop_words: how many different ones occur. characters_in_rows: all but newlines."""

SHORT_ROW_CHARACTERS = 30
"""FineWeb's short line, Penedo et al. 2024."""

_COMPILED_IN = {"scanning": "35c21c8b30b1f5b6", "repetition": "18a338ed23f56a62"}
"""What of other files is compiled into the loops here. numba keeps compiled code as long as this file stays the same and would miss a
change there; a test compares these beginnings of their SHA-256."""

_WORDS, _LINES, _SEGMENTS, _PARAGRAPHS, _ROWS, _GRAMS = (
    COUNTS.index(name) for name in ("words", "lines", "segments", "paragraphs", "newlines", "top_2_gram_characters")
)
_MAY_END_WORD = np.array([byte in {0xC2, *range(0xE0, 0xEA), 0xEF, 0xF0} for byte in range(256)])
"""First bytes of the characters that are white space or letters of unspaced scripts."""
_NEWLINE, _FULL_STOP, _HASH, _HYPHEN = 0x0A, 0x2E, 0x23, 0x2D


@dataclass(frozen=True)
class Statistics:
    """Counts of documents, by the names in COUNTS."""

    counts: NDArray[np.int64]
    """(documents, len(COUNTS)); zeros where nothing was asked."""

    def __getitem__(self, name: str) -> NDArray[np.int64]:
        return self.counts[:, COUNTS.index(name)]


def statistics(
    texts: Texts, needed: Sequence[str] = COUNTS, stop_words: Sequence[str] = (), wanted: NDArray[np.bool_] | None = None
) -> Statistics:
    """Counts of the documents that are `wanted` (None: all). Counts outside `needed` may stay zero; what is not needed costs nothing."""
    documents = len(texts.offsets) - 1
    counts = np.zeros((documents, len(COUNTS)), np.int64)
    positions = {COUNTS.index(name) for name in needed}
    lines = any(_LINES <= position < _GRAMS for position in positions)
    paragraphs = any(_PARAGRAPHS <= position < _ROWS for position in positions)
    grams = any(position >= _GRAMS for position in positions)
    every_word = grams or any(_WORDS < position < _LINES for position in positions)
    count_documents(
        texts.data, texts.words, texts.offsets, code_point_traits(), _stop_word_keys(stop_words), every_word, lines, paragraphs, grams,
        np.ones(documents, bool) if wanted is None else wanted, texts.longest_bytes, counts,
    )  # fmt: skip
    return Statistics(counts)


def _stop_word_keys(stop_words: Sequence[str]) -> NDArray[np.uint64]:
    given = as_bytes(pa.array(sorted(set(stop_words)), pa.large_string()))
    return np.array([hash_bytes(given.words, *ends) for ends in zip(given.offsets, given.offsets[1:], strict=False)], np.uint64)


@njit(nogil=True, cache=True)
def count_documents(data, eights, offsets, code_points, stop_keys, every_word, lines, paragraphs, grams, wanted, longest, counts):
    """Fills a row of counts per wanted document."""
    # A word takes two bytes with the space after it; an untouched page of these arrays costs no memory.
    most = longest // 2 + 2
    hashes, lengths = np.empty(most, np.uint64), np.empty(most, np.int32)
    keys, positions = np.empty(most, np.uint64), np.empty(most, np.int32)
    table, firsts, repeats = np.empty(4 * most + 16, np.int32), np.empty(most, np.int32), np.empty(most, np.int32)
    sizes = np.empty(most, np.int32)
    # Lines come after n-grams and take over their arrays.
    starts, ends, row_sizes = positions, repeats, lengths
    stop_places = _stop_places(stop_keys)
    stop_seen = np.full(stop_keys.size, -1, np.int64)
    for document in range(offsets.size - 1):
        if not wanted[document]:
            continue
        start, end, out = offsets[document], offsets[document + 1], counts[document]
        characters = count_characters(data, start, end)
        out[0] = characters
        ascii_only = characters == end - start
        if every_word:
            words = _scan_words(data, eights, start, end, code_points, stop_keys, stop_places, stop_seen, document, hashes, lengths, out)
            if grams:
                repeated_grams(hashes, lengths, words, keys, positions, table, firsts, repeats, out[_GRAMS:])
        else:
            out[_WORDS] = _count_words(data, start, end, code_points, ascii_only)
        if lines:
            segments = _scan_lines(data, eights, start, end, code_points, ascii_only, keys, starts, ends, sizes, row_sizes, out)
            first_equal(keys, segments, table, firsts)
            _count_duplicates(firsts, sizes, row_sizes, segments, data, start, end, out)
            if paragraphs:
                _scan_paragraphs(data, eights, start, end, code_points, starts, ends, segments, keys, sizes, table, firsts, out)


@njit(nogil=True, cache=True)
def _stop_places(stop_keys):
    """An open hash table of positions in stop_keys plus one; 0 is free."""
    places = 64
    while places < 8 * stop_keys.size:
        places *= 2
    table = np.zeros(places, np.int64)
    for i in range(stop_keys.size):
        place = stop_keys[i] & np.uint64(places - 1)
        while table[place]:
            place = (place + np.uint64(1)) & np.uint64(places - 1)
        table[place] = i + 1
    return table


@njit(nogil=True, cache=True)
def _count_words(data, start, end, code_points, ascii_only):
    """Words alone. Usually a word begins where another byte follows ASCII white space, which takes no branch: 5 GB/s."""
    words = np.int64(0)
    if ascii_only or not _has_other_word_ends(data, start, end, code_points):
        text = data[start:end]
        for i in range(1, text.size):
            words += np.int64(_is_ascii_space(text[i - 1]) & (not _is_ascii_space(text[i])))
        return words + np.int64(end > start and not _is_ascii_space(data[start]))
    i = start
    while 0 <= i < end:
        begin = i
        while 0 <= i < end and not BYTE_TRAITS[data[i]] & (SPACE | NON_ASCII):
            i += 1
        if i < end and BYTE_TRAITS[data[i]] & NON_ASCII:
            i, _, _ = word_end(data, begin, end, code_points)
        words += i > begin
        while 0 <= i < end and BYTE_TRAITS[data[i]] & SPACE:
            i += 1
        if i < end and BYTE_TRAITS[data[i]] & NON_ASCII:
            i = skip_space(data, i, end, code_points)
    return words


@njit(nogil=True, cache=True)
def _has_other_word_ends(data, start, end, code_points):
    """Whether there is white space that is not ASCII, or a letter of an unspaced script."""
    for i in range(max(start, 0), end):
        if _MAY_END_WORD[data[i]]:
            trait, _ = trait_at(data, i, code_points)
            if trait & (SPACE | UNSPACED):
                return True
    return False


@njit(nogil=True, cache=True)
def _is_ascii_space(byte):
    return (byte == 0x20) | ((byte - np.uint8(0x09)) < np.uint8(5)) | ((byte - np.uint8(0x1C)) < np.uint8(4))


@njit(nogil=True, cache=True)
def _scan_words(data, eights, start, end, code_points, stop_keys, stop_places, stop_seen, document, hashes, lengths, out):
    """Hash and characters of every word, and the counts from `words` to `ellipses`. Returns the words."""
    words, plain, plain_characters, letters, unspaced, stops, hash_signs, ellipses = 0, 0, 0, 0, 0, 0, 0, 0
    stop_mask, i = np.uint64(stop_places.size - 1), start
    while True:
        # The loops over ASCII stand here and not in functions: passing arrays costs 10 ns a call, half of what a word takes.
        while 0 <= i < end and BYTE_TRAITS[data[i]] & SPACE:
            i += 1
        if i < end and BYTE_TRAITS[data[i]] & NON_ASCII:
            i = skip_space(data, i, end, code_points)
        if i >= end:
            break
        begin, found = i, np.uint16(0)
        while 0 <= i < end and not BYTE_TRAITS[data[i]] & (SPACE | NON_ASCII):
            found |= BYTE_TRAITS[data[i]]
            i += 1
        characters = i - begin
        if i < end and BYTE_TRAITS[data[i]] & NON_ASCII:
            i, characters, found = word_end(data, begin, end, code_points)
        if i - begin <= 8:
            key = hash_short(eight_bytes(eights[begin >> 3], eights[(begin >> 3) + 1], begin), i - begin)
        else:
            key = hash_bytes(eights, begin, i)
        hashes[words], lengths[words] = key, characters
        words += 1
        if found & (LETTER | NUMERAL | MARK):
            plain += 1
            plain_characters += characters
        letters += np.int64(found & LETTER != 0)
        unspaced += np.int64(found & UNSPACED != 0)
        if found & COUNTED:
            more_hash_signs, more_ellipses = _count_symbols(data, begin, i)
            hash_signs += more_hash_signs
            ellipses += more_ellipses
        place = key & stop_mask
        while stop_places[place] and stop_keys[stop_places[place] - 1] != key:
            place = (place + np.uint64(1)) & stop_mask
        if stop_places[place] and stop_seen[stop_places[place] - 1] != document:
            stop_seen[stop_places[place] - 1] = document
            stops += 1
    row = (words, plain, plain_characters, letters, unspaced, stops, hash_signs, ellipses)
    for position in range(len(row)):
        out[_WORDS + position] = row[position]
    return words


@njit(nogil=True, cache=True)
def _count_symbols(data, start, end):
    """(`#`, ellipses) in a word; three full stops in a row are an ellipsis."""
    hash_signs, ellipses, stops = 0, 0, 0
    for i in range(start, end):
        hash_signs += np.int64(data[i] == _HASH)
        stops = stops + 1 if data[i] == _FULL_STOP else 0
        if stops == 3 or _is_ellipsis(data, i, end):
            ellipses += 1
            stops = 0
    return hash_signs, ellipses


@njit(nogil=True, cache=True)
def _is_ellipsis(data, i, end):
    return i + 3 <= end and data[i] == 0xE2 and data[i + 1] == 0x80 and data[i + 2] == 0xA6


@njit(nogil=True, cache=True)
def _has_other_line_end(data, start, end):
    """Whether there is a line end that is not ASCII: U+0085, U+2028, U+2029."""
    for i in range(max(start, 0), end):
        if data[i] == 0xE2 and data[i + 1] == 0x80 and (data[i + 2] == 0xA8 or data[i + 2] == 0xA9):
            return True
        if data[i] == 0xC2 and data[i + 1] == 0x85:
            return True
    return False


@njit(nogil=True, cache=True)
def _count_broken_line(data, start, end, followed, code_points, out):
    """Counts the lines of a row with other line ends in it than its newline; `followed`: by a newline."""
    begin = i = start
    while 0 <= i < end:
        trait, size = trait_at(data, i, code_points)
        i += size
        if trait & BREAK:
            _count_line(data, begin, i - size, code_points, out)
            if i == end and data[i - 1] == 0x0D and followed:
                return
            begin = i
    if followed or begin < end:
        _count_line(data, begin, end, code_points, out)


@njit(nogil=True, cache=True)
def _count_line(data, start, end, code_points, out):
    first = skip_space(data, start, end, code_points)
    last = strip_end(data, first, end, code_points)
    bullet, ellipsis = _marks_of_line(data, first, last)
    out[_LINES] += 1
    out[_LINES + 1] += bullet
    out[_LINES + 2] += ellipsis


@njit(nogil=True, cache=True)
def _marks_of_line(data, first, last):
    """(begins with a bullet, ends with an ellipsis) of a line without the white space around it."""
    if first == last:
        return False, False
    bullet = data[first] == _HYPHEN or (last - first >= 3 and data[first] == 0xE2 and data[first + 1] == 0x80 and data[first + 2] == 0xA2)
    if last - first < 3:
        return bullet, False
    stops = data[last - 1] == _FULL_STOP and data[last - 2] == _FULL_STOP and data[last - 3] == _FULL_STOP
    return bullet, stops or _is_ellipsis(data, last - 3, last)


@njit(nogil=True, cache=True)
def _scan_lines(data, eights, start, end, code_points, ascii_only, keys, starts, ends, sizes, row_sizes, out):
    """Counts lines and rows; notes place in the text, hash and characters of the rows that are not empty. Returns how many."""
    segments, i, lines, bullets, ellipses, newlines, rows, terminal, short = 0, start, 0, 0, 0, 0, 0, 0, 0
    followed = True
    while followed:
        begin, found = i, np.uint16(0)
        while 0 <= i < end and data[i] != _NEWLINE:
            found |= BYTE_TRAITS[data[i]]
            i += 1
        followed = i < end
        newlines += followed
        first, last = begin, i
        while 0 <= first < last and BYTE_TRAITS[data[first]] & SPACE:
            first += 1
        while 0 <= first < last and BYTE_TRAITS[data[last - 1]] & SPACE:
            last -= 1
        if found & NON_ASCII:
            first = skip_space(data, first, last, code_points)
            last = strip_end(data, first, last, code_points)
        if found & BREAK or (found & NON_ASCII and _has_other_line_end(data, begin, i)):
            _count_broken_line(data, begin, i, followed, code_points, out)
        elif followed or begin < i:
            lines += 1
            if first < last and (data[first] == _HYPHEN or data[last - 1] == _FULL_STOP or found & NON_ASCII):
                bullet, ellipsis = _marks_of_line(data, first, last)
                bullets, ellipses = bullets + bullet, ellipses + ellipsis
        if begin < i:
            characters = i - begin if ascii_only else count_characters(data, begin, i)
            keys[segments], starts[segments], ends[segments] = hash_bytes(eights, begin, i), begin - start, i - start
            sizes[segments], row_sizes[segments] = characters, characters if first < last else 0
            segments += 1
            if first < last:
                trait = BYTE_TRAITS[data[i - 1]]
                if trait & NON_ASCII:
                    trait, _ = trait_at(data, last_character(data, begin, i), code_points)
                rows += 1
                terminal += trait & TERMINAL != 0
                short += characters <= SHORT_ROW_CHARACTERS
        i += 1
    out[_LINES] += lines
    out[_LINES + 1] += bullets
    out[_LINES + 2] += ellipses
    out[_ROWS], out[_ROWS + 2], out[_ROWS + 3], out[_ROWS + 4] = newlines, rows, terminal, short
    return segments


@njit(nogil=True, cache=True)
def _count_duplicates(firsts, sizes, row_sizes, segments, data, start, end, out):
    """Duplicate segments and rows. A newline at the start or end of a text leaves an empty segment there."""
    out[_SEGMENTS] = segments
    for i in range(segments):
        if firsts[i] != i:
            out[_SEGMENTS + 1] += 1
            out[_SEGMENTS + 2] += sizes[i]
            out[_ROWS + 5] += row_sizes[i]
    if end > start:
        at_start, at_end = data[start] == _NEWLINE, data[end - 1] == _NEWLINE
        out[_SEGMENTS] += np.int64(at_start) + np.int64(at_end)
        out[_SEGMENTS + 1] += at_start and at_end
    out[_ROWS + 1] = out[0] - out[_ROWS]


@njit(nogil=True, cache=True)
def _scan_paragraphs(data, eights, start, end, code_points, starts, ends, segments, keys, sizes, table, firsts, out):
    """Joins segments that one newline separates, and counts duplicates among what results. Overwrites keys and sizes."""
    first = skip_space(data, start, end, code_points)
    last = strip_end(data, first, end, code_points) - start
    first -= start
    paragraphs, begin = 0, np.int64(-1)
    for i in range(segments):
        if ends[i] <= first or starts[i] >= last:
            continue
        if begin < 0:
            begin = max(starts[i], first)
        if i + 1 == segments or starts[i + 1] >= last or starts[i + 1] > ends[i] + 1:
            stop = start + min(ends[i], last)
            keys[paragraphs] = hash_bytes(eights, start + begin, stop)
            sizes[paragraphs] = count_characters(data, start + begin, stop)
            paragraphs, begin = paragraphs + 1, np.int64(-1)
    repeated, characters = duplicates(keys, sizes, paragraphs, table, firsts)
    out[_PARAGRAPHS], out[_PARAGRAPHS + 1], out[_PARAGRAPHS + 2] = paragraphs, repeated, characters
