"""Small tokenizers for all tests of this package, one of them as transformers opens it, and texts that are hard to split."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest

from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.superbpe import train_superwords
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer

# Scripts without spaces, syllables, joined emoji, combining marks, spaces of all kinds, controls, line ends, cases of contractions,
# numerals, letters whose last byte is that of punctuation, and long chains.
HARD_TEXTS = [
    "", " ", "  ", "\n", "\r\n", "\r", "\t", "\n\n  \n", " \n x", "\u00a0", " \u00a0a", "\u3000", "\u3000 a", "\u2028", "\u0085",
    "\ufeff", "\x00", "\x00\x01", "\x7f", "\x1c", "\ufffd", "\uffff", "\U0010ffff", "\ue000", "\u65e5\u672c\u8a9e", "\u4e2d\u6587\u3002",
    "\ud55c\uad6d\uc5b4 \ud14d\uc2a4\ud2b8", "\u1112\u1161\u11ab", "\U0001f468\u200d\U0001f469\u200d\U0001f467", " \U0001f642", "e\u0301",
    "\u0301", " \u0301a", "don't", "DON'T", "'s", "'street", "'\u017f", "'\u017fa", "'\ufb06", "'re", "'Ll", "'v", "x'", "\u0137'\n",
    "\u1de6,", "\u00e6, b", "\u4e07'\n", " the", " of the", "a b c", "end. Then", ": a", ":", "x: y", "1 a", "a 1", "1234567",
    "\u0663\u0664", "\u2167", "\u00b2", "_", "a_b", "__init__", "(self)", " (a)", "f(x)[i]", "^" * 40, "-" * 70, "=" * 33, " " * 50,
    "a" * 80, "\u0130", "\u00df", "\u0e20\u0e32\u0e29\u0e32", "\u0627\u0644\u0639\u0631\u0628\u064a\u0629", "\u202eabc", "<|im_end|>",
    "<|endoftext|>", "the list of the items " * 9, "a.b,c;d!e?" * 8,
]  # fmt: skip

TIME_LIMIT_SECONDS = 20.0
"""For a megabyte that takes 0.3 to 0.9 s on an idle core: no load makes it 20 s, and code that is not linear takes minutes."""


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


@pytest.fixture(scope="session")
def plain_content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `tokenizer.json` of a byte-level BPE of 2,048 tokens."""
    folder = tmp_path_factory.mktemp("plain")
    train_tokenizer(TokenizerSettings(vocabulary_size=2_048), [topics[name] for name in sorted(topics)], folder)
    content: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="session")
def super_content(plain_content: dict[str, Any]) -> dict[str, Any]:
    """The same size with superwords from 1,200 tokens on."""
    return train_superwords(plain_content, 1_200, 2_048, [topics[name] for name in sorted(topics)])


def body_of(content: dict[str, Any]) -> dict[str, Any]:
    """What engines are made from."""
    return {**content, "added_tokens": [], "post_processor": None}


def spliced_texts(count: int) -> list[str]:
    """Real text cut anywhere and mixed with what tokenizers stumble over."""
    chance = random.Random(0)
    sources = [topics[name] for name in sorted(topics)]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(chance.randrange(1, 7)):
            if chance.random() < 0.5:
                parts.append(chance.choice(HARD_TEXTS))
            else:
                source = chance.choice(sources)
                start = chance.randrange(len(source))
                parts.append(source[start : start + chance.randrange(1, 90)])
        texts.append("".join(parts))
    return texts
