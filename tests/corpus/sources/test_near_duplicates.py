from __future__ import annotations

import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from fledge.corpus.sources.near_duplicates import (
    QUOTED_SHINGLES,
    alike,
    alike_pairs,
    components,
    equal_pairs,
    normalised,
    shingles,
    text_group,
)


def test_normalisation_forgets_case_punctuation_and_layout() -> None:
    assert normalised("Return  the\nKey, value!") == "return the key value"
    assert normalised("***  ***") == "*** ***"
    assert text_group("Same text.") == text_group("same\ttext") != text_group("other text")


def test_shingles() -> None:
    assert shingles("a b c d e f") == {"a b c d e", "b c d e f"}
    assert shingles("a b c") == {"a b c"}


def test_alike_at_and_below_one_half() -> None:
    # Jaccard 2/4 and 2/5.
    assert alike(frozenset("abc"), frozenset("bcd"))
    assert not alike(frozenset("abc"), frozenset("bcde"))


def test_a_quoted_passage_is_alike_only_if_it_is_long_enough() -> None:
    long = frozenset(map(str, range(1_000)))
    quoted = frozenset(map(str, range(QUOTED_SHINGLES)))
    assert alike(quoted, long)
    assert alike(quoted | {f"own {number}" for number in range(QUOTED_SHINGLES)}, long)
    assert not alike(quoted | {f"own {number}" for number in range(QUOTED_SHINGLES + 1)}, long)
    assert not alike(frozenset(list(quoted)[1:]), long)


def compared_all_with_all(sets: list[frozenset[str]]) -> list[int]:
    return components(len(sets), ((a, b) for a, b in itertools.combinations(range(len(sets)), 2) if alike(sets[a], sets[b])))


@given(st.lists(st.frozensets(st.sampled_from("abcdefgh"), min_size=1), max_size=12))
def test_the_index_finds_every_pair(sets: list[frozenset[str]]) -> None:
    distinct = list(dict.fromkeys(sets))
    expected = {(a, b) for a, b in itertools.combinations(range(len(distinct)), 2) if alike(distinct[a], distinct[b])}
    assert {(min(pair), max(pair)) for pair in alike_pairs(distinct)} == expected
    assert components(len(sets), alike_pairs(sets)) == compared_all_with_all(sets)


def test_the_index_finds_every_pair_among_texts_with_boilerplate() -> None:
    random = Random(0)
    words = [f"w{number}" for number in range(40)]
    boilerplate = "this method is deprecated and will be removed in the next release of the library"
    texts = [" ".join(random.choices(words, k=random.randint(4, 60))) for _ in range(60)]
    texts += [f"{text} {boilerplate}" for text in texts[:30]] + [text[: len(text) // 2] for text in texts[:30]]
    sets = [shingles(text) for text in texts]
    found = components(len(sets), alike_pairs(sets))
    assert found == compared_all_with_all(sets)
    assert 1 < len(set(found)) < len(texts)


def test_components() -> None:
    assert components(6, [(1, 4), (5, 4), (0, 2)]) == [0, 1, 0, 3, 1, 1]
    assert list(equal_pairs(["a", "b", "a", "a"])) == [(0, 2), (0, 3)]
