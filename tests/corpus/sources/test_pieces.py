from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fledge.corpus.sources.pieces import cut


def test_cuts_at_the_best_border_there_is() -> None:
    assert list(cut(["one two\n\nthree\nfour five six"], 16)) == ["one two\n\nthree", "four five six"]
    assert list(cut(["aaaaaaaa\n\nbbbb cccc"], 12)) == ["aaaaaaaa", "bbbb cccc"]
    assert list(cut(["aaaa bbbb cccc"], 10)) == ["aaaa bbbb ", "cccc"]
    assert list(cut(["a" * 25], 10)) == ["a" * 10, "a" * 10, "a" * 5]


def test_short_and_blank_texts() -> None:
    assert list(cut(["\n\nshort\n"], 100)) == ["short"]
    assert list(cut([" \n \n"], 100)) == []
    assert list(cut([], 100)) == []


@given(st.lists(st.text(alphabet="ab \n", max_size=30), max_size=8), st.integers(1, 12))
def test_nothing_but_line_ends_and_blanks_is_lost(chunks: list[str], maximum: int) -> None:
    pieces = list(cut(chunks, maximum))
    assert all(0 < len(piece) <= maximum for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join("".join(chunks).split())


@given(st.text(alphabet="abc \n", max_size=60), st.integers(1, 12), st.integers(1, 7))
def test_the_chunks_do_not_matter(text: str, maximum: int, size: int) -> None:
    chunks = [text[start : start + size] for start in range(0, len(text), size)]
    assert list(cut(chunks, maximum)) == list(cut([text], maximum))
