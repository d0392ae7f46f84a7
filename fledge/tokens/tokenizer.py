"""Opens a trained tokenizer: text to token ids and back, without loss and without any way for text to become a control token.

`tokenizer.json` is the authority; everything else in the folder says the same for other programs. Text goes through the body
tokenizer, which has no special tokens at all, so a document that spells `<|im_end|>` stays a document; special ids enter by id
only (`end_of_text`, `turn_start`, `turn_end`, `padding`). In Hugging Face's own encoder such text does become the special id.

The file's meaning, not its bytes, has a SHA-256: token sets and checkpoints carry it, and a mismatch is refused. The pipeline is
byte-level BPE (Sennrich et al. 2016, GPT-2's byte alphabet) with the split pattern published for cl100k and Llama 3, which
compressed held-out text best of the published patterns (3.660 characters per token at 32,768 entries; GPT-2's 3.430).
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import models, pre_tokenizers

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.tokens.engines import Encoded, Engine, ReferenceEngine
from fledge.tokens.settings import BYTE_TOKENS, SPECIAL_TOKENS

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
META_FILE = "tokenizer_meta.json"
FORMAT_VERSION = 1

NO_LENGTH_LIMIT = int(1e30)
"""What transformers reads as "the tokenizer knows no longest input"."""

SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

PIPELINE: Mapping[str, Any] = MappingProxyType(
    {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": SPLIT_PATTERN}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    }
)
"""The parts of `tokenizer.json` around the vocabulary. They are written by us, so the file does not change with the library."""

_REMEDY = "restore the file, or train the tokenizer anew: fledge tokenizer RECIPE --force"
_MAXIMUM_FILE_BYTES = 1 << 28


class Tokenizer:
    """A trained tokenizer; made by `open_tokenizer`. Ids lie in [0, vocabulary_size), the special ones at the top."""

    def __init__(self, folder: Path, sha256: str, token_bytes: Sequence[bytes], body: tokenizers.Tokenizer, meta: TokenizerMeta) -> None:
        self.folder = folder
        self.sha256 = sha256
        """SHA-256 over the meaning of `tokenizer.json` (see `canonical_sha256`)."""
        self.meta = meta
        self.vocabulary_size = len(token_bytes) + len(SPECIAL_TOKENS)
        self.specials: Mapping[str, int] = MappingProxyType({name: len(token_bytes) + place for place, name in enumerate(SPECIAL_TOKENS)})
        self.end_of_text, self.turn_start, self.turn_end, self.padding = self.specials.values()
        self._engine: Engine = ReferenceEngine(body)
        self._token_bytes = (*token_bytes, *(name.encode() for name in SPECIAL_TOKENS))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text; never a special id, whatever the text spells. Raises DataError for text that is not valid Unicode."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` of every text, on all cores."""
        encoded = self.encode_arrays(texts)
        return [encoded[place].tolist() for place in range(len(texts))]

    @property
    def engine_name(self) -> str:
        """Which engine encodes; it decides the time, never the ids."""
        return self._engine.name

    def token_bytes(self, token: int) -> bytes:
        """The bytes that an id stands for; of a control token, its name."""
        return self._bytes_of(token, keep_special=True)

    def encode_arrays(self, texts: Sequence[str]) -> Encoded:
        """The same as flat arrays, for many texts."""
        return self._engine.encode_batch(texts)

    @property
    def document_start(self) -> tuple[int, ...]:
        """Ids in front of every document."""
        return (self.end_of_text,)

    @property
    def document_end(self) -> tuple[int, ...]:
        """Ids behind every document."""
        return ()

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of token ids; special ones are left out unless `keep_special`. Incomplete UTF-8 becomes U+FFFD."""
        return b"".join(self._bytes_of(token, keep_special) for token in ids).decode("utf-8", "replace")

    def stream(self) -> TextStream:
        """A decoder that takes ids one at a time and gives text as soon as it is complete."""
        return TextStream(self)

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocabulary_size,) bytes of text that each id stands for; 0 for special ids."""
        lengths = np.array([len(piece) for piece in self._token_bytes], dtype=np.int64)
        lengths[self.end_of_text :] = 0
        return lengths

    def _bytes_of(self, token: int, keep_special: bool) -> bytes:
        return self._token_bytes[token] if keep_special or token < self.end_of_text else b""


class TextStream:
    """Decodes a growing answer: text comes out when its UTF-8 bytes are complete, special ids give none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, often a word, sometimes nothing."""
        return self._decoder.decode(self._tokenizer._bytes_of(token, keep_special=False))

    def finish(self) -> str:
        """What is left: U+FFFD if the answer ended inside a character."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True)
class TokenizerMeta:
    """The content of `tokenizer_meta.json`: what lets a reader notice that a tokenizer, its files or its library changed."""

    canonical_sha256: str
    chat_template_sha256: str
    vocabulary_size: int
    kind: str = "byte_bpe"
    template: str = "chatml"
    format_version: int = FORMAT_VERSION
    probes: dict[str, list[int]] = field(default_factory=dict)
    """Texts with their ids when the tokenizer was trained; encoded again whenever it is opened."""


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """Open a tokenizer folder and check that it still is what was trained. Raises DataError naming the file and the field."""
    folder = Path(folder)
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(f"there is no tokenizer in {folder} ({TOKENIZER_FILE} is missing)", "train one: fledge tokenizer RECIPE")
    content = _read_json(path)
    token_bytes, body = _build_body(path, content)
    sha256 = canonical_sha256(content)
    meta = _read_meta(folder / META_FILE)
    if meta.canonical_sha256 != sha256:
        raise DataError(
            f"{path} has changed since it was trained: its sha256 is {sha256[:12]}, {META_FILE} says {meta.canonical_sha256[:12]}", _REMEDY
        )
    tokenizer = Tokenizer(folder, sha256, token_bytes, body, meta)
    _check_template(tokenizer)
    _check_probes(tokenizer)
    return tokenizer


def require_same_tokenizer(found: str, expected: str, what: str) -> None:
    """Refuse `what` (a token set, a checkpoint) made with tokenizer `found` where tokenizer `expected` is in use (canonical SHA-256).

    Raises DataError.
    """
    if found != expected:
        raise DataError(
            f"{what} was made with tokenizer {found[:16]}, the tokenizer in use is {expected[:16]}",
            "pack again with this tokenizer: fledge pack RECIPE --force",
        )


def canonical_sha256(content: Mapping[str, Any]) -> str:
    """SHA-256 over what decides the ids in a parsed `tokenizer.json`, the same however the file was formatted.

    Truncation and padding are left out: transformers stores those of the last call there. A post-processor that adds no token
    counts as none: transformers 5 writes one.
    """
    model = dict(content["model"])
    vocabulary, merges = model.pop("vocab"), model.pop("merges")
    body = _pipeline(content)
    body["model"] = {**model, "vocab": sorted(vocabulary.items(), key=lambda entry: entry[1]), "merges": [_pair(merge) for merge in merges]}
    body["added_tokens"] = sorted(content["added_tokens"], key=lambda token: token["id"])
    text = json.dumps(body, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _pipeline(content: Mapping[str, Any]) -> dict[str, Any]:
    pipeline = {part: content.get(part) for part in PIPELINE}
    last = pipeline["post_processor"]
    if isinstance(last, dict) and last.get("type") == "TemplateProcessing" and last.get("special_tokens") == {}:
        pipeline["post_processor"] = None
    return pipeline


def tokenizer_content(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """The whole `tokenizer.json` for a byte-level BPE vocabulary: the special tokens take the ids above it."""
    ordered = dict(sorted(vocabulary.items(), key=lambda entry: entry[1]))
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ordered,
        "merges": [list(merge) for merge in merges],
    }
    added = [_added_token(name, len(ordered) + place) for place, name in enumerate(SPECIAL_TOKENS)]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added, **PIPELINE, "model": model}


def transformers_config(template: str, end_token: str, maximum_tokens: int = NO_LENGTH_LIMIT) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, read by transformers 4 and 5.

    `end_token` ends a generation: `<|endoftext|>` for a base model, `<|im_end|>` for one that answers. The input names are given
    because transformers 4 adds `token_type_ids` otherwise, which Llama's `generate` refuses.
    """
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL_TOKENS[0],
        "eos_token": end_token,
        "pad_token": SPECIAL_TOKENS[3],
        "additional_special_tokens": [SPECIAL_TOKENS[1], SPECIAL_TOKENS[2]],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": maximum_tokens,
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }


def copy_tokenizer(tokenizer: Tokenizer, folder: Path, answers: bool, maximum_tokens: int) -> None:
    """Write the tokenizer's four files into a checkpoint folder, with the end token and the context length of its model.

    `answers`: the model was trained on conversations, so `<|im_end|>` ends its text; otherwise `<|endoftext|>` does.
    """
    template = (tokenizer.folder / TEMPLATE_FILE).read_text(encoding="utf-8")
    end_token = SPECIAL_TOKENS[2] if answers else SPECIAL_TOKENS[0]
    disk.write_json(folder / CONFIG_FILE, transformers_config(template, end_token, maximum_tokens))
    for name in (TOKENIZER_FILE, TEMPLATE_FILE, META_FILE):
        disk.write_bytes(folder / name, (tokenizer.folder / name).read_bytes())


def body_tokenizer(model: models.BPE) -> tokenizers.Tokenizer:
    """The pipeline of `PIPELINE` as objects of the library, without any special token."""
    body = tokenizers.Tokenizer(model)
    body.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return body


def _build_body(path: Path, content: Any) -> tuple[list[bytes], tokenizers.Tokenizer]:
    """The bytes of every ordinary id, and the encoder. All is checked first: the library's own errors have no type."""
    try:
        model = content["model"]
        vocabulary, merges = dict(model["vocab"]), [_pair(merge) for merge in model["merges"]]
        added = sorted(content["added_tokens"], key=lambda token: int(token["id"]))
        pipeline = _pipeline(content)
        for part, expected in PIPELINE.items():
            if pipeline[part] != expected:
                raise ValueError(f"{part} is not the one of byte-level BPE as Fledge trains it")
        token_bytes = _token_bytes(vocabulary)
        _check_model(model, vocabulary, merges)
        if added != [_added_token(name, len(vocabulary) + place) for place, name in enumerate(SPECIAL_TOKENS)]:
            raise ValueError(f"added_tokens must be {', '.join(SPECIAL_TOKENS)} with the ids from {len(vocabulary)} on")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{path} is not a tokenizer that can be used: {reason}", _REMEDY) from error
    return token_bytes, body_tokenizer(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in merges]))


def _check_model(model: Mapping[str, Any], vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]]) -> None:
    expected = tokenizer_content({}, [])["model"]
    for name in sorted((model.keys() | expected.keys()) - {"vocab", "merges"}):
        if model.get(name) != expected.get(name):
            raise ValueError(f"model.{name} is {model.get(name)!r}, not {expected.get(name)!r}")
    for merge in merges:
        left, right = merge
        missing = next((piece for piece in (left, right, left + right) if piece not in vocabulary), None)
        if missing is not None:
            raise ValueError(f"model.merges names {missing!r}, which model.vocab lacks")


def _token_bytes(vocabulary: Mapping[str, int]) -> list[bytes]:
    """The bytes of each id, in the order of the ids; ValueError unless ids are 0, 1, 2 ... and every single byte has one."""
    if sorted(vocabulary.values()) != list(range(len(vocabulary))):
        raise ValueError("model.vocab must hold every id from 0 on exactly once")
    alphabet = byte_alphabet()
    lacking = sum(character not in vocabulary for character in alphabet)
    if lacking:
        raise ValueError(f"model.vocab lacks {lacking} of the {BYTE_TOKENS} single bytes")
    values = {character: value for value, character in enumerate(alphabet)}
    pieces = [b""] * len(vocabulary)
    for piece, token in vocabulary.items():
        foreign = next((character for character in piece if character not in values), None)
        if foreign is not None or not piece:
            raise ValueError(f"model.vocab holds {piece!r}, which does not stand for bytes")
        pieces[token] = bytes(values[character] for character in piece)
    return pieces


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte 0 to 255 in a byte-level vocabulary (GPT-2's table).

    Printable Latin-1 bytes stand for themselves; the others take the characters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x100 + BYTE_TOKENS))
    return [chr(value) if value in printable else chr(next(others)) for value in range(BYTE_TOKENS)]


def _check_template(tokenizer: Tokenizer) -> None:
    """The template is apart from the tokenizer's own hash: another one would leave every token set of documents valid."""
    path = tokenizer.folder / TEMPLATE_FILE
    found = disk.digest_file(path).sha256 if path.is_file() else "missing"
    if found != tokenizer.meta.chat_template_sha256:
        expected = tokenizer.meta.chat_template_sha256
        raise DataError(f"{path} has changed: its sha256 is {found[:12]}, {META_FILE} says {expected[:12]}", _REMEDY)


def _check_probes(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode_batch(list(tokenizer.meta.probes))
    for (text, expected), found in zip(tokenizer.meta.probes.items(), ids, strict=True):
        if found != expected:
            raise DataError(
                f"{tokenizer.folder} encodes {text!r} as {found}, but did as {expected} when it was trained",
                f"install the version of `tokenizers` it was trained with (this is {tokenizers.__version__}), or train it anew",
            )


def _read_meta(path: Path) -> TokenizerMeta:
    if not path.is_file():
        raise DataError(f"{path} is missing", _REMEDY)
    raw = _read_json(path)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format {version}, this Fledge reads {FORMAT_VERSION}", "use the Fledge that wrote it")
    try:
        meta = TokenizerMeta(**raw)
    except TypeError as error:
        raise DataError(f"{path} does not describe a tokenizer: {error}", _REMEDY) from error
    hashes = (meta.canonical_sha256, meta.chat_template_sha256)
    if not all(isinstance(value, str) for value in hashes) or not isinstance(meta.probes, dict):
        raise DataError(f"{path} does not describe a tokenizer: a field has the wrong type", _REMEDY)
    return meta


def _read_json(path: Path) -> Any:
    if path.stat().st_size > _MAXIMUM_FILE_BYTES:
        raise DataError(f"{path} is {path.stat().st_size:,} bytes long, more than a tokenizer can be", _REMEDY)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not valid JSON: {error}", _REMEDY) from error


def _pair(merge: str | Sequence[str]) -> list[str]:
    """A merge as [left, right]; older files write it as "left right"."""
    pair = merge.split(" ") if isinstance(merge, str) else list(merge)
    if len(pair) != 2:
        raise ValueError(f"model.merges holds {merge!r}, which is no pair")
    return pair


def _added_token(name: str, token: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token, "content": name, **flags}
