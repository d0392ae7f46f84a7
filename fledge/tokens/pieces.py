"""What the parts of a `tokenizer.json` mean: which of them are understood, and the bytes of text that each entry stands for.

Two ways to write bytes are known, and both lose nothing:

    byte-level      every byte is one printable character of GPT-2's alphabet; GPT-2, Llama 3, cl100k, SuperBPE
    byte fallback   entries are text, and 256 more, <0x00> to <0xFF>, stand for what has none; SentencePiece, Llama 2

SentencePiece writes a space as U+2581, so that a text which holds U+2581 itself comes back with a space. What is trained here has the
space in its entries instead: then U+2581 is a character like any other. Everything else that `tokenizers` could do to a text, such as
lower case or dropping white space, is refused: what was encoded could not be given back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.tokens.byte_level import byte_alphabet
from fledge.tokens.settings import BYTE_TOKENS

SPACE_MARK = "\u2581"
"""What SentencePiece writes for a space."""

BYTE_LEVEL_DECODER = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}

_MAXIMUM_PATTERN_CHARACTERS = 4_000
"""Patterns run in a backtracking engine; the published ones have at most 500 characters."""
_SPLITS = {"Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous"}
_MODEL_FIELDS = {
    "BPE": {"dropout": (None, 0.0), "continuing_subword_prefix": (None, ""), "end_of_word_suffix": (None, "")},
    "Unigram": {},
}


@dataclass(frozen=True)
class Spelling:
    """How the entries of a vocabulary write text."""

    byte_level: bool
    space: str = " "
    """What stands for a space, where entries are text."""
    prefix_bytes: int = 0
    """Bytes that encoding puts in front of every text that is not empty: 1 where SentencePiece adds its dummy prefix, a space."""

    @property
    def decoder(self) -> dict[str, Any]:
        """The decoder of `tokenizer.json` that gives the text back."""
        if self.byte_level:
            return dict(BYTE_LEVEL_DECODER)
        steps: list[dict[str, Any]] = [{"type": "ByteFallback"}, {"type": "Fuse"}]
        if self.space != " ":
            steps.insert(0, {"type": "Replace", "pattern": {"String": self.space}, "content": " "})
        if self.prefix_bytes:
            steps.append({"type": "Strip", "content": " ", "start": self.prefix_bytes, "stop": 0})
        return {"type": "Sequence", "decoders": steps}


def spelling_of(content: Mapping[str, Any]) -> Spelling:
    """How the vocabulary of a parsed `tokenizer.json` writes text. Raises ValueError naming a part that is not understood."""
    model = content["model"]
    if model.get("type") not in _MODEL_FIELDS:
        raise ValueError(f"model.type is {model.get('type')!r}, not BPE or Unigram")
    for name, allowed in _MODEL_FIELDS[model["type"]].items():
        if model.get(name) not in allowed:
            raise ValueError(f"model.{name} is {model[name]!r}, not {allowed[0]!r}")
    prefix, mark = _read_normalizer(content.get("normalizer"))
    byte_level = False
    for part in _steps(content.get("pre_tokenizer"), "pretokenizers"):
        if part["type"] == "ByteLevel":
            if part.get("add_prefix_space"):
                raise ValueError("pre_tokenizer.add_prefix_space puts a space in front of some texts only")
            byte_level = True
        elif part["type"] == "Metaspace":
            if part.get("prepend_scheme", "always") != "never" or part.get("replacement") != SPACE_MARK:
                raise ValueError("pre_tokenizer Metaspace gives ' a' and 'a' the same ids")
            mark = True
        else:
            _check_split(part)
    if byte_level == bool(model.get("byte_fallback")):
        raise ValueError("not every byte has an entry: it needs a ByteLevel pre_tokenizer, or model.byte_fallback")
    if byte_level and (mark or prefix):
        raise ValueError("normalizer changes the text of a byte-level vocabulary")
    return Spelling(byte_level, SPACE_MARK if mark else " ", prefix_bytes=int(prefix))


def piece_bytes(vocabulary: Mapping[str, int], spelling: Spelling, controls: Mapping[str, int]) -> list[bytes]:
    """The bytes of each id of a vocabulary, in the order of the ids; of a control token, its name.

    Raises ValueError unless ids are 0, 1, 2 ..., every entry stands for bytes, and every single byte has one.
    """
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError("model.vocab must hold every id from 0 on exactly once")
    alphabet = byte_alphabet() if spelling.byte_level else [fallback_piece(value) for value in range(BYTE_TOKENS)]
    lacking = sum(piece not in vocabulary for piece in alphabet)
    if lacking:
        raise ValueError(f"model.vocab lacks {lacking} of the {BYTE_TOKENS} single bytes")
    values = {piece: value for value, piece in enumerate(alphabet)}
    pieces = [b""] * len(vocabulary)
    for piece, token in vocabulary.items():
        if controls.get(piece) == token:
            pieces[token] = piece.encode("utf-8")
        elif not piece:
            raise ValueError("model.vocab holds an empty entry, which does not stand for bytes")
        elif spelling.byte_level:
            foreign = next((character for character in piece if character not in values), None)
            if foreign is not None:
                raise ValueError(f"model.vocab holds {piece!r}, which does not stand for bytes")
            pieces[token] = bytes(values[character] for character in piece)
        else:
            pieces[token] = bytes([values[piece]]) if piece in values else piece.replace(spelling.space, " ").encode("utf-8")
    return pieces


def fallback_piece(value: int) -> str:
    """The entry of a single byte in a vocabulary with byte fallback."""
    return f"<0x{value:02X}>"


def pair(merge: str | Sequence[str]) -> list[str]:
    """A merge as [left, right]; older files write it as "left right"."""
    sides = merge.split(" ") if isinstance(merge, str) else list(merge)
    if len(sides) != 2:
        raise ValueError(f"model.merges holds {merge!r}, which is no pair")
    return sides


def check_merges(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]]) -> None:
    """Raise ValueError for a merge of what the vocabulary lacks."""
    for left, right in merges:
        missing = next((piece for piece in (left, right, left + right) if piece not in vocabulary), None)
        if missing is not None:
            raise ValueError(f"model.merges names {missing!r}, which model.vocab lacks")


def _read_normalizer(normalizer: Any) -> tuple[bool, bool]:
    """Whether it puts a space in front, and whether it writes spaces as SPACE_MARK."""
    prefix = mark = False
    for part in _steps(normalizer, "normalizers"):
        if part == {"type": "Prepend", "prepend": SPACE_MARK} and not mark:
            prefix = True
        elif part == {"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK}:
            mark = True
        else:
            raise ValueError(f"normalizer {part['type']} changes the text, which could not be given back")
    if prefix and not mark:
        raise ValueError("normalizer puts a mark in front, but writes no space as one")
    return prefix, mark


def _steps(part: Any, name: str) -> Iterator[Mapping[str, Any]]:
    if part is None:
        return
    if part["type"] == "Sequence":
        for step in part[name]:
            yield from _steps(step, name)
    else:
        yield part


def _check_split(part: Mapping[str, Any]) -> None:
    """Cutting text in pieces is harmless as long as all of it is kept."""
    if part["type"] == "Digits":
        return
    if part["type"] not in ("Split", "Punctuation") or part.get("behavior") not in _SPLITS:
        raise ValueError(f"pre_tokenizer {part['type']} is not understood, or drops text")
    if len(str(part.get("pattern"))) > _MAXIMUM_PATTERN_CHARACTERS:
        raise ValueError(f"a pattern of pre_tokenizer is longer than {_MAXIMUM_PATTERN_CHARACTERS:,} characters")
