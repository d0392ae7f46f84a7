"""Whether what a run still writes has room: the plan's needs -> by the disk they go to -> [space checks] -> findings.

Downloads need not lie on the disk of the run, and another place for one does not help the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from fledge.core.console import format_bytes
from fledge.stages.run import Run
from fledge.verbs.corpus_space import DOWNLOADS, TOKEN_DOWNLOADS, DiskUse
from fledge.verbs.doctor.facts import nearest_folder
from fledge.verbs.doctor.findings import Finding, ok, problem


def check_space(uses: Sequence[DiskUse], run: Run) -> Iterator[Finding]:
    """A finding for each disk that something goes to."""
    disks: dict[int, list[DiskUse]] = {}
    for use in uses:
        disks.setdefault(nearest_folder(Path(use.folder)).stat().st_dev, []).append(use)
    for together in disks.values():
        yield space_finding(together, shutil.disk_usage(nearest_folder(Path(together[0].folder))).free, run)


def space_finding(uses: Sequence[DiskUse], free_bytes: int, run: Run) -> Finding:
    """What is still to be written to a disk, against what is free there."""
    largest = max(uses, key=lambda use: use.missing_bytes)
    needed_bytes, unknown = sum(use.missing_bytes for use in uses), [use.what for use in uses if use.size_bytes is None]
    more = f", and {', '.join(unknown)}, whose size is not known yet" if unknown else ""
    where = largest.folder if largest.what in _ELSEWHERE else run.folder
    found = f"about {format_bytes(needed_bytes)} are still to be written{more}; {format_bytes(free_bytes)} are free in {where}"
    if needed_bytes <= free_bytes:
        return ok("disk", found)
    fix = _ELSEWHERE.get(largest.what, "fledge run {command} --name /FOLDER/{name}")
    return problem("disk", found, fix.format(command=run.command, name=run.folder.name))


_ELSEWHERE = {
    DOWNLOADS: "fledge run {command} corpus.cache_folder=/FOLDER",
    TOKEN_DOWNLOADS: "export HF_HOME=/FOLDER",
}
"""How the largest part of a disk moves to another; all else lies in the folder of the run."""
