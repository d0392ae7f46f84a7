"""Limits of control groups, read from trees of files as Linux shows them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fledge.core.limits import GroupLimits, group_limits


def lay(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_no_groups_no_limits(tmp_path: Path) -> None:
    assert group_limits(tmp_path) == GroupLimits(None, None, None)


def test_version_2_counts_the_smallest_limit_on_the_way_up(tmp_path: Path) -> None:
    groups = "sys/fs/cgroup"
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "0::/slice/job\n",
            f"{groups}/slice/memory.max": "4000\n",
            f"{groups}/slice/memory.current": "1500\n",
            f"{groups}/slice/memory.stat": "anon 900\ninactive_file 500\n",
            f"{groups}/slice/cpu.max": "150000 100000\n",
            f"{groups}/slice/job/memory.max": "max\n",
            f"{groups}/slice/job/cpu.max": "max 100000\n",
        },
    )
    assert group_limits(root) == GroupLimits(4000, 3000, 1.5)


@pytest.mark.parametrize("limit, expected", [("9223372036854771712", None), ("5000", 5000)])
def test_version_1(tmp_path: Path, limit: str, expected: int | None) -> None:
    groups = "sys/fs/cgroup"
    root = lay(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/outside/42\n1:cpu,cpuacct:/\n",
            f"{groups}/memory/memory.limit_in_bytes": limit,
            f"{groups}/memory/memory.usage_in_bytes": "1000",
            f"{groups}/cpu,cpuacct/cpu.cfs_quota_us": "-1" if expected is None else "50000",
            f"{groups}/cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
    )
    assert group_limits(root) == GroupLimits(expected, None if expected is None else 4000, None if expected is None else 0.5)
