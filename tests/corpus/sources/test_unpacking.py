from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import zstandard

from fledge.core.errors import DataError
from fledge.corpus.sources import unpacking
from fledge.corpus.sources.unpacking import Damaged, GivenUp, is_packed, opened, remedy_for_no_parquet, unpacked

from .readers import input_file

TEXT = b"".join(b"%d, " % (number * 7919) for number in range(20_000))
SKIPPABLE = struct.pack("<II", 0x184D2A53, 5) + b"notes"


def zstd(content: bytes, **parameters: int) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(content)


def unpack(path: Path) -> tuple[bytes, str]:
    with unpacked(input_file(path)) as stream:
        return stream.read(), stream.left_out


def test_names_tell_what_is_packed() -> None:
    assert [is_packed(name) for name in ("a.jsonl.gz", "A.TXT.ZST", "a.gz.txt", "a.jsonl", "gz")] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", TEXT + TEXT),
        ("a.gz", gzip.compress(TEXT) + gzip.compress(b"") + gzip.compress(TEXT)),
        ("a.gz", gzip.compress(TEXT) + bytes(40_000) + gzip.compress(TEXT) + bytes(7)),
        (
            "a.gz",
            gzip.compress(TEXT[:1])
            + b"".join(gzip.compress(TEXT[start : start + 999]) for start in range(1, len(TEXT), 999))
            + gzip.compress(TEXT),
        ),
        ("a.zst", zstd(TEXT) + SKIPPABLE + zstd(b"") + zstd(TEXT) + SKIPPABLE),
        ("a.zst", SKIPPABLE + zstd(TEXT + TEXT) + bytes(30)),
    ],
)
def test_members_in_a_row_are_one_stream(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert unpack(path) == (TEXT + TEXT, "")
    with unpacked(input_file(path)) as stream:
        assert b"".join(iter(lambda: stream.read(1_001), b"")) == TEXT + TEXT


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_an_empty_file_is_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert unpack(tmp_path / name) == (b"", "")


@pytest.mark.parametrize(("trailing", "is_left_out"), [(b"x", True), (b"\0x" * 32_000, True), (b"x" * 65_537, False), (b"\x1f\x8b", False)])
def test_a_few_bytes_behind_the_last_member_are_left_out_and_more_are_damage(tmp_path: Path, trailing: bytes, is_left_out: bool) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(gzip.compress(TEXT) + trailing)
    if is_left_out:
        assert unpack(path) == (TEXT, f"bytes behind the last compressed member ({len(trailing.lstrip(bytes(1))):,})")
    else:
        with pytest.raises(Damaged):
            unpack(path)


@pytest.mark.parametrize("packed", [gzip.compress(TEXT), zstd(TEXT)])
def test_any_cut_is_noticed(tmp_path: Path, packed: bytes) -> None:
    path = tmp_path / ("a.gz" if packed[0] == 0x1F else "a.zst")
    for size in (1, 3, 9, 20, len(packed) // 2, len(packed) - 8, len(packed) - 1):
        path.write_bytes(packed[:size])
        with pytest.raises(Damaged):
            unpack(path)


@pytest.mark.parametrize("window_log", [27, 28, 31])
def test_the_window_of_zstd_is_limited(tmp_path: Path, window_log: int) -> None:
    path = tmp_path / "a.zst"
    path.write_bytes(struct.pack("<I", 0xFD2FB528) + bytes([0, (window_log - 10) << 3]) + struct.pack("<I", 4 << 3 | 1)[:3] + b"text")
    if window_log <= 27:
        assert unpack(path) == (b"text", "")
    else:
        with pytest.raises(DataError, match=r"a\.zst needs a window of [\d,]+ bytes to be decompressed, 134,217,728 are allowed"):
            unpack(path)


@pytest.mark.parametrize("name", ["a.gz", "a.zst"])
def test_what_expands_without_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pack = gzip.compress if name == "a.gz" else zstd
    monkeypatch.setattr(unpacking, "EXPANSION_FROM_BYTES", 3_000_000)
    path = tmp_path / name
    path.write_bytes(pack(bytes(2_999_999)))
    assert len(unpack(path)[0]) == 2_999_999
    path.write_bytes(pack(bytes(30_000_000)))
    with pytest.raises(GivenUp, match="it expands more than 100-fold"):
        unpack(path)
    monkeypatch.setattr(unpacking, "EXPANSION", 100_000)
    assert len(unpack(path)[0]) == 30_000_000


def test_parquet_is_not_read_as_text_and_text_not_as_parquet(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"PAR1" + TEXT)
    with pytest.raises(DataError, match=r"a\.jsonl is a Parquet file"):
        unpack(tmp_path / "a.jsonl")
    remedies = []
    for name, content in (("a.parquet", b'{"text": "x"}\n'), ("a.txt", b"words"), ("b.parquet", b"PAR1 cut off"), ("c.parquet", b"")):
        (tmp_path / name).write_bytes(content)
        remedies.append(remedy_for_no_parquet(input_file(tmp_path / name)))
    restore = "restore the file from its source"
    assert remedies == ["use kind: jsonl for this source", "use kind: text for this source", restore, restore]
    file = input_file(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"other words")
    assert remedy_for_no_parquet(file) == "use kind: text for this source"


def test_a_file_that_changed_since_it_was_looked_up_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(TEXT)
    file = input_file(path)
    with opened(file) as stored:
        assert stored.read() == TEXT
    with pytest.raises(DataError, match="changed while it was read"), opened(file):
        path.write_bytes(TEXT + b"more")
    with pytest.raises(DataError, match="changed while it was read"), opened(file):
        raise AssertionError("it is not opened")
