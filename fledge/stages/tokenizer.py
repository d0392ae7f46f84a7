"""Stage 2: the training text of the documents becomes one frozen tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.core import artifact, console
from fledge.core.errors import ArtifactError
from fledge.corpus.document import read_documents
from fledge.stages.run import Run, make
from fledge.tokens.trainers import train_tokenizer


def run(run: Run) -> None:
    settings = run.recipe.section("tokenizer")
    corpora = run.corpora(settings.corpus, "documents")
    if not corpora:
        raise ArtifactError(f"{run.folder} has no corpus of documents to learn from", f"make one first: fledge corpus {run.command}")

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        texts = (document.text for corpus in corpora.values() for document in read_documents(corpus.path, "train"))
        stats.update(train_tokenizer(settings, texts, folder))
        return f"{stats['vocabulary_size']:,} entries from {console.format_bytes(stats['text_bytes'])}"

    make(run, "tokenizer", artifact.request("tokenizer", settings, corpora), fill)
