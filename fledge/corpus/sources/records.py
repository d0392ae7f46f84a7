"""Raw values, of a line of JSON or a row of Parquet, become documents, conversations or preference pairs.

Line ends inside texts become newlines; everything else stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fledge.corpus.document import Content, Conversation, Document, Message, Preference, Row
from fledge.corpus.rejects import Malformed, value_kind
from fledge.corpus.sources.hub_presets import dataset_of
from fledge.corpus.sources.near_duplicates import text_group
from fledge.corpus.sources.settings import FIELDS_OF, HubSource, JsonLinesSource, ParquetSource

MAXIMUM_TEXT_CHARACTERS = 32 << 20

_SHOWN_KEYS = 6
_SHOWN_CHARACTERS = 100

RecordSource = JsonLinesSource | ParquetSource | HubSource


@dataclass(frozen=True)
class Records:
    """Makes the rows of one source."""

    source: str
    content: Content
    keys: dict[str, str]
    """Under which name a record holds each of text, messages, prompt, chosen, rejected: those its content has."""

    @classmethod
    def of(cls, source: RecordSource) -> Records:
        """As the settings of a source say. Raises DataError for an unknown preset."""
        fields = dataset_of(source).fields if isinstance(source, HubSource) else source.fields
        return cls(source.name, source.content, {name: fields.get(name, name) for name in FIELDS_OF[source.content]})

    def row(self, values: Mapping[str, Any], row_id: str) -> Row:
        """A row from the values of a record. Raises Malformed."""
        match self.content:
            case "documents":
                return Document(_text(self._value(values, "text"), "text"), row_id, self.source, "")
            case "conversations":
                messages = _messages(self._value(values, "messages"), "assistant")
                return Conversation(messages, row_id, self.source, text_group(_joined(messages)))
            case "preferences":
                return self._preference(values, row_id)

    def _preference(self, values: Mapping[str, Any], row_id: str) -> Preference:
        given = self._value(values, "prompt")
        prompt = (Message("user", _text(given, "prompt")),) if isinstance(given, str | bytes) else _messages(given, "user")
        chosen = _text(self._value(values, "chosen"), "chosen")
        rejected = _text(self._value(values, "rejected"), "rejected")
        if chosen == rejected:
            raise Malformed("chosen and rejected are equal")
        return Preference(prompt, chosen, rejected, "", row_id, self.source, text_group(_joined(prompt)))

    def _value(self, values: Mapping[str, Any], name: str) -> object:
        key = self.keys[name]
        if key not in values:
            keys = ", ".join(list(values)[:_SHOWN_KEYS]) or "none"
            raise Malformed(f"no key {key!r} (keys: {keys[:_SHOWN_CHARACTERS]})")
        return values[key]


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


def _messages(value: object, last: str) -> tuple[Message, ...]:
    """Turns of user and assistant in alternation, ending with role `last`; a system message may come first."""
    if isinstance(value, bytes):
        value = _decoded(value)
    if not isinstance(value, list):
        raise Malformed(f"messages is {value_kind(value)}, not a list")
    messages = tuple(_message(item) for item in value)
    turns = [message.role for message in messages if message.role != "system"]
    if not turns or turns[-1] != last:
        raise Malformed(f"the last message is not the {last}'s")
    alternating = all(role == ("user", "assistant")[position % 2] for position, role in enumerate(turns))
    if not alternating or any(message.role == "system" for message in messages[1:]):
        raise Malformed("user and assistant do not take turns")
    return messages


def _message(value: object) -> Message:
    if not isinstance(value, dict) or not {"role", "content"} <= value.keys():
        raise Malformed("a message without role and content")
    role = value["role"]
    if role not in ("system", "user", "assistant"):
        shown = repr(role[:_SHOWN_CHARACTERS]) if isinstance(role, str) else value_kind(role)
        raise Malformed(f"a message of an unknown role ({shown})")
    return Message(role, _text(value["content"], "content"))


def _joined(messages: tuple[Message, ...]) -> str:
    return "\n".join(message.content for message in messages)
