from __future__ import annotations

import functools
import itertools
import multiprocessing
from random import Random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.dedup.signatures import Signatures, shingle_hashes, signatures, similarity

NEAR = DeduplicateSettings()
PAIRS_PER_BIN = 1_100
SEEDS = (1, 2, 3, 4, 5)


def signed(*texts: str, **options: object) -> Signatures:
    return signatures(pa.array(texts, pa.large_string()), DeduplicateSettings(**options))  # type: ignore[arg-type]


def meet(found: Signatures, one: int = 0, other: int = 1) -> bool:
    """Whether two documents agree in a band."""
    return bool((found.bands[:, one] == found.bands[:, other]).any())


def same(found: Signatures, one: int = 0, other: int = 1) -> bool:
    return bool((found.exact[one] == found.exact[other]).all())


class Writer:
    """Writes texts that look real: words of Zipf's frequencies in sentences and paragraphs."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        letters = "etaoinshrdlucmfwypvbgkjqxz"
        self.vocabulary = ["".join(self.random.choices(letters, range(26, 0, -1), k=self.random.randint(2, 9))) for _ in range(4_000)]
        self.weights = list(itertools.accumulate(1 / rank for rank in range(1, 4_001)))

    def words(self, count: int) -> list[str]:
        return self.random.choices(self.vocabulary, cum_weights=self.weights, k=count)

    def text(self, words: list[str]) -> str:
        ends = self.random.choices([" ", ", ", ". ", ".\n\n", " - "], (80, 10, 8, 1, 1), k=len(words))
        return "".join(word + end for word, end in zip(words, ends, strict=True))

    def pair(self, words: int, replaced: int) -> tuple[str, str]:
        """A text, and the same with some words replaced and another punctuation."""
        original = self.words(words)
        changed = list(original)
        for position in self.random.sample(range(words), replaced):
            changed[position] = f"new{self.random.randrange(10**9)}"
        return self.text(original), self.text([word.upper() if self.random.random() < 0.1 else word for word in changed])


@functools.cache
def planted_pairs() -> tuple[list[str], NDArray[np.float64]]:
    """Texts 2i and 2i + 1 are a pair of the i-th similarity; PAIRS_PER_BIN in each of 0.8 to 0.9 and 0.9 to 1, fewer in 0.3 to 0.5."""
    writer = Writer(0)
    texts: list[str] = []
    similarities: list[float] = []
    wanted = {(0.3, 0.5): PAIRS_PER_BIN // 4, (0.8, 0.9): PAIRS_PER_BIN, (0.9, 1.0): PAIRS_PER_BIN}
    for (low, high), count in wanted.items():
        while count:
            words = writer.random.randint(60, 300)
            # A word that is replaced changes five shingles of each text: J = (1 - x) / (1 + x) with the changed share x.
            target = writer.random.uniform(low, high)
            share = (1 - target) / (1 + target)
            pair = writer.pair(words, max(1, round(share * words / 5)))
            found = similarity(*pair, NEAR.shingle_words)
            if low <= found < high:
                texts += pair
                similarities.append(found)
                count -= 1
    return texts, np.array(similarities)


def test_recall_of_planted_pairs() -> None:
    texts, similarities = planted_pairs()
    found = []
    for seed in SEEDS:
        keys = signed(*texts, seed=seed).bands
        found.append((keys[:, 0::2] == keys[:, 1::2]).any(axis=0))
    recall = np.mean(found, axis=0)
    alike, very_alike = (similarities >= 0.8) & (similarities < 0.9), similarities >= 0.9
    assert alike.sum() + very_alike.sum() == 2 * PAIRS_PER_BIN >= 2_000
    assert recall[alike].mean() >= 0.96
    assert recall[very_alike].mean() >= 0.999
    expected = 1 - (1 - similarities**NEAR.rows) ** NEAR.bands
    for bin_of in (alike, very_alike, similarities < 0.5):
        assert recall[bin_of].mean() == pytest.approx(expected[bin_of].mean(), abs=0.01)


def test_texts_with_nothing_in_common_never_meet() -> None:
    writer = Writer(1)
    keys = signed(*(writer.text(writer.words(120)) for _ in range(2_000))).bands
    assert all(len(np.unique(band)) == 2_000 for band in keys)


def test_exact_forgets_case_punctuation_and_layout() -> None:
    found = signed("Return  the\nKey, value!", "return the key value", "return the value key", "return the keyvalue", "return the key")
    assert same(found, 0, 1)
    assert len(np.unique(found.exact[:, 0])) == len(np.unique(found.exact[:, 1])) == 4
    assert meet(found, 0, 1)


def test_texts_without_words_are_compared_by_their_bytes() -> None:
    found = signed("***", "***", "* * *", "", "", "😀", "😁", "x")
    groups = [0, 0, 1, 2, 2, 3, 4, 5]
    for one, other in itertools.combinations(range(len(groups)), 2):
        assert same(found, one, other) == meet(found, one, other) == (groups[one] == groups[other])
        assert (found.bands[:, one] == found.bands[:, other]).all() == (groups[one] == groups[other])


def test_a_short_text_is_one_shingle() -> None:
    found = signed("see also the index", "See also: the index.", "see also the", "see also the index here now")
    assert same(found, 0, 1) and meet(found, 0, 1)
    assert not meet(found, 0, 2)
    assert not meet(found, 0, 3)
    assert shingle_hashes("a b c", 5).size == shingle_hashes("a b c d e", 5).size == shingle_hashes("", 5).size == 1
    assert shingle_hashes("a b c d e f", 5).size == 2


def test_common_boilerplate_does_not_chain_short_texts() -> None:
    writer = Writer(2)
    texts = [f"all rights reserved worldwide today {' '.join(writer.words(8))} {number}" for number in range(300)]
    assert similarity(texts[0], texts[1], 5) == pytest.approx(1 / 19)
    keys = signed(*texts).bands
    assert all(len(np.unique(band)) == 300 for band in keys)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a b c d e f", "a b c d e g", 1 / 3),
        ("a b c d e f", "A, B; c-d e (f)", 1),
        ("a b c", "a b d", 0),
        ("一二三四五六七", "一二三四五六八", 2 / 4),
        ("...", "...", 1),
        ("...", "", 0),
    ],
)
def test_similarity(one: str, other: str, expected: float) -> None:
    assert similarity(one, other, 5) == pytest.approx(expected)


def test_unspaced_scripts_are_compared_by_characters() -> None:
    sentence = "近日、研究人员在实验室中发现了一种新的材料、它能够在常温下导电、而且制造成本很低、因此受到广泛关注。" * 2
    found = signed(
        sentence,
        sentence.replace("。", "\uff01").replace("、", " "),
        sentence.replace("近日", "昨天", 1),
        "完全不同的一句话、与上面没有任何关系。",
    )
    assert same(found, 0, 1)
    assert not same(found, 0, 2)
    assert meet(found, 0, 2)
    assert not meet(found, 0, 3)


def test_only_what_is_wanted_is_made() -> None:
    assert signed("a b", kind="exact").bands.shape == (0, 1)
    assert signed("a b", kind="none").bands.shape == (0, 1)
    assert signed("a b", "c", bands=3, rows=2).bands.shape == (3, 2)
    assert signed().exact.shape == (0, 2)
    assert signed().bands.shape == (NEAR.bands, 0)


def test_seeds_and_bands_are_different_functions() -> None:
    one, other = signed("a b c d e f g", seed=1), signed("a b c d e f g", seed=2)
    assert np.unique(np.concatenate([one.bands, other.bands])).size == 2 * NEAR.bands
    assert (one.exact == other.exact).all()
    assert np.array_equal(signed("a b c d e f g", seed=-(2**70)).bands, signed("a b c d e f g", seed=0).bands)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_keys_depend_on_the_text_alone(texts: list[str], random: Random) -> None:
    order = list(range(len(texts)))
    random.shuffle(order)
    whole = signed(*texts)
    shuffled = signed(*(texts[index] for index in order))
    assert np.array_equal(shuffled.exact, whole.exact[order])
    assert np.array_equal(shuffled.bands, whole.bands[:, order])
    part = signatures(pa.array(["before", *texts, "after"], pa.large_string())[1:-1], NEAR)
    assert np.array_equal(part.exact, whole.exact)
    assert np.array_equal(part.bands, whole.bands)


def test_blocks_and_long_documents_change_nothing() -> None:
    writer = Writer(3)
    texts = [writer.text(writer.words(count)) for count in (5, 100_000, 3, 60_000, 2_000)]
    whole = signed(*texts)
    for position, text in enumerate(texts):
        alone = signed(text)
        assert np.array_equal(alone.exact[0], whole.exact[position])
        assert np.array_equal(alone.bands[:, 0], whole.bands[:, position])


def test_another_process_finds_the_same_keys() -> None:
    writer = Writer(4)
    texts = pa.array([writer.text(writer.words(50)) for _ in range(20)], pa.large_string())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        found = pool.apply(signatures, (texts, NEAR))
    assert np.array_equal(found.bands, signatures(texts, NEAR).bands)


def test_keys_never_change() -> None:
    """A change would join documents of one corpus differently than before: it needs another format number of the units."""
    found = signed("The quick brown fox jumps over the lazy dog.", "Съешь ещё этих мягких французских булок", "天地玄黃宇宙洪荒", "...", "")
    assert [f"{one:016x} {two:016x}" for one, two in found.exact.tolist()] == [
        "9ce3c1d5a1227673 ab12c729d37d48e7",
        "ee928d3012a6e199 46b84368fe2d182a",
        "109fcdedf36887a1 baaa985fa553c6d7",
        "3b86a04b8d17fd8a ec7209dc0a441b3f",
        "a3ed002e83606a64 893f88f3eb9bc414",
    ]
    assert [[f"{key:016x}" for key in found.bands[band].tolist()] for band in (0, 13)] == [
        ["2783e18580de0bb8", "ab81c5f443aa95e2", "9b0e89ade255f344", "b38ab33e0a1b166c", "fbcbd0932f326bda"],
        ["506601d0e86fdc85", "c3abfe9fd0e00f7d", "132024f9fa5d40a0", "1ebd9bd43ff2b18d", "614e2b294a11d03f"],
    ]
