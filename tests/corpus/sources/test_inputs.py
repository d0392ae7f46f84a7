from __future__ import annotations

import gzip
import hashlib
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.core import disk
from fledge.core.errors import DataError, MachineError
from fledge.corpus.sources.inputs import Fingerprints, localise, resolve, revision
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import cache_path, is_whole, open_input
from fledge.corpus.sources.settings import Expect, HubSource, JsonLinesSource, ParquetSource, TextSource

from .servers import Fault, Hub, Site

FORGETFUL = Fingerprints(None)
LINES = b"".join(json.dumps({"text": f"document {number}"}).encode() + b"\n" for number in range(1_000))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def parquet(path: Path, row_groups: int = 4) -> bytes:
    """A file of which the text column is a small part."""
    rows = 100 * row_groups
    other = pa.array([os.urandom(1_000) for _ in range(rows)])
    table = pa.table({"before": other, "text": [f"document {number}" for number in range(rows)], "after": other})
    pq.write_table(table, path, row_group_size=100, compression="none")
    return path.read_bytes()


def test_local_files_are_hashed_and_named(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.md", "d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    files = resolve(TextSource(name="a", path=str(tmp_path)), FORGETFUL)
    assert files == [
        InputFile(str(tmp_path / "a/c.md"), "a/c.md", 6, sha256(b"a/c.md")),
        InputFile(str(tmp_path / "b.txt"), "b.txt", 5, sha256(b"b.txt")),
    ]
    assert localise(TextSource(name="a", path=str(tmp_path)), files, tmp_path / "cache", 2) == files
    assert not (tmp_path / "cache").exists()


def test_a_sha256_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    resolve(TextSource(name="a", path=str(path), sha256=sha256(b"text")), FORGETFUL)
    with pytest.raises(DataError, match=f"has the SHA-256 {sha256(b'text')}, not {sha256(b'else')}"):
        resolve(TextSource(name="a", path=str(path), sha256=sha256(b"else")), FORGETFUL)
    (tmp_path / "b.txt").write_bytes(b"more")
    with pytest.raises(DataError, match="are 2 files"):
        resolve(TextSource(name="a", path=str(tmp_path), sha256=sha256(b"text")), FORGETFUL)
    with pytest.raises(ValueError, match="cache: raw"):
        TextSource(name="a", path="https://host/a.txt", sha256=sha256(b"text"), cache="none")


def test_what_is_expected_is_checked(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"12345")

    def check(files: int | None, size_bytes: int | None) -> None:
        resolve(TextSource(name="a", path=str(tmp_path), expect=Expect(files=files, bytes=size_bytes)), FORGETFUL)

    check(None, None)
    check(2, 10)
    for wanted, told in (((3, None), "3 files"), ((None, 1_000), "1,000 bytes"), ((3, 11), "3 files of 11 bytes")):
        with pytest.raises(DataError) as caught:
            check(*wanted)
        assert caught.value.problem.endswith(f"{tmp_path} has 2 files of 10 bytes (10 B), but should have at least {told}")
        assert "expect: {files: 2, bytes: 10}" in caught.value.remedy


def test_fingerprints_are_remembered_until_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, path = tmp_path / "fingerprints.json", Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    path.write_bytes(b"one")
    os.utime(path, ns=(0, 1_000_000_000))
    fingerprints = Fingerprints(kept)
    assert fingerprints.of(path) == sha256(b"one")
    fingerprints.save()
    hashed: list[Path] = []
    digest_file = disk.digest_file
    monkeypatch.setattr(disk, "digest_file", lambda path: (hashed.append(path), digest_file(path))[1])
    assert Fingerprints(kept).of(path) == sha256(b"one")
    assert not hashed
    path.write_bytes(b"two")
    os.utime(path, ns=(0, 2_000_000_000))
    fingerprints = Fingerprints(kept)
    assert fingerprints.of(path) == sha256(b"two")
    assert len(hashed) == 1
    # A file that changed just now may change again without its time showing it.
    path.write_bytes(b"six")
    assert Fingerprints(kept).of(path) == sha256(b"six")
    fingerprints = Fingerprints(kept)
    fingerprints.of(path)
    fingerprints.save()
    assert Fingerprints(kept).of(path) == sha256(b"six")
    assert len(hashed) == 4
    kept.write_text("no JSON")
    assert Fingerprints(kept).of(path) == sha256(b"six")


def test_a_file_that_changes_while_it_is_hashed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one")
    digest_file = disk.digest_file

    def change(path: Path) -> disk.FileDigest:
        with path.open("ab") as file:
            file.write(b"more")
        return digest_file(path)

    monkeypatch.setattr(disk, "digest_file", change)
    with pytest.raises(DataError, match="changed while it was read"):
        FORGETFUL.of(path)


def test_an_address_of_the_web(site: Site, tmp_path: Path) -> None:
    address = site.put("/data/all lines.jsonl", LINES, etag="one").replace(" ", "%20") + "?token=secret"
    source = JsonLinesSource(name="a", path=address)
    [file] = resolve(source, FORGETFUL)
    assert file == InputFile(address, "all lines.jsonl", len(LINES), f"etag:one:{len(LINES)}")
    assert revision(source) is None
    [local] = localise(source, [file], tmp_path, 2)
    assert Path(local.address).read_bytes() == LINES
    assert Path(local.address).parent == tmp_path / "http" / site.url.removeprefix("http://").replace(":", "_")
    assert (local.name, local.fingerprint) == (file.name, file.fingerprint)
    site.requests.clear()
    assert localise(source, [file], tmp_path, 2) == [local]
    assert not site.requests
    Path(local.address).write_bytes(b"cut off")
    assert localise(source, [file], tmp_path, 2) == [local]
    assert Path(local.address).read_bytes() == LINES


def test_a_sha256_of_the_web_is_checked_when_it_is_downloaded(site: Site, tmp_path: Path) -> None:
    address = site.put("/a.jsonl", LINES)
    source = JsonLinesSource(name="a", path=address, sha256=sha256(LINES))
    files = resolve(source, FORGETFUL)
    assert files[0].fingerprint == sha256(LINES)
    localise(source, files, tmp_path, 1)
    site.put("/a.jsonl", LINES[::-1])
    with pytest.raises(DataError, match=f"came twice with the hash {sha256(LINES[::-1])}"):
        localise(source, files, tmp_path / "other", 1)


def test_without_a_cache_a_server_must_know_ranges(site: Site) -> None:
    address = site.put("/a.jsonl", LINES, takes_ranges=False)
    with pytest.raises(DataError, match="sends whole files only"):
        resolve(JsonLinesSource(name="a", path=address, cache="none"), FORGETFUL)
    source = JsonLinesSource(name="a", path=site.put("/b.jsonl", LINES), cache="none")
    files = resolve(source, FORGETFUL)
    assert localise(source, files, Path("/nowhere"), 1) == files


def test_an_object_store(store: Any, tmp_path: Path) -> None:
    for name in ("a.jsonl", "deep/b.jsonl.gz", "deep/c.txt"):
        store.pipe_file(f"/inputs/{name}", LINES)

    def named(path: str) -> list[str]:
        return [file.name for file in resolve(JsonLinesSource(name="a", path=path), FORGETFUL)]

    assert named("memory://inputs") == ["a.jsonl", "deep/b.jsonl.gz"]
    assert named("memory://inputs/a.jsonl") == ["a.jsonl"]
    assert named("memory://inputs/deep/*") == ["b.jsonl.gz", "c.txt"]
    with pytest.raises(DataError, match=r"memory://nothing has 0 files"):
        named("memory://nothing")
    source = JsonLinesSource(name="a", path="memory://inputs")
    local = localise(source, resolve(source, FORGETFUL), tmp_path, 2)
    assert [Path(file.address).read_bytes() for file in local] == [LINES, LINES]


def test_many_downloads_at_a_time_and_the_first_failure(site: Site, tmp_path: Path) -> None:
    files = []
    for number in range(20):
        content = LINES * 20 + str(number).encode()
        address = site.put(f"/{number}.jsonl", content)
        files.append(InputFile(address, f"{number}.jsonl", len(content), sha256(content)))
    site.always("/7.jsonl", Fault(status=404))
    source = JsonLinesSource(name="a", path="https://not-asked")
    with pytest.raises(DataError, match=r"7\.jsonl is not there"):
        localise(source, files, tmp_path, 4)
    assert threading.active_count() < 10
    site.faults["/7.jsonl"].clear()
    site.requests.clear()
    whole = {file.name for file in files if is_whole(cache_path(file, tmp_path), file)}
    local = localise(source, [*files, files[0]], tmp_path, 4)
    assert all(sha256(Path(file.address).read_bytes()) == file.fingerprint for file in local)
    assert not {path.removeprefix("/") for path, _ in site.requests} & whole


def test_two_processes_download_one_after_the_other(site: Site, tmp_path: Path) -> None:
    source = JsonLinesSource(name="a", path=site.put("/a.jsonl", LINES))
    files = resolve(source, FORGETFUL)
    site.requests.clear()
    other = disk.try_lock(tmp_path / "download.lock", "another process")
    assert other is not None
    done: list[InputFile] = []
    waiting = threading.Thread(target=lambda: done.extend(localise(source, files, tmp_path, 1)))
    waiting.start()
    waiting.join(0.2)
    assert not done
    assert not site.requests
    os.close(other)
    waiting.join()
    assert Path(done[0].address).read_bytes() == LINES


def test_a_dataset_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    contents = {"data/b.jsonl": LINES, "data/a.json.gz": gzip.compress(LINES), "data/deep/c.parquet": b"c", "README.md": b"#"}
    commit = hub.put("owner/name", contents, small=("data/b.jsonl",))
    source = HubSource(name="a", repository="owner/name", files="data/*.json*")
    assert revision(source) == commit
    files = resolve(source, FORGETFUL)
    root = f"hf://datasets/owner/name@{commit}"
    blob = hashlib.sha1(f"blob {len(LINES)}\0".encode() + LINES, usedforsecurity=False).hexdigest()
    assert files == [
        InputFile(f"{root}/data/a.json.gz", "data/a.json.gz", len(contents["data/a.json.gz"]), sha256(contents["data/a.json.gz"])),
        InputFile(f"{root}/data/b.jsonl", "data/b.jsonl", len(LINES), blob),
    ]
    local = localise(source, files, tmp_path, 2)
    assert [Path(file.address).read_bytes() for file in local] == [contents[file.name] for file in files]
    with pytest.raises(DataError, match=r"'README\.md' among \*\*, neither Parquet nor JSON Lines"):
        resolve(HubSource(name="a", repository="owner/name", files="**"), FORGETFUL)
    with pytest.raises(DataError, match=r"owner/name/none/\* has 0 files"):
        resolve(HubSource(name="a", repository="owner/name", files="none/*"), FORGETFUL)
    with pytest.raises(DataError, match="cannot be listed"):
        resolve(HubSource(name="a", repository="owner/name", files="data/a**"), FORGETFUL)


def test_another_hub_is_named_by_the_environment(hub: Hub, tmp_path: Path) -> None:
    hub.put("owner/name", {"data/a.jsonl": LINES})
    code = """
        import sys
        from fledge.corpus.sources.inputs import Fingerprints, resolve
        from fledge.corpus.sources.remote import cache_path, is_whole, open_input
        from fledge.corpus.sources.settings import HubSource
        [file] = resolve(HubSource(name="a", repository="owner/name", files="data/*"), Fingerprints(None))
        sys.stdout.buffer.write(open_input(file).read())
        """
    environment = {**os.environ, "HF_ENDPOINT": hub.site.url, "HF_HOME": str(tmp_path)}
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, check=True)
    assert result.stdout == LINES


def test_a_pinned_commit_is_read_though_the_branch_moved_on(hub: Hub, tmp_path: Path) -> None:
    first = hub.put("owner/name", {"data/a.jsonl": LINES})
    second = hub.put("owner/name", {"data/a.jsonl": LINES * 2})
    source = HubSource(name="a", repository="owner/name", files="data/*")
    assert revision(source) == second
    assert [file.size_bytes for file in resolve(source, FORGETFUL)] == [len(LINES) * 2]
    assert [file.size_bytes for file in resolve(source, FORGETFUL, pinned=first)] == [len(LINES)]
    assert revision(HubSource(name="a", repository="owner/name", files="data/*", revision=first)) == first


def test_a_pinned_dataset_in_the_cache_needs_no_network(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.put("owner/name", {"data/a.jsonl": LINES})
    source = HubSource(name="a", repository="owner/name", files="data/*")
    files = resolve(source, FORGETFUL, commit, tmp_path)
    local = localise(source, files, tmp_path, 1)
    hub.site.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve(source, FORGETFUL, commit, tmp_path) == files
    assert localise(source, files, tmp_path, 1) == local
    assert not hub.site.requests
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
        revision(source)
    [kept] = (tmp_path / "hub" / "owner" / "name" / "listings").iterdir()
    kept.write_text("{}")
    with pytest.raises(MachineError, match="HF_HUB_OFFLINE is set"):
        resolve(source, FORGETFUL, commit, tmp_path)


def test_a_hub_that_fails(hub: Hub, tmp_path: Path) -> None:
    commit = hub.put("owner/name", {"data/a.jsonl": LINES})
    about = "/api/datasets/owner/name/revision/main"
    source = HubSource(name="a", repository="owner/name", files="data/*")
    hub.site.faults[about] = [Fault(status=429, retry_after="0"), Fault(hang_up=True), Fault(status=502)]
    assert revision(source) == commit
    hub.site.always(about, Fault(status=503))
    with pytest.raises(MachineError, match=r"owner/name@main answers with status 503 \(4 attempts\)"):
        revision(source)
    hub.site.always(about, Fault(hang_up=True))
    with pytest.raises(MachineError, match="the hub does not answer about owner/name@main"):
        revision(source)
    for missing in (HubSource(name="a", repository="owner/gone", files="*"), HubSource(name="a", repository="a--b/c..d", files="*")):
        with pytest.raises(DataError, match="dataset"):
            revision(missing)
    stored = hub.stored(LINES)
    files = resolve(source, FORGETFUL, commit)
    hub.site.faults[stored] = [Fault(status=429, retry_after="0"), Fault(send_bytes=10_000), Fault(hang_up=True), Fault(longer_by=1)]
    assert Path(localise(source, files, tmp_path, 1)[0].address).read_bytes() == LINES
    hub.site.files[stored].content = LINES[::-1]
    with pytest.raises(DataError, match="came twice") as caught:
        localise(source, files, tmp_path / "other", 1)
    assert "hf_secret" not in str(caught.value)


def test_parquet_is_read_by_row_group_without_keeping_it(hub: Hub, tmp_path: Path) -> None:
    content = parquet(tmp_path / "a.parquet")
    commit = hub.put("owner/name", {"data/a.parquet": content})
    source = HubSource(name="a", repository="owner/name", files="data/*", cache="none")
    [file] = localise(source, resolve(source, FORGETFUL, commit), tmp_path / "cache", 2)
    hub.site.faults[hub.stored(content)] = [Fault(send_bytes=100), Fault(status=429, retry_after="0")]
    with open_input(file) as opened, pq.ParquetFile(opened) as read:
        assert read.num_row_groups == 4
        texts = read.read_row_group(2, columns=["text"]).column("text").to_pylist()
    assert texts == [f"document {number}" for number in range(200, 300)]
    assert hub.site.sent_bytes[hub.stored(content)] < len(content) / 4
    assert not (tmp_path / "cache").exists()


def test_a_parquet_file_of_the_web_by_row_group(site: Site, tmp_path: Path) -> None:
    content = parquet(tmp_path / "a.parquet")
    source = ParquetSource(name="a", path=site.put("/a.parquet", content), cache="none")
    [file] = resolve(source, FORGETFUL)
    with open_input(file) as opened, pq.ParquetFile(opened) as read:
        assert read.read_row_group(0, columns=["text"]).num_rows == 100
    assert site.sent_bytes["/a.parquet"] < len(content) / 4
