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
class Conversation:
    """Questions and answers in turn, after an instruction if there is one."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        opening = [Message("system", self.system)] if self.system else []
        return [*opening, *self.turns]

    def ask(self, text: str) -> None:
        self.turns.append(Message("user", text))

    def answer(self, text: str) -> None:
        """Note an answer; of an empty one nothing is kept, the question neither: templates have no turn without words."""
        if text.strip():
            self.turns.append(Message("assistant", text.strip()))
        else:
            self.withdraw()

    def withdraw(self) -> str | None:
        """Take the last question back, with its answer; returns it, or None if nothing was asked."""
        while self.turns:
            if (message := self.turns.pop()).role == "user":
                return message.content
        return None

    def forget(self) -> None:
        """Begin anew; the instruction stays."""
        self.turns.clear()


def prompt_ids(conversation: Conversation, tokenizer: Tokenizer, context_tokens: int) -> tuple[list[int], int]:
    """(token ids up to where the answer begins, how many of the oldest turns they leave out for want of room).

    At least a quarter of the context stays free for the answer. Raises DataError if the last question alone is too long.
    """
    room_tokens = context_tokens - context_tokens // _ANSWER_SHARE
    opening, turns = conversation.messages[: -len(conversation.turns)], conversation.turns
    for left_out in range(0, len(turns), 2):
        ids = render(tokenizer, [*opening, *turns[left_out:]], answer_follows=True).ids
        if len(ids) <= room_tokens:
            return ids, left_out
    raise DataError(f"this is longer than the model's context of {context_tokens} tokens allows", "say less at once")


def as_line(messages: Sequence[Message], **further: str) -> str:
    """A conversation as a line of JSON that a source of `content: conversations` reads."""
    spoken = [{"role": message.role, "content": message.content} for message in messages]
    return json.dumps({"messages": spoken, **further}, ensure_ascii=False)
