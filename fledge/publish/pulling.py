"""Taking from the hub: a folder that is complete and as its manifests say, or none.

    list at one commit -> choose -> download into FOLDER.partial -> check -> FOLDER

What is there of a partial folder is kept, so a pull that was killed goes on. Of an artifact only what its manifest names is taken, so what
others added on the hub, such as pictures for its page, does not make it another one. Files that may run code when they are opened are never
taken, and pages only where a manifest names them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from fledge.core import artifact, console, disk, process
from fledge.core.artifact import Artifact
from fledge.core.errors import ArtifactError, DataError, MachineError
from fledge.core.wording import counted
from fledge.corpus.sources.hub import Kind, all_files, commit_of
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import content_digest, download_all
from fledge.publish.parcel import PAGES, as_manifest, is_safe

KINDS: tuple[Kind, ...] = ("model", "dataset")
_AT_ONCE = 4
_SPACE_LEFT_BYTES = 64 << 20


def pull(name: str, folder: Path, kind: Kind | None, revision: str) -> str:
    """Bring a repository to `folder`, which must not be there yet; without `kind` a model of that name, else a dataset. Says what came.

    Raises DataError if it is not there or holds nothing to take, ArtifactError if it is not what its manifests say, MachineError
    if the hub stays away.
    """
    found, commit = _find(name, kind, revision)
    listed = all_files(name, commit, found)
    safe = _safe(listed)
    partial = folder.with_name(f"{folder.name}{disk.PARTIAL_SUFFIX}")
    with process.run_lock(partial):
        _require_space(partial, safe)
        manifests = [file for file in safe if PurePosixPath(file.name).name == artifact.MANIFEST]
        _bring(f"looking into {name}", manifests, partial)
        wanted = _named(safe, _artifacts(partial, manifests))
        _tell_pages({file.name for file in safe} - {file.name for file in wanted})
        _clear(partial, wanted)
        _bring(f"pull {name}", wanted, partial)
        made = _artifacts(partial, manifests)
        _require_whole(made)
        disk.remove(partial / process.LOCK)
        disk.publish(partial, folder)
    size = console.format_bytes(sum(file.size_bytes for file in wanted))
    said = "as their manifests say" if made else "as the hub lists them"
    return f"{folder}: {found} {name} at {commit[:12]}, {counted(len(wanted), 'files')}, {size}, {said}"


def _find(name: str, kind: Kind | None, revision: str) -> tuple[Kind, str]:
    """Which of the two kinds it is, and its commit."""
    for one in KINDS[:-1] if kind is None else ():
        try:
            return one, commit_of(name, revision, one)
        except DataError:
            continue
    last = kind or KINDS[-1]
    try:
        return last, commit_of(name, revision, last)
    except DataError as error:
        if kind is None:
            raise DataError(f"neither a model nor a dataset {name}@{revision} is on the hub for this machine", error.remedy) from error
        raise


def _safe(listed: Sequence[InputFile]) -> list[InputFile]:
    """The files that may be taken. Raises DataError if there are none, or a name leads out of its folder."""
    outside = [file.name for file in listed if {"", ".."} & set(file.name.replace("\\", "/").split("/"))]
    if outside:
        raise DataError(f"the repository holds names that lead out of its folder: {', '.join(outside[:3])}", "do not trust this repository")
    shown = [file for file in listed if not any(part.startswith(".") for part in file.name.split("/"))]
    safe = [file for file in shown if is_safe(file.name)]
    left_out = [file.name for file in shown if not is_safe(file.name)]
    if not safe:
        raise DataError(f"the repository holds nothing that can be taken, only {', '.join(left_out[:5]) or 'no files'}", "check OWNER/NAME")
    if left_out:
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""
        console.warn(f"not taken, because such files may run code when they are opened: {', '.join(left_out[:5])}{more}")
    return safe


def _require_space(partial: Path, files: Sequence[InputFile]) -> None:
    needed_bytes = sum(file.size_bytes for file in files if not (partial / file.name).is_file()) + _SPACE_LEFT_BYTES
    free_bytes = shutil.disk_usage(partial).free
    if free_bytes < needed_bytes:
        problem = f"{partial.parent} has {console.format_bytes(free_bytes)} free, {console.format_bytes(needed_bytes)} are needed"
        raise MachineError(problem, "free disk space, or choose another place")


def _bring(label: str, files: Sequence[InputFile], partial: Path) -> None:
    """Download what is not there yet with the right bytes."""
    missing = {partial / file.name: file for file in files if not _is_there(partial / file.name, file)}
    if missing:
        download_all(label, missing, _AT_ONCE)


def _is_there(path: Path, file: InputFile) -> bool:
    # A file of another commit may lie under the same name.
    return path.is_file() and path.stat().st_size == file.size_bytes and content_digest(path, file.fingerprint) == file.fingerprint


def _artifacts(partial: Path, manifests: Iterable[InputFile]) -> dict[str, Artifact]:
    """What the manifests describe, by folder; other programs have files of that name too, with other content."""
    found = {}
    for file in manifests:
        path = partial / file.name
        if as_manifest(path.read_bytes()) is not None:
            found[PurePosixPath(file.name).parent.as_posix()] = artifact.open_artifact(path.parent, sizes=False)
    return found


def _named(files: Iterable[InputFile], made: dict[str, Artifact]) -> list[InputFile]:
    """All files but pages that no artifact names, and those in the folder of an artifact that it does not name.

    A training stage has more beside what it names.
    """

    def is_named(file: InputFile) -> bool:
        for above in PurePosixPath(file.name).parents:
            found = made.get(above.as_posix())
            if found is not None and found.manifest.kind != "training":
                name = PurePosixPath(file.name).relative_to(above).as_posix()
                return name == artifact.MANIFEST or name in found.manifest.files
        return not file.name.endswith(PAGES)

    return [file for file in files if is_named(file)]


def _tell_pages(left_out: Iterable[str]) -> None:
    pages = sorted(name for name in left_out if name.endswith(PAGES))
    if pages:
        console.warn(f"not taken, because pages may run scripts in a browser and no manifest names these: {', '.join(pages[:5])}")


def _clear(partial: Path, wanted: Iterable[InputFile]) -> None:
    """Remove what an earlier attempt at another commit left."""
    names = {file.name for file in wanted} | {process.LOCK}
    for path in sorted(partial.rglob("*")):
        if path.is_file() and path.relative_to(partial).as_posix().removesuffix(disk.PARTIAL_SUFFIX) not in names:
            disk.remove(path)


def _require_whole(made: dict[str, Artifact]) -> None:
    problems = [problem for found in made.values() for problem in artifact.verify(found)]
    if problems:
        raise ArtifactError(
            f"what came is not what its manifest says: {'; '.join(problems[:3])}", "take another --revision, or push it again"
        )
