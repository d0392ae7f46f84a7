from __future__ import annotations

import gzip
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.core.errors import MachineError
from fledge.corpus.document import Document
from fledge.corpus.limits import Limits
from fledge.corpus.rejects import Rejects
from fledge.corpus.sources import python_docs
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.reading import cut_pieces, read_piece
from fledge.corpus.sources.settings import HubSource, JsonLinesSource, ParquetSource, PythonDocsSource, Source, TextSource
from fledge.corpus.sources.transport import describe

from .readers import SPLITTER, input_files, places, read_all
from .servers import Fault, Site

JSON_LINES = JsonLinesSource(name="a", path="somewhere")
GOOD = b'{"text": "good"}\n'


def file(name: str, size_bytes: int) -> InputFile:
    return InputFile(name, name, size_bytes, "")


def cut(source: Source, *files: InputFile, piece_bytes: int = 64 << 20) -> list[tuple[list[str], int, int | None, int]]:
    return [
        ([each.name for each in piece.files], piece.start, piece.end, piece.size_bytes) for piece in cut_pieces(source, files, piece_bytes)
    ]


def test_a_large_plain_file_is_cut_and_a_compressed_one_is_not() -> None:
    megabyte = 1_000_000
    assert cut(JSON_LINES, file("a.jsonl", 5 * megabyte), file("b.jsonl.gz", 9 * megabyte), piece_bytes=2 * megabyte) == [
        (["a.jsonl"], 0, 2 * megabyte, 2 * megabyte),
        (["a.jsonl"], 2 * megabyte, 4 * megabyte, 2 * megabyte),
        (["a.jsonl"], 4 * megabyte, None, megabyte),
        (["b.jsonl.gz"], 0, None, 9 * megabyte),
    ]
    text = TextSource(name="a", path="somewhere")
    assert cut(text, file("a.txt", 5 * megabyte), piece_bytes=megabyte) == [(["a.txt"], 0, None, 5 * megabyte)]


def test_small_files_share_a_piece_in_their_order() -> None:
    files = [file("a.jsonl", 600_000), file("b.jsonl", 300_000), file("c.jsonl", 200_000), file("d.jsonl.gz", 100_000)]
    files += [file("e.jsonl", 1_500_000), file("f.jsonl", 10)]
    pieces = [names for names, *_ in cut(JSON_LINES, *files, piece_bytes=1_000_000)]
    assert [name for names in pieces for name in names] == ["a.jsonl", "b.jsonl", "c.jsonl", "d.jsonl.gz", "e.jsonl", "e.jsonl", "f.jsonl"]
    assert pieces.count(["e.jsonl"]) == 2
    assert ["a.jsonl", "b.jsonl", "c.jsonl"] not in pieces
    assert cut(JSON_LINES) == []


@pytest.mark.parametrize("source", [JSON_LINES, TextSource(name="a", path="x"), ParquetSource(name="a", path="x")])
def test_ten_thousand_tiny_files_are_few_pieces(source: Source) -> None:
    pieces = cut(source, *(file(f"{number:05d}", number % 3) for number in range(10_000)))
    assert 3 <= len(pieces) <= 12
    assert max(len(names) for names, *_ in pieces) <= 4_096
    assert [name for names, *_ in pieces for name in names] == [f"{number:05d}" for number in range(10_000)]


def test_an_edit_of_one_file_leaves_distant_pieces_as_they_are() -> None:
    """Otherwise an edit of one small file would mean to clean all that come after it again."""
    files = [file(f"{number:05d}.jsonl", 1_000_000) for number in range(2_000)]
    before = {tuple(names) for names, *_ in cut(JSON_LINES, *files)}
    grown = [*files[:700], file("00700.jsonl", 30_000_000), *files[701:]]
    for edited in ([file("00000.a.jsonl", 1_000_000), *files], files[1:], grown):
        after = {tuple(names) for names, *_ in cut(JSON_LINES, *edited)}
        assert len(after) > 40
        assert len(after - before) <= 6


def test_files_of_the_hub_are_read_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    pq.write_table(pa.table({"body": ["parquet"]}), tmp_path / "data" / "a.parquet")
    (tmp_path / "data" / "b.json.gz").write_bytes(gzip.compress(b'{"body": "json"}\n{}\n'))
    source = HubSource(name="a", repository="owner/name", files="data/*", fields={"text": "body"})
    rows, rejects = read_all(source, input_files(tmp_path))
    assert [(row.id, row.text) for row in rows if isinstance(row, Document)] == [
        ("a:data/a.parquet:0", "parquet"),
        ("a:data/b.json.gz:0", "json"),
    ]
    assert places(rejects) == [("data/b.json.gz", 2, 17, "no key 'body' (keys: none)")]
    preset = HubSource(name="a", preset="gutenberg")
    pq.write_table(pa.table({"TEXT": ["a book"]}), tmp_path / "data" / "a.parquet")
    assert [row.text for row in read_all(preset, input_files(tmp_path)[:1])[0] if isinstance(row, Document)] == ["a book"]


def test_what_is_read_by_ranges_over_the_web_is_the_same(site: Site, tmp_path: Path) -> None:
    content = b"".join(json.dumps({"text": f"Document {number}."}).encode() + b"\n" for number in range(500))
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    pq.write_table(pa.table({"text": [f"Row {number}." for number in range(500)]}), tmp_path / "c.parquet", row_group_size=100)
    source = HubSource(name="a", repository="owner/name", files="*")
    here = input_files(tmp_path)
    there = []
    for each in here:
        address = site.put(f"/{each.name}", Path(each.address).read_bytes())
        there.append(InputFile(address, each.name, each.size_bytes, describe(address).fingerprint))
    for piece_bytes in (64 << 20, 1_500):
        assert read_all(source, there, piece_bytes)[0] == read_all(source, here, piece_bytes)[0]
    for each in there:
        site.always(f"/{each.name}", Fault(hang_up=True))
        with pytest.raises(MachineError):
            read_all(source, [each])


def test_what_lies_behind_the_last_row_taken_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"{\n" + GOOD * 2 + b"{\n" * 50)
    pq.write_table(pa.table({"text": [None, "one", "two", *[None] * 50]}), tmp_path / "b.parquet")
    source = HubSource(name="a", repository="owner/name", files="*", maximum_reject_share=1.0)
    for file in input_files(tmp_path):
        rejects = Rejects()
        [piece] = cut_pieces(source, [file])
        assert len(list(Limits(documents=2).take(read_piece(source, piece, rejects, SPLITTER)))) == 2
        assert (rejects.seen["a"], rejects.count("a")) == (3, 1)


def test_the_embedded_corpus_is_one_piece_without_files(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs, "stdlib_folder", lambda: library)
    for content in ("documents", "conversations", "preferences"):
        source = PythonDocsSource(name="docs", content=content)
        assert cut_pieces(source, ()) == [Piece()]
        rows, rejects = read_all(source, ())
        assert rows and all(row.group for row in rows) and not rejects.stats()


def zeros(path: Path) -> None:
    """Ten gibibytes of zeros in ten megabytes: after a full flush the same bytes stand for the next piece too."""
    packer = zlib.compressobj(wbits=31)
    first, again = (packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    path.write_bytes(first + again * 639)


def zeros_after_good_lines(path: Path) -> None:
    zeros(path)
    path.write_bytes(gzip.compress(GOOD * 3) + path.read_bytes())


def zstd_zeros(path: Path) -> None:
    """The same by blocks that say which byte to repeat."""
    block = struct.pack("<I", (128 << 10) << 3 | 0b10)[:3] + b"\0"
    path.write_bytes(struct.pack("<I", 0xFD2FB528) + bytes([0, (17 - 10) << 3]) + block * (10 << 13))


def zstd_window(path: Path) -> None:
    block = struct.pack("<I", len(GOOD) << 3 | 1)[:3] + GOOD
    path.write_bytes(struct.pack("<I", 0xFD2FB528) + bytes([0, (31 - 10) << 3]) + block)


def gibibyte_line(path: Path) -> None:
    with path.open("wb") as file:
        file.write(GOOD + b'{"text": "')
        file.seek(1 << 30, 1)
        file.write(b'"}\n' + GOOD)


def lines(*middle: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(b"\n".join([GOOD.strip(), *middle, GOOD.strip(), b""])) and None


EXPANDS = "the rest of the file: it expands more than 100-fold"
BOMBS: dict[str, tuple[str, Callable[[Path], Any], int, list[str]]] = {
    "10 GiB of zeros in gzip": ("a.jsonl.gz", zeros, 0, [EXPANDS]),
    "10 GiB of zeros behind good lines": ("a.jsonl.gz", zeros_after_good_lines, 3, [EXPANDS]),
    "10 GiB of zeros in zstd": ("a.jsonl.zst", zstd_zeros, 0, [EXPANDS]),
    "10 GiB of zeros as text": ("a.txt.gz", zeros, 0, [EXPANDS]),
    "a zstd window of 2 GiB": ("a.jsonl.zst", zstd_window, 0, ["a.jsonl.zst needs a window of 2,147,483,648 bytes"]),
    "a line of 1 GiB": ("a.jsonl", gibibyte_line, 2, ["longer than 33,554,432 bytes"]),
    "a line of the greatest length": (
        "a.jsonl",
        lines(b'{"text": "' + "\U0001f41f".encode() + b"x\\r\\n" * 6_500_000 + b'"}'),
        3,
        [],
    ),
    "nested 1e6 deep": (
        "a.jsonl",
        lines(b"[" * 10**6 + b"]" * 10**6, b'{"a":' * 10**6, b"[" * 30_000_000),
        2,
        ["nested too deep", "nested too deep", "more than 1,000,000 values"],
    ),
    "a number of 1e6 digits": (
        "a.jsonl",
        lines(b'{"text": "x", "a": ' + b"1" * 10**6 + b"}", b'{"text": 0.' + b"1" * 10**6 + b"}"),
        2,
        ["a number that is too long", "text is a number, not a string"],
    ),
    "30 MB of objects": ("a.jsonl", lines(b'{"text": "x", "a": [' + b"{}," * 10**7 + b"0]}"), 2, ["more than 1,000,000 values"]),
    "10 MB of open strings": (
        "a.jsonl",
        lines(b'"' + b'\\"' * 5_000_000, b'{"a": "' + b"\\n" * 5_000_000 + b'\\ud800"}'),
        2,
        ["not JSON", "no key 'text' (keys: a)"],
    ),
}

READ_IN_A_PROCESS = """
import json, re, sys, time
from pathlib import Path
from fledge.core.errors import DataError
from fledge.corpus.sources.settings import JsonLinesSource, TextSource
from tests.corpus.sources.readers import input_file, read_all

path = Path(sys.argv[1])
kind = TextSource if ".txt" in path.name else JsonLinesSource
rows, problems = [], []
try:
    rows, rejects = read_all(kind(name="a", path=str(path), maximum_reject_share=1.0), [input_file(path)])
    problems = [reject.reason for reject in rejects.kept]
except DataError as error:
    problems = [error.problem]
status = Path("/proc/self/status")
peak_kib = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1]) if status.exists() else 0
print(json.dumps([len(rows), problems, peak_kib / 1024, time.process_time()]))
"""


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_little_memory_and_time(tmp_path: Path, bomb: str) -> None:
    name, write, rows, reasons = BOMBS[bomb]
    write(tmp_path / name)
    command = [sys.executable, "-c", READ_IN_A_PROCESS, str(tmp_path / name)]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[3], timeout=300)
    found_rows, problems, peak_mib, cpu_seconds = json.loads(result.stdout)
    print(f"{bomb}: {peak_mib:.0f} MiB, {cpu_seconds:.1f} s")
    assert found_rows == rows
    assert len(problems) == len(reasons) and all(reason in problem for reason, problem in zip(reasons, problems, strict=True)), problems
    assert peak_mib < 600 and cpu_seconds < 10
