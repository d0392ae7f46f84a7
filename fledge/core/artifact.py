"""Every stage ends in an artifact: a folder whose `manifest.json`, written last, says what is in it and from what it was made.

    key = hash(kind + identity settings + ids of the inputs + format version)     known before: what was asked for
    id  = hash(key + hashes of the files)                                         known after: what came out

Asking again for a finished key is a no-op; asking for another key in the same place is refused with the difference; a started
one continues. Inputs are named by id, so the chain corpus <- tokenizer <- tokens <- checkpoint <- evaluation can be printed
(`fledge show`) and every byte of it re-hashed (`fledge verify`). On disk an input's path is relative to the artifact, so runs that
are moved or copied together keep their lineage. After levanter's cache ledger and OLMo-core's fingerprints.

Two ways to make one. A short stage builds in `staging` and appears whole (`build`). A long one lives in its final folder from
the start: `stage.json` with the key comes first, the manifest last (`begin`, `finish`).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from fledge.core import __version__, disk
from fledge.core.config import differences, identity
from fledge.core.errors import ArtifactError, FormatError, MachineError
from fledge.core.explain import shorten

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
STARTED = "stage.json"
ITSELF = "."
"""The name of a single file among the files of an artifact that is no folder."""

_RESTORE = "restore the file, or repeat the command that made it with --force"

State = Literal["absent", "started", "finished"]


@dataclass(frozen=True)
class Input:
    """An artifact that another was made from."""

    kind: str
    id: str
    path: str


@dataclass(frozen=True)
class Request:
    """What is asked for: the identity of an artifact before it exists."""

    kind: str
    settings: Any
    """Identity settings as plain JSON."""
    inputs: Mapping[str, Input] = field(default_factory=dict)
    """By role: "tokenizer", "tokens.documents", "start_from"."""

    @property
    def key(self) -> str:
        """SHA-256 over everything that decides the result; paths are left out, ids count."""
        ids = {role: given.id for role, given in sorted(self.inputs.items())}
        return hash_json([FORMAT_VERSION, self.kind, self.settings, ids])


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`."""

    format_version: int
    kind: str
    key: str
    id: str
    fledge_version: str
    settings: Any
    inputs: dict[str, Input]
    files: dict[str, disk.FileDigest]
    stats: dict[str, Any]
    """Headline figures, for people and for the report; they are not part of the id."""


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk."""

    path: Path
    manifest: Manifest

    @property
    def id(self) -> str:
        return self.manifest.id

    @property
    def stats(self) -> dict[str, Any]:
        return self.manifest.stats

    def as_input(self) -> Input:
        """How a successor's manifest names this one."""
        return Input(self.manifest.kind, self.manifest.id, str(self.path))


def request(kind: str, settings: Any, inputs: Mapping[str, Artifact] | None = None) -> Request:
    """What is asked for, from a settings tree (its `operation` fields are left out) and the artifacts it reads."""
    return Request(kind, identity(settings), {role: given.as_input() for role, given in (inputs or {}).items()})


def state(folder: Path, wanted: Request, anew: str = "move it aside and make it anew") -> State:
    """Whether `folder` holds nothing yet, a start of `wanted`, or the finished thing.

    Raises ArtifactError if it holds a damaged artifact, or one that was asked for differently: it names the fields, and `anew`
    as the other way out besides another name.
    """
    if (folder / MANIFEST).is_file():
        found = open_artifact(folder)
        _require_same(folder, found.manifest.key, found.manifest.kind, found.manifest.settings, found.manifest.inputs, wanted, anew)
        return "finished"
    if (folder / STARTED).is_file():
        with _well_formed(folder / STARTED):
            started = _read_json(folder / STARTED)
            inputs = _inputs(started["inputs"], folder)
            _require_same(folder, started["key"], started["kind"], started["settings"], inputs, wanted, anew)
        return "started"
    if folder.exists() and not _is_bare(folder):
        raise ArtifactError(f"{folder} exists and is no {wanted.kind} of ours", "choose another --name, or move it away")
    return "absent"


@contextlib.contextmanager
def build(folder: Path, wanted: Request, written: Mapping[str, disk.FileDigest] | None = None) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Make a short artifact: yields (folder to fill, statistics to fill); it appears at `folder` when the block ends well.

    `written` may be filled meanwhile with digests that were taken on the way to the disk; other files are read again.
    """
    stats: dict[str, Any] = {}
    with disk.staging(folder) as partial:
        yield partial, stats
        _write_manifest(partial, wanted, stats, _digest_files(partial, known=written or {}))


def begin(folder: Path, wanted: Request) -> None:
    """Start a long artifact in its final folder; a start that is already there is kept."""
    if not (folder / STARTED).is_file():
        disk.make_folder(folder)
        inputs = _plain_inputs(wanted.inputs, folder)
        disk.write_json(folder / STARTED, {"kind": wanted.kind, "key": wanted.key, "settings": wanted.settings, "inputs": inputs})


def finish(folder: Path, wanted: Request, files: Mapping[str, disk.FileDigest], stats: dict[str, Any]) -> Artifact:
    """End a long artifact: the manifest names `files` (relative to the folder) and is written last, after they are flushed."""
    for name in files:
        disk.flush(folder / name)
    _write_manifest(folder, wanted, stats, dict(files))
    return open_artifact(folder)


def open_artifact(folder: Path, kind: str | None = None, sizes: bool = True) -> Artifact:
    """Open a finished artifact and check the sizes of its files, unless `verify` will. Raises ArtifactError."""
    path = folder / MANIFEST
    if not path.is_file():
        what = f"{kind} artifact" if kind else "artifact"
        raise ArtifactError(f"{folder} holds no finished {what}", "run the stage that makes it, or name another folder")
    with _well_formed(path):
        raw = _read_json(path)
        version = raw["format_version"]
        is_whole = raw.pop("checksum") == hash_json(raw)
        if version != FORMAT_VERSION:
            # One that is whole was written so; in any other the number itself may be what is damaged.
            kind_of_error = FormatError if is_whole else ArtifactError
            raise kind_of_error(f"{path} has format {version}, this Fledge reads {FORMAT_VERSION}", "use the Fledge that wrote it")
        if not is_whole:
            raise ArtifactError(f"{path} is damaged or was edited: its checksum does not fit", _RESTORE)
        files = {name: disk.FileDigest(**digest) for name, digest in raw["files"].items()}
        manifest = Manifest(**{**raw, "inputs": _inputs(raw["inputs"], folder), "files": files})
    if kind is not None and manifest.kind != kind:
        raise ArtifactError(f"{folder} is a {manifest.kind}, not a {kind}", f"name a folder that holds a {kind}")
    for name, digest in files.items():
        _require_inside(folder, name)
        if sizes:
            _require_size(folder, name, digest)
    return Artifact(folder, manifest)


def foreign(folder: Path, kind: str) -> Artifact:
    """A folder that others wrote, or a single file, as an input: known by its hashes, hidden files left out. Raises ArtifactError."""
    if not folder.exists():
        raise ArtifactError(f"there is no folder {folder}", f"name a folder that holds a {kind}")
    files = _digest_files(folder, hidden=False) if folder.is_dir() else {ITSELF: disk.digest_file(folder)}
    key = Request(kind, {}).key
    manifest = Manifest(FORMAT_VERSION, kind, key, _artifact_id(key, files), "", {}, {}, files, {})
    return Artifact(folder, manifest)


def started_as(folder: Path) -> Request | None:
    """What a long artifact was begun for; None if none was. Raises ArtifactError."""
    path = folder / STARTED
    if not path.is_file():
        return None
    with _well_formed(path):
        started = _read_json(path)
        return Request(str(started["kind"]), started["settings"], _inputs(started["inputs"], folder))


def read_key(path: Path) -> str:
    """The key in a `manifest.json` or `stage.json`, whether or not the rest of the artifact is whole. Raises ArtifactError."""
    with _well_formed(path):
        return str(_read_json(path)["key"])


def verify(artifact: Artifact, exact: bool = False) -> list[str]:
    """Re-hash every file of an artifact and its own id; returns what is wrong, one line each.

    With `exact` a file that the manifest does not name is wrong too; hidden ones, which some systems leave behind, are not.
    """
    manifest, problems = artifact.manifest, []
    if exact:
        strange = set(_file_names(artifact.path, hidden=False)) - manifest.files.keys() - {MANIFEST}
        problems += [f"{artifact.path / name} is none of its files" for name in sorted(strange)]
    problems += changed_files(artifact.path, manifest.files)
    if manifest.id != _artifact_id(manifest.key, manifest.files):
        problems.append(f"{artifact.path / MANIFEST}: the id does not follow from the key and the files")
    if manifest.key != Request(manifest.kind, manifest.settings, manifest.inputs).key:
        problems.append(f"{artifact.path / MANIFEST}: the key does not follow from the settings and the inputs")
    if not problems and not _is_as_written(artifact.path / MANIFEST):
        problems.append(f"{artifact.path / MANIFEST}: it says the same, but not in the bytes that were written")
    return problems


def changed_files(folder: Path, files: Mapping[str, disk.FileDigest]) -> list[str]:
    """Which of these files are gone or are no longer what was written, one line each; each is read again."""
    problems = []
    for name, expected in files.items():
        if not (folder / name).is_file():
            problems.append(f"{folder / name} is missing")
            continue
        found = disk.digest_file(folder / name)
        if found != expected:
            problems.append(f"{folder / name}: sha256 is {found.sha256[:12]}, the manifest says {expected.sha256[:12]}")
    return problems


def _is_as_written(manifest: Path) -> bool:
    """Whether a manifest is in the very form we write; of others' folders there is none."""
    if not manifest.is_file():
        return True
    text = manifest.read_text(encoding="utf-8")
    return text == disk.json_text(json.loads(text))


def lineage(artifact: Artifact) -> Iterator[tuple[int, str, Input, Artifact | None]]:
    """Everything an artifact was made from, depth first: (depth, role, input, the artifact or None if it is not there any more).

    A folder that now holds another id counts as not there. What an artifact was made from is told once, where it first appears.
    """
    yield from _lineage(artifact, 1, set())


def _lineage(artifact: Artifact, depth: int, told: set[str]) -> Iterator[tuple[int, str, Input, Artifact | None]]:
    for role, given in artifact.manifest.inputs.items():
        found = _find(given)
        yield depth, role, given, found
        if found is not None and found.id not in told:
            told.add(found.id)
            yield from _lineage(found, depth + 1, told)


def _find(given: Input) -> Artifact | None:
    folder = Path(given.path)
    try:
        found = open_artifact(folder) if (folder / MANIFEST).is_file() else foreign(folder, given.kind)
    except ArtifactError:
        return None
    return found if found.id == given.id else None


def _write_manifest(folder: Path, wanted: Request, stats: dict[str, Any], files: dict[str, disk.FileDigest]) -> None:
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        kind=wanted.kind,
        key=wanted.key,
        id=_artifact_id(wanted.key, files),
        fledge_version=__version__,
        settings=wanted.settings,
        inputs=dict(wanted.inputs),
        files=files,
        stats=stats,
    )
    content = {**asdict(manifest), "inputs": _plain_inputs(wanted.inputs, folder)}
    # The checksum is over what a reader will see: a number as a key, say, comes back as a string.
    content = json.loads(json.dumps(content, allow_nan=False))
    disk.write_json(folder / MANIFEST, {**content, "checksum": hash_json(content)})


def _digest_files(folder: Path, hidden: bool = True, known: Mapping[str, disk.FileDigest] | None = None) -> dict[str, disk.FileDigest]:
    known = known or {}
    return {name: known[name] if name in known else disk.digest_file(folder / name) for name in _file_names(folder, hidden)}


def _file_names(folder: Path, hidden: bool = True) -> list[str]:
    names = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return [name.as_posix() for name in names if hidden or not any(part.startswith(".") for part in name.parts)]


def _artifact_id(key: str, files: Mapping[str, disk.FileDigest]) -> str:
    return hash_json([key, {name: digest.sha256 for name, digest in sorted(files.items())}])


def _require_same(folder: Path, key: str, kind: str, settings: Any, inputs: Mapping[str, Input], wanted: Request, anew: str) -> None:
    if key == wanted.key:
        return
    before = {"kind of artifact": kind, "settings": settings, "input": {role: given.id[:12] for role, given in inputs.items()}}
    after = {
        "kind of artifact": wanted.kind,
        "settings": wanted.settings,
        "input": {role: given.id[:12] for role, given in wanted.inputs.items()},
    }
    changed = [f"{name.removeprefix('settings.')}: {shorten(old)} -> {shorten(new)}" for name, old, new in differences(before, after)]
    shown = "; ".join(changed[:5]) + (f"; and {len(changed) - 5} more" if len(changed) > 5 else "")
    raise ArtifactError(
        f"{folder} was made differently ({shown or 'by another version of Fledge'})",
        f"keep it and use another --name, or {anew}",
    )


def _require_inside(folder: Path, name: str) -> None:
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ArtifactError(f"{folder / MANIFEST} names a file outside its folder: {name}", "do not trust this folder")
    link = next((part for part in (path, *path.parents[: len(Path(name).parts) - 1]) if part.is_symlink()), None)
    if link is not None:
        raise ArtifactError(f"{link} is a link, which an artifact never holds", "put the file itself there, if you trust it")


def _require_size(folder: Path, name: str, digest: disk.FileDigest) -> None:
    path = folder / name
    size_bytes = path.stat().st_size if path.is_file() else None
    if size_bytes != digest.size_bytes:
        found = "missing" if size_bytes is None else f"{size_bytes:,} bytes long"
        raise ArtifactError(f"{path} is {found}, the manifest says {digest.size_bytes:,} bytes", _RESTORE)


def _is_bare(folder: Path) -> bool:
    """Whether a folder is empty but for what a killed `begin` may leave."""
    return folder.is_dir() and all(entry.name.endswith(disk.PARTIAL_SUFFIX) for entry in folder.iterdir())


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        # That files cannot be opened just now, or are not ours to read, is no damage; a disk that does not give them back is.
        if error.errno in (errno.EIO, errno.ENOENT, errno.EISDIR):
            raise ArtifactError(f"{path} cannot be read: {error}", _RESTORE) from error
        raise MachineError(f"{path} cannot be read: {error.strerror}", "mend its permissions, or close other programs") from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", _RESTORE) from error


@contextlib.contextmanager
def _well_formed(path: Path) -> Iterator[None]:
    """JSON of another form than we write it, such as a list or one without a key, is damage too."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged or was edited: {type(error).__name__} {error}", _RESTORE) from error


def _inputs(raw: Mapping[str, Any], folder: Path) -> dict[str, Input]:
    return {role: Input(**{**given, "path": os.path.normpath(folder / given["path"])}) for role, given in raw.items()}


def _plain_inputs(inputs: Mapping[str, Input], folder: Path) -> dict[str, Any]:
    return {role: {**asdict(given), "path": os.path.relpath(given.path, folder)} for role, given in inputs.items()}


def hash_json(value: Any) -> str:
    """SHA-256 of a plain value, whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
