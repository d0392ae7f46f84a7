"""C4's rules, which look at a text line by line: lines are removed or mended, and of the lines that are left some things are counted.

The order within a line is datatrove 0.10's: an overlong word, citation marks, terminal punctuation, too few words, lorem ipsum,
javascript, curly bracket, policy phrase. A line that a rule removed is not looked at by the rules after it, so a `{` in a line about
javascript drops no document. Kept lines lose the white space around them and are joined by newlines. Phrases are found in any case of
their ASCII letters. Raffel et al. 2020, section 2.2; long words and policy phrases are in the code of C4 only.

One compiled pass over the UTF-8. The loop that finds the end of a line notes the places of the few bytes at which a phrase or a sentence
end may be recognised by a rare letter (the `k` of cookie, the `v` of privacy), and only those places are looked at closer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numba import njit
from numpy.typing import NDArray

from fledge.corpus.filters.scanning import (
    BYTE_TRAITS,
    NON_ASCII,
    NUMERAL,
    SPACE,
    TERMINAL,
    TERMINALS,
    Texts,
    code_point_traits,
    last_character,
    skip_space,
    strip_end,
    trait_at,
    word_end,
)
from fledge.corpus.filters.sentences import ends_sentence, next_sentence

LONG_WORDS, CITATIONS, TERMINAL_PUNCTUATION, WORDS_PER_LINE, JAVASCRIPT, POLICY = range(6)
LINE_RULES = ("c4_long_words", "c4_citations", "c4_terminal_punctuation", "c4_words_per_line", "c4_javascript", "c4_policy")
"""What is done to lines, by the positions above."""
COUNTS = (*LINE_RULES, "lorem_ipsum_lines", "curly_bracket_lines", "sentences")
"""What is counted: lines removed (citations: mended), lines with the phrase unless removed before, sentences in kept lines."""

_COMPILED_IN = {"scanning": "35c21c8b30b1f5b6", "sentences": "e71dd2017c1eade8"}
"""What of other files is compiled into the loops here. numba keeps compiled code as long as this file stays the same and would miss a
change there; a test compares these beginnings of their SHA-256."""

_LOREM, _CURLY, _SENTENCES = (COUNTS.index(name) for name in ("lorem_ipsum_lines", "curly_bracket_lines", "sentences"))
_OFF = -1

_BREAK, _MAYBE_BREAK, _BRACKET, _PLACE = (1 << bit for bit in range(4))
"""What a byte means to the loop that finds the end of a line: an end; one, with the bytes after it; `[`; a place to look at closer."""

_SPOT_JAVASCRIPT, _SPOT_COOKIE, _SPOT_PRIVACY, _SPOT_TERMS, _SPOT_LOREM, _SPOT_CURLY, _SPOT_TERMINAL, _SPOT_ANY_SCRIPT = range(1, 9)
_FOUND_LOREM, _FOUND_JAVASCRIPT, _FOUND_CURLY, _FOUND_POLICY = (1 << bit for bit in range(4))

_AFTER = np.frombuffer(b"\0aia s\0\0\0", np.uint8)
"""The letter after the one at which a phrase is recognised, by what is recognised."""

(
    _FIRST, _LAST, _TEXT_FIRST, _TEXT_LAST, _PLACES_FIRST, _PLACES_LAST, _BRACKETS, _IS_LONG, _IS_SHORT, _PHRASES, _SENTENCES_IN_LINE
) = range(11)  # fmt: skip
_COLUMNS = 11
_LINES_AT_A_TIME = 4_096
"""What is known of a line: its ends, those of its text without citation marks, its part of `places`, and findings."""


def _phrase(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode("ascii"), np.uint8)


_JAVASCRIPT_WORD, _LOREM_IPSUM, _TERMS_OF_USE = _phrase("javascript"), _phrase("lorem ipsum"), _phrase("terms of use")
_PRIVACY_POLICY, _COOKIE_POLICY = _phrase("privacy policy"), _phrase("cookie policy")
_USES_COOKIES, _USE_OF_COOKIES, _USE_COOKIES = _phrase("uses cookies"), _phrase("use of cookies"), _phrase("use cookies")
_EDIT, _CITATION_NEEDED = _phrase("edit]"), _phrase("citation needed]")


def _line_bytes() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """By byte: what it means to the loop over a line, and what may be recognised at it."""
    spots = np.zeros(256, np.uint8)
    letters = {"j": _SPOT_JAVASCRIPT, "k": _SPOT_COOKIE, "v": _SPOT_PRIVACY, "f": _SPOT_TERMS, "p": _SPOT_LOREM}
    for letter, spot in letters.items():
        spots[[ord(letter), ord(letter.upper())]] = spot
    spots[ord("{")] = _SPOT_CURLY
    for first in {chr(code).encode("utf-8")[0] for code in TERMINALS}:
        spots[first] = _SPOT_TERMINAL if first < 0x80 else _SPOT_ANY_SCRIPT
    meanings = np.where(spots > 0, _PLACE, 0).astype(np.uint8)
    meanings[[ord(character) for character in "\n\v\f\r\x1c\x1d\x1e"]] |= _BREAK
    meanings[[0xC2, 0xE2]] |= _MAYBE_BREAK
    meanings[ord("[")] |= _BRACKET
    return meanings, spots


_MEANINGS, _SPOTS = _line_bytes()


def apply_line_rules(texts: Texts, rules: Mapping[str, float | None], wanted: NDArray[np.bool_]) -> tuple[Texts, NDArray[np.int64]]:
    """The wanted texts as the given rules of LINE_RULES leave them, the others unchanged; counts (documents, len(COUNTS)).

    `rules` holds the threshold of those that have one: the most characters of a word, the fewest words of a line.
    """
    options = np.full(len(LINE_RULES), _OFF, np.int64)
    for position, name in enumerate(LINE_RULES):
        if name in rules:
            # Counts are whole: more characters than 9.5 are more than 9, fewer words than 2.5 are fewer than 3.
            whole = math.floor if position == LONG_WORDS else math.ceil
            options[position] = whole(rules[name] or 0)
    words = np.zeros_like(texts.words)
    offsets = np.zeros_like(texts.offsets)
    counts = np.zeros((len(offsets) - 1, len(COUNTS)), np.int64)
    data = words.view(np.uint8)
    rewrite_documents(texts.data, texts.offsets, code_point_traits(), options, wanted, texts.longest_bytes, data, offsets, counts)
    return Texts(data, words, offsets), counts


@njit(nogil=True, cache=True)
def rewrite_documents(data, offsets, code_points, options, wanted, longest, out, out_offsets, counts):
    """Writes the documents, one after another, into `out` and their ends into out_offsets, and fills a row of counts for each.

    Lines go through one loop after another, thousands at a time: to call a function per line would cost more than the work.
    """
    # The text, and behind it the lines that lost citation marks.
    text = np.empty(2 * longest + 8, np.uint8)
    places = np.empty(2 * longest + 8, np.int32)
    lines = np.empty((_LINES_AT_A_TIME, _COLUMNS), np.int32)
    at = np.int64(0)
    for document in range(offsets.size - 1):
        start, size = max(offsets[document], 0), offsets[document + 1] - offsets[document]
        target = text if wanted[document] else out[at:]
        for i in range(size):
            target[i] = data[start + i]
        if not wanted[document]:
            at += size
        else:
            begin, i = at, np.int64(0)
            while i < size:
                i, amount, noted, brackets = _find_lines(text, i, size, code_points, lines, places)
                if brackets and options[CITATIONS] >= 0:
                    _mend_citations(text, size, code_points, lines, amount, places, noted)
                _look_at_words(text, code_points, options, lines, amount)
                _look_at_places(text, code_points, lines, amount, places)
                at = _write_lines(text, code_points, options, lines, amount, out, begin, at, counts[document])
            at = strip_end(out, begin, at, code_points)
        out_offsets[document + 1] = at


@njit(nogil=True, cache=True)
def _find_lines(text, i, size, code_points, lines, places):
    """Notes where the next lines from byte i on begin and end without the white space around them, and the places in them.

    Returns (byte after them, lines, places, whether there is a bracket).
    """
    amount, noted, brackets = 0, 0, False
    while i < size and amount < lines.shape[0]:
        first, found, first_place = i, np.uint8(0), noted
        while 0 <= i < size:
            meaning = _MEANINGS[text[i]]
            found |= meaning
            places[noted] = i
            noted += (meaning & _PLACE) != 0
            if meaning & (_BREAK | _MAYBE_BREAK) and (meaning & _BREAK or _is_break(text, i)):
                break
            i += 1
        last = i
        if i < size:
            i += 1 if text[i] < 0x80 else (2 if text[i] == 0xC2 else 3)
            i += text[last] == 0x0D and i < size and text[i] == 0x0A
        while 0 <= first < last and BYTE_TRAITS[text[first]] & SPACE:
            first += 1
        while 0 <= first < last and BYTE_TRAITS[text[last - 1]] & SPACE:
            last -= 1
        if first < last and (text[first] >= 0x80 or text[last - 1] >= 0x80):
            first = skip_space(text, first, last, code_points)
            last = strip_end(text, first, last, code_points)
        line = lines[amount]
        line[_FIRST], line[_LAST], line[_TEXT_FIRST], line[_TEXT_LAST] = first, last, first, last
        line[_PLACES_FIRST], line[_PLACES_LAST], line[_BRACKETS] = first_place, noted, (found & _BRACKET) != 0
        brackets |= (found & _BRACKET) != 0
        amount += 1
    return i, amount, noted, brackets


@njit(nogil=True, cache=True)
def _is_break(data, i):
    """Whether the bytes from C2 or E2 on are U+0085, U+2028 or U+2029."""
    if data[i] == 0xC2:
        return data[i + 1] == 0x85
    return data[i + 1] == 0x80 and (data[i + 2] == 0xA8 or data[i + 2] == 0xA9)


@njit(nogil=True, cache=True)
def _mend_citations(text, size, code_points, lines, amount, places, noted):
    """Lines with [1], [], [edit] or [citation needed] in them: a copy without these goes behind the text, with its own places."""
    free = size
    for k in range(amount):
        line = lines[k]
        if not line[_BRACKETS]:
            continue
        begin, i, last = free, np.int64(line[_FIRST]), np.int64(line[_LAST])
        while i < last:
            after = _citation_end(text, i, last, code_points) if text[i] == 0x5B else i
            if after > i:
                i = after
            else:
                text[free] = text[i]
                free, i = free + 1, i + 1
        line[_BRACKETS] = free - begin < last - line[_FIRST]
        if line[_BRACKETS]:
            line[_TEXT_FIRST], line[_TEXT_LAST], line[_PLACES_FIRST] = begin, free, noted
            for j in range(begin, free):
                places[noted] = j
                noted += _SPOTS[text[j]] != 0
            line[_PLACES_LAST] = noted


@njit(nogil=True, cache=True)
def _look_at_words(text, code_points, options, lines, amount):
    """Whether a line has an overlong word, and whether it has too few words; counts no further than it must."""
    longest, fewest = options[LONG_WORDS], options[WORDS_PER_LINE]
    for k in range(amount):
        first, last = np.int64(lines[k, _FIRST]), np.int64(lines[k, _LAST])
        lines[k, _IS_LONG] = 0 <= longest < last - first and _has_longer_word(text, first, last, longest, code_points)
        words, i = 0, first
        while 0 <= i < last and words < fewest:
            begin = i
            while 0 <= i < last and not BYTE_TRAITS[text[i]] & (SPACE | NON_ASCII):
                i += 1
            if i < last and text[i] >= 0x80:
                i, _, _ = word_end(text, begin, last, code_points)
            words += i > begin
            while 0 <= i < last and BYTE_TRAITS[text[i]] & SPACE:
                i += 1
            if i < last and text[i] >= 0x80:
                i = skip_space(text, i, last, code_points)
        lines[k, _IS_SHORT] = words < fewest


@njit(nogil=True, cache=True)
def _has_longer_word(data, start, end, longest, code_points):
    i = start
    while i < end:
        i, characters, _ = word_end(data, i, end, code_points)
        if characters > longest:
            return True
        i = skip_space(data, i, end, code_points)
    return False


@njit(nogil=True, cache=True)
def _look_at_places(text, code_points, lines, amount, places):
    """Phrases and sentences of every line."""
    for k in range(amount):
        start, end = np.int64(lines[k, _TEXT_FIRST]), np.int64(lines[k, _TEXT_LAST])
        found, sentences, resume = 0, 1, start
        for place in range(lines[k, _PLACES_FIRST], lines[k, _PLACES_LAST]):
            i = np.int64(places[place])
            spot = _SPOTS[text[i]]
            if spot == _SPOT_TERMINAL:
                if i >= resume and ends_sentence(text, i, start, end):
                    resume = next_sentence(text, i, end, code_points)
                    sentences += resume < end
            elif spot == _SPOT_CURLY:
                found |= _FOUND_CURLY
            elif spot == _SPOT_ANY_SCRIPT:
                if i >= resume and trait_at(text, i, code_points)[0] & TERMINAL:
                    resume = next_sentence(text, i, end, code_points)
                    sentences += resume < end
            elif i + 1 < end and (text[i + 1] | 0x20) == _AFTER[spot]:
                found |= _phrase_at(text, i, start, end, spot)
        lines[k, _PHRASES] = found
        lines[k, _SENTENCES_IN_LINE] = sentences


@njit(nogil=True, cache=True)
def _write_lines(text, code_points, options, lines, amount, out, begin, at, counts):
    """Appends what the rules keep to the document that began at `begin` of `out` and ends at `at`, and counts. Returns the new end."""
    for k in range(amount):
        line = lines[k]
        start, end = np.int64(line[_TEXT_FIRST]), np.int64(line[_TEXT_LAST])
        filled, phrases = line[_FIRST] < line[_LAST], line[_PHRASES]
        if line[_IS_LONG]:
            counts[LONG_WORDS] += 1
            continue
        counts[CITATIONS] += line[_BRACKETS] and options[CITATIONS] >= 0
        if options[TERMINAL_PUNCTUATION] >= 0 and not _ends_terminally(text, start, end, code_points):
            counts[TERMINAL_PUNCTUATION] += filled
            continue
        if line[_IS_SHORT]:
            counts[WORDS_PER_LINE] += filled
            continue
        counts[_LOREM] += (phrases & _FOUND_LOREM) != 0
        if options[JAVASCRIPT] >= 0 and phrases & _FOUND_JAVASCRIPT:
            counts[JAVASCRIPT] += 1
            continue
        counts[_CURLY] += (phrases & _FOUND_CURLY) != 0
        if options[POLICY] >= 0 and phrases & _FOUND_POLICY:
            counts[POLICY] += 1
            continue
        counts[_SENTENCES] += line[_SENTENCES_IN_LINE] * filled
        if at == begin:
            start = skip_space(text, start, end, code_points)
        else:
            out[at] = 0x0A
            at += 1
        at, start = max(at, 0), max(start, 0)
        for i in range(end - start):
            out[at + i] = text[start + i]
        at += end - start
    return at


@njit(nogil=True, cache=True)
def _citation_end(data, i, end, code_points):
    """Byte after the citation mark that the `[` at byte i begins, or i."""
    if _matches(data, i + 1, end, _EDIT, False):
        return i + 1 + _EDIT.size
    if _matches(data, i + 1, end, _CITATION_NEEDED, False):
        return i + 1 + _CITATION_NEEDED.size
    j = i + 1
    while j < end:
        trait, size = trait_at(data, j, code_points)
        if not trait & NUMERAL:
            break
        j += size
    return j + 1 if j < end and data[j] == 0x5D else i


@njit(nogil=True, cache=True)
def _matches(data, i, end, phrase, any_case):
    """Whether the bytes from i on spell the phrase (small letters), all before `end`."""
    if i + phrase.size > end:
        return False
    for k in range(phrase.size):
        byte = data[i + k]
        if any_case and 0x41 <= byte <= 0x5A:
            byte |= 0x20
        if byte != phrase[k]:
            return False
    return True


@njit(nogil=True, cache=True)
def _ends_terminally(data, start, end, code_points):
    """Whether the line ends with a sentence terminal or a closing quotation mark, and not with three full stops."""
    if start == end:
        return False
    if end - start >= 3 and data[end - 1] == 0x2E and data[end - 2] == 0x2E and data[end - 3] == 0x2E:
        return False
    i = last_character(data, start, end)
    trait, size = trait_at(data, i, code_points)
    if size == 1:
        return (trait & TERMINAL) != 0 or data[i] == 0x22 or data[i] == 0x27
    right_quote = data[i] == 0xE2 and data[i + 1] == 0x80 and (data[i + 2] == 0x9D or data[i + 2] == 0x99)
    corner_bracket = data[i] == 0xE3 and data[i + 1] == 0x80 and (data[i + 2] == 0x8D or data[i + 2] == 0x8F)
    guillemet = data[i] == 0xC2 and data[i + 1] == 0xBB
    return (trait & TERMINAL) != 0 or right_quote or corner_bracket or guillemet


@njit(nogil=True, cache=True)
def _phrase_at(data, i, start, end, spot):
    """The phrase that the letter at byte i belongs to, or 0."""
    if spot != _SPOT_JAVASCRIPT and i - start < 3:
        return 0
    if spot == _SPOT_JAVASCRIPT:
        return _FOUND_JAVASCRIPT if _matches(data, i, end, _JAVASCRIPT_WORD, True) else 0
    if spot == _SPOT_LOREM:
        return _FOUND_LOREM if i - start >= 7 and _matches(data, i - 7, end, _LOREM_IPSUM, True) else 0
    if spot == _SPOT_TERMS:
        return _FOUND_POLICY if i - start >= 7 and _matches(data, i - 7, end, _TERMS_OF_USE, True) else 0
    if spot == _SPOT_PRIVACY:
        return _FOUND_POLICY if _matches(data, i - 3, end, _PRIVACY_POLICY, True) else 0
    if _matches(data, i - 3, end, _COOKIE_POLICY, True):
        return _FOUND_POLICY
    if i - start >= 7 and _matches(data, i - 7, end, _USE_COOKIES, True):
        return _FOUND_POLICY
    if i - start >= 8 and _matches(data, i - 8, end, _USES_COOKIES, True):
        return _FOUND_POLICY
    return _FOUND_POLICY if i - start >= 10 and _matches(data, i - 10, end, _USE_OF_COOKIES, True) else 0
