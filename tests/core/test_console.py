from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fledge.core import console
from fledge.core.console import Progress, format_bytes, format_count, format_seconds

# From Python 3.12 on, a fork beside the threads of other libraries warns; the child is replaced at once.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture(autouse=True)
def default_level() -> Iterator[None]:
    yield
    console.configure("info")


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", "from fledge.core import console\nimport time\n" + textwrap.dedent(code)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )


def in_terminal(code: str, **environment: str) -> str:
    """What a program writes to a real terminal of 100 columns (a pty)."""
    child, descriptor = pty.fork()
    if child == 0:
        os.environ.update({"TERM": "xterm-256color", "COLUMNS": "100", **environment})
        os.execv(sys.executable, [sys.executable, "-c", "from fledge.core import console\nimport time\n" + textwrap.dedent(code)])
    written = b""
    with os.fdopen(descriptor, "rb", buffering=0) as terminal:
        while True:
            try:
                piece = terminal.read(65536)
            except OSError:  # Linux reports the end of a pty as an error
                break
            if not piece:
                break
            written += piece
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return written.decode()


# ---- lines


@pytest.mark.parametrize(("columns", "environment", "told"), [(117, {}, "117"), (0, {}, "None"), (117, {"TERM": "dumb"}, "None")])
def test_the_width_is_that_of_the_terminal_of_notes(columns: int, environment: dict[str, str], told: str) -> None:
    resize = f"import fcntl, struct, termios; fcntl.ioctl(2, termios.TIOCSWINSZ, struct.pack('HHHH', 24, {columns}, 0, 0))"
    assert in_terminal(f"{resize}\nprint(console.columns())", **environment).strip() == told


def test_a_pipe_has_no_width() -> None:
    with python("print(console.columns())") as child:
        assert child.communicate()[0].strip() == "None"


def test_each_line_leaves_a_pipe_at_once() -> None:
    """The child waits for an answer to each line: it would hang if the line stayed in a buffer."""
    with python("for n in range(3):\n    console.say(f'line {n}')\n    input()") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        for number in range(3):
            assert child.stdout.readline() == f"line {number}\n"
            child.stdin.write("\n")
            child.stdin.flush()
        assert child.wait() == 0


def test_pieces_of_a_line_leave_at_once_and_errors_are_two_lines(capsys: pytest.CaptureFixture[str]) -> None:
    console.configure("error")
    for piece in ("one", " more", "\x07\n"):
        console.write(piece)
    console.error("steps is -1", "change steps")
    assert capsys.readouterr() == ("one more\\x07\n", "error: steps is -1\n  fix: change steps\n")


def test_results_go_to_stdout_and_the_rest_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("answer")
    console.info("note")
    console.warn("careful")
    console.debug("hidden")
    found = capsys.readouterr()
    assert found.out == "answer\n"
    assert found.err == "note\nwarning: careful\n"


@pytest.mark.parametrize(("level", "shown"), [("debug", ["d", "i", "w"]), ("info", ["i", "w"]), ("warning", ["w"]), ("error", [])])
def test_levels(capsys: pytest.CaptureFixture[str], level: console.LogLevel, shown: list[str]) -> None:
    console.configure(level)
    console.debug("d")
    console.info("i")
    console.warn("w")
    console.say("answer")
    found = capsys.readouterr()
    assert [line.split(": ")[-1] for line in found.err.splitlines()] == shown
    assert found.out == "answer\n"


def test_other_ranks_are_silent(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    console.configure("debug")
    console.say("answer")
    console.warn("careful")
    console.debug("detail")
    console.table("t", ["a"], [["1"]])
    monkeypatch.setattr(console, "_QUIET_SECONDS", 0.0)
    with console.progress("work", 1, "steps") as work:
        work.advance()
    assert capsys.readouterr() == ("", "")


def test_a_table_in_a_pipe_is_plain_and_aligned(capsys: pytest.CaptureFixture[str]) -> None:
    console.table("Scores", ["name", "value", "n"], [["last word", "12.3 %", "500"], ["yes/no", "50.1 %", "1,000"]])
    assert capsys.readouterr().out == textwrap.dedent("""\
        Scores
        name        value      n
        last word  12.3 %    500
        yes/no     50.1 %  1,000
        """)
    console.table("", ["only"], [])
    assert capsys.readouterr().out == "only\n"


def test_control_characters_are_shown_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    console.say("a\x1b[2Jb\x00\x9b\ttab\nline")
    console.table("t\x07", ["c\x08"], [["\x1b"]])
    assert capsys.readouterr().out == "a\\x1b[2Jb\\x00\\x9b\ttab\nline\nt\\x07\nc\\x08\n\\x1b\n"


def test_control_characters_are_shown_in_progress_too(capsys: pytest.CaptureFixture[str]) -> None:
    """A label may hold the name of a file, a note what others wrote."""
    ended = threading.Event()
    ended.set()
    with console.progress("import \x1b[31mname", 2, "rows") as work:
        work.advance(note="\x1b[2Jnow")
        console._show_lines(work, ended)
    found = capsys.readouterr().err
    assert found.startswith("import \\x1b[31mname: 1/2 rows, ") and found.endswith(", \\x1b[2Jnow\n")
    assert "\x1b" not in work.summary()


def test_a_narrow_encoding_ends_nothing() -> None:
    with python("console.say('größe \\u6f22')", PYTHONIOENCODING="ascii") as child:
        assert child.communicate() == ("gr\\xf6\\xdfe \\u6f22\n", "")
        assert child.returncode == 0


# ---- progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_rate_and_time_left_follow_the_pace() -> None:
    clock = Clock()
    work = Progress("pack", 1000, "rows", clock=clock)
    assert (work.rate, work.remaining_seconds) == (0.0, None)
    for _ in range(10):
        clock.now += 1
        work.advance(10)
    assert work.rate == 10
    assert work.remaining_seconds == 90
    assert work.figures() == "100/1,000 rows, 10/s, 1 min 30 s left"


def test_a_slow_start_is_forgotten_after_half_a_minute() -> None:
    clock = Clock()
    work = Progress("train", 1000, "steps", clock=clock)
    clock.now += 60  # compiling
    work.advance()
    for _ in range(40):
        clock.now += 1
        work.advance(10)
    assert 9.5 <= work.rate <= 10.5


def test_many_small_steps_keep_the_window_small_and_the_rate_right() -> None:
    clock = Clock()
    work = Progress("read", None, "documents", clock=clock)
    for _ in range(100_000):
        clock.now += 0.001
        work.advance()
    assert work.rate == pytest.approx(1000, rel=1e-3)
    assert len(work._recent) < 40
    assert work.figures() == "100,000 documents, 1,000/s, 1 min 40 s so far"


def test_work_that_was_done_before_counts_as_done_but_not_for_the_pace() -> None:
    clock = Clock()
    work = Progress("train", 500, "steps", start=400, clock=clock)
    clock.now += 10
    work.advance(20, note="loss 2.1")
    assert work.rate == 2
    assert work.figures() == "420/500 steps, 2/s, 40 s left, loss 2.1"
    assert work.summary() == "train: 20 steps in 10 s"


def test_a_slow_step_is_given_as_time_and_a_blocking_call_as_elapsed() -> None:
    clock = Clock()
    work = Progress("train", 10, "steps", clock=clock)
    clock.now += 60
    work.advance()
    assert work.figures() == "1/10 steps, 1 min 00 s each, 9 min 00 s left"
    blocked = Progress("train tokenizer", None, "tokens", clock=clock)
    clock.now += 4
    assert blocked.figures() == "4.0 s so far"
    assert blocked.summary() == "train tokenizer: 4.0 s"


def test_the_time_left_is_never_negative() -> None:
    clock = Clock()
    work = Progress("x", 10, "steps", clock=clock)
    clock.now += 1
    work.advance(20)
    assert work.remaining_seconds == 0


def test_nothing_is_shown_below_two_seconds() -> None:
    with python(
        "with console.progress('pack', 10, 'rows') as work:\n    [work.advance() for _ in range(10)]\n    time.sleep(0.5)"
    ) as child:
        assert child.communicate() == ("", "")


def test_long_work_in_a_pipe_gives_a_line_and_a_summary(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_QUIET_SECONDS", 0.05)
    with console.progress("pack", 10, "rows") as work:
        work.advance(4, note="half way")
        time.sleep(0.3)
        work.advance(6)
    found = capsys.readouterr()
    assert found.out == ""
    first, last = found.err.splitlines()
    assert re.fullmatch(r"pack: 4/10 rows, [\d.]+/s, [\d.]+ s left, half way", first)
    assert re.fullmatch(r"pack: 10 rows in 0\.\d s", last)


def test_lines_come_at_most_every_five_seconds_and_rarer_in_long_runs() -> None:
    assert console._QUIET_SECONDS == 2.0
    assert console._LINE_SECONDS == 5.0
    waits: list[float] = []

    class Waiting:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            clock.now += seconds
            return len(waits) == 3

    clock = Clock()
    work = Progress("train", 10, "steps", clock=clock)
    console.configure("info")
    console._show_lines(work, Waiting())  # type: ignore[arg-type]
    clock.now += 36_000
    waits.clear()
    console._show_lines(work, Waiting())  # type: ignore[arg-type]
    assert waits[0] > 600


def test_progress_is_quiet_at_level_warning_and_ends_when_the_work_raises(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_QUIET_SECONDS", 0.0)
    console.configure("warning")
    with console.progress("pack", 1, "rows"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
    console.configure("info")
    with pytest.raises(KeyError), console.progress("pack", 1, "rows"):
        time.sleep(0.05)
        raise KeyError
    assert "rows in" not in capsys.readouterr().err


# ---- a real terminal

_TERMINAL_WORK = """
    console._QUIET_SECONDS = 0.05
    with console.progress("outer", 4, "rows") as outer:
        outer.advance(2)
        time.sleep(0.4)
        console.say("a result in between")
        with console.progress("inner", None, "steps") as inner:
            inner.advance()
            time.sleep(0.4)
    console.table("Scores", ["name", "n"], [["one", "12"]])
    console.warn("careful")
"""


def test_a_terminal_gets_a_live_bar_and_a_table() -> None:
    written = in_terminal(_TERMINAL_WORK, NO_COLOR="")
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written)
    assert "2/4 rows" in plain
    assert re.search(r"inner: 1 steps in 0\.\d s", plain)
    assert "a result in between\r\n" in plain
    assert "\x1b[33mwarning:\x1b[0m careful" in written
    assert re.search(r"name\s+n\s", plain)
    assert "\x1b[?25h" in written, "the cursor is shown again"


def test_no_color_is_honoured() -> None:
    written = in_terminal(_TERMINAL_WORK, NO_COLOR="1")
    assert not re.search(r"\x1b\[(3[0-7]|9[0-7]|38;)", written)
    assert "warning: careful" in written


def test_a_dumb_terminal_gets_plain_lines() -> None:
    assert "\x1b" not in in_terminal(_TERMINAL_WORK, TERM="dumb")


def test_results_stay_in_their_file_while_a_bar_is_live(tmp_path: Path) -> None:
    path = tmp_path / "out"
    written = in_terminal(f"import sys\nsys.stdout = open({str(path)!r}, 'w')\n" + textwrap.dedent(_TERMINAL_WORK))
    assert "a result in between\n" in path.read_text()
    assert "a result in between" not in written


# ---- figures


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"), (0.84, "0.8 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
        (3599.7, "1 h 00 min"), (7800, "2 h 10 min"), (86_399, "1 d 00 h"), (100_800, "1 d 04 h"),
    ],
)  # fmt: skip
def test_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (950, "950"), (2.5, "2.5"), (12_400, "12,400"), (999_994, "999,994"),
     (999_999, "1.00M"), (4_210_000, "4.21M"), (1.3e9, "1.30B"), (2e12, "2.00T")],
)  # fmt: skip
def test_counts(count: float, text: str) -> None:
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_400_000, "2.4 MB"), (999_600, "1.0 MB"), (17e9, "17 GB"), (3e18, "3000 PB")],
)  # fmt: skip
def test_bytes(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_a_process_that_fails_alone_is_heard(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "3")
    console.say("unheard")
    console.error("lost", "look")
    assert capsys.readouterr() == ("", "error: process 3: lost\n  fix: look\n")
