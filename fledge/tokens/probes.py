"""Texts that tell two encoders apart: a few written by hand, and as many as wanted made by rule from every plane of Unicode.

Whoever claims to encode like another, such as a converted file or a library after an update, is asked for the ids of these. The
generated ones mix scripts, control characters, combining marks, emoji sequences, runs of one character and text like people write,
since borders between unlike things are where encoders differ.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

PROBES = (
    "The quick brown fox doesn't jump over 12345 lazy dogs.",
    "def main(argv: list[str]) -> int:\n    return len(argv)  # tabs\tand  spaces\r\n\r\n",
    "na\u00efve caf\u00e9, e\u0301, \u65e5\u672c\u8a9e, \u0420\u0443\u0441\u0441, \u0639\u0631\u0628\u064a",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00a0\u2028\ufeff\x00",
    "<|endoftext|><|im_start|>user\n<|im_end|>",
    "   \n \n\n  x",
    " leading and trailing ",
    '\n\t\t{"key": [1, 22, 333, 4444]}',
)

_RANGES = (
    (0x20, 0x7E), (0x00, 0x1F), (0x80, 0x24F), (0x300, 0x36F), (0x370, 0x5FF), (0x600, 0x6FF), (0x900, 0xDFF), (0xE00, 0xFFF),
    (0x1100, 0x11FF), (0x2000, 0x206F), (0x2070, 0x2BFF), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xE000, 0xF8FF),
    (0xFE00, 0xFFFF), (0x10000, 0x10FFFF), (0x1F1E6, 0x1FAFF), (0xE0000, 0xE01EF),
)  # fmt: skip
_WORDS = (
    "the", "of", "and", "return", "import", "self", "Function", "HTTP", "don't", "we're", "x1", "2026", "3.14", "://", "->", "==",
    "  ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u200d", "e\u0301", "\ufb01", "\u2126", "\u202e", "\U0001f469\u200d\U0001f4bb",
    "\U0001f1e9\U0001f1ea", "\u0928\u092e\u0938\u094d\u0924\u0947", "\u05e9\u05dc\u05d5\u05dd", "\uffff", "\ufffd", "\x7f",
)  # fmt: skip


def generated_texts(count: int, seed: int = 0) -> Iterator[str]:
    """`count` valid texts of up to about 60 characters, the same for the same seed."""
    draw = random.Random(seed)
    for _ in range(count):
        yield "".join(_part(draw) for _ in range(draw.randrange(1, 9)))


def _part(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.45:
        return draw.choice(("", " ")) + draw.choice(_WORDS)
    if kind < 0.55:
        return _character(draw) * draw.randrange(1, 20)
    if kind < 0.65:
        return "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randrange(1, 9)))
    return "".join(_character(draw) for _ in range(draw.randrange(1, 6)))


def _character(draw: random.Random) -> str:
    first, last = draw.choice(_RANGES)
    return chr(draw.randrange(first, last + 1))
