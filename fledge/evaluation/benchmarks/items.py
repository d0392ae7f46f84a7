"""Rows become questions: what a task says, filled in, with what is right and what guessing would reach. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fledge.evaluation.benchmarks.settings import GenerateExact, LastWord, MultipleChoice, Perplexity
from fledge.evaluation.benchmarks.templates import BadRow, text_of, texts_of, value_of

Values = Mapping[str, Any]


@dataclass(frozen=True)
class ChoiceItem:
    """Texts of which one is right."""

    pairs: tuple[tuple[str, str], ...]
    """Of each choice what is before it, and what is scored."""
    characters: tuple[int, ...]
    """Of each choice, without what stands around it."""
    right: int


@dataclass(frozen=True)
class WordItem:
    """A text and its last word, with the space before it."""

    context: str
    word: str

    @property
    def guess_probability(self) -> float:
        """What drawing one of the text's words at random reaches."""
        words = self.context.split()
        return words.count(self.word.strip()) / len(words) if words else 0.0


@dataclass(frozen=True)
class TextItem:
    """A text to be scored whole."""

    text: str
    words: int
    text_bytes: int


@dataclass(frozen=True)
class ExactItem:
    """A prompt, and what should be written after it."""

    prompt: str
    answer: str


def choice_item(task: MultipleChoice, row: Values) -> ChoiceItem:
    """Raises BadRow for fewer than two choices, an empty one, or an answer that is none of them."""
    choices = texts_of(task.choices, row) if isinstance(task.choices, str) else [text_of(choice, row) for choice in task.choices]
    if len(choices) < 2 or not all(choices):
        raise BadRow(f"its choices are {choices!r}: there must be two or more, none of them empty")
    rows = [{**row, "choice": choice} for choice in choices]
    pairs = tuple((text_of(task.context, filled), text_of(task.continued, filled)) for filled in rows)
    return ChoiceItem(pairs, tuple(map(len, choices)), _right(task, row, len(choices)))


def word_item(task: LastWord, row: Values) -> WordItem:
    """As lm-evaluation-harness divides LAMBADA: at the last space."""
    context, _, word = text_of(task.text, row).rpartition(" ")
    return WordItem(context, f" {word}")


def text_item(task: Perplexity, row: Values) -> TextItem:
    """Words are what white space divides, counted as lm-evaluation-harness does. Raises BadRow for an empty text."""
    text = text_of(task.text, row)
    counted = text if task.counted is None else text_of(task.counted, row)
    if not text or not counted:
        raise BadRow("its text is empty")
    return TextItem(text, len(re.split(r"\s+", counted)), len(counted.encode("utf-8")))


def exact_item(task: GenerateExact, row: Values) -> ExactItem:
    """Raises BadRow for an answer without a letter."""
    answer = text_of(task.answer, row).strip()
    if not answer:
        raise BadRow("its answer is empty")
    return ExactItem(text_of(task.prompt, row), answer)


def _right(task: MultipleChoice, row: Values, choices: int) -> int:
    if task.labels is not None:
        labels, answer = texts_of(task.labels, row), text_of(task.answer, row)
        if labels.count(answer) != 1 or len(labels) != choices:
            raise BadRow(f"its answer is {answer!r}, its labels for {choices} choices {labels!r}")
        return labels.index(answer)
    found = value_of(task.answer, row)
    place = int(found) if isinstance(found, bool) or str(found).strip().isdecimal() else -1
    if not 0 <= place < choices:
        raise BadRow(f"its answer is {found!r}, not the place of one of {choices} choices counted from 0")
    return place
