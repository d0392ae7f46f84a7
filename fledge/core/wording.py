"""What stands in a sentence that a person reads: numbers, and what was given on the command line."""

from __future__ import annotations

import re

_LOGIN = re.compile(r"([A-Za-z][\w+.-]*://)[^\s/]*@")
_QUERY = re.compile(r"(https?://[^\s?#]*)[?#]\S*?([]}'\",)]*)(?=\s|$)", re.IGNORECASE)
"""Up to the next space, whatever brackets and quotes are in it: rather too much than a part of a secret."""


def counted(number: int, noun: str) -> str:
    """A number and its noun, which is given in the plural: `1 document`, `2,000 documents`."""
    return f"{number:,} {noun.removesuffix('s') if number == 1 else noun}"


def first_line(error: Exception) -> str:
    """What an error of a library says at first; its name if it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def without_secrets(text: str) -> str:
    """A text in which no address has user, password or query."""
    return _QUERY.sub(r"\1\2", _LOGIN.sub(r"\1", text))
