"""Where the rows of a benchmark lie: a name and a place -> the benchmark and its file, hashed -> rows, or what is wrong with them.

Nothing is fetched: `fledge benchmarks` does that once, and whoever evaluates needs no network.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledge.core import config
from fledge.core.artifact import hash_json
from fledge.core.errors import ConfigError, DataError
from fledge.corpus.filters.evaluation_files import SUFFIXES, EvaluationFile, find_evaluation_files, records
from fledge.evaluation.benchmarks.definitions import ALIASES, BENCHMARKS, Benchmark, whole_text
from fledge.evaluation.benchmarks.settings import AnyTask, Perplexity, Task
from fledge.evaluation.benchmarks.templates import BadRow

OWN_SUFFIXES = (".yaml", ".yml")
_REMEDY = "give it kind (multiple_choice, last_word, perplexity or generate_exact), file, and the texts of that kind: docs/evaluation.md"


@dataclass(frozen=True)
class PlacedBenchmark:
    """A benchmark with its rows."""

    benchmark: Benchmark
    file: EvaluationFile

    @property
    def name(self) -> str:
        """What its scores are called."""
        return self.benchmark.name

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its questions: the task and the rows."""
        return {**self.benchmark.identity, "file_sha256": self.file.sha256}


@dataclass(frozen=True)
class Row:
    """A row of a file, counted from 1 (lines, if it has lines)."""

    number: int
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Tells it from the other rows of the file, and from another content at the same place."""
        return f"{self.number}-{hash_json(self.values)[:12]}"


def find_benchmark(name: str, place: str | Path) -> PlacedBenchmark:
    """A known benchmark whose rows are a file, or `NAME.*` in a folder; or one's own, if the place is a YAML file.

    Raises DataError if there is no such benchmark or no such file, saying what supplies it; ConfigError for a wrong YAML file.
    """
    path = Path(place).expanduser()
    if path.name.lower().endswith(OWN_SUFFIXES):
        return _own(name, path)
    known = known_benchmark(name)
    [file] = find_evaluation_files([_file_of(known, path)])
    return PlacedBenchmark(known, file)


def find_benchmarks(given: Mapping[str, str]) -> list[PlacedBenchmark]:
    """Those of a recipe's `evaluate.benchmarks`, in their order. Raises DataError, ConfigError."""
    return [find_benchmark(name, place) for name, place in given.items()]


def known_benchmark(name: str) -> Benchmark:
    """Raises DataError naming the known ones."""
    found = BENCHMARKS.get(ALIASES.get(name, name))
    if found is None:
        near = difflib.get_close_matches(name, [*BENCHMARKS, *ALIASES], 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise DataError(f"there is no benchmark {name!r}", f"{hint}known are {', '.join(BENCHMARKS)}; one's own is a YAML file")
    return found


def read_rows(placed: PlacedBenchmark) -> list[Row]:
    """All rows of a benchmark. Raises DataError if there is none, or one is no object with fields."""
    rows = [Row(number, values) for number, values in _numbered(placed)]
    for row in rows:
        if not isinstance(row.values, Mapping):
            raise bad_row(placed, row, BadRow("it is no object with fields"))
    if not rows:
        raise DataError(f"{placed.file.path} holds no row for {placed.name}", "name the file that holds its rows")
    return rows


def bad_row(placed: PlacedBenchmark, row: Row, error: BadRow) -> DataError:
    """The error of a row that cannot be asked, with its place."""
    unit = "row" if placed.file.path.name.lower().endswith((".parquet", ".json")) else "line"
    return DataError(
        f"{placed.file.path}, {unit} {row.number}, is no question of {placed.name}: {error}",
        "mend the row, or name the file that holds the rows as they are published",
    )


def _numbered(placed: PlacedBenchmark) -> list[tuple[int, Any]]:
    found = list(records(placed.file))
    if len(found) != 1 or not isinstance(found[0][1], str):
        return found
    cut = placed.benchmark.cut_text
    if cut is None:
        raise DataError(
            f"{placed.file.path} is a text, but {placed.name} asks questions of rows with fields", "name a file of JSON Lines or Parquet"
        )
    return list(enumerate(cut(found[0][1]), 1))


def _file_of(benchmark: Benchmark, place: Path) -> Path:
    if not place.is_dir():
        if place.is_file():
            return place
        raise _missing(benchmark, f"there is no file or folder {place}", place.parent if place.suffix else place)
    found = rows_in(place, benchmark.name)
    if len(found) != 1:
        what = f"no file {benchmark.name}.*" if not found else f"more than one file {', '.join(path.name for path in found)}"
        raise _missing(benchmark, f"there is {what} in {place}", place)
    return found[0]


def rows_in(folder: Path, name: str) -> list[Path]:
    """The files in a folder that hold the rows of a benchmark by their names."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name in {f"{name}{end}" for end in SUFFIXES})


def _missing(benchmark: Benchmark, problem: str, folder: Path) -> DataError:
    if benchmark.published is None:
        return DataError(f"{problem} for {benchmark.name}", "name a text file")
    source = benchmark.published
    return DataError(
        f"{problem} with the rows of {benchmark.name}",
        f"fetch it once: fledge benchmarks {benchmark.name} --to {folder}; "
        f"or name a file of {source.repository} ({source.config}, {source.split}) as JSON Lines or Parquet",
    )


def _own(name: str, path: Path) -> PlacedBenchmark:
    try:
        task: Task = config.parse(AnyTask, config.read(path))  # type: ignore[arg-type]  # an annotated union
    except ConfigError as error:
        raise ConfigError(f"{path} does not describe a benchmark: {error.problem}", _REMEDY) from error
    if task.file is None:
        raise DataError(f"{path} names no file with the rows of {name}", "add: file: ROWS.jsonl")
    [file] = find_evaluation_files([path.parent / Path(task.file).expanduser()])
    cut = whole_text if isinstance(task, Perplexity) else None
    return PlacedBenchmark(Benchmark(name, name, replace(task, file=None), cut_text=cut), file)
