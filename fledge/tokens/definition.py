"""The definition of a tokenizer: the content of one `tokenizer.json`, checked before any library sees it, with its hash and its roles.

`tokenizer.json` of Hugging Face tokenizers is the authority for every kind, so that transformers, vLLM and an export encode as we do
by construction. Text goes through the *body*: the same content without control tokens. A document that spells `<|im_end|>` stays a
document; control ids enter by id only. (Hugging Face's own encoder turns such text into the control id.)

Entries of a Unigram vocabulary are looked up in the text itself, control tokens and `<0x41>` among them. A split in front of the second
character of such a name keeps the library from seeing one whole.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import tokenizers

from fledge.core.errors import DataError
from fledge.tokens.byte_level import SPLIT_PATTERN, split_pipeline
from fledge.tokens.pieces import BYTE_LEVEL_DECODER, Spelling, check_merges, pair, piece_bytes, spelling_of
from fledge.tokens.settings import SPECIAL_TOKENS

REMEDY = "restore the file, or make the tokenizer anew: fledge tokenizer RECIPE --force"
UNKNOWN = "<unk>"
_MAXIMUM_FILE_BYTES = 1 << 27
_PIPELINE = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
_ADDED_TOKEN_FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}

_END_OF_TEXT = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>")
_BEGINNING = ("<s>", "<|begin_of_text|>", "<bos>")
_PADDING = ("<|pad|>", "<pad>", "[PAD]", UNKNOWN)


class _UnusableError(Exception):
    """What is wrong with a content, wherever it lies."""


@dataclass(frozen=True)
class Roles:
    """What the control tokens are for, as ids; found by their published names."""

    end_of_text: int
    turn_start: int | None
    turn_end: int | None
    padding: int
    """Fills rows, and is never learned; where there is no token for it, the unknown one or the end of a text."""
    document_start: tuple[int, ...]
    """In front of every document."""
    document_end: tuple[int, ...]
    """Behind every document; empty where the start of the next one says enough, as in GPT-2."""


@dataclass(frozen=True)
class Definition:
    """A checked `tokenizer.json`."""

    content: Mapping[str, Any]
    sha256: str
    """SHA-256 over its meaning, see `canonical_sha256`."""
    pieces: tuple[bytes, ...]
    """The bytes each id stands for; of a control token, its name."""
    specials: Mapping[str, int]
    """The control tokens by name, in the order of their ids."""
    visible: frozenset[int]
    """Those of them that are part of what a model says, such as `<think>`: decoding leaves them in."""
    roles: Roles
    spelling: Spelling

    @property
    def body(self) -> dict[str, Any]:
        """The content without control tokens: what text is encoded with."""
        return {**self.content, "added_tokens": [], "post_processor": None, "truncation": None, "padding": None}


def read_definition(path: Path) -> Definition:
    """The definition in a file, checked once for the same bytes. Raises DataError naming the file and the field that is wrong."""
    raw = _read_bytes(path, REMEDY)
    with _naming(str(path), REMEDY):
        return _definition_of(raw)


def checked(content: Any, place: str, remedy: str = REMEDY) -> Definition:
    """The definition in a parsed `tokenizer.json` from `place`. Raises DataError naming the field that is wrong."""
    with _naming(place, remedy):
        return _checked(content)


@functools.lru_cache(maxsize=4)
def _definition_of(raw: bytes) -> Definition:
    """Each stage opens the tokenizer anew, and its copies in checkpoints: at 4,096 entries a check takes 0.1 s."""
    return _checked(_parsed(raw))


def _checked(content: Any) -> Definition:
    try:
        spelling = spelling_of(content)
        specials, visible = _specials(content["added_tokens"])
        vocabulary, merges = _vocabulary(content["model"]), [pair(merge) for merge in content["model"].get("merges", [])]
        pieces = piece_bytes(vocabulary, spelling, specials)
        check_merges(vocabulary, merges)
        beyond = {name: token for name, token in specials.items() if vocabulary.get(name) != token}
        if list(beyond.values()) != list(range(len(pieces), len(pieces) + len(beyond))):
            raise ValueError(f"added_tokens that model.vocab lacks must have the ids from {len(pieces)} on, not {beyond}")
        if content["model"]["type"] == "Unigram":
            if not isinstance(content["model"].get("unk_id"), int):
                raise ValueError("model.unk_id names no entry")
            _check_guard(content, specials)
        if content["decoder"] != spelling.decoder:
            raise ValueError("decoder is not the one that gives the text back")
        pieces += [name.encode("utf-8") for name in beyond]
        roles = roles_of(specials)
        digest = canonical_sha256(content)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise _UnusableError(f"is not a tokenizer that can be used: {reason}") from error
    return Definition(content, digest, tuple(pieces), MappingProxyType(specials), visible, roles, spelling)


def load_body(definition: Definition, place: str) -> tokenizers.Tokenizer:
    """The body as the library's object. Raises DataError if the library refuses it."""
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(definition.body))
    except Exception as error:  # the library's errors have no type
        raise DataError(f"{place} is not a tokenizer that can be used: {error}", REMEDY) from error


def canonical_sha256(content: Mapping[str, Any]) -> str:
    """SHA-256 over what decides the ids in a parsed `tokenizer.json`, the same however the file was formatted.

    Truncation and padding are left out: transformers stores those of the last call there. A post-processor that adds no token
    counts as none: transformers 5 writes one. Scores of Unigram count to 9 digits, as single precision has them: the library does not
    read and write the last bits of a float64 alike.
    """
    model = dict(content["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = sorted(model["vocab"].items(), key=lambda entry: entry[1])
        model["merges"] = [pair(merge) for merge in model["merges"]]
    else:
        model["vocab"] = [[piece, f"{score:.9g}"] for piece, score in model["vocab"]]
    body = {part: content.get(part) for part in _PIPELINE}
    last = body["post_processor"]
    if isinstance(last, dict) and last.get("type") == "TemplateProcessing" and last.get("special_tokens") == {}:
        body["post_processor"] = None
    body["model"] = model
    body["added_tokens"] = sorted(content["added_tokens"], key=lambda token: token["id"])
    text = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def roles_of(specials: Mapping[str, int]) -> Roles:
    """The roles of control tokens. Raises ValueError if none of them ends a text."""

    def first(names: Sequence[str]) -> int | None:
        return next((specials[name] for name in names if name in specials), None)

    end = first(_END_OF_TEXT)
    if end is None:
        raise ValueError(f"no control token ends a text: none is named {', '.join(_END_OF_TEXT)}")
    beginning, padding = first(_BEGINNING), first(_PADDING)
    turns = (specials.get(SPECIAL_TOKENS[1]), specials.get(SPECIAL_TOKENS[2]))
    start, finish = turns if None not in turns else (None, None)
    around: tuple[tuple[int, ...], tuple[int, ...]] = ((end,), ()) if beginning is None else ((beginning,), (end,))
    return Roles(end, start, finish, end if padding is None else padding, *around)


def byte_level_content(
    vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]], controls: Sequence[str] = SPECIAL_TOKENS
) -> dict[str, Any]:
    """The whole `tokenizer.json` of a byte-level BPE vocabulary; the control tokens take the ids above it."""
    added = [added_token(name, len(vocabulary) + place) for place, name in enumerate(controls)]
    return whole_content(bpe_model(vocabulary, merges), added, None, split_pipeline(SPLIT_PATTERN), dict(BYTE_LEVEL_DECODER))


def bpe_model(vocabulary: Mapping[str, int], merges: Iterable[Sequence[str]], unknown: str | None = None) -> dict[str, Any]:
    """The model part; with `unknown`, the token of SentencePiece for what it cannot write, single bytes stand in for it."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": unknown is not None,
        "byte_fallback": unknown is not None,
        "ignore_merges": False,
        "vocab": dict(sorted(vocabulary.items(), key=lambda entry: entry[1])),
        "merges": [list(merge) for merge in merges],
    }


def whole_content(model: Any, added: Sequence[Mapping[str, Any]], normalizer: Any, pre_tokenizer: Any, decoder: Any) -> dict[str, Any]:
    """A `tokenizer.json` of these parts, written by us so that the file does not change with the library."""
    head = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added)}
    return {**head, "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": None, "decoder": decoder, "model": model}


def added_token(name: str, token: int, special: bool = True) -> dict[str, Any]:
    """A control token as `tokenizer.json` lists it."""
    return {"id": token, "content": name, **_ADDED_TOKEN_FLAGS, "special": special}


def names_a_control(name: str) -> bool:
    """Whether a name has the form of a control token's, `<NAME>` or `[NAME]`, which ordinary text does not hold."""
    return len(name) > 2 and name.startswith(("<", "[")) and name.endswith((">", "]"))


def guard(names: Iterable[str]) -> dict[str, Any]:
    """The pre-tokenizer that cuts every spelling of these names, and of `<0x41>`, behind its first character."""
    tails = [*(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in sorted(names)), "<(?=0x[0-9A-F]{2}>)"]
    return {"type": "Split", "pattern": {"Regex": "|".join(tails)}, "behavior": "Isolated", "invert": False}


def read_json(path: Path, remedy: str = REMEDY) -> Any:
    """A JSON file of a tokenizer. Raises DataError if it is none, or too long to be one."""
    raw = _read_bytes(path, remedy)
    with _naming(str(path), remedy):
        return _parsed(raw)


def _read_bytes(path: Path, remedy: str) -> bytes:
    if path.stat().st_size > _MAXIMUM_FILE_BYTES:
        raise DataError(f"{path} is {path.stat().st_size:,} bytes long, more than a tokenizer can be", remedy)
    return path.read_bytes()


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _UnusableError(f"is not valid JSON: {error}") from error


@contextlib.contextmanager
def _naming(place: str, remedy: str) -> Iterator[None]:
    """Says of which file something is wrong."""
    try:
        yield
    except _UnusableError as error:
        raise DataError(f"{place} {error}", remedy) from error


def _vocabulary(model: Mapping[str, Any]) -> dict[str, int]:
    if model["type"] == "BPE":
        return dict(model["vocab"])
    if not all(isinstance(entry, list) and len(entry) == 2 for entry in model["vocab"]):
        raise ValueError("model.vocab of Unigram must be a list of pairs, an entry and its score")
    vocabulary = {piece: token for token, (piece, _) in enumerate(model["vocab"])}
    if len(vocabulary) != len(model["vocab"]):
        raise ValueError("model.vocab holds an entry twice")
    return vocabulary


def _specials(added: Sequence[Mapping[str, Any]]) -> tuple[dict[str, int], frozenset[int]]:
    """All added tokens, which enter by id only, and those that are shown. Raises ValueError for one that ordinary text may hold."""
    specials: dict[str, int] = {}
    visible = set()
    for token in sorted(added, key=lambda token: int(token["id"])):
        name = token["content"]
        if not name or name in specials or int(token["id"]) in specials.values():
            raise ValueError(f"added_tokens lists {name!r} twice, or without a name or an id of its own")
        specials[name] = int(token["id"])
        if not token.get("special"):
            if not names_a_control(name):
                raise ValueError(f"added_tokens lists {name!r}, which is not special but part of the text")
            visible.add(specials[name])
    return specials, frozenset(visible)


def _check_guard(content: Mapping[str, Any], specials: Mapping[str, int]) -> None:
    pieces = {piece for piece, _ in content["model"]["vocab"]}
    expected = guard(name for name in specials if name in pieces)
    pre_tokenizer = content["pre_tokenizer"]
    first = pre_tokenizer["pretokenizers"][0] if pre_tokenizer["type"] == "Sequence" else pre_tokenizer
    if first != expected:
        raise ValueError("pre_tokenizer does not keep a text from spelling a control token")
