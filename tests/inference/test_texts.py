"""Stop strings, however the text is cut into pieces: what comes out is the text before the first, and nothing that must be taken back."""

from __future__ import annotations

import random

import pytest

from fledge.inference.texts import StopStream


def shown(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    stream = StopStream(stops)
    text = "".join(stream.push(piece) for piece in pieces)
    return text + stream.finish(), stream.stopped


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", [], "one two"),
        ("one two", ["three", ""], "one two"),
        ("one two", ["two"], "one "),
        ("aab", ["ab"], "a"),
        ("ababac", ["abac"], "ab"),
        ("x<|end|>y", ["<|end|>", "y"], "x"),
        ("abc", ["abc", "c"], ""),
        ("ends with a begun st", ["stop"], "ends with a begun st"),
        ("äöü\n\nß", ["\n\n"], "äöü"),
    ],
)
def test_the_text_ends_before_the_first_stop(text: str, stops: list[str], expected: str) -> None:
    for size in range(1, len(text) + 1):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        assert shown(pieces, stops) == (expected, expected != text)


def test_random_texts() -> None:
    chosen = random.Random(0)
    for _ in range(2000):
        text = "".join(chosen.choice("ab") for _ in range(20))
        stops = ["".join(chosen.choice("ab") for _ in range(chosen.randint(3, 6))) for _ in range(2)]
        stream, given, pieces = StopStream(stops), "", []
        for character in text:
            given += character
            pieces.append(stream.push(character))
            complete = [given.index(stop) for stop in stops if stop in given]
            assert stream.stopped == bool(complete)
            if complete:
                assert "".join(pieces) == given[: min(complete)]
                break
            held = len(given) - len("".join(pieces))
            assert held == max((size for stop in stops for size in range(len(stop)) if given.endswith(stop[:size])), default=0)
        else:
            assert "".join(pieces) + stream.finish() == text


def test_nothing_comes_after_a_stop() -> None:
    stream = StopStream(["stop"])
    assert (stream.push("a stop b"), stream.push("more"), stream.finish()) == ("a ", "", "")
