from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.core import disk
from fledge.core.errors import DataError, MachineError
from fledge.corpus.rejects import Rejects
from fledge.corpus.resolve import resolve_sources
from fledge.corpus.sources import reading
from fledge.corpus.sources.download import download
from fledge.corpus.sources.piece import Piece
from fledge.corpus.sources.settings import AnySource, HubSource, JsonLinesSource

from ..corpus_assembly import settings
from .servers import Fault, Hub

DOCUMENTS = 1_000
TEXTS = [f"document {number} " + "\u00e9" * (number % 7) for number in range(DOCUMENTS)]
PIECE_BYTES = 4_000  # about 100 documents


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    cut_pieces = reading.cut_pieces
    monkeypatch.setattr(reading, "_OPENING_BYTES", 0)
    monkeypatch.setattr(reading, "cut_pieces", lambda source, files: cut_pieces(source, files, PIECE_BYTES))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four files of 250 documents."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(4):
        lines = [json.dumps({"text": text}) for text in TEXTS[number * 250 : (number + 1) * 250]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def chunks(folder: Path) -> dict[str, bytes]:
    """What the folder of source `a` holds besides its progress file."""
    found = {path.name: path.read_bytes() for path in sorted((folder / "a").iterdir()) if path.is_file()}
    return {name: content for name, content in found.items() if not name.startswith("progress.json")}


def texts(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for content in chunks(folder).values() for line in content.splitlines()]


def get(source: AnySource, folder: Path, workers: int = 3, chunk_documents: int = 130, count: int | None = None) -> dict[str, int]:
    cache = folder.parent / "cache"
    resolved = resolve_sources(settings(source, cache_folder=str(cache)), "documents", folder.parent / "work")  # type: ignore[arg-type]
    return download(resolved, folder, cache, workers, chunk_documents, count)["a"]


def test_all_rows_in_order_whatever_the_number_of_readers(data: Path, tmp_path: Path) -> None:
    source = JsonLinesSource(name="a", path=str(data))
    made = []
    for workers in (1, 2, 7):
        counts = get(source, tmp_path / f"of-{workers}", workers)
        utf8_bytes = sum(len(text.encode()) for text in TEXTS)
        assert counts == {"chunks": 8, "documents": DOCUMENTS, "utf8_bytes": utf8_bytes, "seen": DOCUMENTS, "rejected": 0}
        made.append(chunks(tmp_path / f"of-{workers}"))
    assert made[0] == made[1] == made[2]
    assert list(made[0]) == [f"chunk-{number:05}.jsonl" for number in range(8)]
    rows = [json.loads(line) for content in made[0].values() for line in content.splitlines()]
    assert [row["text"] for row in rows] == TEXTS
    assert rows[0] == {"text": TEXTS[0], "id": "a:0.jsonl:0"}
    assert len({row["id"] for row in rows}) == DOCUMENTS
    assert [len(content.splitlines()) for content in made[0].values()] == [130] * 7 + [90]


def test_two_chunks_and_then_the_rest(data: Path, tmp_path: Path) -> None:
    source = JsonLinesSource(name="a", path=str(data))
    assert get(source, tmp_path / "out", count=2)["chunks"] == 2
    assert texts(tmp_path / "out") == TEXTS[:260]
    get(source, tmp_path / "out", count=2)
    assert texts(tmp_path / "out") == TEXTS[:260]
    assert get(source, tmp_path / "out")["documents"] == DOCUMENTS
    get(source, tmp_path / "whole")
    assert chunks(tmp_path / "out") == chunks(tmp_path / "whole")
    assert get(source, tmp_path / "short", count=20)["chunks"] == 8


def test_limits_of_the_source(data: Path, tmp_path: Path) -> None:
    def taken(name: str, **limits: int) -> int:
        source = JsonLinesSource(name="a", path=str(data), **limits)
        get(source, tmp_path / name)
        found = texts(tmp_path / name)
        assert found == TEXTS[: len(found)]
        return len(found)

    sizes = [len(text.encode()) for text in TEXTS]
    assert taken("documents", maximum_documents=333) == 333
    assert taken("exactly", maximum_documents=260) == 260
    by_bytes = taken("bytes", maximum_bytes=5_000)
    assert sum(sizes[: by_bytes - 1]) < 5_000 <= sum(sizes[:by_bytes])
    assert taken("tokens", maximum_tokens_estimate=1_250) == by_bytes
    assert taken("one", maximum_bytes=1) == 1


def test_a_limit_spares_the_readers(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    read_piece = reading.read_piece

    def watch(source: AnySource, piece: Piece, rejects: Rejects, splitter: object) -> Iterator[Any]:
        read.append((piece.files[0].name, piece.start))
        return read_piece(source, piece, rejects, splitter)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "read_piece", watch)
    get(JsonLinesSource(name="a", path=str(data)), tmp_path / "out", workers=8, chunk_documents=50, count=1)
    assert read == [("0.jsonl", 0)]


def test_what_cannot_be_used_is_counted(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (data / "0.jsonl").read_text().splitlines()
    (data / "0.jsonl").write_text("\n".join([*lines[:60], "{", *lines[60:], "no JSON"]) + "\n")
    counts = get(JsonLinesSource(name="a", path=str(data)), tmp_path / "out")
    assert (counts["documents"], counts["seen"], counts["rejected"]) == (DOCUMENTS, DOCUMENTS + 2, 2)
    assert "source a: 2 of 1,002 lines, rows or files could not be used" in capsys.readouterr().err


def test_a_kill_at_any_step_loses_nothing_and_doubles_nothing(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = JsonLinesSource(name="a", path=str(data))

    class Killed(BaseException):
        pass

    steps, fatal = 0, 1_000_000

    def kill(operation: str, path: Path) -> None:
        """From the fatal step on the disk does nothing any more, so nothing is cleared either."""
        nonlocal steps
        steps += 1
        if steps >= fatal:
            raise Killed

    monkeypatch.setattr(disk, "fail_point", kill)
    get(source, tmp_path / "whole", workers=2)
    whole, all_steps = chunks(tmp_path / "whole"), steps
    for fatal in range(1, all_steps, 13):
        steps = 0
        out = tmp_path / str(fatal)
        with pytest.raises(Killed):
            get(source, out, workers=2)
        found = chunks(out) if (out / "a").is_dir() else {}
        assert all(whole[name] == content for name, content in found.items() if name.startswith("chunk-"))
        steps = -1_000_000
        get(source, out, workers=2)
        assert chunks(out) == whole


def test_sigkill_and_ctrl_c_of_a_real_process(data: Path, tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, time
            from pathlib import Path
            from fledge.corpus.resolve import resolve_sources
            from fledge.corpus.settings import CorpusSettings
            from fledge.corpus.sources import reading
            from fledge.corpus.sources.download import download
            from fledge.corpus.sources.settings import JsonLinesSource

            cut_pieces, read_piece = reading.cut_pieces, reading.read_piece

            def slowly(source, piece, rejects, splitter):
                for row in read_piece(source, piece, rejects, splitter):
                    time.sleep(0.002)
                    yield row

            reading._OPENING_BYTES = 0
            reading.cut_pieces = lambda source, files: cut_pieces(source, files, 4_000)
            reading.read_piece = slowly
            print("ready", flush=True)
            source = JsonLinesSource(name="a", path=sys.argv[1])
            resolved = resolve_sources(CorpusSettings(sources=(source,)), "documents", Path(sys.argv[2]).with_name("work"))
            download(resolved, Path(sys.argv[2]), Path(sys.argv[2]), 2, 100, None)
            """
        )
    )

    def run(out: Path, stop: signal.Signals | None, seconds: float = 0) -> int:
        with subprocess.Popen([sys.executable, script, data, out], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            if stop is not None:
                time.sleep(seconds)
                process.send_signal(stop)
            process.communicate(timeout=120)
        return process.returncode

    get(JsonLinesSource(name="a", path=str(data)), tmp_path / "whole", chunk_documents=100)
    for stop, seconds in ((signal.SIGKILL, 0.3), (signal.SIGINT, 0.2)):
        assert run(tmp_path / "out", stop, seconds) != 0
    assert run(tmp_path / "out", None) == 0
    assert chunks(tmp_path / "out") == chunks(tmp_path / "whole")


def test_a_full_disk_is_named(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(operation: str, path: Path) -> None:
        if operation == "append" and path.name == "000003.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "fail_point", full)
    with pytest.raises(MachineError, match="no space left"):
        get(JsonLinesSource(name="a", path=str(data)), tmp_path / "out")
    monkeypatch.setattr(disk, "fail_point", None)
    before = texts(tmp_path / "out")
    assert 0 < len(before) < DOCUMENTS
    assert before == TEXTS[: len(before)]
    assert get(JsonLinesSource(name="a", path=str(data)), tmp_path / "out")["documents"] == DOCUMENTS


def test_chunks_of_something_else_are_refused(data: Path, tmp_path: Path) -> None:
    source, out = JsonLinesSource(name="a", path=str(data)), tmp_path / "out"
    get(source, out, count=1)
    for other, size in ((source, 131), (JsonLinesSource(name="a", path=str(data), fields={"text": "body"}), 130)):
        with pytest.raises(DataError, match="made with other settings, or of files that changed"):
            get(other, out, chunk_documents=size)
    moved = data.rename(tmp_path / "moved")
    get(JsonLinesSource(name="a", path=str(moved)), out, count=2)
    (moved / "3.jsonl").write_text('{"text": "changed"}\n')
    with pytest.raises(DataError, match="of files that changed since"):
        get(JsonLinesSource(name="a", path=str(moved)), out)
    (out / "a" / "progress.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds chunks, but no progress\.json"):
        get(JsonLinesSource(name="a", path=str(moved)), out)


def test_several_sources(data: Path, tmp_path: Path) -> None:
    sources = [JsonLinesSource(name="a", path=str(data / "0.jsonl")), JsonLinesSource(name="b", path=str(data / "1.jsonl"))]
    resolved = resolve_sources(settings(*sources), "documents", tmp_path / "work")
    counts = download(resolved, tmp_path / "out", tmp_path, 2, 200, None)
    assert {name: figures["documents"] for name, figures in counts.items()} == {"a": 250, "b": 250}
    assert len(list((tmp_path / "out").glob("*/chunk-*.jsonl"))) == 4


@pytest.mark.parametrize("cache", ["raw", "none"])
def test_a_dataset_of_the_hub_that_moves_on_meanwhile(hub: Hub, data: Path, tmp_path: Path, cache: Any) -> None:
    files = {f"data/{path.name}": path.read_bytes() for path in sorted(data.iterdir())}
    hub.put("owner/name", files)
    source = HubSource(name="a", repository="owner/name", files="data/*", cache=cache)
    get(source, tmp_path / "out", count=1)
    asked = {path for path, _ in hub.site.requests}
    assert hub.stored(files["data/0.jsonl"]) in asked
    assert hub.stored(files["data/3.jsonl"]) not in asked
    hub.put("owner/name", {"data/other.jsonl": b'{"text": "other"}\n'})
    hub.site.faults[hub.stored(files["data/2.jsonl"])] = [Fault(status=429, retry_after="0"), Fault(send_bytes=1_000)]
    get(source, tmp_path / "out")
    assert texts(tmp_path / "out") == TEXTS
    assert (tmp_path / "cache" / "hub").is_dir()
    assert len(list((tmp_path / "cache").rglob("*.jsonl"))) == (4 if cache == "raw" else 0)


def test_a_source_that_breaks_off_keeps_what_came_before(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_piece = reading.read_piece

    def breaks(source: AnySource, piece: Piece, rejects: Rejects, splitter: object) -> Iterator[Any]:
        if piece.files[0].name == "3.jsonl":
            raise DataError("3.jsonl is damaged", "restore it")
        return read_piece(source, piece, rejects, splitter)  # type: ignore[arg-type]

    monkeypatch.setattr(reading, "read_piece", breaks)
    with pytest.raises(DataError, match="is damaged"):
        get(JsonLinesSource(name="a", path=str(data)), tmp_path / "out", workers=8)
    assert texts(tmp_path / "out") == TEXTS[:650]
