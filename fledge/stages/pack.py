"""Stage 3: a corpus and the frozen tokenizer become one token set per content; or plain files of ids become one of documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.config import identity
from fledge.core.errors import ArtifactError, ConfigError
from fledge.corpus.document import Content, Document, Split, read_conversations, read_documents, read_preferences
from fledge.corpus.sources.hub import snapshot
from fledge.stages.run import Run, make
from fledge.tokens.chat import require_template
from fledge.tokens.document_packing import pack_sides
from fledge.tokens.figures import DocumentHashes
from fledge.tokens.packing import pack_conversations, pack_preferences
from fledge.tokens.plain_bin import BIN_FILES, BIN_META, import_bin
from fledge.tokens.settings import BudgetSplitSettings, CorpusSplitSettings, FractionSplitSettings, PackSettings
from fledge.tokens.sides import Budgets, shuffled_in_blocks, sides_by_content
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer

HUB = "hub:"


def run(run: Run) -> None:
    settings: PackSettings = run.recipe.section("pack")
    corpora = {content: run.corpora(settings.corpus, content) for content in get_args(Content)}
    if settings.import_bin is not None:
        corpora["documents"] = {"import": artifact.foreign(_bin_folder(settings.import_bin), "bin")}
    if not any(corpora.values()):
        raise ArtifactError(f"{run.folder} has no corpus to pack", f"make one first: fledge corpus {run.command}")
    frozen = run.tokenizer()
    tokenizer = open_tokenizer(frozen.path)
    if corpora["conversations"] or corpora["preferences"]:
        require_template(tokenizer)
    for content, found in corpora.items():
        if found:
            packing = _Packing(settings, content, found, tokenizer)
            wanted = artifact.request("tokens", packing.identity, {**found, "tokenizer": frozen})
            make(run, f"pack/{content}", wanted, packing.fill)


def _bin_folder(given: str) -> Path:
    """A folder by path, or fetched from the hub; nothing else of Fledge looks there for tokens."""
    if not given.startswith(HUB):
        return Path(given)
    repository, _, revision = given.removeprefix(HUB).partition("@")
    if repository.count("/") != 1:
        raise ConfigError(f"pack.import_bin is {given!r}", "write hub:OWNER/NAME, or hub:OWNER/NAME@REVISION")
    return snapshot(repository, revision or "main", [*BIN_FILES.values(), BIN_META])


@dataclass(frozen=True)
class _Packing:
    """One content to be packed."""

    settings: PackSettings
    content: Content
    inputs: Mapping[str, Artifact]
    tokenizer: Tokenizer

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the result. What means nothing here stays out, so that changing it does not ask for another set."""
        settings = self.settings
        if self.content != "documents":
            learned = {"learned_turns": settings.learned_turns} if self.content == "conversations" else {}
            return {"content": self.content, "row_tokens": settings.sequence_length, "long_turns": settings.long_turns, **learned}
        if "import" in self.inputs:
            return {"content": self.content, "layout": "continuous", "form": "bin"}
        layout = {"row_tokens": settings.sequence_length} if settings.document_layout == "best_fit" else {}
        seeded = settings.shuffle or not isinstance(settings.split, CorpusSplitSettings)
        seed = {"seed": settings.seed} if seeded else {}
        return {
            "content": self.content,
            "layout": settings.document_layout,
            **layout,
            "split": identity(settings.split),
            "shuffle": settings.shuffle,
            **seed,
        }

    def fill(self, folder: Path, stats: dict[str, Any]) -> str:
        hashes = DocumentHashes()
        stats["content"] = self.content
        figures = self._pack(folder, hashes)
        stats.update({str(split): figures[split] for split in figures})
        hashes.require_disjoint(self.content, self.settings.allow_shared_documents)
        train, validation = figures["train"], figures["validation"]
        return f"{train['tokens']:,} tokens to train on, {validation['tokens']:,} held out{_waste(train)}"

    def _pack(self, folder: Path, hashes: DocumentHashes) -> dict[Split, dict[str, Any]]:
        if "import" in self.inputs:
            return import_bin(self.inputs["import"].path, self.tokenizer, folder)
        if self.content == "documents":
            return self._pack_documents(folder, hashes)
        return {split: self._pack_rows(folder, split, hashes) for split in get_args(Split)}

    def _pack_documents(self, folder: Path, hashes: DocumentHashes) -> dict[Split, dict[str, Any]]:
        settings = self.settings
        row_tokens = settings.sequence_length if settings.document_layout == "best_fit" else None
        budgets = self._budgets()
        text_bytes = sum(self._bytes_by_source().values())
        figures = pack_sides(
            self._documents(), self.tokenizer, folder, row_tokens=row_tokens, budgets=budgets, hashes=hashes, text_bytes=text_bytes
        )
        if budgets is not None:
            budgets.warn_of_gaps({split: figures[split]["tokens"] for split in figures})
        return figures

    def _documents(self) -> Iterator[tuple[Split, Document]]:
        settings = self.settings
        splits: tuple[Split, ...] = get_args(Split)
        sided: Iterator[tuple[Split, Document]] = (
            (split, document) for split in splits for corpus in self.inputs.values() for document in read_documents(corpus.path, split)
        )
        match settings.split:
            case BudgetSplitSettings(train_tokens=train, validation_tokens=validation):
                sided = sides_by_content((document for _, document in sided), validation / (train + validation), settings.seed)
            case FractionSplitSettings(validation_fraction=fraction):
                sided = sides_by_content((document for _, document in sided), fraction, settings.seed)
        return shuffled_in_blocks(sided, settings.seed) if settings.shuffle else sided

    def _budgets(self) -> Budgets | None:
        split = self.settings.split
        if not isinstance(split, BudgetSplitSettings):
            return None
        return Budgets({"train": split.train_tokens, "validation": split.validation_tokens}, self._bytes_by_source())

    def _bytes_by_source(self) -> dict[str, int]:
        source_bytes: dict[str, int] = {}
        for corpus in self.inputs.values():
            for source, sides in corpus.stats["sources"].items():
                source_bytes[source] = source_bytes.get(source, 0) + sum(side["utf8_bytes"] for side in sides.values())
        return source_bytes

    def _pack_rows(self, folder: Path, split: Split, hashes: DocumentHashes) -> dict[str, Any]:
        folders, row_tokens = [corpus.path for corpus in self.inputs.values()], self.settings.sequence_length
        truncate, everything = self.settings.long_turns == "truncate", self.settings.learned_turns == "everything"
        if self.content == "conversations":
            conversations = (conversation for path in folders for conversation in read_conversations(path, split))
            return pack_conversations(
                conversations, self.tokenizer, folder, split, row_tokens, hashes, truncate=truncate, everything=everything
            )
        pairs = (pair for path in folders for pair in read_preferences(path, split))
        return pack_preferences(pairs, self.tokenizer, folder, split, row_tokens, hashes, truncate=truncate)


def _waste(figures: Mapping[str, Any]) -> str:
    """What a user may want to change something about."""
    told = []
    if figures["padding_share"] > 0:
        told.append(f"{figures['padding_share']:.1%} padding")
    if figures.get("cut_documents"):
        told.append(f"{figures['cut_documents']:,} documents cut to fit rows")
    if figures.get("truncated"):
        told.append(f"{figures['truncated']:,} truncated at a turn")
    if figures.get("truncated_duplicates"):
        told.append(f"{figures['truncated_duplicates']:,} left out, which truncation made duplicates")
    if figures.get("duplicate_share", 0) > 0.001:
        told.append(f"{figures['duplicate_share']:.1%} duplicates")
    return f" ({', '.join(told)})" if told else ""
