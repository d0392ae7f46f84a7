"""A person's words, line by line: editing and history by readline where there is one, several lines as one text.

A line that ends in a backslash goes on in the next, and so does everything from a line that begins with three quotes to one that ends
with them. Lines that are pasted into a terminal at once are one text too. What is typed is kept in memory only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

from fledge.core import console

QUOTES = '"""'
_CYAN, _DIM, _PLAIN = "\x1b[1;36m", "\x1b[2m", "\x1b[0m"

ReadLine = Callable[[str], str | None]
"""A line after a prompt, without its end; None at the end of input."""


def is_interactive() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def line_reader(completed: Sequence[str] = ()) -> ReadLine:
    """How lines come in: from a terminal with editing and history, where Tab completes these words; from anything else as they are."""
    if not is_interactive():
        return _read_plain
    try:
        import readline
    except ImportError:  # Python can be built without it
        return _read_typed

    def complete(text: str, state: int) -> str | None:
        return dict(enumerate(word for word in completed if word.startswith(text))).get(state)

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    readline.parse_and_bind("tab: complete")
    readline.parse_and_bind("set enable-bracketed-paste on")
    return _read_typed


def read_text(read_line: ReadLine) -> str | None:
    """A text of one line or several, without white space around it; None at the end of input. KeyboardInterrupt passes through."""
    line = read_line("you> ")
    if line is None:
        return None
    return "\n".join(_continued(line, read_line)).strip()


def _continued(line: str, read_line: ReadLine) -> Iterator[str]:
    """The lines of a text that begins with this one; the end of input ends it too."""
    if line.lstrip().startswith(QUOTES):
        following: str | None = line.lstrip().removeprefix(QUOTES)
        while following is not None:
            if following.rstrip().endswith(QUOTES):
                yield following.rstrip().removesuffix(QUOTES)
                return
            yield following
            following = read_line("...> ")
        return
    while line.endswith("\\"):
        yield line[:-1]
        following = read_line("...> ")
        if following is None:
            return
        line = following
    yield line


def _read_plain(prompt: str) -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _read_typed(prompt: str) -> str | None:
    try:
        return input(_coloured(prompt))
    except EOFError:
        console.write("\n")
        return None


def _coloured(prompt: str) -> str:
    """Between the marks by which readline knows what takes no room on the line."""
    if not console.has_colour():
        return prompt
    colour = _CYAN if prompt.startswith("you") else _DIM
    return f"\x01{colour}\x02{prompt}\x01{_PLAIN}\x02"
