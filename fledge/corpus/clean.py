"""Phase 1 of a corpus, one unit per piece: rows are read, cleaned, judged and hashed; what stays is written with its hashes.

A unit's folder holds, for the documents that no rule dropped and in their order:

    documents.arrow   text, id, source, group ("" where the source names none), in record batches of 1,024
    exact.npy         (n, 2) uint64: hash of the normalised words
    bands.npy         (bands, n) uint64: keys under which near duplicates meet
    characters.npy, utf8_bytes.npy   (n,) int64: lengths
    draws.npy         (n,) float64: where in [0, 1) the document's own group falls for the split
    given.npy         (n,) bool: whether that group came from the source
    batch_rows.npy    rows of each record batch, so that a stretch of rows is found without reading what is before it
    rejects.json      what could not be read, with its place

Texts flow in batches, so memory does not depend on the size of the piece.
"""

from __future__ import annotations

import functools
import itertools
import platform
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from fledge.core import __version__, disk
from fledge.core.artifact import hash_json
from fledge.core.config import identity
from fledge.corpus.batches import DocumentBatch, Origins
from fledge.corpus.characters import UNICODE_VERSION
from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.dedup.signatures import signatures
from fledge.corpus.document import Document
from fledge.corpus.engine.telling import tell
from fledge.corpus.filters.cleaning import Cleaner
from fledge.corpus.filters.contamination import Contamination
from fledge.corpus.filters.evaluation_files import EvaluationFile
from fledge.corpus.filters.quality import QualityFilter
from fledge.corpus.filters.settings import CleaningStep, QualitySettings
from fledge.corpus.limits import Limits
from fledge.corpus.rejects import Rejects
from fledge.corpus.sources.piece import Piece
from fledge.corpus.sources.reading import expected_text_bytes, read_batches
from fledge.corpus.sources.settings import Source
from fledge.corpus.split import Splitter
from fledge.corpus.tally import Tally, Texts

DOCUMENTS = "documents.arrow"
EXACT, BANDS, CHARACTERS, DRAWS, GIVEN = "exact.npy", "bands.npy", "characters.npy", "draws.npy", "given.npy"
UTF8_BYTES = "utf8_bytes.npy"
BATCH_ROWS = "batch_rows.npy"
REJECTS = "rejects.json"
EMPTY = "empty"
CONTAMINATED = "contaminated"

_FORMAT = 1
_RECORD_ROWS = 1_024
_LANGUAGES_WORK = 8
"""How many times the work without: 6 to 15 MB per CPU second instead of 60."""
_OWN_RULES_WORK = 100
"""Python, which may take any time."""


@dataclass(frozen=True)
class Steps:
    """What is done to every document; made once for all units of a build."""

    cleaning: tuple[CleaningStep, ...]
    quality: QualitySettings
    deduplicate: DeduplicateSettings
    evaluation_files: tuple[EvaluationFile, ...]
    contamination_words: int
    splitter: Splitter
    compress_work: bool = False
    """Changes how what is kept lies on the disk, not what it is."""

    @functools.cached_property
    def identity(self) -> Any:
        """Plain JSON of everything that decides what a document becomes."""
        hashing = {name: value for name, value in identity(self.deduplicate).items() if name != "keep"}
        return {
            "cleaning": Cleaner(self.cleaning).identity,
            "quality": QualityFilter(self.quality).identity,
            "deduplicate": hashing,
            "contamination": [[file.name, file.sha256] for file in self.evaluation_files],
            "contamination_words": self.contamination_words,
            "split_seed": self.splitter.seed,
            "unicode": UNICODE_VERSION,
        }


@dataclass(frozen=True)
class CleanUnit:
    """Reads one piece of a source and keeps what passes."""

    source: Source
    fingerprint: str
    """Of what the piece reads."""
    piece: Piece
    limits: Limits
    steps: Steps

    @functools.cached_property
    def key(self) -> str:
        where = {"start": self.piece.start, "end": self.piece.end, "fingerprint": self.fingerprint}
        return hash_json([_FORMAT, __version__, reading_identity(self.source), where, identity(self.limits), self.steps.identity])

    @property
    def label(self) -> str:
        if not self.piece.files:
            return f"source {self.source.name}"
        stretch = f" from {self.piece.start:,}" if self.piece.start else ""
        return f"source {self.source.name}, {self.piece.files[0].name}{stretch}"

    @property
    def size_bytes(self) -> int:
        return self.piece.size_bytes

    @property
    def work_bytes(self) -> int:
        quality = self.steps.quality
        factor = _OWN_RULES_WORK if quality.own_rules else _LANGUAGES_WORK if quality.languages else 1
        return factor * expected_text_bytes(self.source, self.piece)

    def run(self, folder: Path) -> dict[str, Any]:
        rejects, tally = Rejects(), Tally()
        process = _Process(self.steps, tally)
        expected_bytes = expected_text_bytes(self.source, self.piece)
        with _KeptWriter(folder, self.steps) as kept:
            for batch in read_batches(self.source, self.piece, rejects, self.steps.splitter, self.limits):
                kept.add(*process(batch))
                tell(tally.how_far(expected_bytes))
        disk.write_json(folder / REJECTS, rejects.as_json())
        return tally.counts()


def reading_identity(source: Source) -> Any:
    """What of a source's settings decides a row when it is read: not its licence, and the limits are a unit's own."""
    free = replace(source, license="", maximum_documents=None, maximum_bytes=None, maximum_tokens_estimate=None)
    kind = {"python": platform.python_version()} if source.kind == "python_docs" else {}
    return {**identity(free), **kind}


class _Process:
    """Takes a batch of documents through the steps and counts what happens to them."""

    def __init__(self, steps: Steps, tally: Tally) -> None:
        self._steps, self._tally = steps, tally
        self._cleaner = Cleaner(steps.cleaning)
        self._quality = QualityFilter(steps.quality)
        self._contamination = _contamination(steps.evaluation_files, steps.contamination_words)

    def __call__(self, batch: DocumentBatch) -> tuple[Texts, Origins]:
        """The texts that stay, and where they come from."""
        given = Texts.of(batch.texts)
        self._tally.read(given)
        array, changed = self._cleaner(given.array)
        texts = given.changed_to(array)
        self._tally.count("changed", changed)

        def document_of(position: int) -> Document:
            return batch.document(position, texts[position])

        verdicts = self._quality(texts.array, document_of)
        self._tally.count("failed", verdicts.failed)
        self._tally.count("removed_lines", verdicts.removed_lines)
        names = (*verdicts.names, EMPTY)
        reason = verdicts.reason.astype(np.int64)
        left = texts.changed_to(verdicts.texts)
        reason[left.are_blank() & (reason == 0)] = len(names)
        self._count_dropped(batch.origins, texts, reason, names)
        if verdicts.languages is not None:
            kept_languages = itertools.compress(verdicts.languages, reason == 0)
            self._tally.count("languages", Counter(kept_languages))
        return self._decontaminated(left.chosen(reason == 0), batch.origins.chosen(reason == 0))

    def _decontaminated(self, texts: Texts, origins: Origins) -> tuple[Texts, Origins]:
        if self._contamination is not None:
            file_index = self._contamination(texts.array)
            hits = Counter(int(index) for index in file_index if index >= 0)
            self._tally.count("contaminated", {self._steps.evaluation_files[index].name: count for index, count in hits.items()})
            self._count_dropped(origins, texts, (file_index >= 0).astype(np.int64), (CONTAMINATED,))
            texts, origins = texts.chosen(file_index < 0), origins.chosen(file_index < 0)
        self._tally.kept(texts)
        return texts, origins

    def _count_dropped(self, origins: Origins, texts: Texts, reason: NDArray[np.int64], names: Sequence[str]) -> None:
        for code in np.unique(reason[reason > 0]):
            positions = np.flatnonzero(reason == code)
            ids = origins.ids.take(pa.array(positions)).to_pylist()
            shown = (texts[position] for position in positions.tolist())
            self._tally.dropped(names[int(code) - 1], ids, shown, int(texts.utf8_bytes[positions].sum()))


@functools.lru_cache(maxsize=2)
def _contamination(files: tuple[EvaluationFile, ...], words: int) -> Callable[[pa.LargeStringArray], NDArray[np.int32]] | None:
    """Made once in a process, for all its units."""
    return Contamination(files, words) if files else None


KEPT_SCHEMA = pa.schema([("text", pa.large_string()), ("id", pa.string()), ("source", pa.string()), ("group", pa.string())])


class _KeptWriter:
    """Writes what stays, and gathers its hashes and sizes until the end."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        self._folder, self._steps = folder, steps
        options = pa.ipc.IpcWriteOptions(compression="lz4" if steps.compress_work else None)
        self._file = pa.ipc.new_file(folder / DOCUMENTS, KEPT_SCHEMA, options=options)
        bands = steps.deduplicate.bands if steps.deduplicate.kind == "near" else 0
        self._exact = [np.empty((0, 2), np.uint64)]
        self._bands = [np.empty((bands, 0), np.uint64)]
        self._characters = [np.empty(0, np.int64)]
        self._sizes = [np.empty(0, np.int64)]
        self._draws = [np.empty(0)]
        self._given = [np.empty(0, bool)]
        self._batch_rows: list[int] = []

    def __enter__(self) -> _KeptWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            arrays: dict[str, NDArray[Any]] = {
                EXACT: np.concatenate(self._exact),
                BANDS: np.concatenate(self._bands, axis=1),
                CHARACTERS: np.concatenate(self._characters),
                UTF8_BYTES: np.concatenate(self._sizes),
                DRAWS: np.concatenate(self._draws),
                GIVEN: np.concatenate(self._given),
                BATCH_ROWS: np.array(self._batch_rows, np.int64),
            }
            for name, array in arrays.items():
                np.save(self._folder / name, array, allow_pickle=False)

    def add(self, texts: Texts, origins: Origins) -> None:
        """Append documents."""
        found = signatures(texts.array, self._steps.deduplicate)
        given = np.asarray(pc.binary_length(origins.groups)) > 0
        names = group_names(found.exact)
        if given.any():
            names = [named or own for named, own in zip(origins.groups.to_pylist(), names, strict=True)]
        self._exact.append(found.exact)
        self._bands.append(found.bands)
        self._characters.append(texts.characters)
        self._sizes.append(texts.utf8_bytes)
        self._draws.append(np.array([self._steps.splitter.draw(name) for name in names], np.float64))
        self._given.append(given)
        rows = pa.record_batch([texts.array, origins.ids, origins.sources, origins.groups], schema=KEPT_SCHEMA)
        for start in range(0, len(origins), _RECORD_ROWS):
            record = rows.slice(start, _RECORD_ROWS)
            self._file.write_batch(record)
            self._batch_rows.append(record.num_rows)


def group_names(exact: NDArray[np.uint64]) -> list[str]:
    """Groups of documents whose source names none: their exact hashes, so exact duplicates share one. (n, 2) -> n of 32 digits."""
    digits = exact.astype(">u8").tobytes().hex()
    return [digits[start : start + 32] for start in range(0, len(digits), 32)]
