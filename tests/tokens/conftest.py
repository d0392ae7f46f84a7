"""One small tokenizer for all tests of this package, and the same one as transformers opens it."""

from __future__ import annotations

import os
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return [topics[name] for name in sorted(topics)[:40]]


@pytest.fixture(scope="session")
def tokenizer(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TokenizerSettings(vocabulary_size=768), texts, folder)
    return open_tokenizer(folder)


@pytest.fixture(scope="session")
def theirs(tokenizer: Tokenizer) -> Any:
    return open_in_transformers(tokenizer.folder)


def open_in_transformers(folder: Path) -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)
