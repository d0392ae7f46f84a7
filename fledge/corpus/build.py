"""The factory's documents become a corpus folder: shards, split by group, what was left out, and what became of everything.

Conversations and preference pairs, which are few, have a way of their own (rows.py).
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fledge.core import console, disk
from fledge.corpus.card import card_page, data_card
from fledge.corpus.document import Content, Split
from fledge.corpus.duplicates import FIRST, KEEP, SIDE
from fledge.corpus.factory import Factory, Surveyed, shard_statistics, statistics
from fledge.corpus.filters.evaluation_files import EvaluationFile
from fledge.corpus.rejects import REJECTS_FILE, Rejects
from fledge.corpus.resolve import Resolved
from fledge.corpus.settings import CorpusSettings

STATS, DATA_CARD, CARD_PAGE = "stats.json", "DATA_CARD.md", "card.html"

_ROW_GROUP_ROWS = 1_024


def build_documents(
    factory: Factory,
    settings: CorpusSettings,
    sources: Sequence[Resolved],
    evaluation_files: Sequence[EvaluationFile],
    folder: Path,
) -> dict[str, Any]:
    """Fill `folder` with the shards of documents, `rejects.jsonl`, `stats.json` and the data card; returns the headline figures.

    Raises DataError if nothing is left of a source.
    """
    surveyed = factory.survey(sources)
    shards, done = factory.shards(surveyed)
    for shard, result in zip(shards, done, strict=True):
        disk.link(result.folder / shard.name, folder / shard.name)
    groups = _group_counts(surveyed)
    stats = {**statistics(settings, surveyed, evaluation_files), **shard_statistics(shards, done, surveyed, groups)}
    write_card(folder, stats)
    write_rejects(folder, [cleaned.rejects for cleaned in surveyed.cleaned])
    warn_of_gaps(settings, "documents", stats)
    return {**_headline(stats), **python_version(sources)}


def write_card(folder: Path, stats: dict[str, Any]) -> None:
    """`stats.json`, `DATA_CARD.md` and `card.html`."""
    disk.write_json(folder / STATS, stats)
    disk.write_text(folder / DATA_CARD, data_card(stats))
    disk.write_text(folder / CARD_PAGE, card_page(stats))


def write_rejects(folder: Path, rejects: Sequence[Rejects]) -> None:
    """`rejects.jsonl`, if there are any."""
    if any(rejected.kept for rejected in rejects):
        disk.write_bytes(folder / REJECTS_FILE, (line for rejected in rejects for line in rejected.lines()))


def warn_of_gaps(settings: CorpusSettings, content: Content, stats: dict[str, Any]) -> None:
    """Say where nothing is left to measure on, or of a source."""
    if settings.validation_fraction > 0 and not stats["rows"]["validation"]:
        console.warn(f"the corpus has no validation {content}: too few to hold any out, so nothing will be measured on unseen text")
    for source, sides in stats["sources"].items():
        if not sides:
            console.warn(f"nothing is left of source {source}: all its documents occur in the sources before it")


def python_version(sources: Sequence[Resolved]) -> dict[str, str]:
    """Which Python a corpus was built with, where that decides its text."""
    return {"python": platform.python_version()} if any(resolved.source.kind == "python_docs" for resolved in sources) else {}


def _headline(stats: dict[str, Any]) -> dict[str, Any]:
    """What the manifest tells; the rest is in `stats.json`."""
    filters = stats["filters"].values()
    read = sum(counts["read"].get("documents", 0) for counts in filters)
    dropped: Counter[str] = Counter()
    for counts in filters:
        dropped.update(counts.get("dropped", {}))
    duplicates = {name: stats["duplicates"][name] for name in ("exact", "near")}
    return {
        **{name: stats[name] for name in ("rows", "sources", "groups", "rejects")},
        "read": read,
        "dropped": dict(dropped),
        "duplicates": duplicates,
    }


def _group_counts(surveyed: Surveyed) -> dict[Split, int]:
    """Clusters with a row on each side: exact duplicates always share one, so clusters and the hashes that name groups are one to one."""
    first, keep, held_out = (np.load(surveyed.clusters.folder / name, mmap_mode="r") for name in (FIRST, KEEP, SIDE))
    return {"train": _distinct(first, keep & ~held_out), "validation": _distinct(first, keep & held_out)}


def _distinct(first: NDArray[np.int64], rows: NDArray[np.bool_]) -> int:
    """How many clusters the rows are of. Marked, not sorted: at 6 million rows np.unique of the hashes takes 520 MB and 16 s."""
    is_there = np.zeros(first.size, bool)
    is_there[first[rows]] = True
    return int(is_there.sum())
