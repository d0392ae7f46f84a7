"""A stub of the Hugging Face hub that can be written to: repositories with commits, large files by hash, tokens; and it fails as told.

It speaks what the hub's own client asks for, over plain HTTP, without Xet.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "Canary" * 5
READ_TOKEN = "hf_" + "Reader" * 5
LARGE_BYTES = 20_000
"""Files of at least so many bytes are kept by hash, smaller ones in git."""
Files = dict[str, bytes]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one answer."""

    status: int | None = None
    """Answer with this instead."""
    read_bytes: int | None = None
    """Read only so much of what is sent, then close the connection."""
    send_bytes: int | None = None
    """Send only so much of the answer, then close the connection."""
    flips: bool = False
    """Change a byte of what is sent."""
    after: bool = False
    """Do what is asked, then close the connection without an answer."""
    says: str = ""


@dataclass
class Repo:
    """What a repository held at each commit, and what its branches name."""

    private: bool
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Files, branch: str, message: str) -> str:
        name = hashlib.sha1(repr((sorted(files.items()), len(self.commits))).encode(), usedforsecurity=False).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        self.messages.append(message)
        return name

    def at(self, revision: str) -> Files | None:
        return self.commits.get(self.branches.get(revision, revision))

    @property
    def files(self) -> Files:
        return self.commits[self.branches["main"]]


@dataclass
class HubStub:
    """What the server holds, what goes wrong, and what was asked of it."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    """By kind and name, such as models/me/small."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    faults: list[tuple[str, Fault]] = field(default_factory=list)
    """The first whose pattern the method and path match is used up by a request."""
    requests: list[str] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    received_bytes: int = 0
    """Of large files."""
    part_bytes: int | None = None
    """Large files are sent in parts of so many bytes."""
    lock: threading.RLock = field(default_factory=threading.RLock)

    def fail(self, pattern: str, *faults: Fault) -> None:
        self.faults += [(pattern, fault) for fault in faults]

    def asked(self, pattern: str) -> list[str]:
        return [one for one in self.requests if re.search(pattern, one)]


def git_id(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", says: str = "") -> None:
        super().__init__(status)
        self.status, self.code, self.says = status, code, says


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append(f"{self.command} {path}")
            fault = next((pair for pair in self.hub.faults if re.search(pair[0], f"{self.command} {path}")), ("", Fault()))
            if fault in self.hub.faults:
                self.hub.faults.remove(fault)
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(min(length, fault[1].read_bytes or length))
        if fault[1].read_bytes is not None:
            self.close_connection = True
            return
        if fault[1].status is not None:
            self._send(fault[1].status, json.dumps({"error": fault[1].says}).encode())
            return
        try:
            with self.hub.lock:
                status, content, headers = self._answer(path, body, fault[1])
        except _Refused as refused:
            status, content = refused.status, json.dumps({"error": refused.says}).encode()
            headers = {"X-Error-Code": refused.code} if refused.code else {}
        if fault[1].after:
            self.close_connection = True
            return
        self._send(status, content, headers, fault[1].send_bytes)

    do_GET = do_POST = do_PUT = do_HEAD = handle_any

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None, send_bytes: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.close_connection = send_bytes is not None
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(content[:send_bytes])

    def _answer(self, path: str, body: bytes, fault: Fault) -> tuple[int, bytes, dict[str, str]]:
        for pattern, method, answer in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and method == self.command:
                return answer(self, body, fault, *found.groups())
        raise _Refused(404)

    def _require(self, *tokens: str) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given not in (TOKEN, READ_TOKEN):
            raise _Refused(401, says=f"Invalid credentials: {given}")
        if given not in tokens:
            raise _Refused(403)

    def _repo(self, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get(f"{kind}/{name}")
        if repo is None or (repo.private and self.headers.get("Authorization") is None):
            raise _Refused(404, "RepoNotFound")
        return repo

    def _files(self, kind: str, name: str, revision: str) -> Files:
        files = self._repo(kind, name).at(revision)
        if files is None:
            raise _Refused(404, "RevisionNotFound")
        return files

    def create(self, body: bytes, fault: Fault) -> tuple[int, bytes, dict[str, str]]:
        self._require(TOKEN)
        asked = json.loads(body)
        name, kind = f"{asked['organization']}/{asked['name']}", f"{asked.get('type') or 'model'}s"
        if f"{kind}/{name}" in self.hub.repos:
            return 409, json.dumps({"error": "it exists", "url": f"{self.hub.url}/{name}"}).encode(), {}
        repo = self.hub.repos[f"{kind}/{name}"] = Repo(asked.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "main", "initial commit")
        return _json({"url": f"{self.hub.url}/{name}", "name": name, "id": "1"})

    def validate(self, body: bytes, fault: Fault) -> tuple[int, bytes, dict[str, str]]:
        is_wrong = "wrong" in json.loads(body)["content"]
        return (
            (400 if is_wrong else 200),
            json.dumps({"errors": [{"message": "license is wrong"}] if is_wrong else [], "warnings": []}).encode(),
            {},
        )

    def branch(self, body: bytes, fault: Fault, kind: str, name: str, branch: str) -> tuple[int, bytes, dict[str, str]]:
        self._require(TOKEN)
        repo = self._repo(kind, name)
        if branch in repo.branches:
            raise _Refused(409)
        repo.branches[branch] = repo.branches["main"]
        return _json({})

    def preupload(self, body: bytes, fault: Fault, kind: str, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        self._require(TOKEN)
        self._files(kind, name, revision)
        modes = [(file["path"], "lfs" if file["size"] >= LARGE_BYTES else "regular") for file in json.loads(body)["files"]]
        return _json({"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes]})

    def batch(self, body: bytes, fault: Fault, prefix: str, name: str) -> tuple[int, bytes, dict[str, str]]:
        self._require(TOKEN)
        return _json({"transfer": "basic", "objects": [self._actions(asked) for asked in json.loads(body)["objects"]]})

    def _actions(self, asked: dict[str, Any]) -> dict[str, Any]:
        if asked["oid"] in self.hub.blobs:
            return asked
        place, size = f"{self.hub.url}/lfs/{asked['oid']}", self.hub.part_bytes
        if size is None:
            return {**asked, "actions": {"upload": {"href": place}}}
        parts = range(1, -(-asked["size"] // size) + 1)
        header = {"chunk_size": str(size), **{str(part): f"{place}/{part}" for part in parts}}
        return {**asked, "actions": {"upload": {"href": f"{place}/complete", "header": header}}}

    def put(self, body: bytes, fault: Fault, oid: str, part: str | None) -> tuple[int, bytes, dict[str, str]]:
        self.hub.received_bytes += len(body)
        if part is not None:
            self.hub.blobs[f"{oid}/{part}"] = body
            return 200, b"", {"etag": part}
        if hashlib.sha256(body).hexdigest() != oid:
            raise _Refused(422)
        self.hub.blobs[oid] = body
        return 200, b"", {}

    def complete(self, body: bytes, fault: Fault, oid: str) -> tuple[int, bytes, dict[str, str]]:
        content = b"".join(self.hub.blobs.pop(f"{oid}/{part['partNumber']}") for part in json.loads(body)["parts"])
        return self.put(content, fault, oid, None)

    def commit(self, body: bytes, fault: Fault, kind: str, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        self._require(TOKEN)
        files, message = dict(self._files(kind, name, revision)), ""
        for line in body.splitlines():
            asked = json.loads(line)
            value = asked["value"]
            match asked["key"]:
                case "header":
                    message = value["summary"]
                case "file":
                    content = base64.b64decode(value["content"])
                    files[value["path"]] = _flipped(content) if fault.flips else content
                case "lfsFile":
                    files[value["path"]] = self.hub.blobs[value["oid"]]
                case "deletedFile":
                    if value["path"] not in files:
                        raise _Refused(404, "EntryNotFound")
                    del files[value["path"]]
        made = self._repo(kind, name).commit(files, revision, message)
        return _json({"success": True, "commitOid": made, "commitUrl": f"{self.hub.url}/{name}/commit/{made}", "hookOutput": ""})

    def info(self, body: bytes, fault: Fault, kind: str, name: str, revision: str | None) -> tuple[int, bytes, dict[str, str]]:
        repo, revision = self._repo(kind, name), revision or "main"
        self._files(kind, name, revision)
        about = {"id": name, "_id": "0", "sha": repo.branches.get(revision, revision), "private": repo.private, "gated": False}
        return _json({**about, "disabled": False, "siblings": [], "tags": []})

    def tree(self, body: bytes, fault: Fault, kind: str, name: str, revision: str) -> tuple[int, bytes, dict[str, str]]:
        entries = []
        for path, content in self._files(kind, name, revision).items():
            entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": git_id(content)}
            if len(content) >= LARGE_BYTES:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        return _json(entries)

    def resolve(self, body: bytes, fault: Fault, prefix: str, name: str, revision: str, path: str) -> tuple[int, bytes, dict[str, str]]:
        content = self._files("datasets" if prefix else "models", name, revision).get(path)
        if content is None:
            raise _Refused(404, "EntryNotFound")
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        self.hub.ranges.append(f"{path} {asked}")
        first, _, last = (asked or "0-").partition("-")
        end = min(int(last or len(content)) + 1, len(content))
        piece = content[int(first) : end]
        headers = {"ETag": f'"{git_id(content)}"', "Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
        return 206 if asked else 200, _flipped(piece) if fault.flips else piece, headers


def _json(value: Any) -> tuple[int, bytes, dict[str, str]]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _flipped(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


_NAME = r"([\w.-]+/[\w.-]+)"
_ROUTES: list[tuple[str, str, Any]] = [
    (r"/api/repos/create", "POST", _Handler.create),
    (r"/api/validate-yaml", "POST", _Handler.validate),
    (rf"/api/(\w+)/{_NAME}/branch/(.+)", "POST", _Handler.branch),
    (rf"/api/(\w+)/{_NAME}/preupload/(.+)", "POST", _Handler.preupload),
    (rf"/api/(\w+)/{_NAME}/commit/(.+)", "POST", _Handler.commit),
    (rf"/(datasets/)?{_NAME}\.git/info/lfs/objects/batch", "POST", _Handler.batch),
    (r"/lfs/(\w{64})/complete", "POST", _Handler.complete),
    (r"/lfs/(\w{64})(?:/(\d+))?", "PUT", _Handler.put),
    (rf"/api/(\w+)/{_NAME}(?:/revision/(.+))?", "GET", _Handler.info),
    (rf"/api/(\w+)/{_NAME}/tree/([^/]+)", "GET", _Handler.tree),
    (rf"/(datasets/)?{_NAME}/resolve/([^/]+)/(.+)", "GET", _Handler.resolve),
]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is part of the tests; nothing else is."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextlib.contextmanager
def serve() -> Iterator[HubStub]:
    """A stub that runs as long as the block."""
    hub = HubStub()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
