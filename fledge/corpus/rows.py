"""Conversations and preference pairs become a corpus folder: read, judged, freed of duplicates, split by group, written.

They are few, so they stream, row by row, through one process into Parquet files; what stays in memory is one row group per split, the
set of groups, and a hash of every row. The documents' way is factory.py.
"""

from __future__ import annotations

import hashlib
import itertools
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fledge.core.config import identity
from fledge.core.errors import DataError
from fledge.corpus.build import python_version, warn_of_gaps, write_card, write_rejects
from fledge.corpus.document import SCHEMAS, Content, Conversation, Message, Preference, Row, Split, as_columns
from fledge.corpus.filters.contamination import Contamination
from fledge.corpus.filters.evaluation_files import EvaluationFile
from fledge.corpus.filters.settings import TurnSettings
from fledge.corpus.limits import limits_of
from fledge.corpus.rejects import Rejects
from fledge.corpus.resolve import Resolved, here_files, require_few_rejects
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.reading import cut_pieces, read_piece
from fledge.corpus.split import Splitter, assign_sides

_ROW_GROUP_ROWS = 1_024
_BATCH_ROWS = 1_024


def build_rows(
    settings: CorpusSettings, content: Content, sources: Sequence[Resolved], evaluation_files: Sequence[EvaluationFile], folder: Path
) -> dict[str, Any]:
    """Fill `folder` with the shards of conversations or preference pairs, `rejects.jsonl`, `stats.json` and the data card.

    Returns the headline figures. A corpus too small to hold anything out gets no validation shard, and a warning. Raises DataError if
    nothing is left of a source.
    """
    rejects: list[Rejects] = []
    tally = _Tally()
    splitter = Splitter(settings.validation_fraction, settings.seed)
    dropped: Counter[str] = Counter()
    contamination = Contamination(evaluation_files, settings.decontaminate.shingle_words) if evaluation_files else None
    read = (row for resolved in sources for row in _rows(settings, resolved, splitter, rejects))
    rows = _kept(read, settings.turns, contamination, dropped)
    with (
        _ShardWriter(folder, "train", content, settings.shard_documents) as train,
        _ShardWriter(folder, "validation", content, settings.shard_documents) as validation,
    ):
        for side, row in assign_sides(rows, splitter):
            (train if side == "train" else validation).add(row)
            tally.add(side, row, splitter.draw(row.group))
    write_rejects(folder, rejects)
    for resolved, rejected in zip(sources, rejects, strict=True):
        if not tally.rows_of(resolved.source.name):
            found = f"{rejected.seen[resolved.source.name]:,} read, {rejected.count(resolved.source.name):,} rejected"
            found += "".join(f"; of all sources {count:,} dropped: {reason}" for reason, count in dropped.items())
            raise DataError(
                f"source {resolved.source.name} gives 0 {content} ({found})", "name a source with text in it, or leave this one out"
            )
    told = {name: figures for rejected in rejects for name, figures in rejected.stats().items()}
    stats = {**tally.stats(), "rejects": told, **({"dropped": dict(dropped)} if dropped else {})}
    warn_of_gaps(settings, content, stats)
    decisive = identity(settings)
    card = {
        "content": content,
        "provenance": [resolved.provenance() for resolved in sources],
        "evaluation_files": [file.name for file in evaluation_files],
        "settings": {name: decisive[name] for name in ("turns", "validation_fraction", "seed")},
    }
    write_card(folder, {**card, **stats, **tally.shape()})
    return {**stats, **python_version(sources)}


def _kept(rows: Iterator[Row], settings: TurnSettings, contamination: Contamination | None, dropped: Counter[str]) -> Iterator[Row]:
    """The rows that pass; the others are counted by reason."""
    known: set[bytes] = set()
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        texts = ["\n".join(_texts(row)) for row in batch]
        hits = contamination(pa.array(texts, pa.large_string())).tolist() if contamination else [-1] * len(batch)
        for row, text, hit in zip(batch, texts, hits, strict=True):
            reason = "contaminated" if hit >= 0 else _reason_to_drop(row, text, settings, known)
            if reason is None:
                yield row
            else:
                dropped[reason] += 1


def _reason_to_drop(row: Row, text: str, settings: TurnSettings, known: set[bytes]) -> str | None:
    if min(map(len, _answers(row))) < settings.minimum_answer_characters:
        return "short_answer"
    if settings.maximum_characters is not None and len(text) > settings.maximum_characters:
        return "too_long"
    if settings.deduplicate:
        # Without case and layout only: punctuation tells apart what mathematics, code and other scripts say.
        digest = hashlib.sha256(" ".join(text.casefold().split()).encode("utf-8")).digest()[:16]
        if digest in known:
            return "duplicate"
        known.add(digest)
    return None


def _turns(row: Row) -> Sequence[Message]:
    """What was said before the answers that are compared, or all of it."""
    assert isinstance(row, Conversation | Preference), "documents have no turns"
    return row.messages if isinstance(row, Conversation) else row.prompt


def _answers(row: Row) -> Sequence[str]:
    """What a model is to learn from a row."""
    if isinstance(row, Preference):
        return [row.chosen, row.rejected]
    return [message.content.strip() for message in _turns(row) if message.role == "assistant"]


def _texts(row: Row) -> Iterator[str]:
    """All texts of a row, without its id, source, group and damage."""
    yield from (message.content for message in _turns(row))
    if isinstance(row, Preference):
        yield row.chosen
        yield row.rejected


def _rows(settings: CorpusSettings, resolved: Resolved, splitter: Splitter, rejects: list[Rejects]) -> Iterator[Row]:
    """The rows of a source; its rejects are appended when all have been read."""
    source = resolved.source
    pieces = cut_pieces(source, here_files(settings, source, resolved.files))
    parts = [Rejects() for _ in pieces]
    rows = (row for piece, part in zip(pieces, parts, strict=True) for row in read_piece(source, piece, part, splitter))
    yield from limits_of(source).take(rows)
    rejects.append(Rejects.merged(parts))
    require_few_rejects(source, rejects[-1])


class _ShardWriter:
    """Writes the rows of one split to `SPLIT-00000.parquet`, `SPLIT-00001.parquet`, ... of `shard_rows` rows."""

    def __init__(self, folder: Path, split: Split, content: Content, shard_rows: int) -> None:
        self._folder, self._split, self._content, self._shard_rows = folder, split, content, shard_rows
        self._pending: list[dict[str, Any]] = []
        self._shard: pq.ParquetWriter | None = None
        self._rows_in_shard = 0
        self._shards = 0

    def __enter__(self) -> _ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        self._close_shard()

    def add(self, row: Row) -> None:
        """Append a row."""
        self._pending.append(as_columns(row))
        if len(self._pending) == min(_ROW_GROUP_ROWS, self._shard_rows - self._rows_in_shard):
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        if self._shard is None:
            path = self._folder / f"{self._split}-{self._shards:05d}.parquet"
            self._shard = pq.ParquetWriter(path, SCHEMAS[self._content], compression="zstd")
            self._shards += 1
        self._shard.write_table(pa.Table.from_pylist(self._pending, schema=SCHEMAS[self._content]))
        self._rows_in_shard += len(self._pending)
        self._pending = []
        if self._rows_in_shard == self._shard_rows:
            self._close_shard()

    def _close_shard(self) -> None:
        if self._shard is not None:
            self._shard.close()
        self._shard, self._rows_in_shard = None, 0


class _Tally:
    """Counts rows, characters and UTF-8 bytes per source and split, and the groups."""

    def __init__(self) -> None:
        self.rows: Counter[Split] = Counter()
        self._sources: defaultdict[str, dict[Split, Counter[str]]] = defaultdict(lambda: {"train": Counter(), "validation": Counter()})
        self._groups: dict[Split, set[float]] = {"train": set(), "validation": set()}
        self._damages: dict[Split, Counter[str]] = {"train": Counter(), "validation": Counter()}
        self._messages: Counter[int] = Counter()
        self._with_system = 0
        self._answer_characters = array("q")

    def add(self, side: Split, row: Row, group: float) -> None:
        """Count a row; `group` is any number that stands for its group."""
        texts = list(_texts(row))
        counts = self._sources[row.source][side]
        counts["rows"] += 1
        counts["characters"] += sum(map(len, texts))
        counts["utf8_bytes"] += sum(len(text.encode("utf-8")) for text in texts)
        self.rows[side] += 1
        self._groups[side].add(group)
        turns = _turns(row)
        self._messages[len(turns)] += 1
        self._with_system += turns[0].role == "system"
        self._answer_characters.extend(map(len, _answers(row)))
        if isinstance(row, Preference) and row.damage:
            self._damages[side][row.damage] += 1

    def rows_of(self, source: str) -> int:
        """Rows of a source on both sides."""
        return sum(counts["rows"] for counts in self._sources[source].values())

    def stats(self) -> dict[str, Any]:
        """Plain JSON."""
        damages = {side: dict(sorted(counts.items())) for side, counts in self._damages.items() if counts}
        return {
            "rows": {side: self.rows[side] for side in get_args(Split)},
            "sources": {
                source: {side: dict(counts) for side, counts in sides.items() if counts} for source, sides in self._sources.items()
            },
            "groups": {side: len(groups) for side, groups in self._groups.items()},
            **({"damages": damages} if damages else {}),
        }

    def shape(self) -> dict[str, Any]:
        """For the data card: how long conversations (of pairs, what comes before the answers) and answers are."""
        lengths = np.frombuffer(self._answer_characters, np.int64)
        median, ninth_decile, longest = np.percentile(lengths, (50, 90, 100)).tolist()
        return {
            "messages": {str(count): rows for count, rows in sorted(self._messages.items())},
            "with_system": self._with_system,
            "answer_characters": {"median": round(median), "ninth_decile": round(ninth_decile), "longest": round(longest)},
        }
