"""The only module that changes the disk, so that every change is durable, atomic and a place a test can kill.

A file appears whole or not at all: it is written beside its final name, flushed to the device, renamed, and the folder that
holds it is flushed too. A folder appears whole likewise: `staging` hands out `NAME.partial/`, and leaving the block publishes it.
Libraries that write by themselves (Parquet, tokenizers, TensorBoard) write inside such a folder and are flushed with it.

`fail_point` is None in production. Tests set it to a function of (operation, path) that records, raises or kills; every
operation below passes through it first. The order create, write, fsync, rename, fsync of the parent is the one whose crash
states all recover (`docs/design.md`, "never lose a step").
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.core.errors import MachineError

PARTIAL_SUFFIX = ".partial"

fail_point: Callable[[str, Path], None] | None = None

_OUT_OF_SPACE = {errno.ENOSPC, errno.EDQUOT}
# Another file system, one without hard links, or a file that has as many names as it can have.
_NO_LINK = {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS}
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class FileDigest:
    """What a manifest says about a file."""

    size_bytes: int
    sha256: str


def write_bytes(path: Path, content: bytes | Iterable[bytes]) -> FileDigest:
    """Write a whole file atomically and durably; `content` may be an iterable of pieces, hashed while they are written.

    Raises MachineError if the disk is full or the place cannot be written; the file that was there before stays.
    """
    pieces = [content] if isinstance(content, bytes) else content
    partial = path.with_name(f"{path.name}{PARTIAL_SUFFIX}")
    with _machine_errors(path), _removed_on_failure(partial):
        path.parent.mkdir(parents=True, exist_ok=True)
        digest = _write_file(partial, pieces)
        _rename(partial, path)
        _fsync_folder(path.parent)
    return digest


def write_text(path: Path, text: str) -> FileDigest:
    """Write a UTF-8 text file atomically and durably."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> FileDigest:
    """Write JSON, indented, keys in the given order; NaN and infinities are refused (they are not JSON)."""
    return write_text(path, json_text(value))


def json_text(value: Any) -> str:
    """How `write_json` writes a value."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def append_line(path: Path, line: str) -> None:
    """Append one UTF-8 line in one write, so a reader sees it whole or as a torn last line, never mixed with another."""
    append_bytes(path, (line + "\n").encode("utf-8"))


def append_bytes(path: Path, content: bytes) -> None:
    """Append to a file in one write; it is made if it is missing. Not flushed to the device: for logs, which may lose their end."""
    with _machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _pass_fail_point("append", path)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            # A write that meets the end of the disk is short; only the next one says why.
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)


def overwrite_start(path: Path, content: bytes) -> None:
    """Replace the first bytes of a file in place: for a header that counts what follows, in a folder that `staging` publishes."""
    with _machine_errors(path):
        _pass_fail_point("overwrite", path)
        with path.open("r+b") as file:
            file.write(content)


class Mark:
    """A short line in a file of its own, overwritten in place and never flushed: where a process is, for whoever outlives it.

    It is told for the case of trouble only, so a disk that does not take it is none.
    """

    _BYTES = 160

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)

    def write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            os.pwrite(self._descriptor, line.encode()[: self._BYTES].ljust(self._BYTES), 0)

    def close(self) -> None:
        """Nothing more will be written."""
        os.close(self._descriptor)


def try_lock(path: Path, holder: str) -> int | None:
    """Lock a file for this process and write the holder's name into it; the lock lasts until the descriptor is closed.

    Returns the open descriptor, or None if another process holds the lock. The system releases it when the process dies.
    """
    with _machine_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _pass_fail_point("lock", path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, holder.encode("utf-8"))
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
    return descriptor


@contextlib.contextmanager
def staging(final: Path, maker: str = "") -> Iterator[Path]:
    """A fresh folder `final.partial/` to fill; on leaving the block it is flushed and renamed to `final`.

    If the block or the publishing fails, the partial folder is removed and nothing appears. A partial folder left by a killed
    process is cleared first. `final` must not exist, unless as an empty folder.

    Several processes may make the same folder at once if each gives its own `maker`, which becomes part of the partial's name:
    the first to publish wins and the folders of the others are removed, so what they hold must be the same.
    """
    if not maker and (final.is_file() or (final.is_dir() and any(final.iterdir()))):
        raise MachineError(f"{final} is already there", "move it away, or choose another name")
    partial = final.with_name(f"{final.name}{maker}{PARTIAL_SUFFIX}")
    with _machine_errors(final):
        remove(partial)
        _pass_fail_point("mkdir", partial)
        partial.mkdir(parents=True)
    with _removed_on_failure(partial):
        try:
            yield partial
        except OSError as error:
            if error.errno in _OUT_OF_SPACE:
                raise _no_space(final) from error
            raise
        with _machine_errors(final):
            _fsync_tree(partial)
            try:
                _rename(partial, final)
            except OSError as error:
                # A folder cannot be renamed onto one that holds something: another maker was first.
                if not maker or error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
                remove(partial)
            _fsync_folder(final.parent)


def publish(partial: Path, final: Path) -> None:
    """Make a folder that was filled over several attempts appear as `final`, durably; which must not exist, unless as an empty folder."""
    with _machine_errors(final):
        _fsync_tree(partial)
        _rename(partial, final)
        _fsync_folder(final.parent)


def make_folder(path: Path) -> None:
    """Create a folder and its parents; an existing folder is fine."""
    with _machine_errors(path):
        _pass_fail_point("mkdir", path)
        path.mkdir(parents=True, exist_ok=True)


def move(source: Path, target: Path) -> None:
    """Rename a file or folder durably; the target must not exist."""
    with _machine_errors(target):
        _rename(source, target)
        _fsync_folder(target.parent)


def link(source: Path, target: Path) -> None:
    """Give a file a second name without copying its bytes; where the file system cannot, copy it. The target must not exist.

    Both names then mean the same bytes on the device: neither may be edited in place.
    """
    with _machine_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _pass_fail_point("link", target)
        try:
            os.link(source, target)
            _fsync_folder(target.parent)
            return
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
        with source.open("rb") as file:
            write_bytes(target, iter(lambda: file.read(_PIECE_BYTES), b""))


def remove(path: Path) -> None:
    """Remove a file or folder if it is there. A folder's manifest goes first: what is half removed counts as absent."""
    with _machine_errors(path):
        if path.is_symlink() or path.is_file():
            _pass_fail_point("unlink", path)
            path.unlink(missing_ok=True)
        elif path.is_dir():
            remove(path / "manifest.json")
            _pass_fail_point("rmtree", path)
            while path.is_dir():
                # Another process may be removing the same folder.
                with contextlib.suppress(FileNotFoundError):
                    shutil.rmtree(path)


def truncate(path: Path, size_bytes: int) -> None:
    """Cut a file to its first `size_bytes` bytes, durably."""
    with _machine_errors(path):
        _pass_fail_point("truncate", path)
        with path.open("r+b") as file:
            file.truncate(size_bytes)
            os.fsync(file.fileno())


def flush(path: Path) -> None:
    """Make what was written to a file durable."""
    with _machine_errors(path):
        _pass_fail_point("fsync", path)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def touch(path: Path) -> None:
    """Set the time of a file or folder to now, as a sign of life; not flushed to the device."""
    with _machine_errors(path):
        _pass_fail_point("touch", path)
        os.utime(path)


def digest_file(path: Path) -> FileDigest:
    """Size and SHA-256 of a file as it lies."""
    with path.open("rb", buffering=0) as file:
        digest = hashlib.file_digest(file, "sha256")
        return FileDigest(file.tell(), digest.hexdigest())


def _write_file(path: Path, pieces: Iterable[bytes]) -> FileDigest:
    _pass_fail_point("create", path)
    digest, size_bytes = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            _pass_fail_point("write", path)
            file.write(piece)
            digest.update(piece)
            size_bytes += len(piece)
        file.flush()
        _pass_fail_point("fsync", path)
        os.fsync(file.fileno())
    return FileDigest(size_bytes, digest.hexdigest())


def _rename(source: Path, target: Path) -> None:
    _pass_fail_point("rename", target)
    source.replace(target)


def _fsync_tree(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            flush(path)
        elif path.is_dir():
            _fsync_folder(path)
    _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    _pass_fail_point("fsync", folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _pass_fail_point(operation: str, path: Path) -> None:
    if fail_point is not None:
        fail_point(operation, path)


@contextlib.contextmanager
def _machine_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in _OUT_OF_SPACE:
            raise _no_space(path) from error
        raise MachineError(f"cannot write {path}: {reason}", "choose a place you may write to, or mend its permissions") from error


@contextlib.contextmanager
def _removed_on_failure(partial: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:  # Ctrl-C too; raised again below
        # The first failure is the one to report; what cannot be removed now is cleared by the next attempt.
        with contextlib.suppress(MachineError):
            remove(partial)
        raise


def _no_space(path: Path) -> MachineError:
    return MachineError(f"no space left while writing {path}", "free disk space and run the same command again: it continues")
