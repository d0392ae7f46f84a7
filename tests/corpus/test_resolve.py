from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest

from fledge.core import disk
from fledge.core.errors import DataError, MachineError
from fledge.corpus import resolve
from fledge.corpus.rejects import Reject, Rejects
from fledge.corpus.resolve import here_files, lies_elsewhere, require_few_rejects, resolve_sources, waves
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources import python_docs, transport
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.settings import Expect, HubSource, JsonLinesSource, ParquetSource, PythonDocsSource, Source, TextSource

from .corpus_assembly import lines_source, settings, texts, write_lines
from .sources.servers import Site, impatient_site


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a folder in an object store that is this process's memory."""
    monkeypatch.setattr(transport, "STORE_SCHEMES", transport.STORE_SCHEMES | {"memory"})
    store = fsspec.filesystem("memory")
    yield "memory://bucket"
    store.store.clear()
    store.pseudo_dirs[:] = [""]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    with impatient_site(monkeypatch) as site:
        yield site


def put(address: str, *given: str) -> None:
    with fsspec.open(address, "wb") as file:
        file.write("".join(json.dumps({"text": text}) + "\n" for text in given).encode())


def only(wanted: CorpusSettings, work: Path) -> resolve.Resolved:
    [found] = resolve_sources(wanted, "documents", work)
    return found


# ---- what lies here


def test_sources_of_one_content_in_their_order(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(python_docs, "stdlib_folder", lambda: library)
    write_lines(tmp_path / "b.jsonl", texts(1))
    wanted = settings(
        lines_source(tmp_path / "b.jsonl"), PythonDocsSource(name="talks", content="conversations"), PythonDocsSource(name="docs")
    )
    assert [found.source.name for found in resolve_sources(wanted, "documents", tmp_path / "work")] == ["b", "docs"]
    [talks] = resolve_sources(wanted, "conversations", tmp_path / "work")
    assert (talks.files, talks.revision, len(talks.fingerprint)) == ((), None, 64)
    assert talks.fingerprint_of(Piece()) == talks.fingerprint
    assert resolve_sources(wanted, "preferences", tmp_path / "work") == []


def test_a_fingerprint_follows_names_and_contents_not_places(tmp_path: Path) -> None:
    for folder in ("one", "two", "three", "four"):
        write_lines(tmp_path / folder / "a.jsonl", texts(3))
        write_lines(tmp_path / folder / "b.jsonl", texts(3, seed=1))
    write_lines(tmp_path / "three" / "b.jsonl", texts(4, seed=1))
    (tmp_path / "four" / "b.jsonl").rename(tmp_path / "four" / "c.jsonl")
    found = {name: only(settings(lines_source(tmp_path / name, "x")), tmp_path / "work") for name in ("one", "two", "three", "four")}
    assert found["one"].fingerprint == found["two"].fingerprint
    assert len({one.fingerprint for one in found.values()}) == 3
    first = {name: one.fingerprint_of(Piece(one.files[:1])) for name, one in found.items()}
    assert len(set(first.values())) == 1, "a piece is known by its own files"


def test_local_files_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "a.jsonl", texts(3))
    long_ago = time.time() - 60
    os.utime(path, (long_ago, long_ago))
    wanted = settings(lines_source(path))
    before = only(wanted, tmp_path / "work")
    with monkeypatch.context() as patch:
        patch.setattr(disk, "digest_file", lambda path: pytest.fail("it is known"))
        assert only(wanted, tmp_path / "work") == before
    write_lines(path, texts(3, seed=1))
    assert only(wanted, tmp_path / "work").fingerprint != before.fingerprint


def test_only_the_one_who_remembers_writes(tmp_path: Path, bucket: str) -> None:
    put(f"{bucket}/a.jsonl", "one")
    path = write_lines(tmp_path / "b.jsonl", texts(3))
    os.utime(path, (1, 1))
    wanted = settings(JsonLinesSource(name="far", path=f"{bucket}/a.jsonl"), lines_source(path))
    found = resolve_sources(wanted, "documents", tmp_path / "work", remember=False)
    assert not (tmp_path / "work").exists()
    assert resolve_sources(wanted, "documents", tmp_path / "work") == found
    assert sorted(entry.name for entry in (tmp_path / "work").iterdir()) == ["fingerprints.json", "sources.json"]
    disk.fail_point = lambda operation, path: pytest.fail(f"{operation} {path}")
    try:
        assert resolve_sources(wanted, "documents", tmp_path / "work", remember=False) == found
    finally:
        disk.fail_point = None


def test_provenance_names_no_place_of_this_machine(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", texts(2))
    told = only(settings(lines_source(path, license="MIT")), tmp_path / "work").provenance()
    assert told == {
        "source": "a", "kind": "jsonl", "address": "local files", "revision": None, "files": 1, "bytes": path.stat().st_size,
        "license": "MIT", "fingerprint": told["fingerprint"],
    }  # fmt: skip
    assert str(tmp_path) not in json.dumps(told)


def test_missing_and_incomplete_sources_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file or folder .*nowhere"):
        only(settings(lines_source(tmp_path / "nowhere")), tmp_path / "work")
    write_lines(tmp_path / "a.jsonl", texts(1))
    with pytest.raises(DataError, match="should have at least 3 files"):
        only(settings(lines_source(tmp_path / "a.jsonl", expect=Expect(files=3))), tmp_path / "work")


# ---- what lies elsewhere


def test_what_lies_elsewhere_is_looked_up_once(tmp_path: Path, bucket: str) -> None:
    put(f"{bucket}/web/a.jsonl", "one", "two")
    put(f"{bucket}/web/deep/b.jsonl", "three")
    wanted = settings(JsonLinesSource(name="far", path=f"{bucket}/web"))
    before = only(wanted, tmp_path / "work")
    assert [file.name for file in before.files] == ["a.jsonl", "deep/b.jsonl"]
    put(f"{bucket}/web/c.jsonl", "four")
    assert only(wanted, tmp_path / "work") == before, "what was found at first is kept"
    assert len(only(wanted, tmp_path / "other").files) == 3
    told = before.provenance()
    assert (told["address"], told["files"]) == (f"{bucket}/web", 2)


def test_a_list_serves_only_the_source_it_was_made_for(tmp_path: Path, bucket: str) -> None:
    put(f"{bucket}/web/a.jsonl", "one")
    with fsspec.open(f"{bucket}/web/b.txt", "wb") as file:
        file.write(b"A text.")
    lines = JsonLinesSource(name="far", path=f"{bucket}/web")
    others: list[tuple[Source, list[str]]] = [
        (lines, ["a.jsonl"]),
        (TextSource(name="far", path=f"{bucket}/web"), ["b.txt"]),
        (replace(lines, name="renamed", license="MIT"), ["a.jsonl"]),
    ]
    for source, names in others:
        assert [file.name for file in only(settings(source), tmp_path / "work").files] == names
    assert len(json.loads((tmp_path / "work" / "sources.json").read_text())) == 2
    with pytest.raises(DataError, match="should have at least 2 files"):
        only(settings(replace(lines, expect=Expect(files=2))), tmp_path / "work")


def test_a_checksum_given_later_counts(tmp_path: Path, site: Site) -> None:
    address = site.put("/a.jsonl", b'{"text": "one"}\n')
    source = JsonLinesSource(name="far", path=address)
    before = only(settings(source), tmp_path / "work")
    wanted = settings(replace(source, sha256="0" * 64), cache_folder=str(tmp_path / "cache"))
    found = only(wanted, tmp_path / "work")
    assert found.fingerprint != before.fingerprint
    with pytest.raises(DataError, match="came twice with the hash"):
        here_files(wanted, found.source, found.files)


def test_downloads_come_from_the_cache_when_the_network_is_gone(tmp_path: Path, site: Site) -> None:
    content = b'{"text": "one"}\n'
    address = site.put("/a.jsonl", content)
    wanted = settings(JsonLinesSource(name="far", path=address), cache_folder=str(tmp_path / "cache"))
    first = only(wanted, tmp_path / "work")
    [here] = here_files(wanted, first.source, first.files)
    assert Path(here.address).read_bytes() == content
    site.files.clear()
    requests = len(site.requests)
    again = only(wanted, tmp_path / "work")
    assert again == first
    assert list(here_files(wanted, again.source, again.files)) == [here]
    assert len(site.requests) == requests
    with pytest.raises((DataError, MachineError)):
        only(wanted, tmp_path / "new")


@pytest.mark.parametrize("damage", ["", "{", "[]"])
def test_a_damaged_list_is_made_again(tmp_path: Path, bucket: str, damage: str) -> None:
    put(f"{bucket}/a.jsonl", "one")
    wanted = settings(JsonLinesSource(name="far", path=f"{bucket}/a.jsonl"))
    before = only(wanted, tmp_path / "work")
    (tmp_path / "work" / "sources.json").write_text(damage)
    assert only(wanted, tmp_path / "work") == before


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        (PythonDocsSource(), False),
        (TextSource(name="a", path="/books"), False),
        (ParquetSource(name="a", path="s3://bucket/a.parquet"), True),
        (JsonLinesSource(name="a", path="https://example.com/a.jsonl"), True),
        (HubSource(name="a", preset="c4"), True),
    ],
)
def test_what_needs_a_network(source: Source, expected: bool) -> None:
    assert lies_elsewhere(source) is expected


def test_waves_grow_and_local_files_come_at_once() -> None:
    files = [InputFile(f"hf://{number}", str(number), 1, "") for number in range(20)]
    assert [len(wave) for wave in waves(HubSource(name="a", preset="c4"), files)] == [1, 2, 4, 8, 5]
    assert [len(wave) for wave in waves(TextSource(name="a", path="b"), files)] == [20]


def test_sources_without_files_are_here(tmp_path: Path) -> None:
    assert here_files(settings(PythonDocsSource()), PythonDocsSource(), ()) == ()
    file = InputFile("a.jsonl", "a.jsonl", 1, "f")
    assert list(here_files(settings(PythonDocsSource()), lines_source(tmp_path / "a.jsonl"), [file])) == [file]


# ---- too many rejects


@pytest.mark.parametrize(
    ("source", "units"),
    [
        (JsonLinesSource(name="a", path="x"), "lines"),
        (TextSource(name="a", path="x"), "files"),
        (ParquetSource(name="a", path="x"), "rows"),
    ],
)
def test_a_share_of_rejects_is_refused_in_the_words_of_the_source(source: Source, units: str) -> None:
    rejects = Rejects()
    for line in range(100):
        rejects.saw("a", units, 1.0)
        if line < 6:
            rejects.add(Reject("a", "f", line, 0, "bad"))
    with pytest.raises(DataError, match=f"source a: 6 of 100 {units} cannot be used"):
        require_few_rejects(source, rejects)
    require_few_rejects(replace(source, maximum_reject_share=0.06), rejects)  # type: ignore[arg-type]
    require_few_rejects(PythonDocsSource(name="a"), rejects)


def test_what_is_known_of_sources_goes_to_another_machine_without_secrets(tmp_path: Path) -> None:
    assert resolve.known_of_sources(tmp_path) == []
    looked_up = {"key": {"revision": None, "files": [{"address": "hf://datasets/a/b@c/d.jsonl"}]}}
    disk.write_json(tmp_path / "places.json", {"text": "ab" * 32})
    disk.write_json(tmp_path / "sources.json", looked_up)
    assert [path.name for path in resolve.known_of_sources(tmp_path)] == ["places.json", "sources.json"]
    for address in ("https://me:password@host/a.jsonl", "https://host/a.jsonl?signature=secret"):
        disk.write_json(tmp_path / "sources.json", {**looked_up, "other": {"revision": None, "files": [{"address": address}]}})
        assert [path.name for path in resolve.known_of_sources(tmp_path)] == ["places.json"]
