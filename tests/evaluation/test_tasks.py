"""How items are made from text: the benchmark's form, balance, no leak between question and answer, reproducible samples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fledge.corpus.document import Conversation, Document
from fledge.evaluation.tasks import answer_choice_items, last_word_items, majority_share, yes_no_items


def test_the_last_word_occurs_before_and_follows_a_space(documents: list[Document]) -> None:
    items = last_word_items(documents, 100, seed=0)
    assert len(items) == len(documents)
    for item in items:
        assert item.word in item.context.split()
        assert any(f"{item.context} {item.word}." in document.text for document in documents)
        assert 12 <= len(item.context.split()) <= 80


def test_guess_probability_is_the_share_of_the_word() -> None:
    text = "one two one three four five six seven eight nine ten eleven one. End"
    (item,) = last_word_items([Document(text, "d", "s", "g")], 5, seed=0)
    assert (item.context, item.word) == (text.split(" one.")[0], "one")
    assert item.guess_probability == 2 / 12


@pytest.mark.parametrize(
    "text",
    [
        "a short passage with passage.",
        "one two three four five six seven eight nine ten eleven twelve thirteen.",
        "one two three four five six seven eight nine ten eleven twelve\none.",
        "one two three four five six seven eight nine ten eleven twelve one",
    ],
    ids=["too short", "word is new", "word after a line break", "no end of sentence"],
)
def test_passages_of_another_form_are_left_out(text: str) -> None:
    assert last_word_items([Document(text, "d", "s", "g")], 5, seed=0) == []


def test_long_passages_keep_their_end() -> None:
    text = " ".join(f"word{index} again" for index in range(100)) + " again."
    (item,) = last_word_items([Document(text, "d", "s", "g")], 5, seed=0)
    assert len(item.context.split()) == 80
    assert item.context.endswith("word99 again")


def test_half_of_the_answers_are_yes_and_the_names_fit(documents: list[Document]) -> None:
    items = yes_no_items(documents, 40, seed=0)
    assert sum(item.answer for item in items) == 20
    for item in items:
        own = next(document for document in documents if item.passage in document.text)
        name = own.text.split("(")[0]
        assert item.question.endswith(f" {name}") == item.answer
        assert name not in item.passage
        assert item.prompt == f"{item.passage}\nQuestion: {item.question}?\nAnswer:"


def test_wrong_names_come_from_another_group(documents: list[Document]) -> None:
    one_group = [replace(document, group="same") for document in documents]
    assert yes_no_items(one_group, 40, seed=0) == []


@pytest.mark.parametrize("text", ["A sentence is no title\n\n" + "word " * 20, "name\n\ntoo short", "name only"])
def test_texts_without_a_name_or_documentation_are_left_out(text: str, documents: list[Document]) -> None:
    assert len(yes_no_items([*documents[:2], Document(text, "x", "docs", "gx")], 10, seed=0)) == 2


def test_the_other_question_is_another_one(conversations: list[Conversation]) -> None:
    items = answer_choice_items(conversations, 100, seed=0)
    assert len(items) == len(conversations)
    assert all(item.own != item.other for item in items)
    assert len({item.other for item in items}) == len(items)
    answers = {conversation.messages[:-1]: conversation.messages[-1] for conversation in conversations}
    assert all(answers[item.own] == item.answer != answers[item.other] for item in items)


def test_equal_questions_or_answers_are_no_choice(conversations: list[Conversation]) -> None:
    first = conversations[0]
    same_answer = replace(conversations[1], messages=(conversations[1].messages[0], first.messages[1]))
    same_question = replace(conversations[2], messages=(first.messages[0], conversations[2].messages[1]))
    same_group = replace(conversations[3], group=first.group)
    for other in (same_answer, same_question, same_group):
        assert answer_choice_items([first, other], 10, seed=0) == []


@pytest.mark.parametrize("count", [0, 7])
def test_samples_follow_the_seed(documents: list[Document], conversations: list[Conversation], count: int) -> None:
    for build, rows in ((last_word_items, documents), (yes_no_items, documents), (answer_choice_items, conversations)):
        first = build(rows, count, seed=1)  # type: ignore[operator]
        assert first == build(rows, count, seed=1)  # type: ignore[operator]
        assert len(first) == count
        assert count == 0 or first != build(rows, count, seed=2)  # type: ignore[operator]


def test_majority_share() -> None:
    assert majority_share([True, False, True, True]) == 0.75
