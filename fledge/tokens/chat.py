"""Conversations become token ids in ChatML, together with the mask of what the model is to learn: the answers and their end.

    <|im_start|>user\\nTEXT<|im_end|>\\n<|im_start|>assistant\\nTEXT<|im_end|>

A conversation is rendered to a list of texts and control ids; texts that touch are joined, and each run between two control ids
is encoded on its own by the body tokenizer. So a message that spells `<|im_end|>` cannot end its turn, and yet the ids are those
of transformers' `apply_chat_template` wherever no message spells a control token: Hugging Face splits the rendered string at its
control tokens before anything else. (Encoding message by message does not give them: of 175 conversations in a format without
control tokens, 173 differed.) The format is OpenAI's ChatML; the template trims each message, and so does `render`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from fledge.core.errors import DataError
from fledge.corpus.document import Message, Role
from fledge.tokens.tokenizer import Tokenizer

TEMPLATES: dict[Literal["chatml"], str] = {
    "chatml": """\
{%- for message in messages -%}
    {%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
    {{ '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{ (message['content'] | trim) + '<|im_end|>' }}{%- endgeneration -%}
    {%- else -%}
        {{ (message['content'] | trim) + '<|im_end|>' }}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {%- if messages -%}{{ '\\n' }}{%- endif -%}
    {{ '<|im_start|>assistant\\n' }}
{%- endif -%}"""
}
"""What other programs render with, in Jinja; `{% generation %}` marks the answers for transformers' assistant mask."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as token ids."""

    ids: list[int]
    supervised: list[bool]
    """True where the token is to be learned: the text of an answer and its `<|im_end|>`."""


@dataclass(frozen=True)
class _Run:
    """The joined text between two control ids; what follows its first `given_bytes` bytes is an answer."""

    text: str
    given_bytes: int


@dataclass(frozen=True)
class _Control:
    id: int
    supervised: bool


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
    turns = require_turns(tokenizer)
    rendered = [list(_parts(turns, messages, answer_follows, last_answer_only)) for messages in conversations]
    texts = [part.text for parts in rendered for part in parts if isinstance(part, _Run)]
    encoded = iter(tokenizer.encode_batch(texts))
    return [_assemble(tokenizer, parts, encoded) for parts in rendered]


def trimmed(text: str) -> str:
    """A message as it is rendered: without white space around it, by Python's rule and Jinja's."""
    return text.strip()


def require_turns(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids around a turn. Raises DataError if the tokenizer has none."""
    if tokenizer.turn_start is None or tokenizer.turn_end is None:
        raise DataError(
            f"the tokenizer in {tokenizer.folder} has no tokens for the turns of a conversation",
            "import it again with tokenizer.turn_tokens=true, which adds them, or train one: fledge tokenizer RECIPE --force",
        )
    return tokenizer.turn_start, tokenizer.turn_end


def _parts(turns: tuple[int, int], messages: Sequence[Message], answer_follows: bool, last_answer_only: bool) -> Iterator[_Run | _Control]:
    turn_start, turn_end = turns
    for place, message in enumerate(messages):
        if message.role not in get_args(Role):
            raise DataError(f"message {place} of a conversation has the role {message.role!r}", f"use one of {', '.join(get_args(Role))}")
        supervised = message.role == "assistant" and (place == len(messages) - 1 or not last_answer_only)
        given, text = f"{message.role}\n", trimmed(message.content)
        if place > 0:
            yield _Run("\n", given_bytes=1)
        yield _Control(turn_start, supervised=False)
        yield _Run(given + text, len((given if supervised else given + text).encode()))
        yield _Control(turn_end, supervised)
    if answer_follows:
        if messages:
            yield _Run("\n", given_bytes=1)
        yield _Control(turn_start, supervised=False)
        yield _Run("assistant\n", len(b"assistant\n"))


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
