"""Trains the tokenizer on the documents of a corpus and writes its folder; the same text gives the same bytes.

The vocabulary is 256 bytes, then merges in the order of their frequency, then the special tokens on top, so that a size of
32,768 stays a multiple of 128 with everything counted. Training is `tokenizers`' BpeTrainer (118.7 MB of text, 32,768 entries:
21 s and 0.5 GB on one core); the file is written by us, so that its bytes follow from the text alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, trainers

from fledge.core import console, disk
from fledge.core.errors import DataError
from fledge.tokens.byte_level import byte_alphabet
from fledge.tokens.chat import TEMPLATES
from fledge.tokens.settings import SPECIAL_TOKENS, TokenizerSettings
from fledge.tokens.tokenizer import (
    CONFIG_FILE,
    META_FILE,
    TEMPLATE_FILE,
    TOKENIZER_FILE,
    TokenizerMeta,
    body_tokenizer,
    canonical_sha256,
    tokenizer_content,
    transformers_config,
)

_MINIMUM_FREQUENCY = 2
"""A merge seen once would memorise a passage of the training text; only corpora too small for the vocabulary notice."""

_PROBES = (
    "The quick brown fox doesn't jump over 12345 lazy dogs.",
    "def main(argv: list[str]) -> int:\n    return len(argv)  # tabs\tand  spaces\r\n\r\n",
    "na\u00efve caf\u00e9, e\u0301, \u65e5\u672c\u8a9e, \u0420\u0443\u0441\u0441, \u0639\u0631\u0628\u064a",
    "\U0001f642\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00a0\u2028\ufeff\x00",
    "<|endoftext|><|im_start|>user\n<|im_end|>",
    "   \n \n\n  x",
)


def train_tokenizer(settings: TokenizerSettings, texts: Iterable[str], folder: Path) -> dict[str, Any]:
    """Train on `texts` and fill `folder`; returns the figures of the training.

    Raises DataError without text. A vocabulary the text cannot fill becomes smaller, with a warning.
    """
    counted = _CountedTexts(texts)
    body = body_tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size - len(SPECIAL_TOKENS),
        min_frequency=_MINIMUM_FREQUENCY,
        initial_alphabet=byte_alphabet(),
        show_progress=False,
    )
    body.train_from_iterator(counted, trainer)
    if counted.text_bytes == 0:
        raise DataError("there is no text to train a tokenizer on", "add documents to corpus.sources")
    model = json.loads(body.to_str())["model"]
    content = tokenizer_content(model["vocab"], [(left, right) for left, right in model["merges"]])
    probes = {text: body.encode(text, add_special_tokens=False).ids for text in _PROBES}
    _write_folder(settings, content, probes, folder)
    size = len(model["vocab"]) + len(SPECIAL_TOKENS)
    if size < settings.vocabulary_size:
        console.warn(
            f"the text fills a vocabulary of {size:,} tokens, not {settings.vocabulary_size:,}; "
            "add text, or ask for a smaller tokenizer.vocabulary_size"
        )
    return {
        "vocabulary_size": size,
        "requested_vocabulary_size": settings.vocabulary_size,
        "canonical_sha256": canonical_sha256(content),
        "documents": counted.documents,
        "text_bytes": counted.text_bytes,
        "tokenizers_version": tokenizers.__version__,
    }


class _CountedTexts:
    """Passes texts on to the trainer, counting and showing how far it is."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = 0
        self.text_bytes = 0

    def __iter__(self) -> Iterator[str]:
        with console.progress("read text for the tokenizer", None, "bytes") as progress:
            for text in self._texts:
                size_bytes = len(text.encode("utf-8"))
                self.documents += 1
                self.text_bytes += size_bytes
                progress.advance(size_bytes)
                yield text


def _write_folder(settings: TokenizerSettings, content: dict[str, Any], probes: dict[str, list[int]], folder: Path) -> None:
    template = TEMPLATES[settings.template]
    meta = TokenizerMeta(
        canonical_sha256=canonical_sha256(content),
        chat_template_sha256=hashlib.sha256(template.encode("utf-8")).hexdigest(),
        vocabulary_size=len(content["model"]["vocab"]) + len(SPECIAL_TOKENS),
        kind=settings.kind,
        template=settings.template,
        probes=probes,
    )
    disk.write_json(folder / TOKENIZER_FILE, content)
    disk.write_json(folder / CONFIG_FILE, transformers_config(template, end_token=SPECIAL_TOKENS[0]))
    disk.write_text(folder / TEMPLATE_FILE, template)
    disk.write_json(folder / META_FILE, asdict(meta))
