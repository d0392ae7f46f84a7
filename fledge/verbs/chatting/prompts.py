"""What a model is asked by `fledge generate`: texts of the command line, lines of a text, or objects of a JSON Lines file.

{"prompt": "Once upon a time"}                                      continued; with --chat asked as a question
{"messages": [{"role": "user", "content": "Who was Ada?"}], "id": 7}   answered; other fields are kept for the output
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from fledge.core.errors import DataError
from fledge.corpus.document import Message, Role
from fledge.tokens.chat import render
from fledge.tokens.tokenizer import Tokenizer

_JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
_ROLES: dict[str, Role] = {role: role for role in get_args(Role)}
_FORM = 'write {"prompt": TEXT}, or {"messages": [{"role": ROLE, "content": TEXT}, ...]} that ends with the user'


@dataclass(frozen=True)
class Prompt:
    """A text to continue, or a conversation to answer."""

    place: str
    """Where it stands, for errors."""
    text: str | None = None
    messages: tuple[Message, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)
    """What the output repeats of it."""

    @property
    def in_chat(self) -> bool:
        return self.text is None


def given_prompts(texts: Sequence[str], as_questions: bool) -> list[Prompt]:
    """Those of the command line."""
    return [_of_text(f"prompt {number}", text, as_questions, {"prompt": text}) for number, text in enumerate(texts, 1)]


def read_prompts(path: Path, as_questions: bool) -> list[Prompt]:
    """Those of a file: JSON Lines by its name, else a prompt in each line that is not empty. Raises DataError naming the line."""
    try:
        content = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "name a file with prompts") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start:,}", "convert it to UTF-8") from error
    lines = [(f"{path}, line {number}", line) for number, line in enumerate(content.split("\n"), 1) if line.strip()]
    if not lines:
        raise DataError(f"{path} holds no prompt", "write one in each line")
    if path.suffix.lower() in _JSON_SUFFIXES:
        return [_of_json(place, line, as_questions) for place, line in lines]
    texts = [(place, line.rstrip("\r")) for place, line in lines]
    return [_of_text(place, text, as_questions, {"prompt": text}) for place, text in texts]


def encode_prompts(tokenizer: Tokenizer, prompts: Sequence[Prompt], context_tokens: int) -> list[list[int]]:
    """Token ids up to where the model goes on. Raises DataError naming a prompt that leaves no room in the context."""
    encoded = [_ids(tokenizer, prompt) for prompt in prompts]
    for prompt, ids in zip(prompts, encoded, strict=True):
        if len(ids) >= context_tokens:
            problem = f"{prompt.place}: it has {len(ids):,} tokens, the context of the model has {context_tokens:,}"
            raise DataError(problem, "shorten it, so that there is room to go on")
    return encoded


def _ids(tokenizer: Tokenizer, prompt: Prompt) -> list[int]:
    try:
        if prompt.text is None:
            return render(tokenizer, prompt.messages, answer_follows=True).ids
        return [*tokenizer.document_start, *tokenizer.encode(prompt.text)]
    except DataError as error:
        raise DataError(f"{prompt.place}: {error.problem}", error.remedy) from error


def _of_text(place: str, text: str, as_question: bool, record: Mapping[str, Any]) -> Prompt:
    if as_question:
        return Prompt(place, None, (Message("user", text),), record)
    return Prompt(place, text, (), record)


def _of_json(place: str, line: str, as_questions: bool) -> Prompt:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}, is no JSON: {error}", _FORM) from error
    if not isinstance(record, dict) or ("prompt" in record) == ("messages" in record):
        raise DataError(f"{place}, is no object with either `prompt` or `messages`", _FORM)
    if "messages" in record:
        return Prompt(place, None, _messages(place, record["messages"]), record)
    if not isinstance(record["prompt"], str):
        raise DataError(f"{place}: `prompt` is no text", _FORM)
    return _of_text(place, record["prompt"], as_questions, record)


def _messages(place: str, given: object) -> tuple[Message, ...]:
    messages = []
    for number, one in enumerate(given if isinstance(given, list) else [], 1):
        role, content = (one.get("role"), one.get("content")) if isinstance(one, dict) else (None, None)
        if not isinstance(role, str) or role not in _ROLES or not isinstance(content, str):
            raise DataError(f"{place}: message {number} has no role of {', '.join(get_args(Role))}, or no text as its content", _FORM)
        messages.append(Message(_ROLES[role], content))
    if not messages or messages[-1].role != "user":
        raise DataError(f"{place}: the messages do not end with one of the user", _FORM)
    return tuple(messages)
