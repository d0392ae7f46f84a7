"""What a container, a Slurm job or a systemd unit lets this process have: the limits of Linux' control groups, of both versions.

A machine of 512 GB may give a process 16; what asks for more is ended by the kernel without a word. A limit may be set on any group
above the process, so the smallest on the way up counts. Where there are no groups, nothing is limited.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_GROUPS = Path("sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 60
"""From here on: how version 1 writes "no limit"."""


@dataclass(frozen=True)
class GroupLimits:
    """None: not limited."""

    memory_bytes: int | None = None
    free_memory_bytes: int | None = None
    """What is left of it; pages of files that nobody uses count as free."""
    cores: float | None = None
    """Processor seconds per second."""


def group_limits(root: Path = Path("/")) -> GroupLimits:
    """The limits of this process; `root` is where /proc and /sys lie."""
    memory, free, cores = [], [], []
    for folder in _folders(root, "memory"):
        limit = _number(folder / "memory.max", folder / "memory.limit_in_bytes")
        used = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
        if limit is not None and limit < _UNLIMITED_BYTES:
            memory.append(limit)
            if used is not None:
                free.append(max(0, limit - used + _unused_pages_bytes(folder / "memory.stat")))
    for folder in _folders(root, "cpu"):
        share = _cpu_share(folder)
        if share is not None:
            cores.append(share)
    return GroupLimits(min(memory, default=None), min(free, default=None), min(cores, default=None))


def _folders(root: Path, controller: str) -> Iterator[Path]:
    """The group of this process and all above it, for one controller."""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if not controllers:
                top = root / _GROUPS
            elif controller in controllers.split(","):
                top = next((place for name in (controllers, controller) if (place := root / _GROUPS / name).is_dir()), root / _GROUPS)
            else:
                continue
            inside = Path(path.lstrip("/"))
            # In a container the path may be that of the machine outside, which is not there: then the top is the container's own.
            yield from (top / place for place in (inside, *inside.parents) if (top / place).is_dir())


def _cpu_share(folder: Path) -> float | None:
    with contextlib.suppress(OSError, ValueError):
        quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    quota_us, period_us = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None


def _unused_pages_bytes(path: Path) -> int:
    with contextlib.suppress(OSError, ValueError):
        words = dict(line.split() for line in path.read_text(encoding="ascii").splitlines())
        return int(words.get("total_inactive_file", words.get("inactive_file", "0")))
    return 0


def _number(*paths: Path) -> int | None:
    for path in paths:
        with contextlib.suppress(OSError, ValueError):
            return int(path.read_text(encoding="ascii"))
    return None
