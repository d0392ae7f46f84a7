"""The parts into which the work on a corpus is cut, and the folder that keeps what each of them made.

A unit is known by its key, a hash over everything that decides its result, and its result is a folder named by the key. So
the folders say what is done: whoever runs the units (`pool.py`, `ray_cluster.py`, `ranks.py`) may be killed at any instant,
and whoever comes next finds what is finished, whole or not at all, and runs the rest. The idea is that of an artifact's key
and id (`fledge/core/artifact.py`), for hundreds of small results that processes make side by side.

    WORK/KEY/unit.json                    written last: the key, size and SHA-256 of every file, the counts, the id
    WORK/KEY/...                          the files, as the unit wrote them
    WORK/KEY.TOKEN.PID.HOST.partial/      of a process at work, or of one that was killed

A result counts only if every byte of it is right; a damaged one is removed, and its unit runs again.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fledge.core import disk
from fledge.core.artifact import hash_json
from fledge.core.errors import FledgeError, MachineError
from fledge.core.process import only_new_garbage

UNIT = "unit.json"

_NAME_DIGITS = 32
_NAME = re.compile(r"[0-9a-f]{32}")
_PARTIAL = re.compile(r"[0-9a-f]{32}\.[0-9a-f]{8}\.(?P<process>\d+)\.(?P<host>.+)\.partial")
_ABANDONED_SECONDS = 24 * 3600


class Unit(Protocol):
    """One part of the work. It travels to other processes; the same key must give the same bytes wherever it runs."""

    @property
    def key(self) -> str:
        """SHA-256, in hexadecimal, over everything that decides the result."""

    @property
    def label(self) -> str:
        """What messages call it."""

    @property
    def size_bytes(self) -> int:
        """Roughly what has to be read, for progress."""

    @property
    def work_bytes(self) -> int:
        """Plain text that would be as much work, for whether another process is worth its start."""

    def run(self, folder: Path) -> dict[str, Any]:
        """Fill an empty folder with files; returns counts as plain JSON."""


@dataclass(frozen=True)
class Done:
    """The result of a unit."""

    key: str
    id: str
    """Hash of the key and of the hashes of the files: what came out, as the key is what was asked for."""
    folder: Path
    counts: dict[str, Any]


Enough = Callable[[Sequence[Done | None]], bool]


class Executor(Protocol):
    """Runs units, each at most once at a time, and repeats those whose process died."""

    def run(self, label: str, units: Sequence[Unit], work: WorkFolder, enough: Enough | None = None) -> list[Done | None]:
        """Results in the order of the units.

        `enough` is asked with the results of the first unit, of the first two, and so on, the others None; from the first True on
        the results of all later units are None, whether or not they were run. So the answer does not depend on who was quicker.
        """


class WorkFolder:
    """The results in one folder, found by key. What was verified once is remembered by this object."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self._verified: dict[str, Done] = {}

    def __reduce__(self) -> tuple[type[WorkFolder], tuple[Path]]:
        return type(self), (self.folder,)

    def find(self, unit: Unit) -> Done | None:
        """The result of a unit, every byte of it verified; a damaged one is removed."""
        known = self._verified.get(unit.key)
        if known is not None and (known.folder / UNIT).is_file():
            return known
        folder = self._folder_of(unit.key)
        seen = _stamp(folder)
        if seen is None:
            return None
        done = _open(folder, unit.key, hashed=True)
        if done is None:
            self._discard_damaged(folder, seen)
        else:
            self.remember(done)
        return done

    def glance(self, unit: Unit) -> Done | None:
        """The result of a unit with only the sizes of its files checked: for one that was made just now."""
        return _open(self._folder_of(unit.key), unit.key, hashed=False)

    def make(self, unit: Unit) -> Done:
        """Run a unit and publish its result. If another process was first, the result is the other's; the bytes are the same.

        Raises MachineError if the disk or the memory is not enough, and whatever the unit raises.
        """
        folder = self._folder_of(unit.key)
        with disk.staging(folder, _maker()) as partial:
            try:
                with only_new_garbage():
                    counts = unit.run(partial)
            except MemoryError as error:
                raise MachineError(f"{unit.label}: no memory left", "use fewer workers, or a machine with more memory") from error
            _write_unit(partial, unit.key, counts)
        done = self.glance(unit)
        if done is None:
            raise MachineError(f"{folder} changed while it was made", "let nothing else write there, and run the same command again")
        self.remember(done)
        return done

    def remember(self, done: Done) -> None:
        """Take a result as verified that another process of ours verified or made."""
        self._verified[done.key] = done

    def stored_bytes(self, unit: Unit) -> int | None:
        """How much would have to be read to verify the result of a unit; None if there is no result, 0 if it is remembered."""
        if unit.key in self._verified:
            return 0
        folder = self._folder_of(unit.key)
        return sum(path.stat().st_size for path in _files(folder)) if (folder / UNIT).is_file() else None

    def names(self) -> set[str]:
        """The names (the first digits of the keys) of all results that are there, verified or not."""
        return {entry.name for entry in self._entries() if _NAME.fullmatch(entry.name)}

    def partials(self) -> dict[str, int]:
        """By name of the result: when the newest partial folder of it was last touched, by the clock of its file system."""
        touched: dict[str, int] = {}
        for entry in self._entries():
            stamp = _stamp(entry) if _PARTIAL.fullmatch(entry.name) else None
            if stamp is not None:
                name = name_of(entry.name)
                touched[name] = max(touched.get(name, 0), stamp[1])
        return touched

    def discard_all_but(self, keys: Collection[str]) -> None:
        """Remove all results with other keys than these, and what killed processes left behind."""
        kept = {name_of(key) for key in keys}
        for name in sorted(self.names() - kept):
            disk.remove(self.folder / name / UNIT)
            disk.remove(self.folder / name)
        self._verified = {key: done for key, done in self._verified.items() if name_of(key) in kept}
        self.discard_partials()

    def discard_partials(self) -> None:
        """Remove the partial folders of processes that have ended; of another machine's, those untouched for a day."""
        for entry in self._entries():
            found = _PARTIAL.fullmatch(entry.name)
            if found and _is_abandoned(entry, int(found["process"]), found["host"]):
                disk.remove(entry)

    def _folder_of(self, key: str) -> Path:
        return self.folder / name_of(key)

    def _entries(self) -> list[Path]:
        return sorted(self.folder.iterdir()) if self.folder.is_dir() else []

    def _discard_damaged(self, folder: Path, seen: tuple[int, int]) -> None:
        if _stamp(folder) != seen:
            return  # another process has already put a new one in its place
        # Renamed first, so that nobody who looks meanwhile can take half of it for the whole.
        aside = folder.with_name(f"{folder.name}{_maker()}{disk.PARTIAL_SUFFIX}")
        try:
            disk.move(folder, aside)
        except MachineError:
            if folder.exists():
                raise
        disk.remove(aside)


@dataclass(frozen=True)
class Attempt:
    """What came of a unit in another process. Exceptions other than ours come as text: not every class survives the journey."""

    done: Done | None = None
    was_found: bool = False
    """Whether the result was there already."""
    error: FledgeError | None = None
    trace: str = ""

    def result(self, unit: Unit) -> Done:
        """The result; raises what the unit raised, a mistake of ours as RuntimeError with the other process's traceback."""
        if self.error is not None:
            raise self.error
        if self.done is None:
            raise RuntimeError(f"{unit.label} failed in a worker:\n{self.trace}")
        return self.done


def attempt(work: WorkFolder, unit: Unit) -> Attempt:
    """Find or make the result of a unit, in a worker."""
    try:
        found = work.find(unit)
        return Attempt(found or work.make(unit), was_found=found is not None)
    except FledgeError as error:
        return Attempt(error=error)
    # A mistake of ours, whatever it is, must reach the driver with its traceback.
    except Exception:
        return Attempt(trace=traceback.format_exc())


def name_of(key: str) -> str:
    """The name of a result's folder: 128 bits of the key, so that paths stay short."""
    return key[:_NAME_DIGITS]


def _write_unit(folder: Path, key: str, counts: dict[str, Any]) -> None:
    files = {name: asdict(disk.digest_file(folder / name)) for name in sorted(_names(folder))}
    digests = {name: digest["sha256"] for name, digest in files.items()}
    content = {"key": key, "id": hash_json([key, digests]), "files": files, "counts": counts}
    # The checksum is over what a reader will see: a number as a key, say, comes back as a string.
    content = json.loads(json.dumps(content, allow_nan=False))
    disk.write_json(folder / UNIT, {**content, "checksum": hash_json(content)})


def _open(folder: Path, key: str, hashed: bool) -> Done | None:
    try:
        content = json.loads((folder / UNIT).read_text(encoding="utf-8"))
        if content.pop("checksum") != hash_json(content) or content["key"] != key:
            return None
        files = {name: disk.FileDigest(**digest) for name, digest in content["files"].items()}
        if _names(folder) != set(files) or any((folder / name).stat().st_size != digest.size_bytes for name, digest in files.items()):
            return None
        if hashed and any(disk.digest_file(folder / name) != digest for name, digest in files.items()):
            return None
        return Done(key, content["id"], folder, content["counts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # cannot be read, or is of another form than we write it: damaged


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if not path.is_dir())


def _names(folder: Path) -> set[str]:
    """What a unit wrote: every file but our own."""
    return {path.relative_to(folder).as_posix() for path in _files(folder)} - {UNIT}


def _stamp(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _maker() -> str:
    return f".{secrets.token_hex(4)}.{os.getpid()}.{_host()}"


def _host() -> str:
    """This machine and, in it, the space of process numbers: containers can share a name and a disk, but not the numbers."""
    try:
        space = Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        space = 0
    return f"{socket.gethostname()}-{space}"


def _is_abandoned(partial: Path, process: int, host: str) -> bool:
    if host != _host():
        stamp = _stamp(partial)
        return stamp is not None and time.time() - stamp[1] / 1e9 > _ABANDONED_SECONDS
    return not _is_alive(process)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
        # One that ended and that nobody waits for, such as the child of a killed driver in a container, keeps its number.
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except ProcessLookupError:
        return False
    except OSError:
        return True  # another user's, or a system without /proc
