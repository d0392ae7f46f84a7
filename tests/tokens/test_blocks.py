"""Blocks with checksums: what is read is what was written, a changed byte is found at the first touch of its block, a cut is an error."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.core.errors import DataError
from fledge.tokens import blocks
from fledge.tokens.blocks import BlockChecksums, CheckedArray

HEADER = b"header--"
ELEMENTS = np.arange(1_000, dtype="<u2")
BLOCK = 64
"""Bytes: 32 elements, so 32 blocks, the last with 16 bytes."""


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", BLOCK)


def write(folder: Path) -> Path:
    (folder / "array").write_bytes(HEADER + ELEMENTS.tobytes())
    return folder / "array"


def checksums_of(content: bytes, pieces: int = 7) -> np.ndarray:
    found = BlockChecksums()
    for start in range(0, len(content), pieces):
        found.update(content[start : start + pieces])
    return np.frombuffer(found.finish(), "<u4")


def opened(path: Path) -> CheckedArray:
    return CheckedArray(path, ELEMENTS.dtype, len(ELEMENTS), checksums_of(ELEMENTS.tobytes()), len(HEADER))


@pytest.mark.parametrize("pieces", [1, 63, 64, 65, 3_000])
def test_checksums_are_those_of_the_blocks_however_the_bytes_come(pieces: int) -> None:
    content = ELEMENTS.tobytes()
    expected = [zlib.crc32(content[start : start + BLOCK]) for start in range(0, len(content), BLOCK)]
    assert checksums_of(content, pieces).tolist() == expected
    assert len(expected) == 32


def test_nothing_has_no_checksum() -> None:
    assert BlockChecksums().finish() == b""


@settings(max_examples=100)
@given(st.lists(st.tuples(st.integers(-5, 1_005), st.integers(-5, 1_005)), min_size=1, max_size=5))
def test_it_reads_like_an_array(tmp_path_factory: pytest.TempPathFactory, ranges: list[tuple[int, int]]) -> None:
    blocks.BLOCK_BYTES = BLOCK
    array = opened(write(tmp_path_factory.mktemp("array")))
    assert len(array) == 1_000
    for start, stop in ranges:
        assert array[start:stop].tolist() == ELEMENTS[start:stop].tolist()
        assert array[start:stop].dtype == ELEMENTS.dtype


def test_single_elements_and_the_whole(tmp_path: Path) -> None:
    array = opened(write(tmp_path))
    assert (array[0], array[999], array[-1]) == (0, 999, 999)
    assert np.array_equal(np.asarray(array), ELEMENTS)
    assert not array[:].flags.writeable
    with pytest.raises(IndexError):
        array[1_000]


@pytest.mark.parametrize("byte", range(0, 2_000, 37))
def test_a_changed_byte_is_found_when_its_block_is_first_touched_and_not_before(tmp_path: Path, byte: int) -> None:
    path = write(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(HEADER) + byte] ^= 4
    path.write_bytes(bytes(content))
    array, block = opened(path), byte // BLOCK
    for other in (place for place in range(0, 1_000, 32) if place // 32 != block):
        assert array[other] == other
    begin, end = len(HEADER) + block * BLOCK, min(len(content), len(HEADER) + (block + 1) * BLOCK)
    for _ in range(2):
        with pytest.raises(DataError, match=f"array is damaged: block {block}, bytes {begin:,} to {end:,}, has the CRC-32") as caught:
            array[block * 32 : block * 32 + 1]
        assert "fledge pack RECIPE --force" in caught.value.remedy
    assert len(list(array.damages())) == 1


def test_a_whole_array_has_no_damages(tmp_path: Path) -> None:
    assert list(opened(write(tmp_path)).damages()) == []


@pytest.mark.parametrize("touched_before", [False, True])
def test_a_file_that_is_cut_short_is_an_error_and_never_a_signal(tmp_path: Path, touched_before: bool) -> None:
    path = write(tmp_path)
    array = opened(path)
    if touched_before:
        array[:]
    os.truncate(path, len(HEADER) + 501)
    assert array[0:10].tolist() == list(range(10))
    with pytest.raises(DataError, match=r"array was cut short while it was used: it ends at byte 509, and had 2,008 bytes"):
        array[200:400]


def test_a_removed_file_stays_readable_while_it_is_open(tmp_path: Path) -> None:
    path = write(tmp_path)
    array = opened(path)
    path.unlink()
    assert array[990:].tolist() == list(range(990, 1_000))
