"""What a source consists of now: its files with their lengths and fingerprints, and their whole copies in the cache.

    source -> resolve -> InputFile, ... -> localise (cache: raw) -> the same, lying here -> pieces

A fingerprint changes when the content does, so what was made of a file is made again exactly when the file changed. Local files are
hashed once; the hash is remembered for as long as length and time of change stay the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import posixpath
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from fledge.core import console, disk
from fledge.core.console import format_bytes
from fledge.core.errors import DataError
from fledge.core.wording import counted
from fledge.corpus.sources import hub
from fledge.corpus.sources.attempts import retried
from fledge.corpus.sources.files import SUFFIXES, data_errors, find_files
from fledge.corpus.sources.hub_presets import dataset_of
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import cache_path, download_all, is_whole
from fledge.corpus.sources.settings import FileSource, HubSource, PathSource, PlacedSource
from fledge.corpus.sources.transport import describe, described, filesystem_of, foreign_error, is_remote, name_of, shown, store_errors

HUB_SUFFIXES = (*SUFFIXES["parquet"], *SUFFIXES["jsonl"], ".json", ".json.gz", ".json.zst")
"""Of files of the hub: many datasets, C4 among them, call JSON Lines .json."""

_LOCK = "download.lock"
_LOCK_LOOK_SECONDS = 0.5
# Within the finest step of a file's clock a second change can leave its time as it is (as in git's index).
_SETTLED_NS = 2_000_000_000


class NotAsExpected(DataError):
    """A source is there, but has less than `expect` asks for."""


class Fingerprints:
    """Remembers the SHA-256 of local files by path, length and time of change, in one JSON file."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, list[object]] = _read(path)
        self._changed = False

    def of(self, path: Path) -> str:
        """SHA-256 of a file as it lies. Raises DataError if it cannot be read, or changes meanwhile."""
        name = os.path.abspath(path)  # noqa: PTH100 - Path.absolute keeps `..`
        with data_errors(path):
            stamp = _stamp(path)
            known = self._known.get(name)
            if known is not None and known[:2] == stamp:
                return str(known[2])
            sha256 = disk.digest_file(path).sha256
            if _stamp(path) != stamp:
                raise DataError(f"{path} changed while it was read", "run the same command again when nothing writes to it")
        if time.time_ns() - stamp[1] > _SETTLED_NS:
            self._known[name] = [*stamp, sha256]
            self._changed = True
        return sha256

    def save(self) -> None:
        """Write what is remembered, if it changed."""
        if self._path is not None and self._changed:
            # Escaped, because a path may hold bytes that are no UTF-8.
            disk.write_text(self._path, json.dumps(self._known) + "\n")
            self._changed = False


def resolve(source: FileSource, fingerprints: Fingerprints, pinned: str | None = None, cache_folder: Path | None = None) -> list[InputFile]:
    """The files of a source, sorted by name. `pinned`: the commit of the hub to read, rather than what the revision names now.

    With a cache folder the list of a hub dataset is kept, and taken from there. Raises DataError if there are no files, or fewer than
    `expect`; MachineError if a server does not answer.
    """
    if isinstance(source, HubSource):
        files = _hub_files(source, pinned, cache_folder)
    elif isinstance(source, PlacedSource):
        files = _remote_files(source) if is_remote(source.path) else _local_files(source, fingerprints)
    else:
        raise AssertionError(f"{type(source).__name__} has no files")
    _require_expected(source, files)
    return files


def look_at_files(source: PlacedSource) -> list[int]:
    """The sizes of a source's local files, of which nothing is read. Raises DataError as `resolve` does, but for a wrong SHA-256."""
    found = find_files(source)
    files = [InputFile(str(file.path), file.name, _size_bytes(file.path), "") for file in found]
    if source.sha256 is not None:
        _require_one(source, files)
    _require_expected(source, files)
    return [file.size_bytes for file in files]


def revision(source: FileSource) -> str | None:
    """The commit that a hub source's revision names now; None for any other source. Raises DataError, MachineError."""
    return hub.commit_of(dataset_of(source).repository, source.revision) if isinstance(source, HubSource) else None


def localise(source: FileSource, files: Sequence[InputFile], cache_folder: Path, workers: int) -> list[InputFile]:
    """The same files where they can be read: with `cache: raw`, remote ones downloaded, `workers` at a time; names and fingerprints stay.

    Raises what the first failing download raises; what has come by then is kept and continued the next time.
    """
    if source.cache == "none":
        return list(files)
    placed = [(file, cache_path(file, cache_folder)) if is_remote(file.address) else None for file in files]
    wanted = {place: file for file, place in filter(None, placed) if not is_whole(place, file)}
    if wanted:
        with _only_downloader(cache_folder):
            missing = {place: file for place, file in wanted.items() if not is_whole(place, file)}
            download_all(f"downloading {source.name}", missing, workers)
    return [file if place is None else replace(file, address=str(place[1])) for file, place in zip(files, placed, strict=True)]


def _local_files(source: PlacedSource, fingerprints: Fingerprints) -> list[InputFile]:
    found = find_files(source)
    files = []
    sizes = [_size_bytes(file.path) for file in found]
    # hashlib lets go of the interpreter's lock, so threads hash side by side.
    with console.progress(f"checking {source.name}", sum(sizes), "bytes") as progress, ThreadPoolExecutor(os.cpu_count()) as threads:
        hashes = threads.map(fingerprints.of, (file.path for file in found))
        for file, size_bytes, sha256 in zip(found, sizes, hashes, strict=True):
            files.append(InputFile(str(file.path), file.name, size_bytes, sha256))
            progress.advance(size_bytes)
    if source.sha256 is not None:
        _require_one(source, files)
        if files[0].fingerprint != source.sha256:
            raise DataError(
                f"source {source.name}: {found[0].path} has the SHA-256 {files[0].fingerprint}, not {source.sha256}",
                "restore the file, or correct sha256 in the recipe",
            )
    return files


def _remote_files(source: PlacedSource) -> list[InputFile]:
    address = source.path
    if not address.startswith(("http://", "https://")):
        files = retried(lambda: _stored_files(source))
    else:
        found = describe(address)
        if source.cache == "none" and not found.takes_ranges:
            raise DataError(
                f"source {source.name}: the server of {shown(address)} sends whole files only", "set cache: raw for this source"
            )
        files = [InputFile(address, name_of(address), found.size_bytes, found.fingerprint)]
    if source.sha256 is not None:
        _require_one(source, files)
        return [replace(files[0], fingerprint=source.sha256)]
    return files


def _stored_files(source: PlacedSource) -> list[InputFile]:
    """Files of an object store: one, those below a prefix, or those a glob takes."""
    filesystem, path = filesystem_of(source.path)
    try:
        if set(path) & set("*?["):
            found = filesystem.glob(path, detail=True)
            root = posixpath.commonpath([posixpath.dirname(name) for name in found]) if found else ""
        elif filesystem.isfile(path):
            found, root = {path: filesystem.info(path)}, posixpath.dirname(path)
        else:
            below = filesystem.find(path, detail=True)
            found, root = {name: info for name, info in below.items() if name.lower().endswith(SUFFIXES[source.kind])}, path
    except store_errors() as error:
        raise foreign_error(source.path, error) from error
    files = []
    for name, info in sorted(found.items()):
        if info["type"] == "file":
            what = described(info)
            short = name.removeprefix(root).lstrip("/")
            files.append(InputFile(filesystem.unstrip_protocol(name), short, what.size_bytes, what.fingerprint))
    return files


def _hub_files(source: HubSource, pinned: str | None, cache_folder: Path | None) -> list[InputFile]:
    dataset = dataset_of(source)
    commit = pinned or hub.commit_of(dataset.repository, source.revision)
    files = list(hub.list_files(dataset.repository, dataset.files, commit, cache_folder).files)
    strange = next((file.name for file in files if not file.name.lower().endswith(HUB_SUFFIXES)), None)
    if strange is not None:
        raise DataError(
            f"source {source.name}: {dataset.repository} has {strange!r} among {dataset.files}, neither Parquet nor JSON Lines",
            "narrow the glob in `files`, like data/*.parquet",
        )
    return files


def _require_one(source: PathSource, files: Sequence[InputFile]) -> None:
    if len(files) != 1:
        raise DataError(
            f"source {source.name}: sha256 is given, but {shown(source.path)} are {len(files)} files", "name one file, or leave sha256 out"
        )


def _require_expected(source: FileSource, files: Sequence[InputFile]) -> None:
    found_bytes = sum(file.size_bytes for file in files)
    if len(files) >= (source.expect.files or 1) and found_bytes >= (source.expect.bytes or 0):
        return
    found = f"{counted(len(files), 'files')} of {counted(found_bytes, 'bytes')} ({format_bytes(found_bytes)})"
    expected = ((source.expect.files, "files"), (source.expect.bytes, "bytes"))
    wanted = " of ".join(counted(number, unit) for number, unit in expected if number) or "1 file"
    there = f", or expect what is there: expect: {{files: {len(files)}, bytes: {found_bytes}}}" if files else ""
    raise NotAsExpected(
        f"source {source.name}: {_place(source)} has {found}, but should have at least {wanted}",
        f"complete the data, name another place{there}",
    )


def _place(source: FileSource) -> str:
    if isinstance(source, HubSource):
        dataset = dataset_of(source)
        return f"{dataset.repository}/{dataset.files}"
    return shown(source.path) if isinstance(source, PathSource) else source.name


@contextlib.contextmanager
def _only_downloader(cache_folder: Path) -> Iterator[None]:
    """Two processes must not append to one partial file: the second waits, and then finds most of it there."""
    waiting = False
    while (descriptor := disk.try_lock(cache_folder / _LOCK, f"process {os.getpid()}")) is None:
        if not waiting:
            console.info(f"another process downloads into {cache_folder}; waiting for it")
        waiting = True
        time.sleep(_LOCK_LOOK_SECONDS)
    try:
        yield
    finally:
        os.close(descriptor)


def _size_bytes(path: Path) -> int:
    with data_errors(path):
        return path.stat().st_size


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _read(path: Path | None) -> dict[str, list[object]]:
    if path is None or not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
