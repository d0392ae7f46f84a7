"""The fields of a request's JSON, read one at a time: each has a type and a range, and a wrong one is a 400 that names it.

Strict: "5" is no number and 1.0 no integer. null means that the field was not given. Fields that nobody reads are ignored, since
clients send what other servers understand.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fledge.serving.errors import bad_request, shown


class Fields:
    """What a client sent."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def get(self, name: str) -> Any:
        """As it is; None if it is not there."""
        return self._values.get(name)

    def integer(self, name: str, least: int, most: int) -> int | None:
        """A whole number of this range."""
        value = self.get(name)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise bad_request(f"{name} must be an integer between {least} and {most}, not {shown(value)}.", name)
        return value

    def number(self, name: str, least: float, most: float, above: bool = False) -> float | None:
        """A number of this range; `above`: without its lower end."""
        value = self.get(name)
        if value is None:
            return None
        if type(value) not in (int, float) or not least <= value <= most or (above and value == least):
            span = f"above {least:g} and at most {most:g}" if above else f"between {least:g} and {most:g}"
            raise bad_request(f"{name} must be a number {span}, not {shown(value)}.", name)
        return float(value)

    def flag(self, name: str) -> bool:
        """true or false; false if it is not given."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            raise bad_request(f"{name} must be true or false, not {shown(value)}.", name)
        return bool(value)

    def text(self, name: str) -> str | None:
        """A string."""
        value = self.get(name)
        if value is not None and type(value) is not str:
            raise bad_request(f"{name} must be a string, not {shown(value)}.", name)
        return value

    def nested(self, name: str) -> Fields:
        """An object; empty if it is not given."""
        value = self.get(name)
        if value is not None and type(value) is not dict:
            raise bad_request(f"{name} must be an object, not {shown(value)}.", name)
        return Fields(value or {})
