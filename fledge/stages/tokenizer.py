"""Stage 2: the training text of the documents, or a tokenizer that exists, becomes one frozen tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fledge.core import artifact, console
from fledge.core.artifact import Artifact
from fledge.core.config import identity
from fledge.core.errors import ArtifactError
from fledge.corpus.document import Document, read_documents
from fledge.stages.run import Run, make
from fledge.tokens.importing import import_tokenizer, origin
from fledge.tokens.sampling import choose_text
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.trainers import train_tokenizer


def run(run: Run) -> None:
    settings: TokenizerSettings = run.recipe.section("tokenizer")
    if settings.kind == "import":
        _import(run, settings)
    else:
        _train(run, settings)


def _train(run: Run, settings: TokenizerSettings) -> None:
    corpora = run.corpora(settings.corpus, "documents")
    if not corpora:
        raise ArtifactError(f"{run.folder} has no corpus of documents to learn from", f"make one first: fledge corpus {run.command}")

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        texts = choose_text(lambda: _training_documents(corpora), settings)
        stats.update(train_tokenizer(settings, texts, folder), **texts.figures())
        return f"{stats['vocabulary_size']:,} entries from {console.format_bytes(stats['text_bytes'])}"

    make(run, "tokenizer", artifact.request("tokenizer", settings, corpora), fill)


def _import(run: Run, settings: TokenizerSettings) -> None:
    def fill(folder: Path, stats: dict[str, Any]) -> str:
        stats.update(import_tokenizer(settings, folder))
        return f"{stats['vocabulary_size']:,} entries, imported from {stats['imported_from']}"

    make(run, "tokenizer", artifact.request("tokenizer", {**identity(settings), "origin": origin(settings)}, {}), fill)


def _training_documents(corpora: dict[str, Artifact]) -> Iterator[Document]:
    for corpus in corpora.values():
        yield from read_documents(corpus.path, "train")
