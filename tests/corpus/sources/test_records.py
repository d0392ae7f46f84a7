from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fledge.corpus.document import Conversation, Message, Preference

from .readers import read_json_lines as read
from .readers import reasons

WriteLines = Callable[..., Path]


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_conversations(write_lines: WriteLines) -> None:
    turns = [turn("system", "s"), turn("user", "q"), turn("assistant", "a"), turn("user", "q2"), turn("assistant", "a2")]
    rows, rejects = read(write_lines({"messages": turns}, {"messages": turns[1:3]}, {"messages": turns}), "conversations")
    assert not rejects.kept and isinstance(rows[0], Conversation)
    assert rows[0].messages[:2] == (Message("system", "s"), Message("user", "q")) and len(rows[0].messages) == 5
    assert rows[0].group == rows[2].group != rows[1].group


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("text", "messages is a string, not a list"),
        ([], "the last message is not the assistant's"),
        (["text"], "a message without role and content"),
        ([{"role": "user"}], "a message without role and content"),
        ([turn("tool", "x")], "a message of an unknown role ('tool')"),
        ([{"role": [[]], "content": "x"}], "a message of an unknown role (a list)"),
        ([turn("user", "q"), turn("assistant", "")], "content is empty"),
        ([turn("user", "q"), turn("assistant", ["a"])], "content is a list, not a string"),
        ([turn("user", "q"), turn("assistant", "\ud800")], "messages holds half a surrogate pair"),
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
        ({"prompt": "q", "chosen": "good", "rejected": None}, "rejected is null, not a string"),
        ({"chosen": "good", "rejected": "bad"}, "no key 'prompt' (keys: chosen, rejected)"),
        ({"prompt": [turn("assistant", "a")], "chosen": "good", "rejected": "bad"}, "the last message is not the user's"),
    ],
)
def test_malformed_preferences(write_lines: WriteLines, pair: dict[str, Any], reason: str) -> None:
    assert reasons(write_lines(pair), "preferences") == [reason]
