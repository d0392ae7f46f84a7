"""`fledge chat` at a real pseudo-terminal: keys, colours, Ctrl-C and Ctrl-D, tables to choose from, columns."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from fledge.verbs.chatting.terminal import ReadLine, read_text
from tests.verbs.chatting.conftest import MakeCheckpoint
from tests.verbs.pseudo_terminal import fledge_at_terminal

UP = "\x1b[A"
PASTED = "\x1b[200~first line\nsecond line\x1b[201~"
YOU = "you> "


def test_a_person_at_a_terminal(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    make_checkpoint("one")
    make_checkpoint("two", step=10)
    make_checkpoint("two", step=20, context_tokens=8192)
    # Undrawn, this model says one word over and over: the answer that is interrupted would go on to the end of the context.
    with fledge_at_terminal(["chat", "--max-tokens", "6", "--temperature", "0"], tmp_path) as terminal:
        tables = terminal.wait_for("[1]> ")
        assert tables.index("two") < tables.index("one"), "the run that changed last comes first"
        terminal.type("x\r")
        assert "'x' is not a number from 1 to 2" in terminal.wait_for("[1]> ")
        terminal.type("1\r")
        assert "sft" in terminal.wait_for("[1]> ")
        terminal.type("\r")
        assert "step-000020: say something" in terminal.wait_for(YOU)

        terminal.type("Hello\r")
        assert "model> " in terminal.wait_for(YOU)
        terminal.type("one \\\r")
        terminal.wait_for("...> ")
        terminal.type("two\r")
        terminal.wait_for(YOU)
        terminal.type(UP + UP + UP + "!\r")
        assert "Hello!" in terminal.wait_for(YOU), "the line before the last two, with a key behind it"
        terminal.type(f"{PASTED}\r")
        terminal.wait_for("model> ")
        terminal.wait_for(YOU)

        terminal.type("/set max_tokens=8000\r")
        terminal.wait_for(YOU)
        terminal.type("Talk for long\r")
        terminal.wait_for("model> ")
        terminal.wait_for_any()
        terminal.interrupt()
        assert "(stopped after " in terminal.wait_for(YOU)
        terminal.type("half a line")
        terminal.wait_for("half a line")
        terminal.interrupt()
        assert "Ctrl-D leaves" in terminal.wait_for(YOU)
        terminal.type("/sa\t talk.jsonl\r")
        terminal.wait_for(YOU)
        terminal.type("\x04")
        assert terminal.wait_for_end() == 0
        coloured = terminal.raw.replace("\x01", "").replace("\x02", "")
        assert "\x1b[1;36myou> \x1b[0m" in coloured and "\x1b[1;32mmodel> \x1b[0m" in coloured
    asked = [one["content"] for one in json.loads((tmp_path / "talk.jsonl").read_text())["messages"] if one["role"] == "user"]
    assert asked[:4] == ["Hello", "one \ntwo", "Hello!", "first line\nsecond line"]


def test_several_models_stand_side_by_side_and_no_colour_is_no_colour(make_checkpoint: MakeCheckpoint, tmp_path: Path) -> None:
    make_checkpoint("one", seed=1)
    make_checkpoint("two", seed=2)
    options = ["chat", "--compare", "one", "two", "--max-tokens", "4"]
    with fledge_at_terminal(options, tmp_path, columns=90, environment={"NO_COLOR": "1"}) as terminal:
        terminal.wait_for(YOU)
        terminal.type("Hello\r")
        shown = terminal.wait_for(YOU)
        assert any(line.split() == ["one", "two"] and line.index("two") >= 40 for line in shown.splitlines())
        terminal.type("/exit\r")
        assert terminal.wait_for_end() == 0
        assert "\x1b[1;3" not in terminal.raw and "\x1b[32m" not in terminal.raw


def lines_of(lines: Iterable[str]) -> ReadLine:
    left = iter(lines)
    return lambda prompt: next(left, None)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([" a "], "a"),
        (["a\\", "b\\", "c"], "a\nb\nc"),
        (["a\\"], "a"),
        (['"""'], ""),
        (['"""a', "", "b", '"""', "never"], "a\n\nb"),
        (['"""a"""', "never"], "a"),
        (['"""a', 'b"""'], "a\nb"),
        (['"""a\\', 'b"""'], "a\\\nb"),
        (['say """'], 'say """'),
        ([""], ""),
    ],
)
def test_several_lines_are_one_text(lines: list[str], text: str) -> None:
    assert read_text(lines_of(lines)) == text


def test_the_end_of_input_is_none() -> None:
    assert read_text(lines_of([])) is None
