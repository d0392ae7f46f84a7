"""Compressor figures: known extremes and what priming can and cannot do."""

from __future__ import annotations

import random
import zlib

import pytest

from fledge.evaluation.compression import compressor_figures

WORDS = ["the", "model", "reads", "a", "token", "and", "returns", "the", "next", "one", "of", "its", "text", "with", "list", "value"]


def random_text(seed: int, words: int) -> str:
    chosen = random.Random(seed)
    return " ".join(chosen.choice(WORDS) for _ in range(words))


def figures(texts: list[str], training: list[str], **kwargs: int) -> dict[str, float]:
    return {figure.name: figure.bits_per_byte for figure in compressor_figures(texts, training, **kwargs)}


def test_zlib_is_zlib() -> None:
    texts = [random_text(0, 300), random_text(1, 200)]
    joined = "\n".join(texts).encode()
    assert figures(texts, [])["zlib"] == pytest.approx(8 * len(zlib.compress(joined, 9)) / (len(joined) - 1))


def test_text_that_was_seen_in_training_costs_next_to_nothing() -> None:
    text = random_text(0, 3000)
    found = figures([text], [random_text(5, 3000), text])
    assert found["xz primed with the training text"] < 0.1
    assert found["xz"] > 1.0


def test_unrelated_training_text_does_not_help() -> None:
    noise = "".join(chr(random.Random(3).randrange(0x400, 0x2000)) for _ in range(4000))
    found = figures([random_text(0, 2000)], [noise])
    assert found["xz primed with the training text"] == pytest.approx(found["xz"], rel=0.1)


def test_priming_is_capped_and_says_so() -> None:
    last = compressor_figures([random_text(0, 200)], (random_text(seed, 500) for seed in range(100)), maximum_priming_bytes=1000)[-1]
    assert last.priming_bytes == 1000


def test_bytes_not_characters() -> None:
    assert compressor_figures(["\u00e9\u00e9"], [])[0].text_bytes == 4


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_text_no_figure(texts: list[str]) -> None:
    assert compressor_figures(texts, ["training"]) == []


def test_no_training_text_no_primed_figure() -> None:
    assert set(figures(["some text"], [])) == {"zlib", "xz"}
