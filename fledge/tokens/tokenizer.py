"""Opens a frozen tokenizer of any kind: text to token ids and back, without any way for text to become a control token.

`tokenizer.json` is the authority (see `definition.py`); everything else in the folder says the same for other programs. The file's
meaning, not its bytes, has a SHA-256: token sets and checkpoints carry it, and a mismatch is refused.

Ids become text by the bytes they stand for, not by a library: so a stream of ids can be decoded one at a time, and the bytes of text
behind a loss can be counted. Of everything that is trained here, decode(encode(text)) is the text, to the bit.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from numpy.typing import NDArray

from fledge.core.errors import DataError
from fledge.tokens.definition import REMEDY, Definition, load_body, read_definition
from fledge.tokens.engines import Encoded, Engine, EnginePool, ReferenceEngine
from fledge.tokens.folder import META_FILE, TOKENIZER_FILE, TokenizerMeta, check_probes, check_template, copy_folder, read_meta
from fledge.tokens.templates import TEMPLATES, Template


class Tokenizer:
    """A frozen tokenizer; made by `open_tokenizer`. Ids lie in [0, vocabulary_size)."""

    def __init__(self, folder: Path, definition: Definition, body: tokenizers.Tokenizer, meta: TokenizerMeta) -> None:
        self.folder = folder
        self.definition = definition
        self.sha256 = definition.sha256
        """SHA-256 over the meaning of `tokenizer.json` (see `definition.canonical_sha256`)."""
        self.meta = meta
        self.vocabulary_size = len(definition.pieces)
        self.specials = definition.specials
        roles = definition.roles
        self.end_of_text, self.padding = roles.end_of_text, roles.padding
        self.turn_start, self.turn_end = roles.turn_start, roles.turn_end
        """None where the tokenizer has no tokens for turns."""
        self.template: Template | None = TEMPLATES[meta.template] if meta.chat_template_sha256 is not None else None
        """How it writes conversations; None where it cannot, because the format needs tokens for turns."""
        self.document_start, self.document_end = roles.document_start, roles.document_end
        """Ids in front of every document, and behind it."""
        self.opening: tuple[int, ...] = ()
        """Ids that encoding puts in front of every text by itself: none."""
        self.prefix_bytes = definition.spelling.prefix_bytes
        """1 if encoding puts a space in front of every text that is not empty (SentencePiece's dummy prefix); decoding removes it.

        So the byte lengths of the ids of a text add up to its bytes and these.
        """
        self._special_ids = frozenset(definition.specials.values())
        self._engine: Engine = ReferenceEngine(body)

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

    def choose_engine(self, sample_texts: Sequence[str]) -> dict[str, Any]:
        """Encode from now on with the fastest engine that gives the same ids on the tokenizer's probes and the beginning of these texts.

        Worth it before megabytes of text; an engine that differed once is never taken again. Returns a record for the figures of a run:
        engine, megabytes_per_cpu_second by engine, refused with reasons. Raises DataError for text that is not valid Unicode.
        """
        choice = self._engines.choose(list(self.meta.probes), sample_texts)
        self._engine = choice.engine
        return choice.record()

    @cached_property
    def _engines(self) -> EnginePool:
        return EnginePool(self.definition.body)

    def decode(self, ids: Sequence[int], keep_special: bool = False) -> str:
        """The text of token ids; special ones are left out unless `keep_special`. Incomplete UTF-8 becomes U+FFFD."""
        content = b"".join(self._bytes_of(token, keep_special) for token in ids)
        return content[self._prefix_of(content) :].decode("utf-8", "replace")

    def stream(self, continued: bool = False) -> TextStream:
        """A decoder that takes ids one at a time and gives text as soon as it is complete.

        `continued`: the ids go on with a text, so a space in front is part of it. Otherwise it gives what `decode` does.
        """
        return TextStream(self, continued)

    def end_ids(self, answers: bool) -> tuple[int, ...]:
        """The ids that end what a model says, the usual one first; `answers`: it was trained on conversations."""
        if answers and self.template is not None and self.template.has_turn_tokens:
            return (self.require_turn_ids()[1], self.end_of_text)
        return (self.end_of_text,)

    def require_turn_ids(self) -> tuple[int, int]:
        """The ids around a turn, which a tokenizer has whose template writes them."""
        assert self.turn_start is not None and self.turn_end is not None, "such a template comes with such tokens only"
        return self.turn_start, self.turn_end

    @cached_property
    def byte_lengths(self) -> NDArray[np.int64]:
        """(vocabulary_size,) bytes of text that each id stands for; 0 for special ids. See `prefix_bytes`."""
        lengths = np.array([len(piece) for piece in self.definition.pieces], dtype=np.int64)
        lengths[sorted(self._special_ids)] = 0
        return lengths

    @cached_property
    def document_byte_lengths(self) -> NDArray[np.int64]:
        """The same for packed documents, where the id that opens one takes `prefix_bytes` back, so that sums are those of the text."""
        lengths = self.byte_lengths.copy()
        lengths[self.document_start[0]] -= self.prefix_bytes
        return lengths

    def _bytes_of(self, token: int, keep_special: bool) -> bytes:
        return self.definition.pieces[token] if keep_special or token not in self._special_ids else b""

    def _prefix_of(self, content: bytes) -> int:
        """How many bytes in front of a decoded text encoding has put there."""
        return self.prefix_bytes if content.startswith(b" ") else 0


class TextStream:
    """Decodes a growing answer: text comes out when its UTF-8 bytes are complete, special ids give none."""

    def __init__(self, tokenizer: Tokenizer, continued: bool) -> None:
        self._tokenizer = tokenizer
        self._begun = continued
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that `token` completes, often a word, sometimes nothing."""
        content = self._tokenizer._bytes_of(token, keep_special=False)
        if content and not self._begun:
            self._begun = True
            content = content[self._tokenizer._prefix_of(content) :]
        return self._decoder.decode(content)

    def finish(self) -> str:
        """What is left: U+FFFD if the answer ended inside a character."""
        return self._decoder.decode(b"", final=True)


def open_tokenizer(folder: str | Path) -> Tokenizer:
    """Open a tokenizer folder and check that it still is what was made. Raises DataError naming the file and the field."""
    folder = Path(folder)
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise DataError(f"there is no tokenizer in {folder} ({TOKENIZER_FILE} is missing)", "train one: fledge tokenizer RECIPE")
    definition = read_definition(path)
    meta = read_meta(folder / META_FILE)
    if meta.canonical_sha256 != definition.sha256:
        raise DataError(
            f"{path} has changed since it was made: its sha256 is {definition.sha256[:12]}, {META_FILE} says {meta.canonical_sha256[:12]}",
            REMEDY,
        )
    check_template(folder, meta)
    tokenizer = Tokenizer(folder, definition, load_body(definition, str(path)), meta)
    check_probes(folder, meta.probes, tokenizer.encode_batch(list(meta.probes)))
    return tokenizer


def copy_tokenizer(tokenizer: Tokenizer, folder: Path, answers: bool, maximum_tokens: int) -> None:
    """Write the tokenizer's files into a checkpoint folder, with the end token and the context length of its model."""
    copy_folder(tokenizer.folder, tokenizer.definition, folder, tokenizer.end_ids(answers)[0], maximum_tokens)


def require_same_tokenizer(found: str, expected: str, what: str, holder: str = "the tokenizer in use", command: str = "RECIPE") -> None:
    """Refuse `what` (a token set) made with tokenizer `found` where `holder` (a tokenizer, a checkpoint) has `expected`.

    The hashes are canonical ones. Raises DataError.
    """
    require_one_tokenizer({what: found, holder: expected}, command)


def require_one_tokenizer(made_with: Mapping[str, str], command: str = "RECIPE") -> None:
    """Refuse to go on unless all of these (token sets, checkpoints, tokenizers, by name) have the same canonical hash.

    Raises DataError naming every one with its hash.
    """
    if len(set(made_with.values())) > 1:
        listed = "; ".join(f"{name} has {digest[:16]}" for name, digest in made_with.items())
        raise DataError(f"the tokenizers differ: {listed}", f"pack again with one tokenizer: fledge pack {command} --force")
