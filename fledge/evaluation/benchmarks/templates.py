"""Texts with places for the fields of a row: "Question: {question}\\nAnswer:". No code, no conditions, one pass."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

_PLACE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_WHOLE = re.compile(r"\{([^{}]+)\}")


class BadRow(Exception):
    """A row of a benchmark that cannot be asked; whoever knows file and line says where it stands."""


def fields_of(template: str) -> list[str]:
    """The fields that a template names. Raises ValueError for a brace without its fellow, or nothing between two."""
    found = []
    for match in _PLACE.finditer(template):
        if match[0] in ("{", "}") or match[1] == "":
            raise ValueError(f"{template!r} has a brace at character {match.start()} that names no field; write {{{{ or }}}} for a brace")
        if match[1]:
            found.append(match[1])
    return found


def text_of(template: str, row: Mapping[str, Any]) -> str:
    """The template with the row's fields in their places. Raises BadRow if a field is missing, or neither text nor number."""

    def filled(match: re.Match[str]) -> str:
        return match[0][0] if match[1] is None else _as_text(match[1], field(row, match[1]))

    return _PLACE.sub(filled, template)


def value_of(template: str, row: Mapping[str, Any]) -> Any:
    """Of a template that is one {field}, what lies there as it is; of any other its text. Raises BadRow."""
    whole = _WHOLE.fullmatch(template)
    return field(row, whole[1]) if whole else text_of(template, row)


def texts_of(template: str, row: Mapping[str, Any]) -> list[str]:
    """The list of texts in the field that a template names. Raises BadRow if there is none."""
    found = value_of(template, row)
    if not isinstance(found, (list, tuple)):
        raise BadRow(f"{template} is {_kind(found)}, not a list")
    return [_as_text(f"{template}[{place}]", value) for place, value in enumerate(found)]


def field(row: Mapping[str, Any], name: str) -> Any:
    """What a row has in a field, or deeper: "choices.text". Raises BadRow naming the field and those that are there."""
    found: Any = row
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            known = ", ".join(map(str, found)) if isinstance(found, Mapping) else _kind(found)
            raise BadRow(f"there is no field {name} ({'fields' if isinstance(found, Mapping) else 'it'}: {known})")
        found = found[part]
    return found


def text_field(row: Mapping[str, Any], name: str) -> str:
    """The same of a field that holds text. Raises BadRow if it holds something else."""
    return _as_text(name, field(row, name))


def _as_text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if not isinstance(value, (str, int, float)):
        raise BadRow(f"field {name} is {_kind(value)}, not text")
    return str(value)


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", tuple: "a list", type(None): "empty"}.get(type(value), f"{value!r}"[:40])
