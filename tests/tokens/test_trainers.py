from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from fledge.core.errors import DataError
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer

TRAIN = """
import sys
from pathlib import Path
from pydoc_data.topics import topics
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.trainers import train_tokenizer
train_tokenizer(TokenizerSettings(vocabulary_size=768), [topics[name] for name in sorted(topics)[:40]], Path(sys.argv[1]))
"""


def test_the_same_text_gives_the_same_bytes_with_any_number_of_threads(tokenizer: Tokenizer, tmp_path: Path) -> None:
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", TRAIN, str(tmp_path)], env=environment, check=True)
    names = {path.name for path in tokenizer.folder.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tokenizer_meta.json"}
    for name in names:
        assert (tmp_path / name).read_bytes() == (tokenizer.folder / name).read_bytes(), name


def test_the_figures_are_those_of_the_text(texts: list[str], tmp_path: Path, capsys: Any) -> None:
    stats = train_tokenizer(TokenizerSettings(vocabulary_size=400), iter(texts), tmp_path)
    assert stats["vocabulary_size"] == stats["requested_vocabulary_size"] == 400
    assert stats["documents"] == len(texts)
    assert stats["text_bytes"] == sum(len(text.encode()) for text in texts)
    assert stats["canonical_sha256"] == open_tokenizer(tmp_path).sha256
    assert capsys.readouterr().err == ""


def test_the_file_we_write_is_the_library_s_own(tokenizer: Tokenizer, texts: list[str], tmp_path: Path) -> None:
    path = tokenizer.folder / "tokenizer.json"
    library = tokenizers.Tokenizer.from_file(str(path))
    library.save(str(tmp_path / "again.json"))
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())
    assert [library.encode(text).ids for text in texts] == tokenizer.encode_batch(texts)


def test_merges_shorten_the_training_text(tokenizer: Tokenizer, texts: list[str]) -> None:
    text = "\n".join(texts)
    assert len(tokenizer.encode(text)) < 0.5 * len(text.encode())


def test_a_vocabulary_the_text_cannot_fill_becomes_smaller_with_a_warning(tmp_path: Path, capsys: Any) -> None:
    stats = train_tokenizer(TokenizerSettings(vocabulary_size=5_000), ["one small document, and one small word"], tmp_path)
    assert 260 < stats["vocabulary_size"] < 5_000
    assert "not 5,000" in capsys.readouterr().err
    opened = open_tokenizer(tmp_path)
    assert opened.vocabulary_size == stats["vocabulary_size"] == opened.padding + 1


def test_the_smallest_vocabulary_is_bytes_and_specials(tmp_path: Path) -> None:
    train_tokenizer(TokenizerSettings(vocabulary_size=260), ["text"], tmp_path)
    opened = open_tokenizer(tmp_path)
    assert opened.vocabulary_size == 260
    assert opened.byte_lengths[:256].tolist() == [1] * 256
    assert opened.decode(opened.encode("\u00e9\U0001f642")) == "\u00e9\U0001f642"


@pytest.mark.parametrize("texts", [[], ["", ""]])
def test_no_text_is_an_error(texts: list[str], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no text"):
        train_tokenizer(TokenizerSettings(), texts, tmp_path)
    assert list(tmp_path.iterdir()) == []
