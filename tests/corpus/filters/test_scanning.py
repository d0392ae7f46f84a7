# ruff: noqa: RUF001
from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.corpus.filters import line_rules, repetition, scanning, sentences, statistics
from fledge.corpus.filters.scanning import BREAK, BYTE_TRAITS, NON_ASCII, SPACE, TERMINAL, as_bytes, code_point_traits, decode, hash_bytes


@pytest.mark.parametrize("module", [repetition, sentences, statistics, line_rules])
def test_compiled_code_is_made_anew_when_what_is_compiled_into_it_changes(module: object) -> None:
    for name, begin in module._COMPILED_IN.items():  # type: ignore[attr-defined]
        source = Path(str(scanning.__file__)).with_name(f"{name}.py").read_bytes()
        found = hashlib.sha256(source).hexdigest()[:16]
        assert found == begin, f"write {found} for {name} into _COMPILED_IN of {module}, or numba runs what it compiled before"


def test_traits_of_bytes_are_those_of_ascii() -> None:
    assert BYTE_TRAITS[:128].tolist() == code_point_traits()[:128].tolist()
    assert (BYTE_TRAITS[128:] == NON_ASCII).all()


def test_line_ends_and_white_space_are_those_of_python() -> None:
    traits = code_point_traits()
    for code in range(0x3100):
        assert bool(traits[code] & BREAK) == (len(f"a{chr(code)}b".splitlines()) == 2), hex(code)
        assert bool(traits[code] & SPACE) == chr(code).isspace(), hex(code)


@pytest.mark.parametrize(("character", "ends"), [*((one, True) for one in ".!?。？！؟।۔"), *((one, False) for one in ",;:…\"'”a1")])
def test_sentence_terminals(character: str, ends: bool) -> None:
    assert bool(code_point_traits()[ord(character)] & TERMINAL) == ends


@settings(max_examples=60)
@given(st.lists(st.text(max_size=20), min_size=1, max_size=4), st.integers(0, 2))
def test_texts_are_their_utf8_in_a_row(texts: list[str], before: int) -> None:
    given_texts = as_bytes(pa.array(["x" * 9] * before + texts, pa.large_string()).slice(before))
    parts = [bytes(given_texts.data[start:end]).decode() for start, end in zip(given_texts.offsets, given_texts.offsets[1:], strict=False)]
    assert parts == texts
    assert given_texts.data.size >= given_texts.offsets[-1] + 16
    for text, start in zip(texts, given_texts.offsets, strict=False):
        if text:
            assert decode(given_texts.data, start) == (ord(text[0]), len(text[0].encode()))


def test_no_texts_at_all() -> None:
    assert as_bytes(pa.array([], pa.large_string())).offsets.tolist() == [0]


def test_equal_bytes_have_equal_hashes_wherever_they_lie() -> None:
    pieces = [b"", b"a", b"b", b"a\0", b"abcdefg", b"abcdefgh", b"abcdefghi", b"abcdefghijklmnop", b"bcdefghijklmnopq"]
    seen: dict[bytes, set[int]] = {piece: set() for piece in pieces}
    for shift in range(9):
        for piece in pieces:
            words = np.zeros(8, np.uint64)
            words.view(np.uint8)[:] = np.arange(64) + shift
            words.view(np.uint8)[shift : shift + len(piece)] = np.frombuffer(piece, np.uint8)
            seen[piece].add(int(hash_bytes(words, shift, shift + len(piece))))
    assert all(len(hashes) == 1 for hashes in seen.values())
    assert len(set.union(*seen.values())) == len(pieces)
