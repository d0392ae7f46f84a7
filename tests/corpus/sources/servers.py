"""A web server on this machine that misbehaves as told, and on it a stub of the Hugging Face hub."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from fledge.corpus.sources import attempts, transport
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.transport import describe

CONTENT = bytes(range(256)) * 12_000  # 3 MB: several appends, and several reads of what a socket holds
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PATH = "/data/file.bin"

RECURSIVE = " (recursive)"
"""Behind the path of a request for everything below a folder."""


@dataclass(frozen=True)
class Fault:
    """What is wrong with one answer."""

    status: int | None = None
    """Answer with this instead of the file."""
    retry_after: str | None = None
    send_bytes: int | None = None
    """Send only so much of the body, then close the connection."""
    longer_by: int = 0
    """Claim a Content-Length that is so much longer than the body, then close the connection."""
    hang_up: bool = False
    """Close the connection without an answer."""


@dataclass
class Served:
    """A file on the server."""

    content: bytes
    etag: str | None = None
    takes_ranges: bool = True
    location: str | None = None
    """Where to send the client instead (a redirect)."""


@dataclass
class Site:
    """What a server serves, what goes wrong, and what was asked of it."""

    url: str = ""
    files: dict[str, Served] = field(default_factory=dict)
    faults: defaultdict[str, list[Fault]] = field(default_factory=lambda: defaultdict(list))
    """By path; each answer takes the first."""
    requests: list[tuple[str, str]] = field(default_factory=list)
    """Path and Range of every request."""
    authorised: list[str] = field(default_factory=list)
    """Paths that were asked for with a token."""
    sent_bytes: Counter[str] = field(default_factory=Counter)

    def put(self, path: str, content: bytes, etag: str | None = None, takes_ranges: bool = True) -> str:
        """Serve a file; returns its address."""
        self.files[path] = Served(content, etag or hashlib.md5(content, usedforsecurity=False).hexdigest(), takes_ranges)
        return f"{self.url}{path}"

    def always(self, path: str, fault: Fault) -> None:
        """Answer every request for a path with a fault."""
        self.faults[path] = [fault] * 1_000


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if "recursive=true" in self.path.lower():
            path += RECURSIVE
        self.site.requests.append((path, self.headers.get("Range", "")))
        if self.headers.get("Authorization"):
            self.site.authorised.append(path)
        faults = self.site.faults[path]
        fault = faults.pop(0) if faults else Fault()
        served = self.site.files.get(path)
        if fault.hang_up:
            self.close_connection = True
        elif fault.status is not None:
            self._head(fault.status, 0, {"Retry-After": fault.retry_after} if fault.retry_after else {})
        elif served is None:
            # What the hub says besides, by which its library tells a missing folder from a missing dataset.
            self._head(404, 0, {"X-Error-Code": "EntryNotFound" if "/tree/" in path else "RepoNotFound"})
        elif served.location is not None:
            self._head(302, 0, {"Location": served.location})
        else:
            self._send(path, served, fault)

    do_POST = do_GET

    def _send(self, path: str, served: Served, fault: Fault) -> None:
        content, total = served.content, len(served.content)
        headers = {"ETag": f'"{served.etag}"'} if served.etag else {}
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        status = 200
        if asked and served.takes_ranges:
            first, _, last = asked.partition("-")
            if int(first) >= total:
                self._head(416, 0, {"Content-Range": f"bytes */{total}"})
                return
            end = min(int(last or total) + 1, total)
            status, content = 206, content[int(first) : end]
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{total}"
        body = content[: fault.send_bytes]
        self.close_connection = len(body) < len(content) or fault.longer_by > 0
        # Before the answer begins: with its head alone the client may go on.
        self.site.sent_bytes[path] += len(body)
        self._head(status, len(content) + fault.longer_by, headers)
        # It may have heard enough.
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests; nothing else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve() -> Iterator[Site]:
    """A server that runs as long as the block."""
    site = Site()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Hub:
    """Datasets on a site, at the paths at which the hub has them."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def put(self, repository: str, files: dict[str, bytes], revision: str = "main", small: tuple[str, ...] = ()) -> str:
        """Make a commit of a dataset, and a branch name it; returns the commit. `small`: files kept in git itself."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()
        about = {
            "id": repository,
            "_id": "0",
            "sha": commit,
            "private": False,
            "gated": False,
            "disabled": False,
            "siblings": [],
            "tags": [],
        }
        for name in ("", f"/revision/{revision}", f"/revision/{commit}"):
            self._json(f"/api/datasets/{repository}{name}", about)
        entries = [self._entry(path, content, path in small) for path, content in files.items()]
        folders = {above for path in files for above in _above(path)}
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders - {""}]
        for folder in folders:
            below = [entry for entry in entries if folder in _above(entry["path"])]
            tree = f"/api/datasets/{repository}/tree/{commit}/{folder}".rstrip("/")
            self._json(f"{tree}{RECURSIVE}", below)
            self._json(tree, [entry for entry in below if entry["path"].rpartition("/")[0] == folder])
        for path, content in files.items():
            # The hub itself sends nobody a large file: it redirects to another host.
            stored = f"/cdn/{hashlib.sha256(content).hexdigest()}"
            self.site.put(stored, content)
            self.site.files[self.path(repository, commit, path)] = Served(b"", location=f"{self.other_host}{stored}")
        return commit

    @property
    def other_host(self) -> str:
        """The same server under another name."""
        return self.site.url.replace("127.0.0.1", "localhost")

    def path(self, repository: str, commit: str, path: str) -> str:
        """Where a file is asked for."""
        return f"/datasets/{repository}/resolve/{commit}/{path}"

    def stored(self, content: bytes) -> str:
        """Where its bytes come from."""
        return f"/cdn/{hashlib.sha256(content).hexdigest()}"

    def _entry(self, path: str, content: bytes, is_small: bool) -> dict[str, Any]:
        blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob}
        if not is_small:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _json(self, path: str, value: Any) -> None:
        self.site.put(path, json.dumps(value).encode())


def _above(path: str) -> Iterator[str]:
    """The folders that hold a path, the root ("") last."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def serve_content(site: Site, content: bytes = CONTENT, etag: str | None = None, takes_ranges: bool = True) -> InputFile:
    """Put the content on the site and look it up."""
    address = site.put(PATH, content, etag, takes_ranges)
    found = describe(address)
    site.requests.clear()
    site.sent_bytes.clear()
    return InputFile(address, "file.bin", found.size_bytes, found.fingerprint)


@contextlib.contextmanager
def impatient_site(monkeypatch: pytest.MonkeyPatch, tries: int = 2) -> Iterator[Site]:
    """A web server on this machine, and little patience with it."""
    monkeypatch.setattr(attempts, "PATIENCE", attempts.Patience(attempts=tries, first_wait_seconds=0.001, silence_seconds=5))
    transport._client.cache_clear()
    with serve() as site:
        yield site
        transport.client().close()
    transport._client.cache_clear()
