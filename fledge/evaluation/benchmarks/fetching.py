"""The rows of known benchmarks, fetched once: the hub's Parquet copies -> a folder with one file per benchmark, whole and right or absent.

The same code reads the hub for a corpus: a file is named by its commit and hash, continued where it broke off, and checked.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.core import console, disk
from fledge.core.errors import DataError
from fledge.corpus.sources import hub
from fledge.corpus.sources.remote import cache_path, download, is_whole
from fledge.evaluation.benchmarks.definitions import BENCHMARKS, Benchmark
from fledge.evaluation.benchmarks.places import known_benchmark

PARQUET_BRANCH = "refs/convert/parquet"


@dataclass(frozen=True)
class Fetched:
    """The rows of a benchmark as they lie here now."""

    name: str
    path: Path
    repository: str
    commit: str
    size_bytes: int


def fetch_benchmarks(names: Sequence[str], folder: Path) -> list[Fetched]:
    """Bring the rows of benchmarks (`all`: of every known one) into a folder; what is there already is not fetched again.

    Raises DataError for an unknown name, MachineError if the hub does not answer or the folder cannot be written.
    """
    known = [one for one in BENCHMARKS.values() if one.published] if list(names) == ["all"] else [known_benchmark(name) for name in names]
    with console.progress("fetch benchmarks", None, "bytes") as progress:
        return [_fetch(one, folder, progress.advance) for one in known]


def _fetch(benchmark: Benchmark, folder: Path, advance: Callable[[int], None]) -> Fetched:
    published = benchmark.published
    if published is None:
        raise DataError(f"{benchmark.name} has no rows of its own", "name any text file for it")
    target = folder / f"{benchmark.name}.parquet"
    kept = _fetched_before(benchmark.name, target, published.repository)
    if kept is not None:
        return kept
    commit = hub.commit_of(published.repository, PARQUET_BRANCH)
    files = hub.list_files(published.repository, published.files, commit, None).files
    if len(files) != 1:
        raise DataError(
            f"{published.repository} has {len(files)} files at {published.files} of {PARQUET_BRANCH}, not one",
            f"convert the rows of its {published.split} split to JSON Lines yourself, and name that file",
        )
    [file] = files
    # A partial download is continued only under a name that says which content it is.
    partial = cache_path(file, folder / ".partial")
    if not (is_whole(target, file) and disk.digest_file(target).sha256 == file.fingerprint):
        download(file, partial, advance)
        disk.remove(target)
        disk.move(partial, target)
        disk.remove(folder / ".partial")
    disk.write_json(_record(target), {"repository": published.repository, "commit": commit, "sha256": disk.digest_file(target).sha256})
    return Fetched(benchmark.name, target, published.repository, commit, file.size_bytes)


def _record(target: Path) -> Path:
    """What is remembered of a file; hidden, so that it is no row of anything."""
    return target.with_name(f".{target.stem}.json")


def _fetched_before(name: str, target: Path, repository: str) -> Fetched | None:
    """The rows as they were fetched, without asking the hub; None if they are not there, damaged, or another's."""
    try:
        told, found = json.loads(_record(target).read_bytes()), disk.digest_file(target)
    except (OSError, ValueError):
        return None
    if not isinstance(told, dict) or (told.get("repository"), told.get("sha256")) != (repository, found.sha256):
        return None
    return Fetched(name, target, repository, str(told.get("commit")), found.size_bytes)
