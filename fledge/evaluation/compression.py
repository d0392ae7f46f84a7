"""Compressors read the same held-out text as the model: bits per byte is the one figure that both have.

zlib and xz know nothing but the text itself. "xz primed" has seen the training text first: its figure is the difference
xz(training + held-out) - xz(training), the price of the held-out text to someone who holds the training text. That is the
strongest of the three, because it may copy what the training text already says, and a small model need not beat it.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

DOCUMENT_SEPARATOR = b"\n"
"""Compressors pay for the end of a document with one separator byte, the model with its end-of-text token."""
MAXIMUM_PRIMING_BYTES = 8 << 20
"""xz -9e needs about a second per MiB, twice; 8 MiB also fits its 64 MiB dictionary."""


@dataclass(frozen=True)
class CompressorFigure:
    """One compressor on the held-out text."""

    name: str
    bits_per_byte: float
    text_bytes: int
    """Bytes of the held-out documents, without separators."""
    priming_bytes: int = 0
    """Bytes of training text seen before; not counted in the figure."""


def compressor_figures(
    texts: Sequence[str], training_texts: Iterable[str], maximum_priming_bytes: int = MAXIMUM_PRIMING_BYTES
) -> list[CompressorFigure]:
    """zlib, xz and xz primed with the training text (its first `maximum_priming_bytes` bytes); empty without held-out text."""
    held_out = DOCUMENT_SEPARATOR.join(text.encode("utf-8") for text in texts)
    text_bytes = len(held_out) - len(DOCUMENT_SEPARATOR) * max(0, len(texts) - 1)
    if text_bytes == 0:
        return []
    priming = _take_bytes(training_texts, maximum_priming_bytes)
    jobs: list[Callable[[], int]] = [
        lambda: len(zlib.compress(held_out, 9)),
        lambda: _xz_bytes(held_out),
        lambda: _xz_bytes(priming),
        lambda: _xz_bytes(priming + held_out),
    ]
    with ThreadPoolExecutor(2) as threads:  # zlib and lzma release the interpreter lock
        zlib_bytes, xz_bytes, priming_only, primed = threads.map(lambda job: job(), jobs)
    figures = [
        CompressorFigure("zlib", 8 * zlib_bytes / text_bytes, text_bytes),
        CompressorFigure("xz", 8 * xz_bytes / text_bytes, text_bytes),
    ]
    if priming:
        difference = 8 * (primed - priming_only) / text_bytes
        figures.append(CompressorFigure("xz primed with the training text", difference, text_bytes, len(priming)))
    return figures


def _xz_bytes(content: bytes) -> int:
    return len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


def _take_bytes(texts: Iterable[str], maximum_bytes: int) -> bytes:
    pieces, taken_bytes = [], 0
    for text in texts:
        if taken_bytes >= maximum_bytes:
            break
        piece = text.encode("utf-8") + DOCUMENT_SEPARATOR
        pieces.append(piece[: maximum_bytes - taken_bytes])
        taken_bytes += len(pieces[-1])
    return b"".join(pieces)
