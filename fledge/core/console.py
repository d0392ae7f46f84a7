"""What a person sees: results on stdout; progress, warnings and notes on stderr; from ranks other than 0 nothing but errors.

A terminal gets rich's tables and a live bar. Anything else (a pipe, a log file, CI) gets plain lines, each flushed as it is
written, so `fledge run ... | tee log` is never behind. NO_COLOR is honoured. Everything longer than two seconds shows what is
done, the rate and the time left; anything shorter shows nothing.

Text may come from a model or from the web, so control characters are made visible instead of being sent to the terminal.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal, TextIO

from fledge.core import process
from fledge.core.errors import DistributedError

if TYPE_CHECKING:
    import rich.progress

LogLevel = Literal["debug", "info", "warning", "error"]

_LEVELS: tuple[LogLevel, ...] = ("debug", "info", "warning", "error")
_QUIET_SECONDS = 2.0
_LINE_SECONDS = 5.0
_LINE_SHARE_OF_ELAPSED = 0.02
_REFRESH_SECONDS = 0.25
_PACE_SECONDS = 30.0
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")

_level: LogLevel = "info"


def configure(level: LogLevel) -> None:
    """From which level on notes, progress and warnings are shown; results always are."""
    global _level
    _level = level


def say(text: str) -> None:
    """Print a result on stdout."""
    _write(sys.stdout, visible(text))


def write(text: str) -> None:
    """Print a piece of a result on stdout without ending the line, such as the next word of an answer."""
    _write(sys.stdout, visible(text), end="")


def info(text: str) -> None:
    """Print on stderr what is going on, at level info or below."""
    if _shows("info"):
        _write(sys.stderr, visible(text))


def debug(text: str) -> None:
    """Print a detail on stderr, at level debug only."""
    if _shows("debug"):
        _write(sys.stderr, _styled("debug:", "2") + " " + visible(text))


def warn(text: str) -> None:
    """Print on stderr something that a person should know but that stops nothing."""
    if _shows("warning"):
        _write(sys.stderr, _styled("warning:", "33") + " " + _one_line(text))


def error(problem: str, remedy: str) -> None:
    """Print on stderr what went wrong and, on a line of its own, what to do; the one thing that every rank may say."""
    try:
        who = "" if process.is_main() else f"process {process.rank()}: "
    except DistributedError:
        who = ""  # what cannot be read is the very thing being told
    _print(sys.stderr, f"{_styled('error:', '31')} {who}{_one_line(problem)}\n  {_styled('fix:', '32')} {_one_line(remedy)}")


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on stdout; columns of figures are aligned to the right."""
    cells = [[visible(cell) for cell in row] for row in rows]
    numeric = [bool(cells) and all(_is_figure(row[position]) for row in cells) for position in range(len(columns))]
    draw = _rich_table if _is_terminal(sys.stdout) else _plain_table
    _write(sys.stdout, draw(visible(title), [visible(name) for name in columns], cells, numeric))


def columns() -> int | None:
    """How long a line of the terminal is that notes are shown on; None where they go elsewhere, to lines of any length."""
    if not _is_terminal(sys.stderr):
        return None
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except OSError:
        return None


def has_colour() -> bool:
    """Whether `say_styled` shows colours: on a terminal, unless NO_COLOR is set."""
    return _is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")


def say_styled(spans: Sequence[tuple[str, str]], end: str = "\n") -> None:
    """Print (text, style of rich) after one another on stdout; the styles are left out where `has_colour` says no."""
    shown = [(visible(text), style) for text, style in spans]
    if not has_colour():
        _write(sys.stdout, "".join(text for text, _ in shown), end)
        return
    from rich.console import Console
    from rich.text import Text

    page = io.StringIO()
    # Broken by the terminal: rich would drop spaces where it breaks a line.
    Console(file=page, force_terminal=True).print(Text.assemble(*shown), end="", soft_wrap=True)
    _write(sys.stdout, page.getvalue(), end)


def visible(text: str) -> str:
    """The text with control characters spelt out, all but tabs and line ends; whatever is printed here goes through this."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)


@contextlib.contextmanager
def progress(label: str, total: float | None, unit: str, start: float = 0.0) -> Iterator[Progress]:
    """Show how far a long piece of work is: call `advance` as it goes. `total` None: unknown; `start`: what was done before."""
    work = Progress(label, total, unit, start)
    if not _shows("info"):
        yield work
        return
    ended = threading.Event()
    ticker = threading.Thread(target=_show, args=(work, ended), daemon=True)
    ticker.start()
    try:
        yield work
    finally:
        ended.set()
        ticker.join()
    if work.shown:
        _write(sys.stderr, work.summary())


class Progress:
    """How much of a piece of work is done, and at which pace. `clock` returns seconds."""

    def __init__(self, label: str, total: float | None, unit: str, start: float = 0.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.label = visible(label)
        self.total = total
        self.unit = unit
        self.done = start
        self.note = ""
        self.shown = False
        self._clock = clock
        self._start = start
        self._started = clock()
        # (seconds, done) of the last half minute: the pace of now, not of a slow first step.
        self._recent: deque[tuple[float, float]] = deque([(self._started, start)])

    def advance(self, amount: float = 1, note: str = "") -> None:
        """Count `amount` more as done; `note` is shown behind the figures until the next one."""
        self.done += amount
        self.note = visible(note) or self.note
        now = self._clock()
        # The first entry starts the window; the second is kept apart from it so that the window cannot shrink to one call.
        if len(self._recent) < 2 or now - self._recent[-1][0] >= 1.0:
            self._recent.append((now, self.done))
        while len(self._recent) > 2 and now - self._recent[1][0] > _PACE_SECONDS:
            self._recent.popleft()

    @property
    def elapsed_seconds(self) -> float:
        return self._clock() - self._started

    @property
    def rate(self) -> float:
        """Units per second over about the last half minute; 0 before anything is done."""
        since, done_then = self._recent[0]
        seconds = self._clock() - since
        return (self.done - done_then) / seconds if seconds > 0 else 0.0

    @property
    def remaining_seconds(self) -> float | None:
        """Time left at the present pace; None if the total or the pace is unknown."""
        if self.total is None or self.rate <= 0:
            return None
        return max(0.0, self.total - self.done) / self.rate

    def figures(self) -> str:
        """Everything but the label, such as `1,200/6,000 documents, 410/s, 12 s left`."""
        total = "" if self.total is None else f"/{format_count(self.total)}"
        parts = [f"{format_count(self.done)}{total} {self.unit}"] if self.done or self.total is not None else []
        if self.rate > 0:
            parts.append(_format_rate(self.rate, self.unit))
        left = self.remaining_seconds
        parts.append(f"{format_seconds(self.elapsed_seconds)} so far" if left is None else f"{format_seconds(left)} left")
        return ", ".join([*parts, self.note] if self.note else parts)

    def summary(self) -> str:
        """The line that stays when the work is done."""
        done = f"{format_count(self.done - self._start)} {self.unit} in " if self.done > self._start else ""
        return f"{self.label}: {done}{format_seconds(self.elapsed_seconds)}"


def format_seconds(seconds: float) -> str:
    """A duration in the two largest units that matter: `0.8 s`, `12 s`, `3 min 05 s`, `2 h 10 min`, `1 d 04 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def format_count(count: float) -> str:
    """A count a person can read: `950`, `12,400`, `4.21M`, `1.30B`; fractions only below 100."""
    magnitude = abs(count)
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if magnitude >= limit * 0.999995:
            return f"{count / limit:.2f}{unit}"
    return f"{count:,.1f}" if magnitude < 100 and count != int(count) else f"{count:,.0f}"


def format_bytes(size_bytes: float) -> str:
    """A size in decimal units: `512 B`, `2.4 MB`, `17 GB`."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    exponent = min(int(math.log(size_bytes, 1000)), 5)
    value = size_bytes / 1000**exponent
    if value >= 999.5 and exponent < 5:
        value, exponent = value / 1000, exponent + 1
    return f"{value:.1f} {' kMGTP'[exponent]}B" if value < 9.95 else f"{value:.0f} {' kMGTP'[exponent]}B"


def _format_rate(rate: float, unit: str) -> str:
    if unit == "MB":
        return f"{format_bytes(rate * 1e6)}/s"
    if rate >= 100:
        return f"{format_count(rate)}/s"
    if rate >= 0.1:
        return f"{rate:.3g}/s"
    return f"{format_seconds(1 / rate)} each"


# ---- showing progress


def _show(work: Progress, ended: threading.Event) -> None:
    """Runs beside the work, so that one long call without a step still shows that time passes."""
    if ended.wait(_QUIET_SECONDS):
        return
    work.shown = True
    # A reader that went away (a closed pipe) must not end the work.
    with contextlib.suppress(OSError, ValueError):
        if _is_terminal(sys.stderr):
            _show_bar(work, ended)
        else:
            _show_lines(work, ended)


def _show_lines(work: Progress, ended: threading.Event) -> None:
    while True:
        _write(sys.stderr, f"{work.label}: {work.figures()}")
        # A day-long run need not write 17,000 lines.
        if ended.wait(max(_LINE_SECONDS, work.elapsed_seconds * _LINE_SHARE_OF_ELAPSED)):
            return


_bars_lock = threading.Lock()
_bars: list[rich.progress.Progress] = []


def _show_bar(work: Progress, ended: threading.Event) -> None:
    with _bars_lock:
        # One live display per terminal: work inside other work adds a line to it.
        if not _bars:
            _bars.append(_new_bars())
            _bars[0].start()
        bars = _bars[0]
        task = bars.add_task(work.label, total=work.total, figures="")
    while True:
        bars.update(task, completed=work.done, figures=work.figures())
        if ended.wait(_REFRESH_SECONDS):
            break
    with _bars_lock:
        bars.remove_task(task)
        if not bars.tasks:
            bars.stop()
            _bars.clear()


def _new_bars() -> rich.progress.Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[figures]}", markup=False),
        console=Console(stderr=True),
        refresh_per_second=1 / _REFRESH_SECONDS,
        transient=True,
        # stdout that goes to a file must keep going there.
        redirect_stdout=_is_terminal(sys.stdout),
    )


# ---- tables and lines


def _rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=Text(title, style="bold"), title_justify="left", box=box.SIMPLE_HEAD)
    for column, right in zip(columns, numeric, strict=True):
        drawn.add_column(Text(column), justify="right" if right else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in row))
    page = io.StringIO()
    Console(file=page, force_terminal=True, width=Console().width).print(drawn)
    return page.getvalue().rstrip("\n")


def _plain_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(len(line[position]) for line in lines) for position in range(len(columns))]
    aligned = [
        "  ".join(cell.rjust(width) if right else cell.ljust(width) for cell, width, right in zip(line, widths, numeric, strict=True))
        for line in lines
    ]
    return "\n".join([title, *(line.rstrip() for line in aligned)] if title else [line.rstrip() for line in aligned])


def _is_figure(cell: str) -> bool:
    return bool(re.fullmatch(r"[-+]?[0-9][0-9.,]*(?:e[-+]?[0-9]+)?\s?[%A-Za-z/]{0,4}|-?", cell))


def _shows(level: LogLevel) -> bool:
    return process.is_main() and _LEVELS.index(level) >= _LEVELS.index(_level)


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _styled(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if _is_terminal(sys.stderr) and not os.environ.get("NO_COLOR") else text


def _one_line(text: str) -> str:
    """So that a file whose name has a line end cannot forge an error."""
    return visible(text).replace("\n", "\\n")


def _write(stream: TextIO, text: str, end: str = "\n") -> None:
    if process.is_main():
        _print(stream, text, end)


def _print(stream: TextIO, text: str, end: str = "\n") -> None:
    # A stream in a narrow encoding must not end the run over a character it cannot show.
    encoding = stream.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=True)
