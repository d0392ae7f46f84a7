"""Small tokenizers of every kind, trained or imported, for the tests of what all of them promise."""

from __future__ import annotations

import importlib.util
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fledge.tokens.importing import import_tokenizer
from fledge.tokens.settings import TokenizerKind, TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer

TRAINED: tuple[TokenizerKind, ...] = ("byte_bpe", "superbpe", "sentencepiece_bpe", "unigram")
IMPORTED = ("llama", "gpt2")
SIZE = 1_024


def make_kind(kind: Any, texts: Sequence[str], folder: Path) -> Tokenizer:
    """A tokenizer of a kind, or an import in the form of Llama or GPT-2."""
    if kind == "superbpe" and importlib.util.find_spec("fledge.tokens.superbpe") is None:
        pytest.skip("the trainer of superwords is not there")
    folder.mkdir(parents=True, exist_ok=True)
    if kind in IMPORTED:
        given = folder / "given"
        given.mkdir()
        path = write_llama(given / "tokenizer.model", texts) if kind == "llama" else write_gpt2(given / "tokenizer.json", texts)
        target = folder / "made"
        target.mkdir()
        import_tokenizer(TokenizerSettings(kind="import", path=str(path), turn_tokens=True), target)
        return open_tokenizer(target)
    train_tokenizer(TokenizerSettings(kind=kind, vocabulary_size=SIZE, reserved_tokens=2), list(texts), folder)
    return open_tokenizer(folder)


def sentencepiece_model(texts: Sequence[str], model_type: str = "bpe", **options: Any) -> bytes:
    """A SentencePiece model with Llama's settings: identity, dummy prefix, byte fallback, split digits."""
    import sentencepiece

    model = io.BytesIO()
    settings: dict[str, Any] = {
        "model_type": model_type,
        "vocab_size": SIZE,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "byte_fallback": True,
        "split_digits": True,
        "max_sentence_length": 1 << 20,
        "num_threads": 1,
        "minloglevel": 2,
        "hard_vocab_limit": False,
    }
    lines = (line for text in texts for line in text.split("\n"))
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=model, **(settings | options))
    return model.getvalue()


def write_llama(path: Path, texts: Sequence[str], **options: Any) -> Path:
    """A `tokenizer.model` like CodeLlama's, with entries that only its users write."""
    defined = ["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>"]
    path.write_bytes(sentencepiece_model(texts, **({"user_defined_symbols": defined} | options)))
    return path


def write_gpt2(path: Path, texts: Sequence[str]) -> Path:
    """A `tokenizer.json` as published for GPT-2."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE - 1, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(texts, trainer)
    library.add_special_tokens(["<|endoftext|>"])
    content = json.loads(library.to_str())
    # In the published file the token is in the vocabulary too.
    content["model"]["vocab"]["<|endoftext|>"] = len(content["model"]["vocab"])
    path.write_text(json.dumps(content))
    return path
