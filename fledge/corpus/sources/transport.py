"""One attempt at the bytes of a remote file, over whatever reaches it; `remote.py` makes whole files of attempts.

https:// and hf:// go through httpx2, the client that huggingface_hub itself stands on: the HTTP files of fsspec and the hub tell
neither length nor ETag of an answer, which is all that tells a changed file from the one that was begun. Everything else (s3://)
is read by fsspec.

What does not agree with the file that was looked up never becomes part of it. A fingerprint says what it rests on: 64 hexadecimal
digits are the SHA-256 of the content, 40 its git blob id, `etag:` and `modified:` what the server said, `size:` nothing more.
"""

from __future__ import annotations

import email.utils
import functools
import os
import re
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from fledge.core import __version__
from fledge.core.errors import DataError, MachineError
from fledge.core.installing import install_hint
from fledge.corpus.sources import attempts
from fledge.corpus.sources.attempts import Failure, retried
from fledge.corpus.sources.piece import InputFile

if TYPE_CHECKING:
    import httpx2

HUB_ADDRESS = re.compile(r"hf://(datasets/)?([\w.-]+(?:/[\w.-]+)?)@([^/]+)/(.+)", re.DOTALL)
"""Whether it is a dataset rather than a model, repository, commit, and path within it."""

STORE_SCHEMES = frozenset({"s3"})
"""What fsspec is asked for. It knows dozens more, but not each of them tells what shows that a file changed."""

_TRY_LATER = {408, 425, 429, 500, 502, 503, 504}
_ATTEMPTS_AT_A_CHANGED_FILE = 3
_FSSPEC_BLOCK_BYTES = 8 << 20
_client_lock = threading.Lock()
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True)
class Described:
    """What a server says of a file before it is read."""

    size_bytes: int
    fingerprint: str
    takes_ranges: bool


class NoRanges(Exception):
    """The server sends this file only whole."""


def is_remote(address: str) -> bool:
    """Whether an address is none of this machine's files."""
    return re.match(r"[a-z][a-z0-9+.-]*://", address) is not None


def shown(address: str) -> str:
    """An address without what may be secret in it: user, password and query."""
    scheme, separator, rest = address.partition("://")
    if not separator:
        return address
    if scheme.lower() in {"http", "https"}:
        rest = rest.partition("?")[0].partition("#")[0]
    host, slash, path = rest.partition("/")
    return f"{scheme}{separator}{host.rpartition('@')[2]}{slash}{path}"


def name_of(address: str) -> str:
    """The file name at the end of an address."""
    return unquote(shown(address).rstrip("/").rpartition("/")[2])


def describe(address: str) -> Described:
    """Length and fingerprint of what lies at a remote address (not of the hub). Raises DataError, MachineError."""
    return retried(lambda: _describe_web(address) if _is_web(address) else _describe_elsewhere(address))


def described(info: Mapping[str, Any]) -> Described:
    """The same from what an fsspec file system says."""
    size_bytes = int(info["size"])
    modified = info.get("LastModified") or info.get("mtime") or ""
    return Described(size_bytes, fingerprint_of(str(info.get("ETag") or ""), str(modified), size_bytes), takes_ranges=True)


def answer(file: InputFile, start: int, end: int) -> Iterator[bytes]:
    """One attempt at the bytes from `start` to before `end`; it may end early. Raises Failure, NoRanges, DataError, MachineError."""
    if _is_web(file.address):
        yield from _web_answer(file, start, end)
        return
    filesystem, path = filesystem_of(file.address)
    try:
        found = described(filesystem.info(path))
        _require(file, found.size_bytes, found.fingerprint)
        yield filesystem.cat_file(path, start=start, end=min(end, start + _FSSPEC_BLOCK_BYTES))
    except store_errors() as error:
        raise foreign_error(file.address, error) from error


def filesystem_of(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path within it.

    Raises DataError if it is of no scheme that is read, or no address; MachineError if the package for its scheme is missing.
    """
    import fsspec

    scheme = address.partition("://")[0]
    remedy = "give https://, s3:// or a local path; a dataset of the hub is a source of kind: hub"
    if scheme not in STORE_SCHEMES:
        raise DataError(f"{shown(address)} is no address that can be opened", remedy)
    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise MachineError(f"{scheme}:// needs a package that is not installed", install_hint("s3")) from error
    except ValueError as error:
        raise DataError(f"{shown(address)} is no address that can be opened", remedy) from error
    except store_errors() as error:
        raise foreign_error(address, error) from error
    return filesystem, path


def fingerprint_of(tag: str, modified: str, size_bytes: int) -> str:
    """A fingerprint from what a server says."""
    if tag:
        return f"etag:{tag.removeprefix('W/').strip(chr(34))}:{size_bytes}"
    return f"modified:{modified}:{size_bytes}" if modified else f"size:{size_bytes}"


def ends_early(file: InputFile, position: int) -> Failure:
    """An answer with fewer bytes than it promised; if it is so again and again, the server is wrong about the file."""
    return Failure(f"{shown(file.address)} ends after {position:,} of {file.size_bytes:,} bytes", is_data=True)


def store_errors() -> tuple[type[Exception], ...]:
    """What reading through fsspec may raise: OSError, and what the library under s3fs lets through."""
    botocore = sys.modules.get("botocore.exceptions")
    return (OSError,) if botocore is None else (OSError, botocore.BotoCoreError)


def foreign_error(address: str, error: Exception) -> Exception:
    """What one of them means: the file is not there, not ours to read, or to be tried again."""
    if isinstance(error, FileNotFoundError):
        return DataError(f"{shown(address)} is not there", "check the address")
    if isinstance(error, PermissionError) or type(error).__name__.endswith("CredentialsError"):
        return DataError(f"{shown(address)} may not be read", "give this machine the right to read it (credentials of the store)")
    return Failure(f"{shown(address)} cannot be read: {type(error).__name__}")


def status_error(address: str, status: int, headers: Mapping[str, str]) -> Exception:
    """What an HTTP status other than success means: to be tried again, or a DataError."""
    where = shown(address)
    if status in _TRY_LATER:
        return Failure(f"{where} answers with status {status}", wait_seconds=_asked_seconds(headers))
    if status in {401, 403}:
        is_hub = address.startswith("hf://")
        remedy = "accept the terms on its page, then log in: hf auth login" if is_hub else "check the address and your rights to it"
        return DataError(f"{where} may not be read (status {status})", remedy)
    if status in {404, 410}:
        return DataError(f"{where} is not there (status {status})", "check the address")
    return DataError(f"{where} answers with status {status}", "check that the address leads to a file")


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://", "hf://"))


def client() -> httpx2.Client:
    """Shared by all threads, so that connections are; a forked process gets its own."""
    with _client_lock:
        return _client(os.getpid())


@functools.cache
def _client(process_id: int) -> httpx2.Client:
    """Where a server redirects to another host, as the hub does for every large file, a token is not sent along."""
    import httpx2

    timeout = httpx2.Timeout(attempts.PATIENCE.silence_seconds, pool=None)
    # Compressed on the way, a range would not be one of the file as it lies there.
    headers = {"User-Agent": f"fledge/{__version__}", "Accept-Encoding": "identity"}
    return httpx2.Client(follow_redirects=True, timeout=timeout, headers=headers)


def _request(address: str) -> tuple[str, dict[str, str]]:
    """URL and headers for an address of the web or the hub."""
    found = HUB_ADDRESS.fullmatch(address)
    if found is None:
        return address, {}
    from huggingface_hub import constants, get_token, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise MachineError(f"{address} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it", "unset HF_HUB_OFFLINE")
    is_dataset, repository, commit, path = found.groups()
    url = hf_hub_url(repository, path, repo_type="dataset" if is_dataset else "model", revision=commit, endpoint=constants.ENDPOINT)
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return url, {} if token is None else {"Authorization": f"Bearer {token}"}


def _web_answer(file: InputFile, start: int, end: int) -> Iterator[bytes]:
    import httpx2

    url, headers = _request(file.address)
    try:
        with client().stream("GET", url, headers={**headers, "Range": f"bytes={start}-{end - 1}"}) as response:
            _check(file, response, start, end)
            left = end - start
            try:
                for piece in response.iter_raw():
                    yield piece[:left]
                    left -= len(piece)
                    if left <= 0:
                        return
            except httpx2.RemoteProtocolError as error:
                raise ends_early(file, end - left) from error
    except httpx2.TransportError as error:
        raise Failure(f"{shown(file.address)}: {_reason(error)}") from error
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise DataError(f"{shown(file.address)} leads nowhere ({type(error).__name__})", "check the address") from error


def _check(file: InputFile, response: httpx2.Response, start: int, end: int) -> None:
    """Raise unless the body of an answer is the range asked for, of the file that was looked up."""
    if response.status_code == 416:
        raise Failure(f"{shown(file.address)} is shorter than {end:,} bytes now", is_data=True, attempts=_ATTEMPTS_AT_A_CHANGED_FILE)
    if response.status_code not in {200, 206}:
        raise status_error(file.address, response.status_code, response.headers)
    found_start, size_bytes = _extent(response)
    if size_bytes is not None:
        _require(file, size_bytes, _web_fingerprint(response, size_bytes))
    if found_start != start:
        raise NoRanges


def _extent(response: httpx2.Response) -> tuple[int, int | None]:
    """Where the body of an answer begins in its file, and the length of the file if the answer tells it."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if response.status_code == 206 and found:
        return int(found[1]), None if found[3] == "*" else int(found[3])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() and response.status_code == 200 else None


def _require(file: InputFile, size_bytes: int, fingerprint: str) -> None:
    if size_bytes != file.size_bytes:
        problem = f"{shown(file.address)} has {size_bytes:,} bytes now, not {file.size_bytes:,}"
        raise Failure(problem, is_data=True, attempts=_ATTEMPTS_AT_A_CHANGED_FILE)
    if file.fingerprint.startswith(("etag:", "modified:")) and fingerprint != file.fingerprint:
        problem = f"{shown(file.address)} changed since it was looked up"
        raise Failure(problem, is_data=True, attempts=_ATTEMPTS_AT_A_CHANGED_FILE)


def _describe_web(address: str) -> Described:
    """A request for the first byte: some servers refuse HEAD, and only an answer shows whether ranges are understood."""
    import httpx2

    try:
        with client().stream("GET", address, headers={"Range": "bytes=0-0"}) as response:
            # An empty file has no first byte.
            if response.status_code == 416 and response.headers.get("Content-Range") == "bytes */0":
                return Described(0, _web_fingerprint(response, 0), True)
            if response.status_code not in {200, 206}:
                raise status_error(address, response.status_code, response.headers)
            size_bytes = _extent(response)[1]
            if size_bytes is None:
                raise DataError(f"the server does not say how long {shown(address)} is", "download it by other means and give its path")
            return Described(size_bytes, _web_fingerprint(response, size_bytes), response.status_code == 206)
    except httpx2.TransportError as error:
        raise Failure(f"{shown(address)}: {_reason(error)}") from error
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise DataError(f"{shown(address)} leads nowhere ({type(error).__name__})", "check the address") from error


def _web_fingerprint(response: httpx2.Response, size_bytes: int) -> str:
    return fingerprint_of(response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""), size_bytes)


def _describe_elsewhere(address: str) -> Described:
    filesystem, path = filesystem_of(address)
    try:
        return described(filesystem.info(path))
    except store_errors() as error:
        raise foreign_error(address, error) from error


def _asked_seconds(headers: Mapping[str, str]) -> float:
    """What Retry-After asks for: seconds, or a moment."""
    text = headers.get("Retry-After", "").strip()
    if text.isdigit():
        return float(text)
    moment = email.utils.parsedate_tz(text) if text else None
    return 0.0 if moment is None else max(0.0, email.utils.mktime_tz(moment) - time.time())


def _reason(error: Exception) -> str:
    """A message of the client may hold the address it asked, with what is secret in it, so only its kind is told."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", type(error).__name__)
    return words.lower()
