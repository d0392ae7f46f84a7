"""What the compiled reader takes of a line is what the reader of single lines takes; what it leaves alone is left to that one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.corpus.rejects import Rejects
from fledge.corpus.sources import flat_lines, json_lines
from fledge.corpus.sources.files import refuse_no_text
from fledge.corpus.sources.flat_lines import FlatLines
from fledge.corpus.sources.json_lines import read_line_batches, read_lines
from fledge.corpus.sources.records import Records

from .readers import input_file, json_lines_source

LONGEST_BYTES = 4 << 20
USUAL = (
    (rb'{"text": "a \"quoted\" \\ \/ \b\f\n\t text"}', 'a "quoted" \\ / \b\f\n\t text'),
    (rb'{"text": "\u0041\u00e9\u20ac\ud83d\ude00 \uFFFF \u0000."}', "A\u00e9\u20ac\U0001f600 \uffff \0."),
    ('{"text": "grün 漢字 \U0001f600 \u007f\u0080\u07ff\u0800\ud7ff\ue000\U0010ffff"}', None),
    (b' {\t"id" : -0.5 , "text"\t: "x" , "a":true,"b":false,"c":null,"d":0}\r', "x"),
    (b'{"title": "a longer string than the text", "text": "x", "other": "and another one behind it"}', "x"),
    (b'{"textual": "no", "tex": "no", "": "no", "text": "x"}', "x"),
    (b'{"text": "x", "a": 1, "a": 12345678901234567890, "b": -0, "c": 10.000}', "x"),
    ('{"text": "漢"}', "漢"),
)
NOT_UTF8 = (
    *(b"\xff", b"\x80", b"\xc3", b"\xc1\x81", b"\xe6\xbc", b"\xe0\x80\x80", b"\xed\xa0\x80"),
    *(b"\xf0\x9f\x98", b"\xf0\x8f\x80\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80"),
)
ODD_NUMBERS = (b"01", b"-", b"1.", b".5", b"+1", b"NaN", b"1e400", b"1e5", b"-Infinity", b"0x1", b"1" * 400)
UNUSUAL = (
    b"",
    b" ",
    b"{}",
    b"[]",
    b'"text"',
    b'{"text": "x"',
    b'{"text": "x',
    b'{"text": "x\\',
    b'{"text": "x\\u12',
    b'{"text"',
    b'{"text": "x",}',
    b'{"text": "x"} x',
    b'{"text": "x"}}',
    b'{"text": "x"} {"text": "x"}',
    b'{"text" "x"}',
    b'{text: "x"}',
    b'{"text": "x" "a": 1}',
    b'{"text": "a", "text": "b"}',
    b'{"text": 1}',
    b'{"text": null}',
    b'{"text": ["x"]}',
    b'{"text": "x", "a": [1]}',
    b'{"text": "x", "a": {}}',
    b'{"te\\u0078t": "x"}',
    b'{"id": "x"}',
    b'{"text": ""}',
    b'{"text": " \\n\\t"}',
    '{"text": "\u00a0\u1680\u2003\u3000\\u0085"}'.encode(),
    b'{"text": "a\\rb"}',
    b'{"text": "a\\u000db"}',
    b'{"text": "a\x01b"}',
    b'{"text": "a\x00b"}',
    b'{"text": "a\tb"}',
    b'{"text": "a\rb"}',
    b'{"text": "a\\xb"}',
    b'{"text": "\\u00g0"}',
    b'{"text": "\\ud800"}',
    b'{"text": "\\ud800\\u0041"}',
    b'{"text": "\\ude00"}',
    b'{"text": "x", "a": "\\ud800"}',
    *(b'{"text": "x", "a": "' + wrong + b'"}' for wrong in NOT_UTF8),
    *(b'{"text": "' + wrong + b'"}' for wrong in NOT_UTF8),
    *(b'{"text": "x", "a": ' + number + b"}" for number in ODD_NUMBERS),
    b'{"text": "x", "a": nul}',
    b'{"text": "x", "a": True}',
    b'\xef\xbb\xbf{"text": "x"}',
)


def read_flat_lines(block: bytes, key: str, longest_bytes: int) -> FlatLines:
    return flat_lines.read_flat_lines(block, block.count(b"\n") + (not block.endswith(b"\n")), key, longest_bytes)


@pytest.mark.parametrize(("line", "text"), USUAL)
def test_usual_lines_are_read(line: bytes | str, text: str | None) -> None:
    content = line.encode() if isinstance(line, str) else line
    flat = read_flat_lines(content + b"\n" + content, "text", LONGEST_BYTES)
    assert flat.are_read.all() and flat.ends.tolist() == [len(content) + 1, 2 * len(content) + 1]
    assert flat.texts.to_pylist() == [text or json.loads(content)["text"]] * 2
    flat.texts.validate(full=True)


@pytest.mark.parametrize("line", UNUSUAL)
def test_unusual_lines_are_left_alone_and_harm_no_other(line: bytes) -> None:
    good = b'{"text": "good"}\n'
    for last in (b"", good):
        content = good + line + b"\n" * bool(last) + last
        flat = read_flat_lines(content, "text", LONGEST_BYTES)
        expected = [True, False, True] if last else [True, False] if line else [True]
        assert flat.are_read.tolist() == expected
        assert flat.texts.to_pylist() == ["good"] * sum(expected)
        assert flat.ends.tolist()[:2] == [len(good), len(good) + len(line) + bool(last)][: len(expected)]


def test_long_lines_are_left_alone() -> None:
    line = b'{"text": "0123456789"}\n'
    assert read_flat_lines(line, "text", len(line)).are_read.all()
    assert not read_flat_lines(line, "text", len(line) - 1).are_read.any()


@pytest.mark.parametrize("start", range(9))
@pytest.mark.parametrize("mark", [b"\\n", b"\\u00e9", "漢".encode(), b"\x1f", b"\xff"])
def test_every_place_in_eight_bytes(start: int, mark: bytes) -> None:
    content = b'{"text": "' + b"x" * start + mark + b"y" * (9 - start) + b'"}'
    flat = read_flat_lines(content, "text", LONGEST_BYTES)
    if mark[0] in b"\x1f\xff":
        assert not flat.are_read.any()
    else:
        assert flat.texts.to_pylist() == [json.loads(content)["text"]]


# ---- against the reader of single lines

STRINGS = st.text(st.characters(codec=None), max_size=20) | st.text('ab \\"\n\r\t\x00\u00e9\u2003\U0001f600', max_size=20)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | STRINGS
OBJECTS = st.dictionaries(st.sampled_from(["text", "id", "tex", "é", ""]), PLAIN | st.lists(PLAIN, max_size=1), max_size=4)
SPACES = st.sampled_from(["", " ", "\t", "\r", "  "])
FRAGMENTS = st.sampled_from([
    *rb"""\ " { } [ ] , : \ud83d \udc1f \u0000 \u12 01 1e5 -0 1E+400 NaN - 0 . 1. -1 true fals null "text":"x", """.split(),
    b" ", b"\r", b"\t", b"\0", b"\x1f", b"\x7f", b"\x80", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\n", b"1" * 40,
])  # fmt: skip
DAMAGES = st.lists(st.tuples(st.integers(0, 80), st.integers(0, 2), FRAGMENTS), max_size=2)


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    space, value = draw(SPACES), draw(OBJECTS)
    separators = (f"{space},{space}", f"{space}:{space}")
    content = json.dumps(value, ensure_ascii=draw(st.booleans()), separators=separators).encode("utf-8", "surrogatepass")
    for position, removed, added in draw(DAMAGES):
        content = content[:position] + added + content[position + removed :]
    return content + draw(st.sampled_from([b"\n", b"\r\n", b" \n"]))


@settings(max_examples=200)
@given(content=st.lists(lines(), min_size=1, max_size=6).map(b"".join), removed=st.integers(0, 3), block_bytes=st.integers(20, 300))
def test_batches_and_single_lines_agree(tmp_path_factory: pytest.TempPathFactory, content: bytes, removed: int, block_bytes: int) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    path.write_bytes(content[: len(content) - removed])
    assume(is_text(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "_BLOCK_BYTES", block_bytes)
        batched = read_batched(path)
    assert batched == read_singly(path)


def is_text(path: Path) -> bool:
    """A short line with zeros looks like UTF-16, which either reader refuses as a whole."""
    try:
        refuse_no_text(path, path.read_bytes())
    except DataError:
        return False
    return True


def read_batched(path: Path, start: int = 0, end: int | None = None) -> tuple[list[Document], dict[str, Any]]:
    rejects = Rejects()
    batches = list(read_line_batches(Records.of(json_lines_source(path)), input_file(path), start, end, rejects, 1.0))
    for batch in batches:
        batch.texts.validate(full=True)
    return [batch.document(index, batch.texts[index].as_py()) for batch in batches for index in range(len(batch))], rejects.as_json()


def read_singly(path: Path, start: int = 0, end: int | None = None) -> tuple[list[Any], dict[str, Any]]:
    rejects = Rejects()
    return list(read_lines(Records.of(json_lines_source(path)), input_file(path), start, end, rejects, 1.0)), rejects.as_json()


def test_stretches_of_a_file_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join(line + b'\n{"text": "%d"}\n' % number for number, line in enumerate(UNUSUAL * 3)))
    monkeypatch.setattr(json_lines, "_BLOCK_BYTES", 100)
    size = path.stat().st_size
    for start in range(0, size, 997):
        end = start + 997 if start + 997 < size else None
        assert read_batched(path, start, end) == read_singly(path, start, end)


def test_a_file_of_usual_lines_makes_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"".join(json.dumps({"text": f"Text {number}: \U0001f600"}).encode() + b"\n" for number in range(100)))
    expected = read_singly(path)
    monkeypatch.setattr(json_lines, "_row", None)
    assert read_batched(path) == expected
    assert expected[1]["seen"] == {"a": 100}
