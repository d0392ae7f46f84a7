"""Which files of which folders may be looked at: what a request names is compared with what lies there, and never becomes a path.

A run is a folder directly below the folder of runs that holds something of a run; a link, to wherever, is none. A file inside is opened
only if it lies, with all links followed, inside the run. Nothing here needs a process to be running, so copied folders work as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.errors import FledgeError
from fledge.core.run_record import RUN_RECORD
from fledge.serving.errors import ApiError

LARGEST_JSON_BYTES = 64 << 20


@dataclass(frozen=True)
class RunFolder:
    """One run, and the stages that it may have in the order of the road."""

    path: Path
    stages: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.path.name

    def file(self, *parts: str) -> Path | None:
        """A regular file of the run; None if there is none, or one that a link leads out of the run to."""
        path = self.path.joinpath(*parts)
        try:
            return path if path.is_file() and path.resolve().is_relative_to(self.path.resolve()) else None
        except (OSError, ValueError, RuntimeError):
            return None

    def json(self, *parts: str) -> Any:
        """The content of a JSON file of the run; None if it is not there or not readable."""
        path = self.file(*parts)
        try:
            if path is None or path.stat().st_size > LARGEST_JSON_BYTES:
                return None
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None

    def begun(self) -> list[str]:
        """The stages of which something is there."""
        return [stage for stage in self.stages if is_folder(self.path / stage)]

    def trained(self) -> list[str]:
        """The stages that train, as far as they were begun."""
        return [stage for stage in self.stages if self.file(stage, artifact.STARTED) is not None]

    def is_finished(self, stage: str) -> bool:
        """Whether everything of a stage that has been begun is finished, and something is."""
        if stage in self.trained():
            return self.file(stage, artifact.MANIFEST) is not None
        return next(self._manifests(stage), None) is not None

    def artifacts(self) -> dict[str, Artifact]:
        """Every finished artifact by its place, such as "corpus/documents" or "pretrain"; damaged ones are left out."""
        found: dict[str, Artifact] = {}
        for stage in self.begun():
            for parts in self._manifests(stage):
                try:
                    found["/".join(parts)] = artifact.open_artifact(self.path.joinpath(*parts), sizes=False)
                except FledgeError:
                    continue
        return found

    def _manifests(self, stage: str) -> Iterator[tuple[str, ...]]:
        inner = sorted(entry.name for entry in _entries(self.path / stage) if "~" not in entry.name and not entry.is_symlink())
        for parts in ((stage,), *((stage, name) for name in inner)):
            if self.file(*parts, artifact.MANIFEST) is not None:
                yield parts


@dataclass(frozen=True)
class Runs:
    """The folder of runs."""

    folder: Path
    stages: tuple[str, ...]
    """Names of all stages there are, in their order."""

    def all(self) -> list[RunFolder]:
        """Every run, in the order of names."""
        return sorted((run for run in self._folders() if _is_run(run)), key=lambda run: run.name)

    def named(self, name: str) -> RunFolder:
        """The run of that very name. Raises ApiError (404)."""
        found = next((run for run in self._folders() if run.name == name), None)
        if found is None or not _is_run(found):
            raise ApiError(404, "There is no such run.", "run", "run_not_found")
        return found

    def stage(self, name: str, stage: str) -> tuple[RunFolder, str]:
        """A run and one of its stages. Raises ApiError (404)."""
        run = self.named(name)
        known = next((one for one in run.begun() if one == stage), None)
        if known is None:
            raise ApiError(404, "The run has no such stage.", "stage", "stage_not_found")
        return run, known

    def _folders(self) -> Iterator[RunFolder]:
        """What may be a run by its name; nothing inside is looked at."""
        for entry in _entries(self.folder):
            if not entry.name.startswith(".") and not entry.is_symlink():
                yield RunFolder(entry, self.stages)


def _is_run(run: RunFolder) -> bool:
    return is_folder(run.path) and (run.file(RUN_RECORD) is not None or bool(run.begun()))


def is_folder(path: Path) -> bool:
    """Whether it is one that may be looked at."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _entries(folder: Path) -> Sequence[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return ()
