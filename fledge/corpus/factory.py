"""The corpus of documents, phase by phase: clean -> duplicates -> clusters -> shards, all as units that any executor can run.

    sources -> pieces -> CleanUnit   one per piece: read, clean, judge, hash                     clean.py
                      -> EdgeUnit    one per band and part of the key space: rows with equal keys duplicates.py
                      -> ClusterUnit one: which row of a cluster stays, which side it lies on
                      -> ShardUnit   one per output file                                          shards.py

A unit's key holds everything that decides its bytes, so a rerun after a kill or an edit makes exactly what is missing or depends
on the edit, and any number of workers makes the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from fledge.core.config import identity
from fledge.core.errors import DataError
from fledge.corpus.clean import REJECTS, CleanUnit, Steps
from fledge.corpus.document import Split
from fledge.corpus.duplicates import ClusterUnit, edge_units, samples
from fledge.corpus.engine.units import Done, Executor, WorkFolder
from fledge.corpus.filters.evaluation_files import EvaluationFile
from fledge.corpus.limits import Limits, limits_of
from fledge.corpus.rejects import Rejects
from fledge.corpus.resolve import Resolved, here_files, require_few_rejects, waves
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.shards import ShardUnit, shard_units
from fledge.corpus.sources.reading import cut_pieces
from fledge.corpus.split import Splitter
from fledge.corpus.tally import Counts, merged


@dataclass(frozen=True)
class Cleaned:
    """What phase 1 made of one source."""

    resolved: Resolved
    done: tuple[Done, ...]
    rejects: Rejects

    @property
    def counts(self) -> Counts:
        """Of all its pieces."""
        return merged(done.counts for done in self.done)


@dataclass(frozen=True)
class Surveyed:
    """What is known before a shard is written: everything the data card tells but the shards."""

    cleaned: tuple[Cleaned, ...]
    clusters: Done

    @property
    def clean(self) -> tuple[Done, ...]:
        """All clean units in order: what rows are numbered over."""
        return tuple(done for cleaned in self.cleaned for done in cleaned.done)


class Factory:
    """Makes a corpus of documents in a work folder with the help of an executor."""

    def __init__(self, settings: CorpusSettings, evaluation_files: Sequence[EvaluationFile], work: WorkFolder, executor: Executor) -> None:
        self._settings, self._work, self._executor = settings, work, executor
        self._steps = Steps(
            settings.cleaning,
            settings.quality,
            settings.deduplicate,
            tuple(evaluation_files),
            settings.decontaminate.shingle_words,
            Splitter(settings.validation_fraction, settings.seed),
            settings.compress_work,
        )
        self._used: set[str] = set()
        """Keys of all units that were needed, those that only showed where a limit lies among them."""

    def survey(self, sources: Sequence[Resolved], may_be_empty: bool = False) -> Surveyed:
        """Phases 1 to 3. Raises DataError if a source has too many rejects, or, unless it `may_be_empty`, nothing is left of it."""
        cleaned = tuple(self._clean(resolved, may_be_empty) for resolved in sources)
        clean = tuple(done for each in cleaned for done in each.done)
        wanted = edge_units(clean, self._settings.deduplicate)
        edges = self._run("looking for duplicates", wanted)
        keep = "all" if self._settings.deduplicate.kind == "none" else self._settings.deduplicate.keep
        clustering = ClusterUnit(clean, edges, keep, self._settings.validation_fraction)
        [clusters] = self._run("joining duplicates", [clustering])
        return Surveyed(cleaned, clusters)

    def shards(self, surveyed: Surveyed) -> tuple[list[ShardUnit], tuple[Done, ...]]:
        """Phase 4: the shards, each in the folder of its unit."""
        units = shard_units(surveyed.clean, surveyed.clusters, self._settings)
        return units, self._run("writing shards", units)

    @property
    def used(self) -> frozenset[str]:
        """Keys of all units that were needed so far: what to keep for a rerun."""
        return frozenset(self._used)

    def _clean(self, resolved: Resolved, may_be_empty: bool) -> Cleaned:
        source, left = resolved.source, limits_of(resolved.source)
        taken: list[Done] = []
        # A limit may spare us the download of most files.
        for files in [resolved.files] if left.endless else waves(source, resolved.files):
            if left.exhausted:
                break
            here = here_files(self._settings, source, files)
            units = [CleanUnit(source, resolved.fingerprint_of(piece), piece, left, self._steps) for piece in cut_pieces(source, here)]
            taken += self._up_to(left, f"cleaning {source.name}", units)
            left = _left(limits_of(source), taken)
        rejects = Rejects.merged(Rejects.read(result.folder / REJECTS) for result in taken)
        require_few_rejects(source, rejects)
        cleaned = Cleaned(resolved, tuple(taken), rejects)
        if not may_be_empty:
            _require_documents(cleaned)
        return cleaned

    def _up_to(self, limits: Limits, label: str, units: Sequence[CleanUnit]) -> Iterator[Done]:
        """The pieces up to the limits. Each is read as if it were the first; that in which the rest runs out, again up to the rest."""
        results = self._executor.run(label, units, self._work, lambda done: _left(limits, done).exhausted)
        self._used.update(result.key for result in results if result is not None)
        left = limits
        for unit, result in zip(units, results, strict=True):
            if left.exhausted:
                return
            assert result is not None, "pieces before the limit have been read"
            following = _left(left, [result])
            if following.exhausted and left != limits:
                [result] = self._run(label, [replace(unit, limits=left)])
            yield result
            left = following

    def _run(self, label: str, units: Sequence[Any]) -> tuple[Done, ...]:
        results = self._executor.run(label, units, self._work)
        self._used.update(result.key for result in results if result is not None)
        return tuple(result for result in results if result is not None)


def _left(limits: Limits, results: Iterable[Done | None]) -> Limits:
    """What is still to be taken after the pieces that are done without a gap before them."""
    for result in results:
        if result is None:
            break
        read = result.counts["read"]
        limits = limits.after(read.get("documents", 0), read.get("utf8_bytes", 0))
    return limits


def _require_documents(cleaned: Cleaned) -> None:
    counts, source = cleaned.counts, cleaned.resolved.source
    if counts["kept"].get("documents", 0):
        return
    rejected = cleaned.rejects.count(source.name)
    found = f"{cleaned.rejects.seen[source.name]:,} read, {rejected:,} rejected"
    dropped = ", ".join(f"{rule} {count:,}" for rule, count in counts.get("dropped", {}).items())
    raise DataError(
        f"source {source.name} gives 0 documents ({found}{f'; dropped: {dropped}' if dropped else ''})",
        "name a source with text in it, leave this one out, or drop fewer (corpus.quality, corpus.decontaminate)",
    )


def statistics(settings: CorpusSettings, surveyed: Surveyed, evaluation_files: Sequence[EvaluationFile]) -> dict[str, Any]:
    """What `stats.json` and the data card tell, but for the shards."""
    counts = surveyed.clusters.counts
    duplicates = {name: counts[name] for name in ("exact", "near", "clusters", "largest", "sizes")}
    kinds = {"kind": settings.deduplicate.kind, "keep": settings.deduplicate.keep}
    return {
        "content": "documents",
        "kept": counts["kept"]["documents"],
        "rejects": {name: stats for cleaned in surveyed.cleaned for name, stats in cleaned.rejects.stats().items()},
        "filters": {cleaned.resolved.source.name: cleaned.counts for cleaned in surveyed.cleaned},
        "duplicates": {
            **kinds,
            **duplicates,
            "samples": samples(surveyed.clean, surveyed.clusters, settings.deduplicate.shingle_words),
        },
        "evaluation_files": [file.name for file in evaluation_files],
        "provenance": [cleaned.resolved.provenance() for cleaned in surveyed.cleaned],
        "settings": _settings_told(settings),
    }


def _settings_told(settings: CorpusSettings) -> dict[str, Any]:
    """For the data card. Where the files of own rules lie says nothing to others."""
    told = {name: value for name, value in identity(settings).items() if name != "sources"}
    told["quality"]["own_rules"] = [Path(rule).name for rule in settings.quality.own_rules]
    return told


def shard_statistics(shards: Sequence[ShardUnit], done: Sequence[Done], surveyed: Surveyed, groups: dict[Split, int]) -> dict[str, Any]:
    """Rows, characters and bytes on each side, by source."""
    sources: dict[str, dict[Split, dict[str, int]]] = {cleaned.resolved.source.name: {} for cleaned in surveyed.cleaned}
    for shard, result in zip(shards, done, strict=True):
        for source, counts in result.counts["sources"].items():
            side = sources[source].setdefault(shard.split, {})
            for name, count in counts.items():
                side[name] = side.get(name, 0) + count
    rows = {split: sum(sides[split]["rows"] for sides in sources.values() if split in sides) for split in get_args(Split)}
    return {"rows": rows, "sources": sources, "groups": groups}
