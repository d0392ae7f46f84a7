"""Trains a tokenizer and writes its folder; the same text gives the same bytes.

Every vocabulary begins with the 256 bytes and ends with the control tokens, so that a size of 32,768 stays a multiple of 128 with
everything counted. Of 118.7 MB of text, 32,768 entries, on one core:

    byte_bpe            tokenizers' BpeTrainer, merges in the order of their frequency                  21 s   0.5 GB
    superbpe            the same to a transition, then merges that span words (superbpe.py)            +19 s   1 GB for 100 MB
    sentencepiece_bpe   sentencepiece                                                                   16 s   0.9 GB
    unigram             sentencepiece; entries by probability, pruned from above                       318 s   2.5 GB

The files are written by us, so that their bytes follow from the text alone.
"""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from fledge.core import console
from fledge.core.errors import DataError
from fledge.tokens.byte_level import SPLIT_PATTERN, byte_alphabet
from fledge.tokens.definition import Definition, byte_level_content, checked, load_body
from fledge.tokens.folder import TokenizerMeta, template_sha256, write_folder
from fledge.tokens.probes import PROBES, generated_texts
from fledge.tokens.sentencepiece_models import differing_texts, train_model, trained_content
from fledge.tokens.settings import DEFAULT_TRANSITION, TokenizerSettings, control_names, transition_tokens
from fledge.tokens.templates import TEMPLATES

_MINIMUM_FREQUENCY = 2
"""A merge seen once would memorise a passage of the training text; only corpora too small for the vocabulary notice."""
_COMPARED_TEXTS = 200
"""Training texts whose ids are compared with those of SentencePiece."""


def train_tokenizer(settings: TokenizerSettings, texts: Iterable[str], folder: Path) -> dict[str, Any]:
    """Train on `texts` and fill `folder`; returns the figures of the training. `superbpe` goes through the texts twice.

    Raises DataError without text. A vocabulary the text cannot fill becomes smaller, with a warning.
    """
    counted = _CountedTexts(texts)
    versions = {"tokenizers": tokenizers.__version__}
    figures: dict[str, Any] = {}
    if settings.kind in ("sentencepiece_bpe", "unigram"):
        versions["sentencepiece"] = importlib.metadata.version("sentencepiece")
        content, figures = _train_sentencepiece(settings, counted)
    else:
        content = _train_byte_bpe(settings, counted)
        if settings.kind == "superbpe":
            content = _add_superwords(settings, content, texts)
    definition = checked(content, "the trained tokenizer")
    size = len(definition.pieces)
    write_definition(settings, definition, versions, folder)
    if size < settings.vocabulary_size:
        console.warn(
            f"the text fills a vocabulary of {size:,} tokens, not {settings.vocabulary_size:,}; "
            "add text, or ask for a smaller tokenizer.vocabulary_size"
        )
    return {
        "kind": settings.kind,
        "vocabulary_size": size,
        "requested_vocabulary_size": settings.vocabulary_size,
        "canonical_sha256": definition.sha256,
        "documents": counted.documents,
        "text_bytes": counted.text_bytes,
        "versions": versions,
        **figures,
    }


def write_definition(
    settings: TokenizerSettings,
    definition: Definition,
    versions: dict[str, str],
    folder: Path,
    imported_from: dict[str, str] | None = None,
) -> None:
    """Write the folder of a definition, with its probes."""
    body = load_body(definition, "the tokenizer")
    chosen = TEMPLATES[settings.template]
    template = chosen.jinja if definition.roles.turn_start is not None or not chosen.has_turn_tokens else None
    meta = TokenizerMeta(
        canonical_sha256=definition.sha256,
        chat_template_sha256=template_sha256(template),
        vocabulary_size=len(definition.pieces),
        kind=settings.kind,
        template=settings.template,
        special_tokens=dict(definition.specials),
        made_with=versions,
        imported_from=imported_from or {},
        probes={text: body.encode(text, add_special_tokens=False).ids for text in PROBES},
    )
    write_folder(definition, meta, template, folder)


class _CountedTexts:
    """Passes texts on to the trainer, counting and showing how far it is."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = texts
        self.documents = 0
        self.text_bytes = 0
        self.first: list[str] = []
        """The first texts, for comparisons."""

    def __iter__(self) -> Iterator[str]:
        with console.progress("read text for the tokenizer", None, "bytes") as progress:
            for text in self._texts:
                size_bytes = len(text.encode("utf-8"))
                self.documents += 1
                self.text_bytes += size_bytes
                if len(self.first) < _COMPARED_TEXTS:
                    self.first.append(text)
                progress.advance(size_bytes)
                yield text

    def require_text(self) -> None:
        if self.text_bytes == 0:
            raise DataError("there is no text to train a tokenizer on", "add documents to corpus.sources")


def _train_byte_bpe(settings: TokenizerSettings, texts: _CountedTexts) -> dict[str, Any]:
    controls = control_names(settings)
    body = tokenizers.Tokenizer(models.BPE())
    body.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size - len(controls),
        min_frequency=_MINIMUM_FREQUENCY,
        initial_alphabet=byte_alphabet(),
        show_progress=False,
    )
    body.train_from_iterator(texts, trainer)
    texts.require_text()
    model = json.loads(body.to_str())["model"]
    return byte_level_content(model["vocab"], model["merges"], controls)


def _add_superwords(settings: TokenizerSettings, content: dict[str, Any], texts: Iterable[str]) -> dict[str, Any]:
    from fledge.tokens.superbpe import train_superwords

    ordinary = settings.vocabulary_size - len(control_names(settings))
    transition = transition_tokens(DEFAULT_TRANSITION if settings.transition is None else settings.transition, ordinary)
    whole: dict[str, Any] = train_superwords(content, transition, settings.vocabulary_size, texts)
    return whole


def _train_sentencepiece(settings: TokenizerSettings, texts: _CountedTexts) -> tuple[dict[str, Any], dict[str, Any]]:
    controls = control_names(settings)
    kind = "unigram" if settings.kind == "unigram" else "bpe"
    model = train_model(kind, settings.vocabulary_size - len(controls), texts)
    texts.require_text()
    content = trained_content(model, controls)
    differing = differing_texts(model, checked(content, model.place), [*PROBES, *generated_texts(_COMPARED_TEXTS), *texts.first])
    if differing and kind == "bpe":
        raise DataError(
            f"the trained vocabulary encodes {differing[0][:80]!r} otherwise than SentencePiece does", "train with kind byte_bpe instead"
        )
    return content, {"differs_from_sentencepiece": len(differing)}
