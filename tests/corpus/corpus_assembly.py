"""Small corpora for the tests of the factory and of its stage; also the command line as a program that cuts its work into small parts.

python corpus_assembly.py PIECE_BYTES WORTH_PROCESSES_BYTES ARGUMENT...     the arguments are those of `fledge`
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from fledge.core import disk
from fledge.corpus import build, factory, rows
from fledge.corpus.engine import pool, ranks
from fledge.corpus.engine.pool import LocalExecutor
from fledge.corpus.engine.units import Executor, Unit, WorkFolder
from fledge.corpus.filters.evaluation_files import find_evaluation_files
from fledge.corpus.resolve import resolve_sources
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.reading import cut_pieces
from fledge.corpus.sources.settings import Content, JsonLinesSource, Source

WORDS = [first + second for first in ("ba", "ke", "li", "mo", "nu", "ra", "se", "ti") for second in ("bel", "dor", "fin", "gar", "hun")]
MANIFEST = "manifest.json"


def sentences(source: random.Random, words: int) -> str:
    """Prose that no rule of the presets drops, if it is long enough."""
    said: list[str] = []
    while len(said) < words:
        chosen = source.choices(WORDS, k=9)
        said += [chosen[0].capitalize(), "and", "the", *chosen[1:5], "of", "that", *chosen[5:8], f"{chosen[8]}{source.randrange(10**6)}."]
    return " ".join(said)


def texts(count: int, seed: int = 0, words: int = 30) -> list[str]:
    source = random.Random(seed)
    return [sentences(source, words) for _ in range(count)]


def near_copy(text: str, number: int = 0) -> str:
    """The same but for its last word."""
    return f"{text.rpartition(' ')[0]} otherwise{number}."


def write_lines(path: Path, given: Iterable[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in given), encoding="utf-8")
    return path


def lines_source(path: Path, name: str = "", **values: Any) -> JsonLinesSource:
    return JsonLinesSource(name=name or path.name.partition(".")[0], path=str(path), **values)


def settings(*sources: Source, **values: Any) -> CorpusSettings:
    return CorpusSettings(sources=sources, **values)


def built(
    folder: Path, wanted: CorpusSettings, content: Content = "documents", evaluation: Sequence[Path] = (), executor: Executor | None = None
) -> dict[str, Any]:
    """Make one content in `folder/corpus`, with its intermediate results in `folder/work`; returns the headline figures."""
    sources = resolve_sources(wanted, content, folder / "work")
    files = find_evaluation_files(evaluation)
    with disk.staging(folder / "corpus") as partial:
        if content != "documents":
            return rows.build_rows(wanted, content, sources, files, partial)
        made = factory.Factory(wanted, files, WorkFolder(folder / "work"), executor or LocalExecutor(1))
        return build.build_documents(made, wanted, sources, files, partial)


def statistics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / build.STATS).read_text(encoding="utf-8"))
    return found


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of an artifact but the manifest, which tells the seconds it took."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def cut_small(monkeypatch: pytest.MonkeyPatch, piece_bytes: int, worth_bytes: int | None = None) -> None:
    """Cut files into small pieces; with `worth_bytes`, processes are started for so little work."""
    monkeypatch.setattr(factory, "cut_pieces", functools.partial(cut_pieces, piece_bytes=piece_bytes))
    monkeypatch.setattr(rows, "cut_pieces", functools.partial(cut_pieces, piece_bytes=piece_bytes))
    if worth_bytes is not None:
        monkeypatch.setattr(pool, "_WORTH_PROCESSES_BYTES", worth_bytes)


def spy_on_units(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the units that are run in this process from now on, those that are found left out."""
    made: list[str] = []
    make = WorkFolder.make

    def noted(work: WorkFolder, unit: Unit) -> Any:
        made.append(unit.label)
        return make(work, unit)

    monkeypatch.setattr(WorkFolder, "make", noted)
    return made


def spy_on_workers(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The worker processes that are started from now on."""
    started: list[object] = []
    start = pool._Worker.start

    def noted(worker: pool._Worker) -> None:
        started.append(worker)
        start(worker)

    monkeypatch.setattr(pool._Worker, "start", noted)
    return started


def program(*arguments: str, piece_bytes: int = 1 << 26, worth_bytes: int = 0, folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Start `fledge` with small pieces in a folder; a rank among several has little patience with the others."""
    command = [sys.executable, str(Path(__file__)), str(piece_bytes), str(worth_bytes), *arguments]
    return subprocess.Popen(
        command, cwd=folder, env={**os.environ, "NO_COLOR": "1", **environment}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def in_a_fork(act: Callable[[], object]) -> int:
    """Run something in a copy of this process; returns how the copy ended, as `os.waitstatus_to_exitcode` tells."""
    child = os.fork()
    if child == 0:
        try:
            # What it says is of no interest, and must not be said twice.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1)
            os.dup2(null, 2)
            act()
        finally:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    piece_bytes, worth_bytes = int(sys.argv[1]), int(sys.argv[2])
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, piece_bytes, worth_bytes)
        patch.setattr(ranks, "_PATIENCE_SECONDS", 3.0)
        sys.argv = ["fledge", *sys.argv[3:]]
        from fledge.cli import main as fledge

        fledge()


if __name__ == "__main__":
    main()
