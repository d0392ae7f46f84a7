"""What is to be continued or answered: read from a request's JSON, and turned into token ids where that cannot stall the event loop.

First what costs nothing is refused (types, counts, what cannot fit whatever its tokens are); then, in a thread, texts are encoded
and their tokens counted. Text is encoded without control tokens and conversations are rendered by the tokenizer's own template, so
no message can forge a role.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fledge.core.errors import DataError
from fledge.corpus.document import Message
from fledge.serving.errors import bad_request, shown, too_long
from fledge.serving.served import ServedModel
from fledge.tokens.chat import render
from fledge.tokens.tokenizer import Tokenizer

RawPrompt = str | tuple[int, ...]

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""`developer` is what OpenAI calls `system` since its models reason."""


@dataclass(frozen=True)
class Prompt:
    """What the engine continues."""

    ids: tuple[int, ...]
    hidden_tokens: int
    """So many ids at the beginning were put there by the server, and are not part of what a client gave."""
    text: str
    """What a client gave, as text; of a conversation, as it was rendered."""


def read_prompts(value: object, model: ServedModel, most: int, allow_control_ids: bool) -> list[RawPrompt]:
    """The field `prompt`: a text, token ids, or a list of either, of at most `most`. Raises ApiError 400."""
    if isinstance(value, str):
        return [_text(value, model)]
    if not isinstance(value, list) or not value:
        raise bad_request("prompt must be a string, a list of token ids, or a list of these.", "prompt")
    if isinstance(value[0], int):
        return [_ids(value, model, allow_control_ids)]
    if len(value) > most:
        raise bad_request(f"prompt holds {len(value)} prompts; with this n at most {most} go into one request.", "prompt")
    if all(isinstance(one, str) for one in value):
        return [_text(one, model) for one in value]
    if all(isinstance(one, list) for one in value):
        return [_ids(one, model, allow_control_ids) for one in value]
    raise bad_request("prompt must hold strings only, or lists of token ids only.", "prompt")


def encode_prompts(raw: Sequence[RawPrompt], tokenizer: Tokenizer) -> list[Prompt]:
    """Texts get the ids that open a document in front; ids stay as they are."""
    texts = iter(tokenizer.encode_batch([one for one in raw if isinstance(one, str)]))
    opening = tokenizer.document_start
    return [
        Prompt((*opening, *next(texts)), len(opening), one) if isinstance(one, str) else Prompt(one, 0, tokenizer.decode(one))
        for one in raw
    ]


def read_messages(value: object, model: ServedModel) -> list[Message]:
    """The field `messages`. Raises ApiError 400; a message of content parts may hold texts only, and nothing is ever fetched."""
    if not isinstance(value, list) or not value:
        raise bad_request("messages must be a list with at least one message.", "messages")
    if len(value) > model.context_tokens:
        raise too_long(f"{len(value)} messages", model.context_tokens, "messages")
    messages = [_message(one, place) for place, one in enumerate(value)]
    if not any(message.role == "user" for message in messages):
        raise bad_request("messages must hold a message of the user.", "messages")
    _refuse_hopeless("".join(message.content for message in messages), model, "messages")
    return messages


def encode_conversation(messages: Sequence[Message], tokenizer: Tokenizer) -> list[Prompt]:
    """The ids of a conversation up to where the assistant begins to speak. Raises ApiError 400."""
    try:
        ids = render(tokenizer, messages, answer_follows=True).ids
    except DataError as error:
        raise bad_request(error.problem, "messages") from error
    return [Prompt(tuple(ids), len(ids), tokenizer.decode(ids))]


def answer_tokens(prompt: Prompt, asked: int | None, default: int, model: ServedModel, param: str, least: int = 1) -> int:
    """How long an answer may become: as long as asked, or the default as far as there is room, at least `least`. Raises ApiError 400."""
    room, needed = model.context_tokens - len(prompt.ids), max(1, least if asked is None else asked)
    if needed > room:
        raise too_long(f"{len(prompt.ids)} tokens in its prompt and asks for {needed} more", model.context_tokens, param)
    return min(default, room) if asked is None else asked


def _text(text: str, model: ServedModel) -> str:
    if not text:
        raise bad_request("prompt must not be empty.", "prompt")
    _refuse_hopeless(text, model, "prompt")
    return text


def _ids(ids: Sequence[object], model: ServedModel, allow_control_ids: bool) -> tuple[int, ...]:
    tokenizer = model.tokenizer
    if not ids:
        raise bad_request("prompt must not be empty.", "prompt")
    if len(ids) >= model.context_tokens:
        raise too_long(f"{len(ids)} tokens in its prompt", model.context_tokens, "prompt")
    checked = tuple(token for token in ids if type(token) is int and 0 <= token < tokenizer.vocabulary_size)
    if len(checked) < len(ids):
        raise bad_request(f"prompt must hold token ids between 0 and {tokenizer.vocabulary_size - 1}.", "prompt")
    opening = tokenizer.document_start
    own = checked[len(opening) :] if checked[: len(opening)] == tuple(opening) else checked
    if not allow_control_ids and (found := tokenizer.special_ids.intersection(own)):
        raise bad_request(f"prompt holds the control token {min(found)}; --allow-control-ids allows it.", "prompt")
    return checked


def _message(value: object, place: int) -> Message:
    name = f"messages[{place}]"
    if not isinstance(value, dict):
        raise bad_request(f"{name} must be an object with role and content.", name)
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise bad_request(f"{name}.role must be one of {', '.join(_ROLES)}, not {shown(role)}.", f"{name}.role")
    return Message(_ROLES[role], _content(value.get("content"), f"{name}.content"))  # type: ignore[arg-type]


def _content(value: object, name: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise bad_request(f"{name} must be a string or a list of parts.", name)
    for part in value:
        if not isinstance(part, dict) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise bad_request(f"{name} may hold parts of the type text only.", name)
    return "".join(part["text"] for part in value)


def _refuse_hopeless(text: str, model: ServedModel, param: str) -> None:
    """Refuse what no choice of tokens could make fit, before it is encoded."""
    longest_bytes = int(model.tokenizer.byte_lengths.max())
    if (size_bytes := len(text.encode())) > longest_bytes * model.context_tokens:
        raise too_long(f"{size_bytes} bytes of text", model.context_tokens, param)
