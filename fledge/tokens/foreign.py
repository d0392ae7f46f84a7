"""A tokenizer that others wrote, as it lies beside their model: enough to score texts with that model, and no more.

Training wants a tokenizer that no text can make say a control token, and that gives every text back; `importing` makes one, or refuses.
A score wants the ids that the model's own library would give it, whatever they are. So here `tokenizer.json` encodes as it is, control
tokens in the text and those it puts in front of a text included, as transformers' `tokenizer(text)` and lm-evaluation-harness do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.tokens.definition import read_json
from fledge.tokens.folder import CONFIG_FILE, META_FILE, TOKENIZER_FILE
from fledge.tokens.tokenizer import open_tokenizer

_REMEDY = "give the folder the tokenizer.json and tokenizer_config.json that its model was published with"


class TextTokenizer(Protocol):
    """What scoring needs of a tokenizer, ours or another's."""

    @property
    def sha256(self) -> str: ...
    @property
    def vocabulary_size(self) -> int: ...
    @property
    def opening(self) -> tuple[int, ...]:
        """Ids that come in front of every text by themselves; `encode_batch` leaves them out."""

    @property
    def document_start(self) -> tuple[int, ...]:
        """Its first id stands in for what is before a text that has nothing before it."""

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def decode(self, ids: Sequence[int]) -> str: ...


class ForeignTokenizer:
    """A `tokenizer.json` used as it is; made by `open_text_tokenizer`."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError if the library does not take the file, if it puts ids behind a text, or if no token begins or ends a text."""
        path = folder / TOKENIZER_FILE
        content = read_json(path, _REMEDY)
        try:
            self._library: tokenizers.Tokenizer = tokenizers.Tokenizer.from_str(json.dumps(content))
        except Exception as error:  # the library's errors have no type
            raise DataError(f"{path} is not a tokenizer that can be used: {error}", _REMEDY) from error
        self._library.no_truncation()
        self._library.no_padding()
        self.sha256 = disk.digest_file(path).sha256
        self.vocabulary_size: int = self._library.get_vocab_size()
        self.opening = self._opening(path)
        self.document_start = (self._start(folder),)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of every text without those in front of it; a control token that a text spells is that token."""
        return [list(one.ids) for one in self._library.encode_batch(list(texts), add_special_tokens=False)]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, control tokens left out."""
        return str(self._library.decode(list(ids)))

    def _opening(self, path: Path) -> tuple[int, ...]:
        whole, plain = (self._library.encode("a", add_special_tokens=added).ids for added in (True, False))
        opening = tuple(whole[: len(whole) - len(plain)])
        if [*opening, *plain] != whole:
            raise DataError(f"{path} puts control tokens behind a text, which a text that goes on cannot have", _REMEDY)
        return opening

    def _start(self, folder: Path) -> int:
        """transformers' `bos_token`, or `eos_token` where there is none, as lm-evaluation-harness begins a text."""
        path = folder / CONFIG_FILE
        given = read_json(path, _REMEDY) if path.is_file() else {}
        names = [_name(given.get(key)) for key in ("bos_token", "eos_token")] if isinstance(given, Mapping) else []
        found = next((token for name in names if name and (token := self._library.token_to_id(name)) is not None), None)
        if found is None:
            raise DataError(f"{path} names no token that begins or ends a text", _REMEDY)
        return int(found)


def open_text_tokenizer(folder: str | Path) -> TextTokenizer:
    """The tokenizer beside a model: ours, checked, or that of others as it lies. Raises DataError."""
    folder = Path(folder)
    if (folder / META_FILE).is_file() or not (folder / TOKENIZER_FILE).is_file():
        return open_tokenizer(folder)
    return ForeignTokenizer(folder)


def _name(token: Any) -> str | None:
    """A token's name as tokenizer_config.json has it: bare, or in the description of an added token."""
    return token.get("content") if isinstance(token, Mapping) else token
