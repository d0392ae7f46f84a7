"""What was said so far, and as much of it as the model's context holds: nothing here knows of terminals or models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from fledge.core.errors import DataError
from fledge.corpus.document import Message
from fledge.tokens.chat import render
from fledge.tokens.tokenizer import Tokenizer

_ANSWER_SHARE = 4
"""The part of the context that is kept free for an answer is one over this."""


@dataclass
class Exchange:
    """A question and what came of it."""

    question: str
    answer: str | None = None
    """None while it is awaited. Nothing is made of an empty one, for templates have no turn without words."""

    @property
    def messages(self) -> list[Message]:
        return [Message("user", self.question), Message("assistant", self.answer)] if self.answer else []


@dataclass
class Conversation:
    """Questions and answers in turn, after an instruction if there is one."""

    system: str | None = None
    exchanges: list[Exchange] = field(default_factory=list)

    @property
    def opening(self) -> list[Message]:
        return [Message("system", self.system)] if self.system else []

    @property
    def messages(self) -> list[Message]:
        """The instruction and what was said."""
        return [*self.opening, *self.said]

    @property
    def said(self) -> list[Message]:
        """Questions and answers; a question that has no answer is left out."""
        return [message for exchange in self.exchanges for message in exchange.messages]

    def ask(self, text: str) -> None:
        self.exchanges.append(Exchange(text))

    def answer(self, text: str) -> None:
        self.exchanges[-1].answer = text.strip()

    def withdraw(self) -> str | None:
        """Take the last question back, with its answer; returns it, or None if nothing was asked."""
        return self.exchanges.pop().question if self.exchanges else None

    def forget(self) -> None:
        """Begin anew; the instruction stays."""
        self.exchanges.clear()


def prompt_ids(conversation: Conversation, tokenizer: Tokenizer, context_tokens: int) -> tuple[list[int], int]:
    """(token ids up to where the answer to the last question begins, how many of the oldest exchanges they leave out for want of room).

    At least a quarter of the context stays free for the answer. Raises DataError if the last question alone is too long.
    """
    room_tokens = context_tokens - context_tokens // _ANSWER_SHARE
    *earlier, last = conversation.exchanges
    answered = [exchange.messages for exchange in earlier if exchange.messages]
    for left_out in range(len(answered) + 1):
        said = [message for messages in answered[left_out:] for message in messages]
        ids = render(tokenizer, [*conversation.opening, *said, Message("user", last.question)], answer_follows=True).ids
        if len(ids) <= room_tokens:
            return ids, left_out
    raise DataError(f"this is longer than the model's context of {context_tokens} tokens allows", "say less at once")


def as_line(messages: Sequence[Message], **further: str) -> str:
    """A conversation as a line of JSON that a source of `content: conversations` reads."""
    spoken = [{"role": message.role, "content": message.content} for message in messages]
    return json.dumps({"messages": spoken, **further}, ensure_ascii=False)
