from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fledge.corpus.document import Conversation, Message, Preference

from .readers import json_lines_source, reasons
from .readers import read_json_lines as read

WriteLines = Callable[..., Path]


def turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_conversations(write_lines: WriteLines) -> None:
    turns = [turn("system", "s"), turn("user", "q"), turn("assistant", "a"), turn("user", "q2"), turn("assistant", "a2")]
    rows, rejects = read(write_lines({"messages": turns}, {"messages": turns[1:3]}, {"messages": turns}), "conversations")
    assert not rejects.kept and isinstance(rows[0], Conversation)
    assert rows[0].messages[:2] == (Message("system", "s"), Message("user", "q")) and len(rows[0].messages) == 5
    assert rows[0].group == rows[1].group == rows[2].group


def test_a_question_is_on_one_side_of_the_split(write_lines: WriteLines) -> None:
    """However it was answered, whatever came before and after, and whether its answers are to be learned or compared."""
    asked, again = turn("user", "What is it?"), turn("user", "what is  it")
    talks = [
        [asked, turn("assistant", "This.")],
        [again, turn("assistant", "That.")],
        [asked, turn("assistant", "This."), turn("user", "Why?"), turn("assistant", "So.")],
        [turn("system", "Be brief."), asked, turn("assistant", "This.")],
        [turn("user", "Why?"), turn("assistant", "This.")],
    ]
    groups = [row.group for row in read(write_lines(*({"messages": talk} for talk in talks)), "conversations")[0]]
    assert len(set(groups[:4])) == 1 and groups[4] != groups[0]
    pairs = [
        {"prompt": "What is it?", "chosen": "a", "rejected": "b"},
        {"prompt": [*talks[0], turn("user", "Why?")], "chosen": "a", "rejected": "b"},
    ]
    assert {row.group for row in read(write_lines(*pairs), "preferences")[0]} == {groups[0]}


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("text", "messages is a string, not a list"),
        ([], "the last message is not the assistant's"),
        (["text"], "the last message is not the assistant's"),
        ([7], "a message without role and content"),
        ([{"from": "human"}], "a message without role and content"),
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


QUESTION, ANSWER = Message("user", "q"), Message("assistant", "a")


@pytest.mark.parametrize(
    "values",
    [
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"conversations": ["q", "a"]},
        {"conversations": [turn("prompter", "q"), turn("assistant", "a")]},
    ],
    ids=["sharegpt", "texts", "other names"],
)
def test_messages_as_others_write_them(write_lines: WriteLines, values: dict[str, Any]) -> None:
    rows, rejects = read(write_lines(values), "conversations", fields={"messages": "conversations"})
    assert not rejects.kept and isinstance(rows[0], Conversation) and rows[0].messages == (QUESTION, ANSWER)


def test_a_system_message_may_have_a_field_of_its_own(write_lines: WriteLines) -> None:
    turns = [turn("user", "q"), turn("assistant", "a")]
    records = [
        {"system": "s", "messages": turns},
        {"system": "", "messages": turns},
        {"system": "t", "messages": [turn("system", "s"), *turns]},
    ]
    rows, _ = read(write_lines(*records), "conversations")
    firsts = [row.messages[0] for row in rows if isinstance(row, Conversation)]
    assert firsts == [Message("system", "s"), QUESTION, Message("system", "s")]
    pairs, _ = read(write_lines({"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"}), "preferences")
    assert isinstance(pairs[0], Preference) and pairs[0].prompt == (Message("system", "s"), QUESTION)


@pytest.mark.parametrize(
    ("record", "settings", "question"),
    [
        ({"instruction": "q", "input": "", "output": "a"}, {}, "q"),
        ({"instruction": "q", "input": "about", "output": "a"}, {}, "q\n\nabout"),
        ({"instruction": "q", "input": "about", "output": "a"}, {"input_separator": "\n\n### Input:\n"}, "q\n\n### Input:\nabout"),
        ({"question": "q", "answer": "a"}, {"fields": {"instruction": "question", "output": "answer"}}, "q"),
        (
            {"instruction": "q", "instances": [{"input": "about", "output": "a"}]},
            {"fields": {"input": "instances.0.input", "output": "instances.0.output"}},
            "q\n\nabout",
        ),
    ],
    ids=["alpaca", "with input", "for alpaca's template", "question and answer", "below a path"],
)
def test_instructions(write_lines: WriteLines, record: dict[str, Any], settings: dict[str, Any], question: str) -> None:
    rows, rejects = read(write_lines(record), "conversations", form="instructions", **settings)
    assert not rejects.kept and isinstance(rows[0], Conversation) and rows[0].messages == (Message("user", question), ANSWER)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"instruction": "q"}, "no key 'output' (keys: instruction)"),
        ({"instruction": "q", "output": " "}, "output is empty"),
        ({"instruction": "", "output": "a"}, "instruction is empty"),
        ({"instruction": "q", "input": 7, "output": "a"}, "input is a number, not a string"),
        ({"instruction": ["q"], "output": "a"}, "instruction is a list, not a string"),
    ],
)
def test_malformed_instructions(write_lines: WriteLines, record: dict[str, Any], reason: str) -> None:
    assert reasons(write_lines(record), "conversations", form="instructions") == [reason]


def test_dialogues(write_lines: WriteLines) -> None:
    before = "\n\nHuman: q\n\nAssistant: a\n\nHuman: more\n\nAssistant:"
    rows, rejects = read(
        write_lines({"chosen": f"{before} good", "rejected": f"{before} bad\n\nat length"}), "preferences", form="dialogues"
    )
    assert not rejects.kept and isinstance(rows[0], Preference)
    assert rows[0].prompt == (QUESTION, ANSWER, Message("user", "more"))
    assert (rows[0].chosen, rows[0].rejected) == ("good", "bad\n\nat length")


@pytest.mark.parametrize(
    ("chosen", "rejected", "reason"),
    [
        ("Human: q\n\nAssistant: a", "\n\nHuman: other\n\nAssistant: b", "chosen and rejected differ before their last answers"),
        ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: a", "chosen and rejected are equal"),
        ("q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b", "chosen does not begin with Human:"),
        ("\n\nHuman: q", "\n\nHuman: q\n\nAssistant: b", "the last message is not the assistant's"),
        ("\n\nHuman: q\n\nAssistant:", "\n\nHuman: q\n\nAssistant: b", "content is empty"),
        ("\n\nHuman: q\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: b", "user and assistant do not take turns"),
    ],
)
def test_malformed_dialogues(write_lines: WriteLines, chosen: str, rejected: str, reason: str) -> None:
    assert reasons(write_lines({"chosen": chosen, "rejected": rejected}), "preferences", form="dialogues") == [reason]


def test_pairs_of_whole_conversations(write_lines: WriteLines) -> None:
    """As in UltraFeedback, where the prompt stands in both answers."""
    good, bad = ([turn("user", "q"), turn("assistant", answer)] for answer in ("good", "bad"))
    rows, rejects = read(write_lines({"prompt": "q", "chosen": good, "rejected": bad}), "preferences")
    assert not rejects.kept and isinstance(rows[0], Preference)
    assert (rows[0].prompt, rows[0].chosen, rows[0].rejected) == ((QUESTION,), "good", "bad")


def test_forms_go_with_their_contents() -> None:
    with pytest.raises(ValueError, match="form pairs is none of conversations, which have messages, instructions, tree"):
        json_lines_source(Path("a"), "conversations", form="pairs")
    with pytest.raises(
        ValueError, match="fields names 'answer', but a row of the form instructions holds instruction, output, input, system"
    ):
        json_lines_source(Path("a"), "conversations", form="instructions", fields={"answer": "a"})


def message(name: str, parent: str | None, text: str, rank: int | None = None, lang: str = "en") -> dict[str, Any]:
    role = "prompter" if (name.count("-") % 2 == 0) else "assistant"
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank, "lang": lang}


TREES = [
    {**message("a-0", "a", "asked once more", 0), "role": "prompter"},
    message("a-1", "a", "worse", 1),
    message("a", None, "q"),
    message("a-2", "a", "better", 0),
    message("a-2-1", "a-2", "thanks", 0),
    message("b", None, "nobody answers"),
    message("c", None, "Frage", lang="de"),
    message("c-1", "c", "Antwort", lang="de"),
    message("d-1", "deleted", "an orphan"),
]


def test_a_tree_gives_its_best_thread(write_lines: WriteLines) -> None:
    """An answer may stand before its question, and a question at the end is left out."""
    rows, rejects = read(write_lines(*TREES, {**TREES[1], "message_id": 7}), "conversations", form="tree", fields={"language": "lang"})
    found = [(row.id, [message.content for message in row.messages]) for row in rows if isinstance(row, Conversation)]
    assert found == [("a:a", ["q", "better"]), ("a:c", ["Frage", "Antwort"])]
    assert sorted(reject.reason for reject in rejects.kept) == [
        "its parent is not there (d-1)",
        "message_id and parent_id are no strings",
        "the last message is not the assistant's (b)",
    ]
    rows, _ = read(write_lines(*TREES), "conversations", form="tree", fields={"language": "lang"}, language="de")
    assert [row.id for row in rows] == ["a:c"]


def test_a_tree_that_bites_its_tail_ends(write_lines: WriteLines) -> None:
    rows, _ = read(
        write_lines(message("a", None, "q"), message("a-1", "a", "x"), message("a", "a-1", "again")), "conversations", form="tree"
    )
    assert len(rows) == 1


def test_pairs_of_answers_as_messages(write_lines: WriteLines) -> None:
    """As TRL has them: the prompt apart, as messages too."""
    pair = {"prompt": [turn("user", "q")], "chosen": [turn("assistant", "good")], "rejected": [turn("assistant", "bad")]}
    rows, rejects = read(write_lines(pair, {**pair, "rejected": [turn("assistant", "good ")]}), "preferences")
    assert isinstance(rows[0], Preference) and (rows[0].prompt, rows[0].chosen, rows[0].rejected) == ((QUESTION,), "good", "bad")
    assert [reject.reason for reject in rejects.kept] == ["chosen and rejected are equal"]


def test_an_empty_system_message_says_nothing(write_lines: WriteLines) -> None:
    rows, rejects = read(write_lines({"messages": [turn("system", ""), turn("user", "q"), turn("assistant", "a")]}), "conversations")
    assert not rejects.kept and isinstance(rows[0], Conversation) and rows[0].messages == (QUESTION, ANSWER)
