"""Cuts a long text into pieces of bounded length at the best border there is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

_BORDERS = ("\n\n", "\n", " ")


def cut(chunks: Iterable[str], maximum_characters: int) -> Iterator[str]:
    """The pieces of a text given in chunks of any size, each at most `maximum_characters` long; blank ones are left out.

    A piece ends at the last blank line, else line end, else word end in the second half of what fits, else anywhere.
    """
    rest = ""
    for chunk in chunks:
        rest += chunk
        start = 0
        while len(rest) - start > maximum_characters:
            end = _border(rest, start, start + maximum_characters)
            yield from _unless_blank(rest[start:end])
            start = end
        rest = rest[start:]
    yield from _unless_blank(rest)


def _border(text: str, start: int, limit: int) -> int:
    middle = (start + limit) // 2
    for border in _BORDERS:
        position = text.rfind(border, middle, limit)
        if position >= 0 and position + len(border) > start:
            return position + len(border)
    return limit


def _unless_blank(piece: str) -> Iterator[str]:
    stripped = piece.strip("\n")
    if stripped.strip():
        yield stripped
