"""Remote files as a whole: in one piece, continued, checked, or not there."""

from __future__ import annotations

import errno
import functools
import hashlib
import threading
from pathlib import Path

import pytest

from fledge.core import disk
from fledge.core.errors import DataError, MachineError
from fledge.corpus.sources import attempts
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import cache_path, download, is_whole, open_input
from fledge.corpus.sources.transport import describe

from .servers import CONTENT, PATH, SHA256, Fault, Site, serve_content


def test_a_download_appears_whole(site: Site, tmp_path: Path) -> None:
    file = serve_content(site)
    target = tmp_path / "cache" / "file"
    seen: list[bool] = []
    got: list[int] = []

    def advance(size_bytes: int) -> None:
        seen.append(target.exists())
        got.append(size_bytes)

    download(file, target, advance)
    assert target.read_bytes() == CONTENT
    assert not any(seen)
    assert sum(got) == len(CONTENT)
    assert [path.name for path in target.parent.iterdir()] == ["file"]
    assert is_whole(target, file)
    empty = serve_content(site, b"")
    download(empty, tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_partial_download_is_continued(site: Site, tmp_path: Path) -> None:
    file = serve_content(site)
    target = tmp_path / "file"
    site.faults[PATH] = [Fault(send_bytes=1_500_000), *[Fault(status=500)] * 4]
    with pytest.raises(MachineError, match="status 500"):
        download(file, target)
    assert (tmp_path / "file.partial").stat().st_size == 1_500_000
    got: list[int] = []
    download(file, target, got.append)
    assert target.read_bytes() == CONTENT
    assert site.sent_bytes[PATH] == len(CONTENT)
    assert got[0] == 1_500_000
    assert sum(got) == len(CONTENT)


def test_a_partial_download_of_other_content_is_not_continued(site: Site, tmp_path: Path) -> None:
    file = serve_content(site)
    changed = serve_content(site, CONTENT[::-1])
    assert cache_path(file, tmp_path) != cache_path(changed, tmp_path)
    # Nothing tells whether this is the same file: no ETag, no time of change.
    unknown = InputFile(file.address, file.name, len(CONTENT), f"size:{len(CONTENT)}")
    target = tmp_path / "file"
    (tmp_path / "file.partial").write_bytes(b"other")
    download(unknown, target)
    assert target.read_bytes() == CONTENT[::-1]
    (tmp_path / "long.partial").write_bytes(CONTENT + b"too long")
    download(changed, tmp_path / "long")
    assert (tmp_path / "long").read_bytes() == CONTENT[::-1]


def test_a_hash_is_checked_and_a_damaged_beginning_forgotten(site: Site, tmp_path: Path) -> None:
    address = serve_content(site).address
    file = InputFile(address, "file.bin", len(CONTENT), SHA256)
    (tmp_path / "file.partial").write_bytes(b"\0" * 1_000_000)
    got: list[int] = []
    download(file, tmp_path / "file", got.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert sum(got) == len(CONTENT)
    wrong = InputFile(address, "file.bin", len(CONTENT), "0" * 64)
    with pytest.raises(DataError, match=rf"came twice with the hash {SHA256}, not 0000"):
        download(wrong, tmp_path / "wrong")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    blob = hashlib.sha1(f"blob {len(CONTENT)}\0".encode() + CONTENT, usedforsecurity=False).hexdigest()
    download(InputFile(address, "file.bin", len(CONTENT), blob), tmp_path / "blob")
    with pytest.raises(DataError, match="came twice"):
        download(InputFile(address, "file.bin", len(CONTENT), "0" * 40), tmp_path / "wrong")


def test_a_server_without_ranges(site: Site, tmp_path: Path) -> None:
    file = serve_content(site, takes_ranges=False)
    assert not describe(file.address).takes_ranges
    with open_input(InputFile(file.address, "a.parquet", file.size_bytes, file.fingerprint)) as opened:
        assert opened.read(10) == CONTENT[:10]
        opened.seek(2_000_000)
        with pytest.raises(DataError, match="sends whole files only") as caught:
            opened.read(10)
    assert "cache: raw" in caught.value.remedy
    site.faults[PATH] = [Fault(send_bytes=1_500_000), Fault(send_bytes=1_500_000)]
    got: list[int] = []
    download(file, tmp_path / "file", got.append)
    assert (tmp_path / "file").read_bytes() == CONTENT
    assert sum(got) == len(CONTENT)
    site.requests.clear()
    site.always(PATH, Fault(send_bytes=1_500_000))
    with pytest.raises(DataError, match=r"ends after 1,500,000 of 3,072,000 bytes \(4 attempts\)"):
        download(file, tmp_path / "other")
    assert len(site.requests) < 8


def test_a_full_disk_is_named_and_what_is_there_is_kept(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = serve_content(site)
    appends = 0

    def fail(operation: str, path: Path) -> None:
        nonlocal appends
        appends += operation == "append"
        if appends == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(disk, "fail_point", fail)
    with pytest.raises(MachineError, match="no space left while writing"):
        download(file, tmp_path / "file")
    kept = (tmp_path / "file.partial").stat().st_size
    assert 0 < kept < len(CONTENT)
    site.sent_bytes.clear()
    monkeypatch.setattr(disk, "fail_point", None)
    download(file, tmp_path / "file")
    assert site.sent_bytes[PATH] == len(CONTENT) - kept
    assert (tmp_path / "file").read_bytes() == CONTENT


def test_a_download_ends_when_it_is_told_to_even_while_it_waits(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = serve_content(site)
    monkeypatch.setattr(attempts, "PATIENCE", attempts.Patience(first_wait_seconds=3_600, longest_wait_seconds=3_600))
    site.faults[PATH] = [Fault(send_bytes=1_500_000)]
    stop = threading.Event()

    def advance(size_bytes: int) -> None:
        stop.set()

    token = attempts.PAUSE.set(functools.partial(attempts.pause_until, stop))
    with pytest.raises(attempts.Stopped):
        download(file, tmp_path / "file", advance)
    attempts.PAUSE.reset(token)
    assert (tmp_path / "file.partial").stat().st_size == 1_500_000
