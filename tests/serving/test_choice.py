"""Tokens of a choice become text that may be sent, and the tokens told with it are those whose text was sent."""

from __future__ import annotations

import pytest

from fledge.inference.requests import Drawn, TokenLogprobs
from fledge.serving.choice import Choice, Piece
from fledge.serving.logprobs import completion_logprobs, prompt_tokens, token_name
from tests.serving.running import tiny_tokenizer


def pieces_of(text: str, stops: tuple[str, ...] = (), finish: str = "length") -> list[Piece]:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(text)
    choice = Choice(tokenizer.stream(continued=True), stops, 100)
    pieces = []
    for place, token in enumerate(ids):
        drawn = Drawn(0, token, TokenLogprobs(-float(place), ()), finish="length" if finish == "length" and place == len(ids) - 1 else None)
        if (piece := choice.take(drawn)) is not None:
            pieces.append(piece)
        if choice.ended:
            return pieces
    if finish == "stop" and (piece := choice.take(Drawn(0, finish="stop", end_token=0))) is not None:
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize("text", ["row 3 of the table", "grün 😀 ends", "a" * 30])
@pytest.mark.parametrize("finish", ["length", "stop"])
def test_pieces_are_the_text_and_carry_every_token_once(text: str, finish: str) -> None:
    pieces = pieces_of(text, finish=finish)
    assert "".join(piece.text for piece in pieces) == text
    assert [token.id for piece in pieces for token in piece.tokens] == tiny_tokenizer().encode(text)
    assert [piece.end for piece in pieces] == [None] * (len(pieces) - 1) + [finish]


@pytest.mark.parametrize(("stop", "left"), [("table", "row 3 of the "), ("w 3 of", "ro"), ("row", ""), ("e holds", "row 3 of the tabl")])
def test_a_stop_string_and_its_tokens_are_cut_off(stop: str, left: str) -> None:
    pieces = pieces_of("row 3 of the table holds 7 words", (stop, "never"))
    assert "".join(piece.text for piece in pieces) == left and pieces[-1].end == "stop"
    offsets = [token.offset for piece in pieces for token in piece.tokens]
    assert all(offset < len(left) for offset in offsets) and offsets == sorted(offsets)


def test_half_a_stop_string_at_the_end_is_text() -> None:
    pieces = pieces_of("row 3 of the tab", ("table",))
    assert "".join(piece.text for piece in pieces) == "row 3 of the tab" and pieces[-1].end == "length"


def test_only_the_prompt_is_looked_at() -> None:
    choice = Choice(tiny_tokenizer().stream(continued=True), (), 0)
    piece = choice.take(Drawn(0, 5, prompt_logprobs=(None, TokenLogprobs(-1.0, ()))))
    assert piece == Piece("", end="length", prompt_logprobs=(None, TokenLogprobs(-1.0, ())))
    assert choice.ended and choice.drawn_tokens == 0


def test_a_token_that_is_no_text_is_named_by_its_bytes() -> None:
    tokenizer = tiny_tokenizer()
    first, *_ = tokenizer.encode("é")
    assert token_name(tokenizer, first) in ("é", "bytes:\\xc3")
    assert token_name(tokenizer, tokenizer.end_of_text) == "<|endoftext|>"


def test_offsets_of_a_prompt_are_those_of_its_text() -> None:
    tokenizer = tiny_tokenizer()
    text = "row 3 grün ends"
    ids = [*tokenizer.document_start, *tokenizer.encode(text)]
    told = prompt_tokens(tokenizer, ids, 1, [None, *[TokenLogprobs(-1.0, ((5, -0.5),))] * (len(ids) - 1)])
    found = completion_logprobs(tokenizer, told, 1)
    assert found["text_offset"][0] == 0 and found["token_logprobs"] == [-1.0] * (len(ids) - 1)
    for name, offset in zip(found["tokens"], found["text_offset"], strict=True):
        assert name.startswith("bytes:") or text[offset:].startswith(name)
    assert found["top_logprobs"][0] == {token_name(tokenizer, 5): -0.5, found["tokens"][0]: -1.0}
