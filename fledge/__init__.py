"""Fledge raises small language models from raw text to a model that answers.

As a library it shows four names; each loads torch on first use only, so the command line stays quick:

    create_model(config)                a fresh LanguageModel from its shape
    load(checkpoint)                    the LanguageModel of a checkpoint folder; `.generate(ids, max_length=100, temperature=0.8)`
    open_tokens(folder, batch_rows=64)  the batches of a token set: train, validation, info
    open_tokenizer(folder)              the frozen tokenizer of a checkpoint or tokenizer folder
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fledge.core import __version__ as __version__

__all__ = ["create_model", "load", "open_tokenizer", "open_tokens"]

if TYPE_CHECKING:
    from fledge.inference.language_model import create_model, load
    from fledge.tokens.tokenizer import open_tokenizer
    from fledge.training.batches import open_tokens


def __getattr__(name: str) -> Any:
    if name in {"create_model", "load"}:
        from fledge.inference import language_model

        return getattr(language_model, name)
    if name == "open_tokens":
        from fledge.training.batches import open_tokens

        return open_tokens
    if name == "open_tokenizer":
        from fledge.tokens.tokenizer import open_tokenizer

        return open_tokenizer
    raise AttributeError(f"module 'fledge' has no attribute {name!r}")
