"""Writing to the hub: one commit that makes a repository hold certain files, however often it has to be tried.

    list what is there -> send what is missing, by hash -> one commit with these files and what has to go

Every attempt begins with the list, so one whose answer was lost does not commit twice, and one that broke off sends only what the hub does
not have yet: whole files where they are sent as such, pieces of them where the hub takes its own form of storage (Xet).

The token is the one of HF_TOKEN or of `hf auth login`, and only the hub's own client sees it. That client logs the addresses it asks,
which are secrets where they are signed, and waits for ever for a server that says nothing; both are changed here.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import httpx2
from huggingface_hub import CommitOperation, CommitOperationAdd, CommitOperationDelete, HfApi, constants, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils.tqdm import disable_progress_bars

from fledge.core import __version__, console
from fledge.core.errors import ConfigError, DataError, MachineError
from fledge.corpus.sources.attempts import Attempts, Failure, retried
from fledge.corpus.sources.hub import Kind, all_files, commit_of, hub_errors
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.settings import REPOSITORY_NAME
from fledge.publish.parcel import Item

MAIN = "main"
"""The branch that a repository begins with."""

_LOG_IN = "set HF_TOKEN to a token that may write there, or log in: hf auth login"
_TIMEOUT = httpx2.Timeout(60.0, read=300.0, pool=None)
"""Seconds; the answer to a commit of many files takes the hub minutes."""
_CONFLICTS = {409, 412}
"""Somebody else made a commit meanwhile."""
_AT_ONCE = 4
_GROUP_BYTES = 256 << 20
_GROUP_FILES = 100
"""So much is sent before the hub is asked about the next files; the bar moves at least as often."""


@dataclass(frozen=True)
class Repository:
    """A place on the hub."""

    name: str
    """OWNER/NAME."""
    kind: Kind
    revision: str = MAIN

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


Stale = Callable[[Collection[InputFile]], Collection[str]]
"""Of the files that a repository has, the paths that have to go."""


def require_name(name: str) -> None:
    """Raises ConfigError unless a name is one of a repository."""
    if re.fullmatch(REPOSITORY_NAME, name) is None:
        raise ConfigError(f"{name} is no repository of the hub", "give OWNER/NAME")


def require_token() -> None:
    """Raises MachineError if this machine has no token of the hub."""
    if get_token() is None:
        raise MachineError("this machine has no token of the hub", _LOG_IN)


def create(repository: Repository, public: bool) -> None:
    """Make the repository and its branch unless they are there; one that is there stays as visible as it is, which is told.

    Raises DataError if the hub refuses.
    """
    api = _client()
    place: dict[str, Any] = {"repo_id": repository.name, "repo_type": repository.kind}

    def attempt() -> None:
        with _errors(repository):
            api.create_repo(**place, private=not public, exist_ok=True)
            if bool(api.repo_info(**place).private) == public:
                seen = "private: --public does not change that" if public else "public: everybody can read what is sent there"
                console.warn(f"{repository} is there already, and {seen}; its page has a setting for it")
            if repository.revision != MAIN:
                api.create_branch(**place, branch=repository.revision, exist_ok=True)

    retried(attempt)


def present(repository: Repository) -> list[InputFile]:
    """The files that a repository holds now."""
    return all_files(repository.name, commit_of(repository.name, repository.revision, repository.kind), repository.kind)


def publish(repository: Repository, items: Sequence[Item], message: str, stale: Stale) -> bool:
    """Make a repository hold these files, in one commit; False if it does already.

    Raises DataError if the hub refuses, MachineError if it stays away.
    """
    attempts = Attempts()
    with console.progress(f"push to {repository.name}", sum(item.digest.size_bytes for item in items), "bytes") as progress:
        sent = _Sent(progress)
        while True:
            before = sent.most_bytes
            try:
                return _attempt(repository, items, message, stale, sent)
            except Failure as failure:
                attempts.failed(failure, gained=sent.most_bytes > before)


def is_same(item: Item, fingerprint: str | None) -> bool:
    """Whether the hub holds these bytes: it names large files by their SHA-256, small ones by their git blob id."""
    if fingerprint is None or len(fingerprint) == 64:
        return fingerprint == item.digest.sha256
    content = item.source if isinstance(item.source, bytes) else item.source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == fingerprint


def _attempt(repository: Repository, items: Sequence[Item], message: str, stale: Stale, sent: _Sent) -> bool:
    there = present(repository)
    known = {file.name: file.fingerprint for file in there}
    missing = [item for item in items if not is_same(item, known.get(item.name))]
    sent.skip(sum(item.digest.size_bytes for item in items) - sum(item.digest.size_bytes for item in missing))
    removed = sorted(set(stale(there)) & known.keys() - {item.name for item in items})
    if not missing and not removed:
        return False
    api = _client()
    place: dict[str, Any] = {"repo_id": repository.name, "repo_type": repository.kind, "revision": repository.revision}
    with _errors(repository), warnings.catch_warnings():
        # That a repository of models holds Parquet is meant so, where it holds a run.
        warnings.simplefilter("ignore")
        additions = [_Addition.of(item, sent) for item in missing]
        for group in _groups(additions):
            api.preupload_lfs_files(**place, additions=group, free_memory=False, num_threads=_AT_ONCE)
            for addition in group:
                sent.at(addition.path_in_repo, addition.upload_info.size)
        operations: list[CommitOperation] = [*additions, *(CommitOperationDelete(path, is_folder=False) for path in removed)]
        commit = api.create_commit(**place, operations=operations, commit_message=message).oid
    arrived = {file.name: file.fingerprint for file in all_files(repository.name, commit, repository.kind)}
    damaged = [item.name for item in items if not is_same(item, arrived.get(item.name))]
    if damaged:
        raise Failure(f"{repository}: {', '.join(damaged[:3])} arrived damaged", is_data=True)
    return True


def _groups(additions: Iterable[_Addition]) -> Iterator[list[_Addition]]:
    group: list[_Addition] = []
    for addition in additions:
        group.append(addition)
        if len(group) == _GROUP_FILES or sum(one.upload_info.size for one in group) >= _GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


class _Sent:
    """How many bytes of which file have gone out, for the bar; threads of the client call it."""

    def __init__(self, progress: console.Progress) -> None:
        self.most_bytes = 0
        """That the attempts had come to; a file that breaks off again at the same byte gains nothing."""
        self._progress, self._lock = progress, Lock()
        self._bytes: dict[str, int] = {}

    def skip(self, size_bytes: int) -> None:
        """So many bytes need not be sent; the attempt begins."""
        with self._lock:
            self._bytes = {"": size_bytes}
            self._show()

    def at(self, name: str, position: int) -> None:
        """So many bytes of a file are out."""
        with self._lock:
            self._bytes[name] = position
            self._show()

    def _show(self) -> None:
        total = sum(self._bytes.values())
        self.most_bytes = max(self.most_bytes, total)
        self._progress.advance(total - self._progress.done)


class _Addition(CommitOperationAdd):
    """A file of a commit that tells how far it is, instead of by a bar of the client's own; its hash is known."""

    @classmethod
    def of(cls, item: Item, sent: _Sent) -> _Addition:
        made = cls(item.name, item.source)
        made.upload_info.sha256 = bytes.fromhex(item.digest.sha256)
        made._sent = sent
        return made

    _sent: _Sent

    @contextlib.contextmanager
    def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
        """Opened to be sent where the client would show a bar, else to be looked at."""
        if not with_tqdm or not isinstance(self.path_or_fileobj, str):
            with super().as_file() as file:
                yield file
            return
        with _Counted(Path(self.path_or_fileobj), lambda position: self._sent.at(self.path_in_repo, position)) as file:
            yield file


class _Counted(io.BufferedReader):
    """A file that tells how far it was read."""

    def __init__(self, path: Path, told: Callable[[int], None]) -> None:
        super().__init__(io.FileIO(path))
        self._told = told

    def read(self, size: int | None = -1) -> bytes:
        piece = super().read(size)
        self._told(self.tell())
        return piece


def _client() -> HfApi:
    """The hub's own client."""
    _settle_client()
    return HfApi(token=get_token(), library_name="fledge", library_version=__version__)


@functools.cache
def _settle_client() -> None:
    """Make the client silent and impatient. Once, for the connections that it has are closed by that."""
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    disable_progress_bars()
    hooks = {"request": [_refuse_offline]}
    set_client_factory(lambda: httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=_TIMEOUT))


def _refuse_offline(request: httpx2.Request) -> None:
    """What the client's own connections do as well."""
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")


@contextlib.contextmanager
def _errors(repository: Repository) -> Iterator[None]:
    """Errors of writing as DataError, MachineError or Failure."""
    with hub_errors(repository.name, repository.kind), _refusals(repository):
        try:
            yield
        except RuntimeError as error:
            # What fails in one of the client's threads arrives wrapped; its other storage (Xet) knows no finer errors.
            if isinstance(error.__cause__, (HfHubHTTPError, httpx2.TransportError)):
                raise error.__cause__ from error
            raise Failure(f"{repository}: the upload broke off ({type(error).__name__})") from error
        except KeyError as error:
            raise Failure(f"what answers about {repository} does not speak as the hub does (no {error})") from error


@contextlib.contextmanager
def _refusals(repository: Repository) -> Iterator[None]:
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in {401, 403}:
            raise DataError(f"the hub does not let this machine write {repository} (status {status})", _LOG_IN) from error
        if status in _CONFLICTS:
            raise Failure(f"{repository} was changed by somebody else meanwhile (status {status})") from error
        if status in {400, 413, 422}:
            said = _without_secrets(error.server_message or "it does not say why")
            raise DataError(
                f"the hub refuses what is sent to {repository} (status {status}): {said}", "mend that and push again"
            ) from error
        raise
    except ValueError as error:
        # Such as a README.md whose head the hub does not understand, or space that is used up.
        raise DataError(f"{repository} does not take this: {_without_secrets(str(error))}", "mend that and push again") from error
    except OfflineModeIsEnabled:
        raise
    except OSError as error:
        raise MachineError(f"{error.filename or repository} cannot be read: {error.strerror}", "push again") from error


def _without_secrets(text: str) -> str:
    """What a server says, should it repeat the token it was given."""
    token = get_token()
    return re.sub(r"\bhf_\w+", "(token)", text.replace(token, "(token)") if token else text)
