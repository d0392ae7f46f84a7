"""What the report shows, as plain data: the stage gathers it from the artifacts of a run, `report.py` draws it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fledge.corpus.sources.settings import Content

if TYPE_CHECKING:
    from fledge.evaluation.checkpoint import CheckpointEvaluation
    from fledge.evaluation.compression import CompressorFigure
    from fledge.evaluation.generations import Sample

Record = Mapping[str, float | int | None]
"""A line of metrics.jsonl."""


@dataclass(frozen=True)
class StageUse:
    """What a stage was meant to use and what it did use; None where it has no such figure."""

    name: str
    seconds: float | None = None
    planned_seconds: float | None = None
    """Expected before the first step."""
    peak_bytes: int | None = None
    """The most memory at once, of the process or of the GPU."""
    planned_peak_bytes: int | None = None
    """Expected before the first step."""
    planned_tokens: int | None = None
    used_tokens: int | None = None
    note: str = ""


@dataclass(frozen=True)
class PhaseUse:
    """A phase of a training stage."""

    steps: int
    row_tokens: int
    batch_rows: int
    shares: Mapping[str, float]
    """Of each source, in the mixture that was asked for."""

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_rows * self.row_tokens


@dataclass(frozen=True)
class SourceShare:
    """What a stage took from a source."""

    name: str
    tokens: int
    share: float
    epochs: float


@dataclass(frozen=True)
class TrainingHistory:
    """A training stage with its records, in the order of steps."""

    name: str
    records: Sequence[Record]
    content: Content = "documents"
    """What it learned from; only bits per byte of documents can stand beside those of compressors."""
    phases: Sequence[PhaseUse] = ()
    sources: Sequence[SourceShare] = ()
    samples: Sequence[tuple[int, Sample]] = ()
    """(step, what it wrote), in the order of steps."""

    def series(self, metric: str) -> tuple[list[int], list[float | int | None]]:
        """Steps and values of the records that have a metric."""
        records = [record for record in self.records if metric in record]
        return [int(record["step"] or 0) for record in records], [record[metric] for record in records]

    def by_step(self, metric: str) -> dict[int, float | int | None]:
        """Its values by step."""
        return dict(zip(*self.series(metric), strict=True))

    def last(self, metric: str) -> float | int | None:
        """Its last value; None if it was never recorded."""
        return next((record[metric] for record in reversed(self.records) if record.get(metric) is not None), None)


@dataclass(frozen=True)
class OtherRun:
    """A run that this one is compared with, as far as it is finished."""

    name: str
    training: Sequence[TrainingHistory] = ()
    evaluations: Sequence[CheckpointEvaluation] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    """By name, in words: parameters, tokens, time."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """What it was asked for, by dotted name."""


@dataclass(frozen=True)
class CorpusCard:
    """The data card of a corpus in short."""

    name: str
    summary: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    limits: Sequence[str] = ()


@dataclass(frozen=True)
class LineageLine:
    """One artifact in the tree of what was made from what."""

    depth: int
    role: str
    kind: str
    id: str
    path: str


@dataclass(frozen=True)
class ReportData:
    """All that the page shows; a part without content is left out of it."""

    run_name: str
    recipe_name: str
    written_at: str = ""
    """Date and time as people write it."""
    asked: Sample | None = None
    """The recipe's question and what the last model says."""
    stages: Sequence[StageUse] = ()
    training: Sequence[TrainingHistory] = ()
    compressors: Sequence[CompressorFigure] = ()
    evaluations: Sequence[CheckpointEvaluation] = ()
    """In the order of training."""
    samples: Sequence[Sample] = ()
    """Prompts that the base model continued, or questions asked by hand."""
    others: Sequence[OtherRun] = ()
    """Runs to compare with; the first stands for this run itself, for what both have in one form."""
    cards: Sequence[CorpusCard] = ()
    corpus: Sequence[tuple[str, str]] = ()
    """Facts on text and tokenizer: (name, value)."""
    model: Sequence[tuple[str, str]] = ()
    lineage: Sequence[LineageLine] = ()
    environment: Sequence[tuple[str, str]] = ()
