"""What the corpus is made of: sources, what is done to their documents, the held-out share, and the form of the shards."""

from __future__ import annotations

from typing import Annotated, Literal

from fledge.core.config import ByKind, operation, settings
from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.filters.settings import CleaningStep, DecontaminateSettings, QualitySettings, TurnSettings
from fledge.corpus.sources.settings import (
    CsvSource,
    HubSource,
    JsonLinesSource,
    JsonSource,
    ParquetSource,
    PythonDocsSource,
    TextSource,
)

ShardFormat = Literal["parquet", "jsonl", "jsonl.zst"]


@settings
class CorpusSettings:
    """Each content the sources name becomes a folder of shards with the splits train and validation."""

    sources: tuple[
        Annotated[PythonDocsSource | TextSource | JsonLinesSource | JsonSource | CsvSource | ParquetSource | HubSource, ByKind()], ...
    ]
    """Where the documents, conversations and preference pairs come from."""
    cleaning: tuple[CleaningStep, ...] = ("control_characters", "unicode", "whitespace")
    """What is mended in each document: mojibake, control_characters, unicode, email, ip, phone, boilerplate, whitespace."""
    turns: TurnSettings = TurnSettings()
    """Which conversations and preference pairs are kept."""
    quality: QualitySettings = QualitySettings()
    """Which documents are good enough."""
    deduplicate: DeduplicateSettings = DeduplicateSettings()
    """Which documents are the same."""
    decontaminate: DecontaminateSettings = DecontaminateSettings()
    """Which documents give away what a model will be evaluated on."""
    validation_fraction: float = 0.05
    """Share of the groups of near duplicates that is held out (0 to below 1)."""
    seed: int = 0
    """Decides which groups are held out and how rejected answers are damaged."""
    format: ShardFormat = "parquet"
    """Form of the shards of documents."""
    shard_documents: int = 10_000
    """Rows in one shard."""
    shard_bytes: int | None = None
    """A shard of documents ends with the row with which its texts reach this many bytes of UTF-8, if that comes first."""
    workers: int | None = operation(None)
    """Processes that work on documents; None takes one per core."""
    executor: Literal["local", "ray"] = operation("local")
    """local: processes of this machine; ray: the Ray cluster this machine belongs to (extra `ray`, shared file system)."""
    download_workers: int = operation(8)
    """Files downloaded at the same time."""
    cache_folder: str = operation("~/.cache/fledge")
    """Where downloaded raw files are kept, for all runs."""
    keep_work: bool = operation(True)
    """Keep the intermediate results, a little larger than the text: after an edit only what depends on it is made again."""
    compress_work: bool = operation(False)
    """Store them compressed (LZ4), in half the space; a sixth more time without quality rules."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ValueError("sources must name at least one source")
        names = [source.name for source in self.sources]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise ValueError(f"two sources are named {repeated!r}; give each its own name")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and below 1, not {self.validation_fraction}")
        for name in ("shard_documents", "shard_bytes", "workers", "download_workers"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
