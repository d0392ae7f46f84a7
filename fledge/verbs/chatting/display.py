"""Answers on a screen while they are drawn: of one model as they come, of several side by side where the terminal is wide enough.

Anything but a terminal gets the texts one after another, each whole, after its model's name if there are several.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from fledge.core import console
from fledge.core.console import visible
from fledge.verbs.chatting.terminal import is_interactive

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLUMN_CHARACTERS = 36
"""A narrower column breaks every other word."""
_FRAMES_PER_SECOND = 8
_LABEL_STYLE, _NOTE_STYLE = "bold green", "dim"


class Display(Protocol):
    """Where answers appear."""

    def show(self, place: int, text: str) -> None:
        """Add to the answer of the model at this place."""

    def note(self, text: str) -> None:
        """Say something about an answer when all have ended."""


@contextlib.contextmanager
def open_display(names: Sequence[str]) -> Iterator[Display]:
    """A place for one answer of each of these models; on leaving the block all that was shown is complete."""
    display: _Stacked | _Columns = _Columns(names) if len(names) > 1 and _has_room(len(names)) else _Stacked(names)
    with display.opened():
        yield display


class _Stacked:
    """One under another: the first as it is drawn, the others when it is complete."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._held: list[list[str]] = [[] for _ in names]

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        self._label(0)
        try:
            yield
        finally:
            console.write("\n")
            for place in range(1, len(self._names)):
                self._label(place)
                console.write("".join(self._held[place]).strip() + "\n")

    def show(self, place: int, text: str) -> None:
        # A template may leave a space or a line end in front of an answer.
        if not self._held[place]:
            text = text.lstrip()
        if text:
            self._held[place].append(text)
            if place == 0:
                console.write(text)

    def note(self, text: str) -> None:
        _note(text)

    def _label(self, place: int) -> None:
        if is_interactive() or len(self._names) > 1:
            console.say_styled([(f"{self._names[place] if len(self._names) > 1 else 'model'}> ", _LABEL_STYLE)], end="")


class _Columns:
    """Side by side, drawn anew several times a second; while they grow, what does not fit the screen shows its end."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._texts = ["" for _ in names]

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        from rich.console import Console
        from rich.live import Live

        screen = Console(no_color=not console.has_colour(), highlight=False)
        live = Live(
            console=screen,
            transient=True,
            refresh_per_second=_FRAMES_PER_SECOND,
            get_renderable=lambda: self._table(screen.size.height - 4),
        )
        try:
            with live:
                yield
        finally:
            screen.print(self._table(None))

    def show(self, place: int, text: str) -> None:
        self._texts[place] = (self._texts[place] + text).lstrip()

    def note(self, text: str) -> None:
        _note(text)

    def _table(self, most_lines: int | None) -> RenderableType:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        screen = Console()
        width = (screen.width - 3 * (len(self._names) - 1)) // len(self._names)
        table = Table.grid(padding=(0, 3, 0, 0))
        for _ in self._names:
            table.add_column(width=width, overflow="fold")
        table.add_row(*(Text(visible(name), style=_LABEL_STYLE) for name in self._names))
        cells = []
        for text in self._texts:
            lines = Text(visible(text)).wrap(screen, width)
            cells.append(Text("\n").join(lines if most_lines is None else lines[-max(1, most_lines) :]))
        table.add_row(*cells)
        return table


def _has_room(columns: int) -> bool:
    from rich.console import Console

    return is_interactive() and Console().width >= _COLUMN_CHARACTERS * columns


def _note(text: str) -> None:
    if is_interactive():
        console.say_styled([(f"({text})", _NOTE_STYLE)])
    else:
        console.info(text)
