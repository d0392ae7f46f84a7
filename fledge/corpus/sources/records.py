"""Raw values, of a line of JSON or a row of a table, become documents, conversations or preference pairs.

Line ends inside texts become newlines; everything else stays as it is. Each content comes in several forms (`Form` in settings.py),
which are all read into the one of `document.py`; only a tree of messages needs more than its row (`threads.py`).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.corpus.document import Content, Conversation, Document, Message, Preference, Role, Row
from fledge.corpus.rejects import Malformed, value_kind
from fledge.corpus.sources.hub_presets import dataset_of
from fledge.corpus.sources.near_duplicates import text_group
from fledge.corpus.sources.settings import FIELDS_OF, FURTHER_FIELDS_OF, Form, HubSource, TableSource

MAXIMUM_TEXT_CHARACTERS = 32 << 20

_SHOWN_KEYS = 6
_SHOWN_CHARACTERS = 100

_ROLES: dict[str, Role] = {
    "system": "system",
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "model"), "assistant"),
}
"""What other programs call the speakers: ShareGPT human and gpt, OASST1 prompter."""
_SPEAKERS = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True)
class Node:
    """A message of a tree, which answers its parent."""

    message: Message
    id: str
    parent: str | None
    rank: float
    """Among the answers to one message; the smallest is the best."""
    language: str | None


@dataclass(frozen=True)
class Records:
    """Makes the rows of one source."""

    source: str
    content: Content
    form: Form
    keys: dict[str, str]
    """Under which name a record holds each field that its form must have."""
    further_keys: dict[str, str]
    """And each that it may have."""
    input_separator: str = "\n\n"
    language: str | None = None

    @property
    def all_keys(self) -> dict[str, str]:
        """Of all fields, those that may be missing too."""
        return {**self.keys, **self.further_keys}

    @classmethod
    def of(cls, source: TableSource) -> Records:
        """As the settings of a source say. Raises DataError for an unknown preset, or one of another content."""
        dataset = dataset_of(source) if isinstance(source, HubSource) else source
        form, fields = dataset.form_of(source.content), dataset.fields
        keys, further = ({name: fields.get(name, name) for name in names[form]} for names in (FIELDS_OF, FURTHER_FIELDS_OF))
        return cls(source.name, source.content, form, keys, further, source.input_separator, source.language)

    def row(self, values: Mapping[str, Any], row_id: str) -> Row | Node:
        """A row from the values of a record, or a node of a tree. Raises Malformed."""
        match self.form:
            case "text":
                return Document(_text(self._value(values, "text"), "text"), row_id, self.source, "")
            case "messages":
                messages = conversation(_messages(self._value(values, "messages")))
                return self._conversation([*self._system(values, messages), *messages], row_id)
            case "instructions":
                return self._conversation(self._instructions(values), row_id)
            case "tree":
                return self._node(values)
            case "pairs":
                return self._pair(values, row_id)
            case "dialogues":
                chosen, rejected = (_dialogue(self._value(values, name), name) for name in ("chosen", "rejected"))
                return self._preference(chosen, rejected, row_id)

    def _conversation(self, messages: Sequence[Message], row_id: str) -> Conversation:
        return Conversation(tuple(messages), row_id, self.source, question_group(messages))

    def _instructions(self, values: Mapping[str, Any]) -> list[Message]:
        instruction = _text(self._value(values, "instruction"), "instruction")
        given = self._further(values, "input")
        question = instruction if given is None else f"{instruction}{self.input_separator}{given}"
        answer = Message("assistant", _text(self._value(values, "output"), "output"))
        return [*self._system(values, ()), Message("user", question), answer]

    def _node(self, values: Mapping[str, Any]) -> Node:
        message = _message({"role": self._value(values, "role"), "content": self._value(values, "text")})
        name, parent, rank = (
            self._value(values, "message_id"),
            self._value(values, "parent_id"),
            _looked_up(values, self.further_keys["rank"], None),
        )
        if not isinstance(name, str) or not (parent is None or isinstance(parent, str)):
            raise Malformed("message_id and parent_id are no strings")
        place = float(rank) if isinstance(rank, int | float) else float("inf")
        return Node(message, name, parent or None, place, self._further(values, "language"))

    def _pair(self, values: Mapping[str, Any], row_id: str) -> Preference:
        chosen, rejected = (self._value(values, name) for name in ("chosen", "rejected"))
        if isinstance(chosen, list) or isinstance(rejected, list):
            both = [_messages(one) for one in (chosen, rejected)]
            if all([message.role for message in one] == ["assistant"] for one in both):  # the answers alone, as TRL has them
                both = [[*self._prompt(values), *one] for one in both]
            return self._preference(conversation(both[0]), conversation(both[1]), row_id, values)
        prompt = self._prompt(values)
        answers = (Message("assistant", _text(chosen, "chosen")), Message("assistant", _text(rejected, "rejected")))
        return self._preference([*prompt, answers[0]], [*prompt, answers[1]], row_id, values)

    def _prompt(self, values: Mapping[str, Any]) -> Sequence[Message]:
        given = _looked_up(values, self.further_keys["prompt"])
        return [Message("user", _text(given, "prompt"))] if isinstance(given, str | bytes) else conversation(_messages(given), "user")

    def _preference(
        self, chosen: Sequence[Message], rejected: Sequence[Message], row_id: str, values: Mapping[str, Any] | None = None
    ) -> Preference:
        """From the two whole conversations, which are the same but for the last answer."""
        prompt = chosen[:-1]
        if list(prompt) != list(rejected[:-1]):
            raise Malformed("chosen and rejected differ before their last answers")
        if chosen[-1].content.strip() == rejected[-1].content.strip():
            raise Malformed("chosen and rejected are equal")
        prompt = (*self._system(values or {}, prompt), *prompt)
        return Preference(prompt, chosen[-1].content, rejected[-1].content, "", row_id, self.source, question_group(prompt))

    def _system(self, values: Mapping[str, Any], messages: Sequence[Message]) -> list[Message]:
        """The system message of a field of its own, unless the messages have one."""
        given = self._further(values, "system") if "system" in self.further_keys else None
        has_one = bool(messages) and messages[0].role == "system"
        return [] if given is None or has_one else [Message("system", given)]

    def _further(self, values: Mapping[str, Any], name: str) -> str | None:
        """The text of a field that may be missing, or empty."""
        given = _looked_up(values, self.further_keys[name], None)
        return None if given is None or given in ("", b"") or (isinstance(given, str) and given.isspace()) else _text(given, name)

    def _value(self, values: Mapping[str, Any], name: str) -> object:
        return _looked_up(values, self.keys[name])


def conversation(messages: Sequence[Message], last: Role = "assistant") -> Sequence[Message]:
    """The messages, if user and assistant take turns and role `last` ends; a system message may come first. Raises Malformed."""
    turns = [message.role for message in messages if message.role != "system"]
    if not turns or turns[-1] != last:
        raise Malformed(f"the last message is not the {last}'s")
    alternating = all(role == ("user", "assistant")[position % 2] for position, role in enumerate(turns))
    if not alternating or any(message.role == "system" for message in messages[1:]):
        raise Malformed("user and assistant do not take turns")
    return messages


def _looked_up(values: Mapping[str, Any], key: str, *instead: object) -> object:
    """The value at a key, or at a path of keys and places such as instances.0.output; else `instead`, without which raises Malformed."""
    if key in values:
        return values[key]
    found: object = values
    for step in key.split("."):
        if isinstance(found, Mapping) and step in found:
            found = found[step]
        elif isinstance(found, list) and step.isdecimal() and int(step) < len(found):
            found = found[int(step)]
        elif instead:
            return instead[0]
        else:
            raise _no_key(key, values)
    return found


def _no_key(key: str, values: Mapping[str, Any]) -> Malformed:
    keys = ", ".join(list(values)[:_SHOWN_KEYS]) or "none"
    return Malformed(f"no key {key!r} (keys: {keys[:_SHOWN_CHARACTERS]})")


def _text(value: object, name: str) -> str:
    if isinstance(value, bytes):
        value = _decoded(value)
    if not isinstance(value, str):
        raise Malformed(f"{name} is {value_kind(value)}, not a string")
    if not value or value.isspace():
        raise Malformed(f"{name} is empty")
    if len(value) > MAXIMUM_TEXT_CHARACTERS:
        raise Malformed(f"{name} is longer than {MAXIMUM_TEXT_CHARACTERS:,} characters")
    return value.replace("\r\n", "\n").replace("\r", "\n") if "\r" in value else value


def _decoded(value: bytes) -> str:
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8") from error


def _messages(value: object) -> list[Message]:
    if isinstance(value, bytes):
        value = _decoded(value)
    if not isinstance(value, list):
        raise Malformed(f"messages is {value_kind(value)}, not a list")
    if value and all(isinstance(item, str) for item in value):
        return [Message(("user", "assistant")[place % 2], _text(text, "content")) for place, text in enumerate(value)]
    # An empty system message, which many exports have, says nothing.
    return [_message(item) for place, item in enumerate(value) if place > 0 or not _is_empty_system(item)]


def _message(value: object) -> Message:
    if isinstance(value, dict) and {"from", "value"} <= value.keys():
        value = {"role": value["from"], "content": value["value"]}
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise Malformed("a message without role and content")
    given = value["role"]
    role = _ROLES.get(given) if isinstance(given, str) else None
    if role is None:
        shown = repr(given[:_SHOWN_CHARACTERS]) if isinstance(given, str) else value_kind(given)
        raise Malformed(f"a message of an unknown role ({shown})")
    return Message(role, _text(value["content"], "content"))


def _is_empty_system(value: object) -> bool:
    if not isinstance(value, dict) or value.get("role", value.get("from")) != "system":
        return False
    return value.get("content", value.get("value")) in ("", None)


def _dialogue(value: object, name: str) -> Sequence[Message]:
    """The turns of `\\n\\nHuman: ...\\n\\nAssistant: ...`, which end with the assistant's."""
    before, *parts = _SPEAKERS.split("\n\n" + _text(value, name).lstrip("\n"))
    if before:
        raise Malformed(f"{name} does not begin with Human:")
    speakers, texts = parts[0::2], parts[1::2]
    roles: list[Role] = ["user" if speaker == "Human" else "assistant" for speaker in speakers]
    return conversation([Message(role, _text(text.strip(), "content")) for role, text in zip(roles, texts, strict=True)])


def question_group(messages: Sequence[Message]) -> str:
    """The group of a conversation or a pair: what the user says before the first answer. So a question is never both trained on and held
    out, however it was answered, how the talk went on, under which system prompt, and whether it came with two answers to compare.
    """
    asked = itertools.takewhile(lambda one: one.role != "assistant", messages)
    return text_group("\n".join(message.content for message in asked if message.role == "user"))
