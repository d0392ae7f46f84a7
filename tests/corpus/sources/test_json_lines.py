from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fledge.core.errors import DataError
from fledge.corpus.document import Document, Row
from fledge.corpus.rejects import Malformed, Rejects
from fledge.corpus.sources import json_lines
from fledge.corpus.sources.piece import Piece
from fledge.corpus.sources.reading import read_piece
from fledge.corpus.sources.records import Records

from .readers import SPLITTER, input_file, places, read_all
from .readers import json_lines_source as source_of
from .readers import read_json_lines as read

WriteLines = Callable[..., Path]

GOOD = b'{"text": "good"}\n'

BAD: tuple[tuple[bytes, str], ...] = (
    (b"{", "not JSON"),
    (b'{"text": "x",}', "not JSON"),
    (b"{'text': 'x'}", "not JSON"),
    (b'{"text": "x"} {"text": "y"}', "not JSON"),
    (b'{"text": "a\x01b"}', "not JSON"),
    (b'{"text": "a\\xb"}', "not JSON"),
    (b'{"text": "x", "score": 01}', "not JSON"),
    (b"[1, 2]", "a list, not an object"),
    (b'"text"', "a string, not an object"),
    (b"null", "null, not an object"),
    (b"true", "true or false, not an object"),
    (b'{"body": "x", "id": 1}', "no key 'text' (keys: body, id)"),
    (b'{"text": null}', "text is null, not a string"),
    (b'{"text": 5}', "text is a number, not a string"),
    (b'{"text": ["x"]}', "text is a list, not a string"),
    (b'{"text": " \\n"}', "text is empty"),
    (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "\\ud800 x"}', "text holds half a surrogate pair"),
    (b'{"text": "x", "score": NaN}', "NaN is no JSON number"),
    (b'{"text": "x", "score": ' + b"1" * 5_000 + b"}", "a number that is too long"),
    (b'{"text": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", "nested too deep"),
)


def texts(rows: list[Row]) -> list[str]:
    return [row.text for row in rows if isinstance(row, Document)]


def test_documents(write_lines: WriteLines) -> None:
    path = write_lines({"text": "one"}, {"text": "two\r\nlines"}, {"text": "One", "other": 1})
    rows, rejects = read(path)
    assert texts(rows) == ["one", "two\nlines", "One"]
    assert [row.id for row in rows] == ["a:data.jsonl:0", "a:data.jsonl:16", "a:data.jsonl:41"]
    assert {row.group for row in rows} == {""} and {row.source for row in rows} == {"a"}
    assert rejects.stats() == {}


def test_another_key(write_lines: WriteLines) -> None:
    rows, _ = read(write_lines({"body": "one"}), fields={"text": "body"})
    assert texts(rows) == ["one"]


@pytest.mark.parametrize(("line", "reason"), BAD)
def test_only_the_malformed_line_is_rejected(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    rows, rejects = read(path)
    offset = len(GOOD) + 1
    assert [row.id for row in rows] == ["a:data.jsonl:0", f"a:data.jsonl:{offset + len(line) + 1}"]
    assert places(rejects) == [("data.jsonl", 3, offset, reason)]
    kind = reason.partition(" (")[0]
    assert rejects.stats() == {"a": {"seen": 3, "rejected": 1, "reasons": {kind: 1}}}


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "bom"}\r\n \t\r\n{"text": "\\ud83d\\udc1f \\u0000"}\r\n{"text": "first", "text": "last"}')
    rows, rejects = read(path)
    assert texts(rows) == ["bom", "\U0001f41f \x00", "last"]
    assert not rejects.kept


def test_half_a_pair_where_nothing_reads_it_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "x", "title": "cut \\ud83d", "sizes": [1, 2.5]}\n{"half \\udc1f": 1}\n')
    rows, rejects = read(path)
    assert texts(rows) == ["x"]
    assert places(rejects)[0][3] == r"no key 'text' (keys: half \udc1f)"


@pytest.mark.parametrize("content", [b"", b"\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf\n \n"])
def test_a_file_without_lines_gives_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    rows, rejects = read(path)
    assert not rows and not rejects.seen["a"]


def test_a_last_line_cut_off_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + GOOD[:-4])
    rows, rejects = read(path)
    assert len(rows) == 1
    assert places(rejects) == [("data.jsonl", 2, len(GOOD), "truncated: the file ends inside this line")]


@pytest.mark.parametrize("name", ["data.jsonl", "data.jsonl.gz"])
def test_a_line_longer_than_the_limit_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(json_lines, "MAXIMUM_LINE_BYTES", 100)
    path = tmp_path / name
    fits = json.dumps({"text": "x" * 87}).encode() + b"\n"
    assert len(fits) == 100
    long = json.dumps({"text": "x" * 3_000}).encode() + b"\n"
    content = GOOD + long + fits + long + fits[:-1]
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    rows, rejects = read(path)
    assert [len(text) for text in texts(rows)] == [4, 87, 87]
    reason = "longer than 100 bytes"
    assert places(rejects) == [(name, 2, len(GOOD), reason), (name, 4, len(GOOD) + len(long) + len(fits), reason)]


def test_a_long_line_may_hold_much_text_but_not_many_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "_LONG_LINE_BYTES", 1_000)
    monkeypatch.setattr(json_lines, "_MAXIMUM_VALUES", 100)
    path = tmp_path / "data.jsonl"
    much = {"text": 'a, "b", [c]' * 500}
    many = [{"text": "x", "values": values} for values in ([{}] * 500, [[[[]]]] * 400, ["\\"] * 300)]
    path.write_bytes(b"".join(json.dumps(value).encode() + b"\n" for value in (much, *many)))
    rows, rejects = read(path)
    assert texts(rows) == [much["text"]]
    assert [reason for *_, reason in places(rejects)] == ["more than 100 values"] * 3


def test_a_wrong_key_shows_after_a_thousand_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"body": "x"}\n' * 5_000)
    with pytest.raises(DataError, match=r"1,000 of 1,000 lines .*no key 'text' \(keys: body\)"):
        read(path, maximum_reject_share=0.05)
    middle = Piece((input_file(path),), 14, 14 * 2_000)
    assert list(read_piece(source_of(path, maximum_reject_share=0.05), middle, Rejects(), SPLITTER)) == []


def packed(content: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    return zstandard.ZstdCompressor(write_checksum=True).compress(content) if name.endswith(".zst") else content


@pytest.mark.parametrize("name", ["data.jsonl", "data.JSONL.GZ", "data.json.gz", "data.jsonl.zst", "data.json"])
def test_the_rows_do_not_depend_on_the_packing(tmp_path: Path, name: str) -> None:
    content = b"".join(json.dumps({"text": f"Document {number}: grün"}, ensure_ascii=False).encode() + b"\n" for number in range(9_000))
    path = tmp_path / name
    path.write_bytes(packed(content, name.lower()))
    rows, rejects = read(path)
    assert texts(rows) == [f"Document {number}: grün" for number in range(9_000)]
    assert [row.id.rpartition(":")[2] for row in rows[:3]] == ["0", "30", "60"]
    assert not rejects.kept


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl.zst"])
def test_several_members_are_one_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    half = packed(GOOD * 2 + GOOD[:7], name), packed(GOOD[7:] + GOOD, name)
    path.write_bytes(half[0] + half[1] + b"\0" * 512)
    rows, rejects = read(path)
    assert len(rows) == 4 and not rejects.kept
    path.write_bytes(half[0] + packed(b"", name) + half[1] + b"garbage")
    rows, rejects = read(path)
    assert len(rows) == 4
    assert places(rejects) == [(name, 5, 4 * len(GOOD), "bytes behind the last compressed member (7)")]


@functools.cache
def many_lines(name: str) -> bytes:
    return packed(b"".join(b'{"text": "%d"}\n' % (number * 7919) for number in range(15_000)), name)


@pytest.mark.parametrize("name", ["data.jsonl.gz", "data.jsonl.zst"])
@pytest.mark.parametrize("damage", ["cut", "cut at the end", "garbage", "checksum", "not packed", "zeros"])
def test_a_damaged_compressed_file_is_refused_after_its_good_lines(tmp_path: Path, damage: str, name: str) -> None:
    good = many_lines(name)
    checksum = len(good) - (8 if name.endswith(".gz") else 4)
    path = tmp_path / name
    path.write_bytes(
        {
            "cut": good[: len(good) * 9 // 10],
            "cut at the end": good[:-1],
            "garbage": good + b"garbage" * 10_000,
            "checksum": good[:checksum] + bytes([good[checksum] ^ 1]) + good[checksum + 1 :],
            "not packed": GOOD,
            "zeros": bytes(1_000),
        }[damage]
    )
    rows = []
    with pytest.raises(DataError, match=r"data\.jsonl\.\w+ is damaged after line ([\d,]+): ") as caught:
        for row in read_piece(source_of(path), Piece((input_file(path),)), Rejects(), SPLITTER):
            rows.append(row)
    assert bool(rows) == (damage not in {"not packed", "zeros"})
    assert f"after line {len(rows):,}: " in caught.value.problem


def test_utf16_is_refused_but_not_zeros(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "x"}\n', encoding="utf-16")
    with pytest.raises(DataError, match="looks like UTF-16"):
        read(path)
    path.write_bytes(bytes(10_000) + b"\n" + GOOD)
    rows, rejects = read(path)
    assert texts(rows) == ["good"]
    assert places(rejects) == [("data.jsonl", 1, 0, "not JSON")]


def test_a_file_that_is_gone_or_changes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD * 100)
    file = input_file(path)
    rows = read_piece(source_of(path), Piece((file,)), Rejects(), SPLITTER)
    next(rows)
    with path.open("ab") as more:
        more.write(GOOD)
    with pytest.raises(DataError, match=r"data\.jsonl changed while it was read"):
        list(rows)
    with pytest.raises(DataError, match=r"data\.jsonl changed while it was read"):
        list(read_piece(source_of(path), Piece((file,)), Rejects(), SPLITTER))
    path.unlink()
    with pytest.raises(DataError, match=r"data\.jsonl cannot be read: No such file"):
        read_all(source_of(path), [file])


def test_ten_thousand_lines_with_five_hundred_bad_ones(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    lines, good, bad, offset = [], [], [], 0
    for number in range(10_000):
        content, reason = BAD[number // 20 % 20] if number % 20 == 7 else (json.dumps({"text": f"Document {number}."}).encode(), "")
        (bad if reason else good).append((number + 1, offset, reason))
        lines.append(content + b"\n")
        offset += len(content) + 1
    path.write_bytes(b"".join(lines))
    source = source_of(path, maximum_reject_share=0.05)
    for piece_bytes in (1 << 30, 1 << 18, 30_011):
        rows, rejects = read_all(source, [input_file(path)], piece_bytes)
        assert texts(rows) == [f"Document {number - 1}." for number, *_ in good] and len(rows) == 9_500
        assert [row.id for row in rows] == [f"a:data.jsonl:{offset}" for _, offset, _ in good]
        assert places(rejects) == [("data.jsonl", *place) for place in bad] and len(bad) == 500
        assert rejects.seen["a"] == 10_000
        rejects.require_few("a", "lines", 0.05, at_end=True)


LINES = st.lists(
    st.sampled_from([b"", b" ", b'{"text": "a"}', b'{"text": "gr\xc3\xbcn \\n"}', b'{"text": "' + b"x" * 90 + b'"}', b"{", b"\xff"]),
    max_size=12,
)


@given(
    lines=LINES,
    end_of_line=st.sampled_from([b"\n", b"\r\n"]),
    start=st.sampled_from([b"", b"\xef\xbb\xbf"]),
    has_last_end=st.booleans(),
    maximum_line_bytes=st.sampled_from([50, 1 << 20]),
    piece_bytes=st.integers(1, 300),
)
def test_any_cut_gives_the_same_rows_and_rejects(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    end_of_line: bytes,
    start: bytes,
    has_last_end: bool,
    maximum_line_bytes: int,
    piece_bytes: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.jsonl"
    content = start + b"".join(line + end_of_line for line in lines)
    path.write_bytes(content if has_last_end else content.removesuffix(end_of_line))
    source = source_of(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "MAXIMUM_LINE_BYTES", maximum_line_bytes)
        patch.setattr(json_lines, "_SKIP_BYTES", 7)
        whole, cut = (read_all(source, [input_file(path)], size) for size in (1 << 30, piece_bytes))
    assert cut[0] == whole[0]
    assert vars(cut[1]) | {"lines_read": {}} == vars(whole[1]) | {"lines_read": {}}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | st.just("text"), inner, max_size=3),
    max_leaves=8,
)
SHORT = rb"""\ " { } [ ] , : \ud83d \udc1f \u0000 1e999 - 0 . NaN "text": "x" """.split()
ODD = [b" ", b"\r", b"\0", b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"1" * 400, b"[" * 1_100, b"]" * 1_100, b'{"a":' * 900]
FRAGMENTS = st.sampled_from([*SHORT, *ODD])


@given(value=VALUES, is_ascii=st.booleans(), damages=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 2), FRAGMENTS), max_size=2))
def test_what_the_fast_parser_takes_the_strict_one_takes_too(value: Any, is_ascii: bool, damages: list[tuple[int, int, bytes]]) -> None:
    content = json.dumps({"text": value, "id": 1} if damages else value, ensure_ascii=is_ascii).encode("utf-8", "surrogatepass")
    for position, removed, added in damages:
        content = content[:position] + added + content[position + removed :]
    records = Records.of(source_of(Path("data.jsonl")))
    try:
        fast = orjson.loads(content)
    except orjson.JSONDecodeError:
        return
    assert outcome(records, lambda: fast) == outcome(records, lambda: json_lines._parse_strictly(content, records))


def outcome(records: Records, parse: Callable[[], Any]) -> Any:
    try:
        values = parse()
        return records.row(values, "a:1") if isinstance(values, dict) else type(values)
    except Malformed as error:
        return str(error)


@pytest.mark.parametrize("depth", [1, 900, 1_023, 1_024, 1_025])
@pytest.mark.parametrize("other", [b"1", b'"\\ud800"'])
def test_both_parsers_agree_on_the_depth(tmp_path: Path, depth: int, other: bytes) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"text": "x", "other": ' + other + b', "deep": ' + b"[" * (depth - 1) + b"1" + b"]" * (depth - 1) + b"}\n")
    rows, rejects = read(path)
    assert (texts(rows), [reason for *_, reason in places(rejects)]) == ((["x"], []) if depth <= 1_024 else ([], ["nested too deep"]))
