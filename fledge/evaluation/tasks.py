"""Tasks made from held-out text, in the form of known benchmarks, so that any corpus can be evaluated without a download.

Last word has LAMBADA's form (Paperno et al., 2016): a passage whose last word, which occurs in it before, is to be predicted.
Yes/no has BoolQ's form and lm-evaluation-harness's prompt (Clark et al., 2019): a passage, a question, " no" or " yes".
Answer choice asks whether an answer is more likely after its own question than after another one. The form is the benchmarks',
the text is not: figures compare checkpoints of one corpus, not with published tables.

Everything here is a pure function of the text and a seed; `checkpoint.py` puts the items to a model.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from fledge.corpus.document import Conversation, Document, Message

Item = TypeVar("Item")

MINIMUM_PASSAGE_WORDS = 12
MAXIMUM_PASSAGE_WORDS = 80
"""LAMBADA's passages have 75 words on average."""
MAXIMUM_DOCUMENTATION_WORDS = 40
"""Of a yes/no passage; BoolQ's are longer, but a context of 256 tokens must hold passage, question and answer."""

_LAST_WORD = re.compile(r"(?<=\S) ([A-Za-z]{3,})(?=[.!?](?:\s|$))")
_WORD = re.compile(r"[A-Za-z]+")
_TITLE = re.compile(r"([A-Za-z_][\w.]*)(?:\(.*\))?", re.DOTALL)


@dataclass(frozen=True)
class LastWordItem:
    """Predict " " + word after context."""

    context: str
    word: str
    guess_probability: float
    """Share of the context's words that are the word: what drawing one of them at random would reach."""


@dataclass(frozen=True)
class YesNoItem:
    """Is this passage the documentation of that name?"""

    passage: str
    question: str
    answer: bool

    @property
    def prompt(self) -> str:
        """lm-evaluation-harness's BoolQ prompt."""
        return f"{self.passage}\nQuestion: {self.question}?\nAnswer:"


@dataclass(frozen=True)
class AnswerChoiceItem:
    """One answer after its own messages and after those of another conversation."""

    own: tuple[Message, ...]
    other: tuple[Message, ...]
    answer: Message


def last_word_items(documents: Sequence[Document], count: int, seed: int) -> list[LastWordItem]:
    """At most one passage per document, because passages of one document are not independent samples."""
    found = (_last_word_item(document, seed) for document in documents)
    return _draw([item for item in found if item is not None], count, seed)


def yes_no_items(documents: Sequence[Document], count: int, seed: int) -> list[YesNoItem]:
    """Half with the right name, half with that of another document of another group; documents without a title are left out."""
    titled = [(document, *parts) for document in documents if (parts := _title_and_passage(document.text)) is not None]
    chosen = _draw(titled, count, seed)
    items = []
    for index, (document, name, passage) in enumerate(chosen):
        generator = random.Random(f"{seed}:{document.id}")
        others = [other for candidate, other, _ in chosen if candidate.group != document.group and other != name]
        if not others:
            continue
        answer = index % 2 == 0
        asked = name if answer else generator.choice(others)
        items.append(YesNoItem(passage, f"is this the documentation of {asked}", answer))
    return items


def answer_choice_items(conversations: Sequence[Conversation], count: int, seed: int) -> list[AnswerChoiceItem]:
    """The other messages are those of the next conversation, in a seeded order, with another question, answer and group."""
    chosen = _draw([conversation for conversation in conversations if len(conversation.messages) > 1], count, seed)
    items = []
    for index, conversation in enumerate(chosen):
        *own, answer = conversation.messages
        following = (chosen[(index + step) % len(chosen)] for step in range(1, len(chosen)))
        other = next((candidate for candidate in following if _differs(candidate, conversation)), None)
        if other is not None:
            items.append(AnswerChoiceItem(tuple(own), other.messages[:-1], answer))
    return items


def majority_share(answers: Sequence[object]) -> float:
    """Share of the most frequent answer."""
    return max(Counter(answers).values()) / len(answers)


def _last_word_item(document: Document, seed: int) -> LastWordItem | None:
    candidates = []
    for match in _LAST_WORD.finditer(document.text):
        context = _last_words(document.text[: match.start()], MAXIMUM_PASSAGE_WORDS)
        words = _WORD.findall(context)
        if len(context.split()) >= MINIMUM_PASSAGE_WORDS and match[1] in words:
            candidates.append(LastWordItem(context, match[1], words.count(match[1]) / len(words)))
    return random.Random(f"{seed}:{document.id}").choice(candidates) if candidates else None


def _last_words(text: str, count: int) -> str:
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    return text[starts[-count] :] if len(starts) > count else text


def _first_words(text: str, count: int) -> str:
    ends = [match.end() for match in re.finditer(r"\S+", text)]
    return text[: ends[count - 1]] if len(ends) > count else text


def _title_and_passage(text: str) -> tuple[str, str] | None:
    """The documented name and the start of its documentation, of a text `name(arguments)`, blank line, documentation."""
    title, _, body = text.partition("\n\n")
    match = _TITLE.fullmatch(title.strip())
    passage = _first_words(body.strip(), MAXIMUM_DOCUMENTATION_WORDS)
    return (match[1], passage) if match and len(passage.split()) >= MINIMUM_PASSAGE_WORDS else None


def _differs(candidate: Conversation, conversation: Conversation) -> bool:
    same_question = candidate.messages[:-1] == conversation.messages[:-1]
    same_answer = candidate.messages[-1] == conversation.messages[-1]
    return not (same_question or same_answer or candidate.group == conversation.group)


def _draw(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """A seeded sample in seeded order; all of them, shuffled, if there are no more than `count`."""
    return random.Random(seed).sample(list(items), min(count, len(items)))
