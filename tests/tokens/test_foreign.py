"""A tokenizer of others encodes as its own library does, control tokens and all; what cannot score a text is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from fledge.core.errors import DataError
from fledge.tokens.foreign import ForeignTokenizer, open_text_tokenizer
from fledge.tokens.tokenizer import Tokenizer

from .kinds import write_gpt2


def opening_template(name: str, token: int, behind: bool = False) -> dict[str, Any]:
    """A post-processor that puts a control token in front of (or behind) a text."""
    special, text = {"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [text, special] if behind else [special, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]}},
    }


@pytest.fixture
def folder(texts: list[str], tmp_path: Path) -> Path:
    """GPT-2's kind, with what the library leaves behind of a call, and a configuration."""
    path = write_gpt2(tmp_path / "tokenizer.json", texts)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    path.write_text(json.dumps(content), encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<|endoftext|>"}}), encoding="utf-8")
    return tmp_path


def change(folder: Path, **parts: Any) -> Path:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**content, **parts}), encoding="utf-8")
    return folder


def test_it_encodes_as_it_lies(folder: Path, texts: list[str]) -> None:
    found = open_text_tokenizer(folder)
    assert isinstance(found, ForeignTokenizer)
    library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.no_truncation()
    assert found.encode_batch(texts) == [library.encode(text, add_special_tokens=False).ids for text in texts]
    end = library.token_to_id("<|endoftext|>")
    assert found.encode_batch(["<|endoftext|>"]) == [[end]], "what a text spells is what it says"
    assert (found.document_start, found.opening, found.vocabulary_size) == ((end,), (), library.get_vocab_size())
    assert found.decode([*found.encode_batch(["a text"])[0], end]) == "a text"


def test_what_comes_in_front_of_every_text_is_told_apart(folder: Path) -> None:
    end = ForeignTokenizer(folder).document_start[0]
    found = ForeignTokenizer(change(folder, post_processor=opening_template("<|endoftext|>", end)))
    assert found.opening == (end,) and end not in found.encode_batch(["a text"])[0]
    with pytest.raises(DataError, match="behind a text"):
        ForeignTokenizer(change(folder, post_processor=opening_template("<|endoftext|>", end, behind=True)))


def test_a_beginning_goes_before_an_end(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "a", "eos_token": "<|endoftext|>"}), encoding="utf-8")
    found = ForeignTokenizer(folder)
    assert found.document_start == tuple(found.encode_batch(["a"])[0])
    for given in ({}, {"bos_token": "<none>"}, []):
        (folder / "tokenizer_config.json").write_text(json.dumps(given), encoding="utf-8")
        with pytest.raises(DataError, match="names no token that begins or ends"):
            ForeignTokenizer(folder)


def test_what_is_no_tokenizer_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="not a tokenizer that can be used"):
        ForeignTokenizer(change(folder, model={"type": "None"}))


def test_ours_stays_ours(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert isinstance(open_text_tokenizer(tokenizer.folder), Tokenizer)
    with pytest.raises(DataError, match="there is no tokenizer"):
        open_text_tokenizer(tmp_path)
