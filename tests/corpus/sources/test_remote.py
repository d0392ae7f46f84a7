from __future__ import annotations

import io
import socket
import sys
import types
from email.utils import formatdate
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fledge.core.errors import DataError, MachineError
from fledge.core.installing import install_hint
from fledge.corpus.sources import attempts, transport
from fledge.corpus.sources.attempts import Failure
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import cache_path, download, open_input
from fledge.corpus.sources.transport import describe, name_of, shown

from .servers import CONTENT, PATH, SHA256, Fault, Hub, Served, Site, serve_content


def test_a_local_file_is_opened_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text")
    with open_input(InputFile(str(path), "a.txt", 4, "")) as file:
        assert file.read() == b"text"
    with pytest.raises(DataError, match="cannot be read"):
        open_input(InputFile(str(tmp_path / "gone"), "gone", 0, ""))


def test_only_what_is_read_is_fetched(site: Site) -> None:
    file = serve_content(site)
    with open_input(InputFile(file.address, "a.parquet", file.size_bytes, file.fingerprint)) as opened:
        assert opened.seekable()
        opened.seek(-8, io.SEEK_END)
        assert opened.read() == CONTENT[-8:]
        opened.seek(1_000_000)
        assert opened.read(100_000) == CONTENT[1_000_000:1_100_000]
        assert opened.tell() == 1_100_000
        opened.seek(10, io.SEEK_CUR)
        assert opened.read(1) == CONTENT[1_100_010:1_100_011]
        with pytest.raises(ValueError, match="before the beginning"):
            opened.seek(-1)
    assert site.sent_bytes[PATH] < 400_000
    site.requests.clear()
    with open_input(file) as opened:
        assert b"".join(iter(lambda: opened.read(10_000), b"")) == CONTENT
        assert len(site.requests) < 8
        assert opened.read(1) == b""
        opened.seek(0)
        assert opened.read() == CONTENT


def test_a_read_goes_on_where_the_connection_dropped(site: Site) -> None:
    file = serve_content(site)
    site.faults[PATH] = [Fault(send_bytes=1_000_000), Fault(hang_up=True), Fault(status=503), Fault(send_bytes=1), Fault(status=500)]
    with open_input(file) as opened:
        assert opened.read() == CONTENT
    assert site.sent_bytes[PATH] == len(CONTENT)
    starts = [asked.partition("=")[2].partition("-")[0] for _, asked in site.requests]
    assert starts == ["0", *["1000000"] * 3, "1000001", "1000001"]


def test_a_server_that_stays_away_is_a_machine_error(site: Site) -> None:
    file = serve_content(site)
    for fault, problem in ((Fault(hang_up=True), "remote protocol error"), (Fault(status=503), "answers with status 503")):
        site.requests.clear()
        site.always(PATH, fault)
        with open_input(file) as opened, pytest.raises(MachineError, match=rf"{problem} \(4 attempts\)") as caught:
            opened.read()
        assert "run the same command again: what is there is kept" in caught.value.remedy
        assert len(site.requests) == 4
    gone = InputFile(file.address.replace(site.url, "http://127.0.0.1:1"), "a", 1, "")
    with open_input(gone) as opened, pytest.raises(MachineError, match="connect error"):
        opened.read()


def test_waits_double_and_retry_after_is_honoured(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(attempts, "PATIENCE", attempts.Patience())
    file = serve_content(site)
    site.faults[PATH] = [Fault(status=429, retry_after="7"), *[Fault(status=503)] * 5, Fault(status=429, retry_after=formatdate(4e9))]
    token = attempts.PAUSE.set(slept.append)
    with open_input(file) as opened, pytest.raises(MachineError, match=r"status 429 and asks to be left alone for .* d"):
        opened.read()
    assert slept == [7, 2, 4, 8, 16, 32]
    slept.clear()
    site.faults[PATH] = [Fault(status=503)] * 7
    with open_input(file) as opened:
        assert opened.read(10) == CONTENT[:10]
    assert slept == [1, 2, 4, 8, 16, 32, 60]
    attempts.PAUSE.reset(token)


def test_a_file_that_changed_is_never_mixed_with_what_it_was(site: Site) -> None:
    file = serve_content(site)
    with open_input(InputFile(file.address, "a.parquet", file.size_bytes, file.fingerprint)) as opened:
        assert opened.read(10) == CONTENT[:10]
        site.put(PATH, CONTENT, etag="other")
        with pytest.raises(DataError, match=r"changed since it was looked up \(3 attempts\)"):
            opened.read(1_000_000)
    site.put(PATH, CONTENT + b"more", etag="other")
    with open_input(file) as opened, pytest.raises(DataError, match="has 3,072,004 bytes now, not 3,072,000"):
        opened.read()
    site.put(PATH, CONTENT[:1000])
    with open_input(file) as opened, pytest.raises(DataError, match="is shorter than 3,072,000 bytes now"):
        opened.seek(2000)
        opened.read()


@pytest.mark.parametrize("claim", ["longer", "shorter"])
def test_a_server_that_lies_about_the_length(site: Site, tmp_path: Path, claim: str) -> None:
    file = serve_content(site)
    if claim == "longer":
        site.faults[PATH] = [Fault(longer_by=10)]
        download(file, tmp_path / "once")
        assert (tmp_path / "once").read_bytes() == CONTENT
        # It says 1,000 bytes and never sends the last 100.
        lying = InputFile(file.address, file.name, 1_000, "size:1000")
        site.files[PATH] = Served(CONTENT[:1_000], None)
        site.faults[PATH] = [Fault(send_bytes=900), *[Fault(send_bytes=0)] * 3] * 2
        problem = "ends after 900 of 1,000 bytes"
    else:
        lying, problem = InputFile(file.address, file.name, len(CONTENT) + 10, "size:1"), "has 3,072,000 bytes now, not 3,072,010"
    with pytest.raises(DataError, match=problem):
        download(lying, tmp_path / "target")
    with open_input(lying) as opened, pytest.raises(DataError, match=problem):
        opened.read()
    assert not (tmp_path / "target").exists()


def test_what_cannot_be_had_is_told_apart(site: Site, tmp_path: Path) -> None:
    for status, problem in (
        (401, "may not be read"),
        (403, "may not be read"),
        (404, "is not there"),
        (410, "is not there"),
        (418, "answers"),
    ):
        site.put(PATH, CONTENT)
        site.faults[PATH] = [Fault(status=status)]
        with pytest.raises(DataError, match=problem):
            describe(f"{site.url}{PATH}")
        assert len(site.requests) == 1
        site.requests.clear()
    with pytest.raises(DataError, match="leads nowhere"):
        describe("http://host:not-a-port/")
    site.files["/circle"] = Served(b"", location="/circle")
    with pytest.raises(DataError, match="leads nowhere"):
        describe(f"{site.url}/circle")


@pytest.mark.parametrize("address", ["nonsense://host/file", "ftp://host/a.jsonl", "file:///a.jsonl", "hf://datasets/owner", "gs://b/a"])
def test_what_is_of_no_scheme_that_is_read_is_not_opened(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fsspec.core, "url_to_fs", None)
    with pytest.raises(DataError, match=f"{address} is no address that can be opened") as caught:
        transport.filesystem_of(address)
    assert all(word in caught.value.remedy for word in ("https://", "s3://", "local path", "kind: hub"))


@pytest.mark.parametrize(
    ("raised", "expected", "problem"),
    [
        (ValueError("no bucket"), DataError, "is no address that can be opened"),
        (socket.gaierror("no such host"), Failure, "cannot be read: gaierror"),
        (PermissionError("no"), DataError, "may not be read"),
    ],
)
def test_an_address_that_a_library_refuses_is_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, raised: Exception, expected: type[Exception], problem: str
) -> None:
    def refuse(address: str) -> None:
        raise raised

    monkeypatch.setattr(fsspec.core, "url_to_fs", refuse)
    with pytest.raises(expected, match=problem):
        transport.filesystem_of("s3://bucket/file")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MachineError, match="s3:// needs a package") as caught:
        describe("s3://bucket/file.jsonl")
    assert caught.value.remedy == install_hint("s3")


def test_nothing_secret_is_shown(site: Site) -> None:
    address = site.url.replace("://", "://user:password@") + "/gone.txt?token=secret#part"
    assert shown(address) == f"{site.url}/gone.txt"
    assert shown("ftp://user:password@host/a?b") == "ftp://host/a?b"
    assert shown("hf://datasets/owner/name@main/a@b") == "hf://datasets/owner/name@main/a@b"
    assert shown("/a/b@c?d") == "/a/b@c?d"
    assert name_of(f"{site.url}/a%20b.txt?token=secret") == "a b.txt"
    with pytest.raises(DataError) as caught:
        describe(address)
    assert not any(word in str(caught.value) for word in ("password", "secret"))


def test_what_fsspec_opens_goes_the_same_way(store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PATIENCE", attempts.Patience(attempts=4, first_wait_seconds=0.001))
    store.pipe_file("/bucket/file.bin", CONTENT)
    address = "memory://bucket/file.bin"
    found = describe(address)
    file = InputFile(address, "file.bin", found.size_bytes, found.fingerprint)
    with open_input(file) as opened:
        opened.seek(1_000_000)
        assert opened.read(100) == CONTENT[1_000_000:1_000_100]
    given = type(store).cat_file
    calls = 0

    def cat_file(self: object, path: str, start: int, end: int) -> bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise TimeoutError
        return given(self, path, start=start, end=end)[: 1_000_000 if calls == 2 else None]

    monkeypatch.setattr(type(store), "cat_file", cat_file)
    download(file, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert calls == 3
    store.pipe_file("/bucket/file.bin", CONTENT + b"more")
    with open_input(file) as opened, pytest.raises(DataError, match="has 3,072,004 bytes now"):
        opened.read()
    store.rm("/bucket/file.bin")
    with open_input(file) as opened, pytest.raises(DataError, match="is not there"):
        opened.read()


def test_errors_of_the_library_under_s3fs_are_told_apart(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class BotoCoreError(Exception):
        pass

    class NoCredentialsError(BotoCoreError):
        pass

    monkeypatch.setattr(attempts, "PATIENCE", attempts.Patience(attempts=4, first_wait_seconds=0.001))
    monkeypatch.setitem(sys.modules, "botocore.exceptions", types.SimpleNamespace(BotoCoreError=BotoCoreError))
    raised: list[Exception] = [NoCredentialsError(), PermissionError(), *[BotoCoreError()] * 4]

    def info(self: object, path: str) -> None:
        raise raised.pop(0)

    monkeypatch.setattr(type(store), "info", info)
    for _ in range(2):
        with pytest.raises(DataError, match="may not be read"):
            transport.describe("memory://bucket/file")
    with pytest.raises(MachineError, match=r"cannot be read: BotoCoreError \(4 attempts\)"):
        transport.describe("memory://bucket/file")


def test_a_token_goes_to_the_hub_and_not_to_where_it_redirects(hub: Hub, tmp_path: Path) -> None:
    commit = hub.put("owner/name", {"data/a b.jsonl": CONTENT})
    file = InputFile(f"hf://datasets/owner/name@{commit}/data/a b.jsonl", "data/a b.jsonl", len(CONTENT), SHA256)
    download(file, tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert hub.site.authorised == [hub.path("owner/name", commit, "data/a b.jsonl")]
    place = cache_path(file, tmp_path)
    assert place.parent == tmp_path / "hub" / "owner" / "name"
    assert place.name.endswith("-a_b.jsonl")


def test_offline_mode_of_the_hub_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with (
        open_input(InputFile("hf://datasets/o/n@c/a.jsonl", "a.jsonl", 1, "")) as opened,
        pytest.raises(MachineError, match="HF_HUB_OFFLINE"),
    ):
        opened.read()
