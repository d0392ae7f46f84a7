"""What the machine is, looked up without torch: the system -> [facts] -> frozen values, which the checks judge.

Whether a folder can be worked in is found out by working in it: a file is written, locked, renamed and removed again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fledge.core import __version__, disk, process
from fledge.core.errors import MachineError
from fledge.core.installing import installer
from fledge.core.limits import GroupLimits, group_limits
from fledge.core.wording import first_line
from fledge.corpus.engine.pool import available_cores
from fledge.corpus.settings import CorpusSettings
from fledge.stages.run import RUNS

_REQUIREMENT = re.compile(r"""([\w.-]+)(?:>=([\d.]+))?(?:\s*;\s*extra == ['"](\w+)['"])?""")
_PROBE = ".fledge-doctor-{}"


@dataclass(frozen=True)
class Package:
    """A package that Fledge can use."""

    name: str
    minimum: str
    extra: str | None
    """None: Fledge does not work without it."""
    version: str | None
    """None: it is not installed."""

    @property
    def requirement(self) -> str:
        return f"{self.name}>={self.minimum}" if self.minimum else self.name

    @property
    def is_too_old(self) -> bool:
        return self.version is not None and release(self.version) < release(self.minimum)


_NOT_REQUIRED = (Package("transformers", "4.55", "", None), Package("accelerate", "1.2", "", None))
"""What Fledge works with where it is installed, and never asks for."""


@dataclass(frozen=True)
class Software:
    """Python and what is installed in it."""

    python: tuple[int, int, int]
    executable: str
    system: str
    fledge_version: str
    fledge_folder: str
    packages: tuple[Package, ...]
    """Empty if Fledge is not installed but only lies there."""
    has_pip: bool

    @property
    def install(self) -> str:
        """How a package is installed into this Python."""
        return installer(self.executable, self.has_pip)


@dataclass(frozen=True)
class Place:
    """A folder that Fledge writes into."""

    what: str
    folder: Path
    """It need not be there yet."""
    there: Path
    """Itself, or the nearest folder above it that is there: what was looked at."""
    free_bytes: int
    total_bytes: int
    trouble: str = ""
    """What of writing, locking and renaming failed; empty: nothing."""
    clock_ahead_seconds: float = 0.0
    """Of the file system's clock, against this machine's."""


@dataclass(frozen=True)
class Resources:
    """Memory, cores and what the session allows."""

    total_memory_bytes: int
    available_memory_bytes: int
    limits: GroupLimits
    machine_cores: int
    usable_cores: int
    open_files: int | None
    """How many this process may have open; None: as many as it likes."""
    open_files_possible: int | None
    encoding: str
    unix_seconds: float


@dataclass(frozen=True)
class KernelCache:
    """Where numba keeps the loops that it has compiled."""

    folder: Path | None
    is_writable: bool
    trouble: str = ""


def look_at_software() -> Software:
    """Versions as the packages' metadata says them; nothing is imported."""
    version = sys.version_info
    spec = importlib.util.find_spec("fledge")
    folder = str(Path(spec.origin).parent) if spec and spec.origin else ""
    return Software(
        (version.major, version.minor, version.micro),
        sys.executable,
        f"{platform.system()} {platform.machine()}",
        __version__,
        folder,
        tuple(_packages()),
        importlib.util.find_spec("pip") is not None,
    )


def _packages() -> Iterator[Package]:
    try:
        required = importlib.metadata.requires("fledge") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for text in required:
        found = _REQUIREMENT.fullmatch(text)
        if found is not None and found[3] != "dev":
            yield Package(found[1], found[2] or "", found[3], installed_version(found[1]))
    yield from (replace(package, version=installed_version(package.name)) for package in _NOT_REQUIRED)


def installed_version(name: str) -> str | None:
    """None if a package is not installed."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(name)
    return None


def release(version: str) -> tuple[int, ...]:
    """The numbers a version begins with: 2.13.0+cpu is (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, found[0].split("."))) if found else ()


def look_at_places(run_folder: Path | None = None, cache_folder: str | None = None) -> list[Place]:
    """Where results, downloads and what is compiled come to lie."""
    cache = Path(cache_folder or CorpusSettings.cache_folder).expanduser()
    folders = {"runs": run_folder or RUNS, "downloads": cache, "temporary files": Path(tempfile.gettempdir())}
    return [look_at_place(what, folder) for what, folder in folders.items()]


def look_at_place(what: str, folder: Path) -> Place:
    """Free space, and whether the file system does what Fledge needs; nothing stays there."""
    there = nearest_folder(folder)
    usage = shutil.disk_usage(there)
    probe = there / _PROBE.format(os.getpid())
    ahead, trouble = 0.0, ""
    try:
        disk.write_bytes(probe / "file", b"fledge")
        ahead = (probe / "file").stat().st_mtime - time.time()
        descriptor = disk.try_lock(probe / process.LOCK, "doctor")
        if descriptor is None:
            trouble = f"a lock in {there} cannot be had"
        else:
            os.close(descriptor)
        disk.move(probe / "file", probe / "renamed")
    except MachineError as error:
        trouble = error.problem.replace(str(probe), str(there))
    finally:
        with contextlib.suppress(MachineError):
            disk.remove(probe)
    return Place(what, folder, there, usage.free, usage.total, trouble, ahead)


def nearest_folder(path: Path) -> Path:
    """A folder, or the nearest one above it that is there."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.is_dir())


def look_at_resources() -> Resources:
    """Of this process, as it may use them."""
    soft, hard = _open_files()
    total_memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Resources(
        total_memory_bytes,
        process.available_memory_bytes() or total_memory_bytes,
        group_limits(),
        os.cpu_count() or 1,
        available_cores(),
        soft,
        hard,
        sys.stdout.encoding or "ascii",
        time.time(),
    )


def _open_files() -> tuple[int | None, int | None]:
    import resource

    found = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (None if limit == resource.RLIM_INFINITY else limit for limit in found)
    return soft, hard


def look_at_kernel_cache() -> KernelCache:
    """Where one of our kernels is kept; numba looks for such a place when it meets the kernel, and has an error if there is none."""
    try:
        from fledge.tokens.merging import encode_pieces
    except Exception as error:  # numba's errors have no common type
        return KernelCache(None, False, first_line(error))
    folder = Path(str(encode_pieces.stats.cache_path))
    return KernelCache(folder, os.access(nearest_folder(folder), os.W_OK))
