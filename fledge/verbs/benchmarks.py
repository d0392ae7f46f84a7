"""`fledge benchmarks`: which ones are known by name, and their rows fetched once, so that evaluations need no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fledge.core import console
from fledge.core.console import format_bytes
from fledge.evaluation.benchmarks.definitions import BENCHMARKS
from fledge.evaluation.benchmarks.fetching import fetch_benchmarks


def list_benchmarks() -> None:
    """Print the known benchmarks and where their rows are published."""
    rows = []
    for one in BENCHMARKS.values():
        where = "any text file" if one.published is None else f"{one.published.repository} {one.published.files}"
        rows.append([one.name, one.title, one.task.kind, where])
    console.table("benchmarks", ["name", "title", "kind", "rows"], rows)


def fetch(names: Sequence[str], folder: Path) -> None:
    """Bring their rows into a folder, and say how a recipe names them. Raises DataError, MachineError."""
    found = fetch_benchmarks(names, folder)
    rows = [[one.name, str(one.path), format_bytes(one.size_bytes), f"{one.repository}@{one.commit[:12]}"] for one in found]
    console.table("fetched", ["name", "file", "size", "from"], rows)
    named = ", ".join(f"{one.name}: {one.path}" for one in found)
    console.info(f"in a recipe: evaluate: {{benchmarks: {{{named}}}}}")
