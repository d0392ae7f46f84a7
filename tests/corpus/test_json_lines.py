from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fledge.core.errors import DataError
from fledge.corpus import json_lines
from fledge.corpus.document import Conversation, Document, Message, Preference, Row
from fledge.corpus.json_lines import read_json_lines
from fledge.corpus.rejects import Rejects
from fledge.corpus.settings import Content, JsonLinesSource

WriteLines = Callable[..., Path]

GOOD = b'{"text": "good"}\n'


def read(path: Path, content: Content = "documents", **settings: Any) -> tuple[list[Row], Rejects]:
    rejects = Rejects()
    settings = {"maximum_reject_share": 1.0, **settings}
    return list(read_json_lines(JsonLinesSource(name="a", path=str(path), content=content, **settings), rejects)), rejects


def reasons(path: Path, content: Content = "documents", **settings: Any) -> list[str]:
    return [reject.reason for reject in read(path, content, **settings)[1].kept]


def test_documents(write_lines: WriteLines) -> None:
    path = write_lines({"text": "one"}, {"text": "two\r\nlines"}, {"text": "One", "other": 1})
    rows, rejects = read(path)
    assert [row.text for row in rows if isinstance(row, Document)] == ["one", "two\nlines", "One"]
    assert [row.id for row in rows] == ["a:data.jsonl:1", "a:data.jsonl:2", "a:data.jsonl:3"]
    assert rows[0].group == rows[2].group != rows[1].group
    assert rejects.stats() == {}


def test_another_key(write_lines: WriteLines) -> None:
    rows, _ = read(write_lines({"body": "one"}), fields={"text": "body"})
    assert isinstance(rows[0], Document) and rows[0].text == "one"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[1, 2]", "a list, not an object"),
        (b'{"body": "x", "id": 1}', "no key 'text' (keys: body, id)"),
        (b"{}", "no key 'text' (keys: none)"),
        (b'{"text": null}', "text is a NoneType, not a string"),
        (b'{"text": 5}', "text is a int, not a string"),
        (b'{"text": " \\n"}', "text is empty"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (b'{"text": "\\ud800 x"}', "text holds half a surrogate pair"),
        (b'{"text": "x", "score": NaN}', "NaN is no JSON number"),
        (b'{"text": "x", "score": ' + b"1" * 5_000 + b"}", "a number that is too long"),
        (b'{"text": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deep"),
    ],
)
def test_only_the_malformed_line_is_rejected(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD)
    rows, rejects = read(path)
    assert [row.id for row in rows] == ["a:data.jsonl:1", "a:data.jsonl:4"]
    assert [(reject.line, reject.byte_offset, reject.reason) for reject in rejects.kept] == [(3, len(GOOD) + 1, reason)]
    assert rejects.stats() == {"a": {"seen": 3, "rejected": 1, "reasons": {reason: 1}}}


def test_what_is_allowed_passes(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "bom"}\r\n{"text": "\\ud83d\\udc1f \\u0000"}\r\n{"text": "first", "text": "last"}')
    rows, rejects = read(path)
    assert [row.text for row in rows if isinstance(row, Document)] == ["bom", "\U0001f41f \x00", "last"]
    assert not rejects.kept


def test_a_last_line_cut_off_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + GOOD[:-4])
    rows, rejects = read(path)
    assert len(rows) == 1
    assert [reject.reason for reject in rejects.kept] == ["truncated: the file ends inside this line"]


def test_a_line_longer_than_the_limit_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_lines, "MAXIMUM_LINE_BYTES", 100)
    path = tmp_path / "data.jsonl"
    long = json.dumps({"text": "x" * 3_000}).encode() + b"\n"
    path.write_bytes(GOOD + long + GOOD + long)
    rows, rejects = read(path)
    assert [row.id for row in rows] == ["a:data.jsonl:1", "a:data.jsonl:3"]
    assert [(reject.byte_offset, reject.reason) for reject in rejects.kept] == [
        (len(GOOD), "longer than 100 bytes"),
        (2 * len(GOOD) + len(long), "longer than 100 bytes"),
    ]


def test_too_many_rejects(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD * 19 + b"{\n")
    assert len(read(path, maximum_reject_share=0.05)[0]) == 19
    path.write_bytes(GOOD * 18 + b"{\n" * 7)
    with pytest.raises(DataError) as caught:
        read(path, maximum_reject_share=0.05)
    assert "source a: 7 of 25 lines cannot be used (5% may be malformed)" in caught.value.problem
    assert caught.value.problem.count("data.jsonl:") == 5 and "data.jsonl:19: not JSON" in caught.value.problem


def test_a_wrong_key_shows_after_a_thousand_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"body": "x"}\n' * 5_000)
    with pytest.raises(DataError, match=r"1,000 of 1,000 lines .*no key 'text' \(keys: body\)"):
        read(path, maximum_reject_share=0.05)


def test_compressed_files(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD * 3) + gzip.compress(GOOD))
    assert len(read(path)[0]) == 4


@pytest.mark.parametrize("damage", ["cut", "garbage", "checksum", "not gzip"])
def test_a_damaged_compressed_file_is_refused_after_its_good_lines(tmp_path: Path, damage: str) -> None:
    good = gzip.compress(GOOD * 1_000)
    content = {
        "cut": gzip.compress(b"".join(json.dumps({"text": str(n * 7919)}).encode() + b"\n" for n in range(9_000)))[:-9_000],
        "garbage": good + b"garbage",
        "checksum": good[:-6] + b"\0\0" + good[-4:],
        "not gzip": GOOD,
    }[damage]
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(content)
    rows = []
    with pytest.raises(DataError, match=r"data\.jsonl\.gz is damaged after line"):
        for row in read_json_lines(JsonLinesSource(name="a", path=str(path)), Rejects()):
            rows.append(row)
    assert bool(rows) == (damage != "not gzip")


def test_utf16_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "x"}\n', encoding="utf-16")
    with pytest.raises(DataError, match="looks like UTF-16"):
        read(path)


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_conversations(write_lines: WriteLines) -> None:
    turns = [turn("system", "s"), turn("user", "q"), turn("assistant", "a"), turn("user", "q2"), turn("assistant", "a2")]
    rows, rejects = read(write_lines({"messages": turns}), "conversations")
    assert not rejects.kept and isinstance(rows[0], Conversation)
    assert rows[0].messages[:2] == (Message("system", "s"), Message("user", "q")) and len(rows[0].messages) == 5


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("text", "messages is a str, not a list"),
        ([], "the last message is not the assistant's"),
        (["text"], "a message without role and content"),
        ([{"role": "user"}], "a message without role and content"),
        ([turn("tool", "x")], "the role 'tool' is unknown"),
        ([turn("user", "q"), turn("assistant", "")], "content is empty"),
        ([turn("user", "q"), turn("assistant", ["a"])], "content is a list, not a string"),
        ([turn("user", "q")], "the last message is not the assistant's"),
        ([turn("assistant", "a")], "user and assistant do not take turns"),
        ([turn("user", "q"), turn("user", "q"), turn("assistant", "a")], "user and assistant do not take turns"),
        ([turn("user", "q"), turn("system", "s"), turn("assistant", "a")], "user and assistant do not take turns"),
    ],
)
def test_malformed_conversations(write_lines: WriteLines, messages: Any, reason: str) -> None:
    assert reasons(write_lines({"messages": messages}), "conversations") == [reason]


def test_preferences(write_lines: WriteLines) -> None:
    path = write_lines(
        {"prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": [turn("system", "s"), turn("user", "q")], "chosen": "good", "rejected": "worse"},
    )
    rows, rejects = read(path, "preferences")
    first, second = rows
    assert not rejects.kept and isinstance(first, Preference) and isinstance(second, Preference)
    assert first.prompt == (Message("user", "q"),) and (first.chosen, first.rejected, first.damage) == ("good", "bad", "")
    assert second.prompt == (Message("system", "s"), Message("user", "q"))


@pytest.mark.parametrize(
    ("pair", "reason"),
    [
        ({"prompt": "q", "chosen": "same", "rejected": "same"}, "chosen and rejected are equal"),
        ({"prompt": "q", "chosen": "", "rejected": "bad"}, "chosen is empty"),
        ({"prompt": "q", "chosen": "good", "rejected": None}, "rejected is a NoneType, not a string"),
        ({"chosen": "good", "rejected": "bad"}, "no key 'prompt' (keys: chosen, rejected)"),
        ({"prompt": [turn("assistant", "a")], "chosen": "good", "rejected": "bad"}, "the last message is not the user's"),
    ],
)
def test_malformed_preferences(write_lines: WriteLines, pair: dict[str, Any], reason: str) -> None:
    assert reasons(write_lines(pair), "preferences") == [reason]
