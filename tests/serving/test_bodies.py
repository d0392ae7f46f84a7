"""JSON that programs might read differently, or that only an attack sends, is refused."""

from __future__ import annotations

import json
import tracemalloc
from types import SimpleNamespace
from typing import Any

import pytest

from fledge.serving import bodies
from fledge.serving.bodies import MOST_VALUES, parse_object
from fledge.serving.errors import ApiError, shown


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": "\x00"}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": 01}',
        b"{'a': 1}",
        b'{"a": 1} {"b": 2}',
        b'{"a": ' + b"1" * 1_000_000 + b"}",
        b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' + b"[" * 1_000 + b"]" * 1_000 + b"}",
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * MOST_VALUES,
    ],
)
def test_what_is_no_plain_object_is_refused_at_once(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the parser that is fast and strict: none of those that are long comes to the other one."""
    slow, sizes = json.loads, list[int]()

    def loads(content: bytes, **options: Any) -> Any:
        sizes.append(len(content))
        return slow(content, **options)

    monkeypatch.setattr(bodies, "json", SimpleNamespace(loads=loads))
    with pytest.raises(ApiError) as refused:
        parse_object(content)
    assert refused.value.status == 400 and refused.value.code == "invalid_json"
    assert len(refused.value.message) < 200
    assert max(sizes, default=0) < 10_000


@pytest.mark.parametrize("value", [b'{"a":1}', b"0", b"[]", b'"a"'])
def test_more_values_than_are_needed_are_not_even_parsed(value: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 MiB of small objects take 0.4 s."""
    marks = value.count(b"{") + value.count(b"[") + 1
    most = (MOST_VALUES - 2) // marks
    assert len(parse_object(b'{"x":[' + b",".join([value] * most) + b"]}")["x"]) == most
    monkeypatch.setattr(bodies, "orjson", None)
    monkeypatch.setattr(bodies, "json", None)
    with pytest.raises(ApiError, match="131,072 values") as refused:
        parse_object(b'{"x":[' + b",".join([value] * (most + 2)) + b"]}")
    assert refused.value.status == 413


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([0] * 900_000, "[0, 0, 0, 0, 0, 0, ...]"),
        ("x" * 2_000_000, None),
        ({str(one): one for one in range(9)}, None),
        ("short", "'short'"),
    ],
    ids=["list", "text", "object", "short"],
)
def test_a_value_is_shown_without_writing_all_of_it(value: object, expected: str | None) -> None:
    tracemalloc.start()
    try:
        text = shown(value)
        most_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(text) <= 60 and expected in (None, text)
    assert most_bytes < 100_000


def test_a_key_twice_is_named() -> None:
    with pytest.raises(ApiError) as refused:
        parse_object(b'{"a": {"n": 1, "n": 2}}')
    assert refused.value.param == "n"


def test_what_is_plain_is_read() -> None:
    content = '{"a": "\\u0000 \\ud83d\\ude00 é", "b": 123456789012345678901234567890, "c": [1e3, null, true]}'.encode()
    assert parse_object(content) == {"a": "\x00 😀 é", "b": 123456789012345678901234567890, "c": [1000.0, None, True]}
    assert parse_object(b'{"a":' + b"[" * 500 + b"]" * 500 + b"}")
