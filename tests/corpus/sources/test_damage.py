from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.corpus.sources.damage import DAMAGES, Damage, damaged

ANSWER = "Remove common leading whitespace from every line in the given text."


def test_cut_ends_in_mid_sentence() -> None:
    for seed in range(50):
        rejected = damaged(ANSWER, "cut", "", Random(seed))
        assert ANSWER.startswith(rejected) and 0.2 < len(rejected) / len(ANSWER) < 0.8
        assert not rejected.endswith((".", "!", "?"))


def test_cut_ends_where_no_sentence_can_if_there_is_such_a_place() -> None:
    ends = {damaged("Return the name of the given file system node.", "cut", "", Random(seed)) for seed in range(30)}
    assert ends == {"Return the", "Return the name of", "Return the name of the"}
    ends = {damaged("Close files opened earlier today.", "cut", "", Random(seed)) for seed in range(30)}
    assert ends == {"Close", "Close files", "Close files opened"}


def test_cut_at_a_sentence_end_drops_the_full_stop() -> None:
    assert damaged("Stop. Go on.", "cut", "", Random(0)) in {"Stop", "Stop. Go"}


def test_repeat_says_two_words_four_times() -> None:
    for seed in range(50):
        words = damaged(ANSWER, "repeat", "", Random(seed)).split(" ")
        assert len(words) == len(ANSWER.split(" ")) + 6
        assert any(words[start : start + 2] * 4 == words[start : start + 8] for start in range(len(words)))


def test_run_on_goes_on_into_the_next_answer() -> None:
    assert damaged(ANSWER, "run_on", "Close the file.", Random(0)) == f"{ANSWER} Close the file."


@given(
    st.lists(st.text(alphabet="ab.!?", min_size=1, max_size=6), min_size=1, max_size=12).map(" ".join).filter(lambda text: len(text) >= 2),
    st.sampled_from(DAMAGES),
    st.integers(0, 99),
)
def test_the_damaged_answer_is_never_the_answer(answer: str, damage: Damage, seed: int) -> None:
    assert damaged(answer, damage, "Next.", Random(seed)) != answer


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_same_seed_gives_the_same_damage(damage: Damage) -> None:
    assert damaged(ANSWER, damage, "Next.", Random(7)) == damaged(ANSWER, damage, "Next.", Random(7))
