"""What byte-level BPE is made of besides its vocabulary: the alphabet of bytes, and where text is cut before anything is merged.

`SPLIT_PATTERN` is the one published for cl100k and Llama 3. `SUPERWORD_PATTERN` is the same alternatives in chains: a piece of
text and what `SPLIT_PATTERN` cuts off behind it stay together where a superword may span both,

    space   the right side is one space and letters or symbols, and the left ends in no white space, digit or colon;
    mark    the left ends in a letter, and the right begins with ASCII punctuation.

Both can be seen in the two tokens beside the border. That is why merging words first, and superwords from their ids after, gives
the ids of one pass over the chains (see `levels.py`). SuperBPE (Liu et al. 2025, arXiv 2503.13423) is published with another
pattern, of which this is not true.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fledge.tokens.settings import BYTE_TOKENS

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SYMBOL = r"[^\s\p{L}\p{N}]"
_WORDS = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SYMBOLS = rf" ?{_SYMBOL}+[\r\n]*"
_DIGITS = r"\p{N}{1,3}"
_WHITE_SPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"

SPLIT_PATTERN = f"{_WORDS}|{_DIGITS}|{_SYMBOLS}|{_WHITE_SPACE}"

_ASCII_PUNCTUATION = r"[!-/:-@\[-`{-~]"
_SPACE = rf"(?<![\s\p{{N}}:]) (?:\p{{L}}+|{_SYMBOL}+[\r\n]*)"
_MARK = rf"(?<=\p{{L}})(?:{_CONTRACTION}|{_ASCII_PUNCTUATION}\p{{L}}+|{_ASCII_PUNCTUATION}{_SYMBOL}*[\r\n]*)"

SUPERWORD_PATTERN = f"(?:{_WORDS}|{_SYMBOLS})(?:{_SPACE}|{_MARK})*|{_DIGITS}|{_WHITE_SPACE}"


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte 0 to 255 in a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 bytes stand for themselves; the others take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x100 + BYTE_TOKENS))
    return [chr(value) if value in printable else chr(next(others)) for value in range(BYTE_TOKENS)]


def split_pipeline(pattern: str) -> dict[str, Any]:
    """The pre-tokenizer of byte-level BPE that cuts text by a pattern, as `tokenizer.json` has it."""
    return {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
        ],
    }


def plain_merges(content: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of the content of a `tokenizer.json`. Raises ValueError unless it is byte-level BPE and nothing else."""
    model = content["model"]
    options = ("dropout", "unk_token", "byte_fallback", "ignore_merges", "continuing_subword_prefix", "end_of_word_suffix")
    if model["type"] != "BPE" or content["normalizer"] is not None or any(model.get(name) for name in options):
        raise ValueError("it is no plain byte-level BPE")
    vocabulary: dict[str, int] = model["vocab"]
    merges: list[tuple[str, str]] = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    if not vocabulary.keys() >= {*byte_alphabet(), *(left + right for left, right in merges)}:
        raise ValueError("its vocabulary lacks tokens")
    return vocabulary, merges
