"""Conversations become token ids, in the format of the tokenizer's template, with the mask of what is to be learned: answers and their end.

A conversation is rendered to a list of texts and control ids; texts that touch are joined, and each run between two control ids
is encoded on its own by the body tokenizer. So a message that spells `<|im_end|>` cannot end its turn, and yet the ids are those
of transformers' `apply_chat_template` wherever no message spells a control token: Hugging Face splits the rendered string at its
control tokens before anything else. (Encoding message by message does not give them: of 175 conversations in a format without
control tokens, 173 differed.) A template trims each message, and so does `render`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np

from fledge.core.errors import DataError
from fledge.corpus.document import Message, Role
from fledge.tokens.templates import Template
from fledge.tokens.tokenizer import Tokenizer


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids."""

    ids: list[int]
    supervised: list[bool]
    """True where the token is to be learned: the text of an answer and the control token that ends it."""


@dataclass(frozen=True)
class _Text:
    text: str
    supervised: bool = False


@dataclass(frozen=True)
class _Control:
    id: int
    supervised: bool = False


@dataclass(frozen=True)
class _Run:
    """The joined text between two control ids; what follows its first `given_bytes` bytes is an answer."""

    text: str
    given_bytes: int


def render(tokenizer: Tokenizer, messages: Sequence[Message], answer_follows: bool = False) -> Rendered:
    """The ids of a conversation; `answer_follows` ends it where the assistant begins to speak.

    A prompt rendered so is a prefix of the conversation with the answer. Raises DataError for an unknown role, and for a tokenizer
    without tokens for turns.
    """
    return render_batch(tokenizer, [messages], answer_follows)[0]


def render_batch(
    tokenizer: Tokenizer,
    conversations: Sequence[Sequence[Message]],
    answer_follows: bool = False,
    last_answer_only: bool = False,
) -> list[Rendered]:
    """`render` of every conversation, encoded together; `last_answer_only` leaves earlier answers out of the mask."""
    template = require_template(tokenizer)
    rendered = [
        list(_joined(_parts(tokenizer, template, template.completed(messages), answer_follows, last_answer_only)))
        for messages in conversations
    ]
    texts = [part.text for parts in rendered for part in parts if isinstance(part, _Run)]
    encoded = iter(tokenizer.encode_batch(texts))
    return [_assemble(tokenizer, parts, encoded) for parts in rendered]


class AnswerStream:
    """Decodes a growing answer: what its template puts around the text of an answer does not come out."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._template = require_template(tokenizer)
        self._stream = tokenizer.stream(continued=True)
        self._begun = False
        self._held = ""
        """What may be the template's closing."""

    def push(self, token: int) -> str:
        """The text that `token` completes and that is the answer's for sure."""
        return self._own(self._stream.push(token))

    def finish(self) -> str:
        """What is left when the answer has ended."""
        return (self._own(self._stream.finish()) + self._held).removesuffix(self._template.closing)

    def _own(self, text: str) -> str:
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix(self._template.answer_opening)
        text, closing = self._held + text, self._template.closing
        kept = len(text.removesuffix(closing))
        text, self._held = text[:kept], text[kept:]
        return text


def trimmed(text: str) -> str:
    """A message as it is rendered: without white space around it, by Python's rule and Jinja's."""
    return text.strip()


def require_template(tokenizer: Tokenizer) -> Template:
    """How a tokenizer writes conversations. Raises DataError if it cannot."""
    if tokenizer.template is None:
        raise DataError(
            f"the tokenizer in {tokenizer.folder} has no tokens for the turns of a conversation",
            "import it again with tokenizer.turn_tokens=true, which adds them, or with a tokenizer.template that needs none",
        )
    return tokenizer.template


def _parts(
    tokenizer: Tokenizer, template: Template, messages: Sequence[Message], answer_follows: bool, last_answer_only: bool
) -> Iterator[_Text | _Control]:
    if template.opens_document:
        yield from map(_Control, tokenizer.document_start)
    for place, message in enumerate(messages):
        if message.role not in get_args(Role):
            raise DataError(f"message {place} of a conversation has the role {message.role!r}", f"use one of {', '.join(get_args(Role))}")
        is_answer = message.role == "assistant"
        supervised = is_answer and (place == len(messages) - 1 or not last_answer_only)
        if place > 0:
            yield _Text(template.between)
        yield from _opening(tokenizer, template, message.role)
        text = (template.answer_opening if is_answer else "") + trimmed(message.content) + template.closing
        yield _Text(text, supervised)
        if template.has_turn_tokens:
            yield _Control(tokenizer.require_turn_ids()[1], supervised)
        elif is_answer:
            yield _Control(tokenizer.end_of_text, supervised)
    if answer_follows:
        if messages:
            yield _Text(template.between)
        yield from _opening(tokenizer, template, "assistant")


def _opening(tokenizer: Tokenizer, template: Template, role: Role) -> Iterator[_Text | _Control]:
    if template.has_turn_tokens:
        yield _Control(tokenizer.require_turn_ids()[0])
    yield _Text(template.labels[role])


def _joined(parts: Iterable[_Text | _Control]) -> Iterator[_Run | _Control]:
    """The parts with texts that touch joined; an answer is the last text before the control id that ends it."""
    texts: list[_Text] = []
    for part in parts:
        if isinstance(part, _Text):
            texts.append(part)
        else:
            yield from _run(texts)
            texts = []
            yield part
    yield from _run(texts)


def _run(texts: Sequence[_Text]) -> Iterator[_Run]:
    text = "".join(part.text for part in texts)
    if text:
        yield _Run(text, sum(len(part.text.encode()) for part in texts if not part.supervised))


def _assemble(tokenizer: Tokenizer, parts: Sequence[_Run | _Control], encoded: Iterator[list[int]]) -> Rendered:
    ids: list[int] = []
    supervised: list[bool] = []
    for part in parts:
        if isinstance(part, _Control):
            ids.append(part.id)
            supervised.append(part.supervised)
        else:
            tokens = next(encoded)
            ids += tokens
            # Tokens are lossless, so their lengths add up to offsets in the text.
            ends = np.cumsum(tokenizer.byte_lengths[tokens]) - tokenizer.prefix_bytes
            supervised += (ends > part.given_bytes).tolist()
    return Rendered(ids, supervised)
