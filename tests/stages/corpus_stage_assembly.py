"""What the tests of the corpus stage share: its units by phase, and what a folder holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fledge.stages.run import Run

from ..corpus.corpus_assembly import (
    digests,
)

Make = Callable[..., Run]

OPTIONS: dict[str, Any] = {"validation_fraction": 0.2, "shard_documents": 25, "workers": 1}


def corpus_of(run: Run) -> Path:
    return run.folder / "corpus" / "documents"


def kinds(labels: list[str]) -> dict[str, int]:
    """How many units of each phase."""
    found: dict[str, int] = {}
    for label in labels:
        kind = label.partition(" ")[0].rstrip(",")
        found[kind] = found.get(kind, 0) + 1
    return found


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Everything below a folder, with the numbers and times by which a file that was written again is known."""
    return {str(path): (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()}


ALL_UNITS = {"source": 3, "duplicates": 5, "clusters": 1, "shard": 6}


def require_fresh(make: Make, run: Run, **changes: Any) -> None:
    """A build of the same in another folder gives the same files."""
    assert digests(corpus_of(run)) == digests(corpus_of(make("fresh", **changes)))
