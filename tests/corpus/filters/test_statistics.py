from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pyarrow as pa
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fledge.corpus.characters import DIGIT, LETTER, MARK, UNSPACED
from fledge.corpus.filters import statistics
from fledge.corpus.filters.scanning import TERMINALS, as_bytes
from fledge.corpus.filters.statistics import COUNTS

from .plain_words import kind, words_of

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with", "не", "в")


def counted(*texts: str, stop_words: tuple[str, ...] = STOP_WORDS, needed: tuple[str, ...] = COUNTS) -> statistics.Statistics:
    return statistics.statistics(as_bytes(pa.array(texts, pa.large_string())), needed, stop_words)


def counts_of(text: str, **options: tuple[str, ...]) -> dict[str, int]:
    found = counted(text, **options)
    return {name: int(found[name][0]) for name in COUNTS}


def duplicates_of(elements: list[str]) -> tuple[int, int]:
    repeated = [element for i, element in enumerate(elements) if element in elements[:i]]
    return len(repeated), sum(map(len, repeated))


def top_gram(words: list[str], n: int) -> int:
    grams = Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(" ".join(grams.most_common(1)[0][0])) * grams.most_common(1)[0][1] if grams else 0


def said_again(words: list[str], n: int) -> int:
    seen, characters, i = set(), 0, 0
    while i < len(words) - n + 1:
        gram = tuple(words[i : i + n])
        repeated = gram in seen
        characters += len("".join(gram)) if repeated else 0
        seen.add(gram)
        i += n if repeated else 1
    return characters


def reference(text: str) -> dict[str, int]:
    """Every count in plain Python."""
    words = words_of(text)
    plain = [word for word in words if any(kind(character) in {LETTER, DIGIT, MARK, UNSPACED} for character in word)]
    lines = text.splitlines()
    segments = re.split("\n+", text) if text else []
    paragraphs = re.split("\n{2,}", text.strip()) if text.strip() else []
    rows = [row for row in text.split("\n") if row.strip()]
    counts = {
        "characters": len(text),
        "words": len(words),
        "plain_words": len(plain),
        "plain_word_characters": sum(map(len, plain)),
        "letter_words": sum(any(kind(character) in {LETTER, UNSPACED} for character in word) for word in words),
        "unspaced_words": sum(any(kind(character) == UNSPACED for character in word) for word in words),
        "stop_words": len(set(STOP_WORDS) & set(words)),
        "hashes": text.count("#"),
        "ellipses": text.count("...") + text.count("…"),
        "lines": len(lines),
        "bullet_lines": sum(line.lstrip().startswith(("-", "•")) for line in lines),
        "ellipsis_lines": sum(line.rstrip().endswith(("...", "…")) for line in lines),
        "segments": len(segments),
        "paragraphs": len(paragraphs),
        "newlines": text.count("\n"),
        "characters_in_rows": len(text.replace("\n", "")),
        "rows": len(rows),
        "terminal_rows": sum(ord(row[-1]) in TERMINALS for row in rows),
        "short_rows": sum(len(row) <= 30 for row in rows),
        "duplicate_row_characters": duplicates_of(rows)[1],
    }
    counts["duplicate_segments"], counts["duplicate_segment_characters"] = duplicates_of(segments)
    counts["duplicate_paragraphs"], counts["duplicate_paragraph_characters"] = duplicates_of(paragraphs)
    counts |= {f"top_{n}_gram_characters": top_gram(words, n) for n in (2, 3, 4)}
    counts |= {f"duplicate_{n}_gram_characters": said_again(words, n) for n in range(5, 11)}
    return counts


PIECES = st.sampled_from(
    [
        *"ab -#.!?_,1", "\n", "\n\n", "\r\n", "\r", "\t", "\v", "\x1c", "\x85", "\u2028", "\xa0", "\u3000", "\u1680", "\x00", "\u0301",
        "...", "…", "•", "é", "ж", "不", "が", "ก็", "。", "؟", "😀", "\U000e0020", "ﬁ", "٣", "the ", "of ", "and ", "не ", "a b c d e f ",
        "some longer words in here ",
    ]
)  # fmt: skip
PATCHWORK = st.lists(PIECES, max_size=60).map("".join)


@settings(max_examples=300)
@given(st.one_of(PATCHWORK, st.text(max_size=80), PATCHWORK.map(lambda text: text * 3)))
@example("")
@example("\n")
@example("\n\n \n")
@example("a\r")
@example("-\r\n")
@example(" \n\na\n \n\na \n")
def test_the_compiled_counts_are_those_of_plain_python(text: str) -> None:
    assert counts_of(text) == reference(text)


@settings(max_examples=30)
@given(st.lists(PATCHWORK, max_size=6))
def test_documents_do_not_see_each_other(texts: list[str]) -> None:
    together = counted(*texts).counts
    assert together.tolist() == [counted(text).counts[0].tolist() for text in texts]
    sliced = pa.array(["left out", *texts], pa.large_string()).slice(1)
    assert statistics.statistics(as_bytes(sliced), COUNTS, STOP_WORDS).counts.tolist() == together.tolist()


def test_what_is_not_needed_stays_zero_and_the_rest_is_the_same() -> None:
    text = "the end of it\n- a b c d e a b c d e\n\n# x" * 3
    everything = counts_of(text)
    for needed in (("words", "rows"), ("stop_words",), ("paragraphs",), ("top_2_gram_characters", "newlines"), ("lines", "hashes")):
        some = counts_of(text, needed=needed)
        assert all(some[name] == everything[name] for name in needed)
        assert all(some[name] in (0, everything[name]) for name in COUNTS)
    assert counts_of(text, needed=())["paragraphs"] == 0


def test_documents_that_are_not_wanted_are_not_counted() -> None:
    texts = as_bytes(pa.array(["a b", "c d", "e"], pa.large_string()))
    assert statistics.statistics(texts, COUNTS, (), np.array([True, False, True]))["words"].tolist() == [2, 0, 1]


def test_stop_words_are_counted_once_each_in_any_number() -> None:
    many = tuple(f"stop{number}" for number in range(500))
    assert counts_of(" ".join(many[:77] * 2) + " Stop1 stop1,", stop_words=many)["stop_words"] == 77
    assert counts_of("the of", stop_words=())["stop_words"] == 0
    assert counts_of("the of", stop_words=("the", "the", "of"))["stop_words"] == 2
