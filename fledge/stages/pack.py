"""Stage 3: a corpus and the frozen tokenizer become one token set per content."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.errors import ArtifactError
from fledge.corpus.document import Content, Split, read_conversations, read_documents, read_preferences
from fledge.stages.run import Run, make
from fledge.tokens.packing import pack_conversations, pack_documents, pack_preferences
from fledge.tokens.settings import PackSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer


def run(run: Run) -> None:
    settings: PackSettings = run.recipe.section("pack")
    corpora = {content: run.corpora(settings.corpus, content) for content in get_args(Content)}
    if not any(corpora.values()):
        raise ArtifactError(f"{run.folder} has no corpus to pack", f"make one first: fledge corpus {run.command}")
    frozen = run.tokenizer()
    tokenizer = open_tokenizer(frozen.path)
    for content, found in corpora.items():
        if found:
            _pack(run, settings, content, found, frozen, tokenizer)


def _pack(run: Run, settings: PackSettings, content: Content, corpora: dict[str, Artifact], frozen: Artifact, tokenizer: Tokenizer) -> None:
    # The row length means nothing to a stream of documents, so changing it must not ask for another one.
    identity = {"content": content} if content == "documents" else {"content": content, "row_tokens": settings.sequence_length}

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        stats["content"] = content
        for split in get_args(Split):
            stats[split] = _pack_split(
                content, [found.path for found in corpora.values()], tokenizer, folder, split, settings.sequence_length
            )
        tokens = {split: stats[split]["tokens"] for split in get_args(Split)}
        return f"{tokens['train']:,} tokens to train on, {tokens['validation']:,} held out"

    make(run, f"pack/{content}", artifact.request("tokens", identity, {**corpora, "tokenizer": frozen}), fill)


def _pack_split(content: Content, folders: list[Path], tokenizer: Tokenizer, target: Path, split: Split, row_tokens: int) -> dict[str, Any]:
    if content == "documents":
        documents = (document for folder in folders for document in read_documents(folder, split))
        return pack_documents(documents, tokenizer, target, split)
    if content == "conversations":
        conversations = (conversation for folder in folders for conversation in read_conversations(folder, split))
        return pack_conversations(conversations, tokenizer, target, split, row_tokens)
    pairs = (pair for folder in folders for pair in read_preferences(folder, split))
    return pack_preferences(pairs, tokenizer, target, split, row_tokens)
