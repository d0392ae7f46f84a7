"""What is sent of a result: names within a repository, and where the bytes come from. Nothing is sent that was not hashed before.

    a checkpoint, a corpus, an exported folder     its files as they lie, manifest.json among them
    a token set                                    pack/CONTENT/... and tokenizer/...: a run folder that can be trained from
    a folder of others                             its files, if they are of kinds that cannot run code

A manifest names its inputs by paths relative to its folder. Within a run such a path says nothing of this machine and is sent as it is; one
that leaves the run is replaced by a name made of the input's id, which lineage goes by. The id of the artifact does not change by that.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fledge.core import artifact, console, disk
from fledge.core.artifact import Artifact
from fledge.core.disk import FileDigest
from fledge.core.errors import ArtifactError, DataError
from fledge.model.adapter_config import is_adapter
from fledge.training.checkpoint_folders import CHECKPOINTS

_WEIGHTS_AND_ROWS = {".safetensors", ".gguf", ".parquet", ".arrow", ".tokens", ".documents", ".supervised", ".crc32", ".model"}
_TEXTS_AND_PICTURES = {".json", ".jsonl", ".yaml", ".md", ".txt", ".csv", ".html", ".jinja", ".svg", ".png"}
SAFE_SUFFIXES = frozenset(_WEIGHTS_AND_ROWS | _TEXTS_AND_PICTURES)
"""Of files that hold data and no code. A pickle (.bin, .pt, .ckpt) may run any code when it is opened."""
PAGES = (".html", ".svg")
"""They may run scripts in a browser: taken only where a manifest of ours names them, such as a data card's."""
SAFE_NAMES = frozenset({"LICENSE", "NOTICE", "Modelfile"})

_PLACES = {"checkpoint": (CHECKPOINTS, 3), "corpus": ("corpus", 2), "tokens": ("pack", 2)}
"""In a run: the name of the folder that holds an artifact, and how many folders below the run it lies itself. Others lie one below it."""
_TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class Item:
    """A file to send."""

    name: str
    """Its path within the repository."""
    source: Path | bytes
    digest: FileDigest


def is_safe(name: str) -> bool:
    """Whether a file of this name may be sent or taken: it stays within its folder, is not hidden, and is of a kind that holds no code."""
    path = PurePosixPath(name)
    opened = PurePosixPath(name.removesuffix(".gz").removesuffix(".zst"))
    is_inside = not path.is_absolute() and "\\" not in name and not any(part.startswith(".") for part in path.parts)
    # A name such as a//b or a/./b would not be the path that it becomes.
    return is_inside and path.as_posix() == name and (opened.suffix in SAFE_SUFFIXES or path.name in SAFE_NAMES)


def parcel(found: Artifact) -> list[Item]:
    """What is sent of an artifact, or of a folder of others. Raises ArtifactError if a byte of it is not as it was written."""
    if found.manifest.kind == "tokens":
        return [*_token_set(found)]
    return [*items_of(found)]


def items_of(found: Artifact, place: str = "", paths: Mapping[str, str] | None = None, is_verified: bool = False) -> Iterator[Item]:
    """The files of one artifact under `place`, every byte checked; `paths`: where some of its inputs lie, relative to it.

    Raises ArtifactError if it is damaged, DataError if it holds files that are not sent.
    """
    problems = [] if is_verified else artifact.verify(found)
    if problems:
        raise ArtifactError(f"nothing is sent: {'; '.join(problems[:3])}", "restore these files, or make the result anew with --force")
    odd = sorted(name for name in found.manifest.files if not is_safe(name))
    if odd:
        raise DataError(f"{found.path} holds {', '.join(odd[:5])}, which may run code when opened", "keep such files out, or convert them")
    if is_adapter(found.path):
        console.warn(f"{found.path} is an adapter: its adapter_config.json names the folder of its base on this machine")
    for name, digest in found.manifest.files.items():
        yield Item(f"{place}{name}", found.path / name, digest)
    manifest = found.path / artifact.MANIFEST
    if manifest.is_file():
        yield without_places(f"{place}{artifact.MANIFEST}", manifest, _depth(found), paths)


def without_places(name: str, path: Path, depth: int, paths: Mapping[str, str] | None = None) -> Item:
    """A `manifest.json` or `stage.json`, `depth` folders below its run, without paths that lead out of the run.

    `paths` replaces those of some roles. The file itself where there is nothing to replace.
    """
    content = path.read_bytes()
    written = json.loads(content)
    for role, given in written["inputs"].items():
        given["path"] = (paths or {}).get(role) or _shown_path(given, depth)
    if written == json.loads(content):
        return item_of(name, content)
    if "checksum" in written:
        del written["checksum"]
        written["checksum"] = artifact.hash_json(written)
    return item_of(name, disk.json_text(written).encode("utf-8"))


def as_manifest(content: bytes) -> dict[str, Any] | None:
    """A `manifest.json` of ours; None for one of another program, which has files of that name too."""
    try:
        written = json.loads(content)
    except ValueError:
        return None
    return written if isinstance(written, dict) and {"format_version", "checksum", "files"} <= written.keys() else None


def item_of(name: str, content: bytes) -> Item:
    """A file that is sent as it is in memory."""
    return Item(name, content, FileDigest(len(content), hashlib.sha256(content).hexdigest()))


def leaves(path: str, depth: int) -> bool:
    """Whether an input's path leads out of the run of what lies `depth` folders below it."""
    return PurePosixPath(path).parts[: depth + 1] == ("..",) * (depth + 1) or PurePosixPath(path).is_absolute()


def _depth(found: Artifact) -> int:
    """How many folders below its run an artifact lies; 0 if it lies in none."""
    holder, depth = _PLACES.get(found.manifest.kind, ("", 1))
    if found.manifest.kind == "tokenizer":
        return int(found.path.name == _TOKENIZER)
    return depth if holder in {"", found.path.parent.name} else 0


def _shown_path(given: dict[str, Any], depth: int) -> str:
    if not leaves(given["path"], depth):
        return str(given["path"])
    return "/".join([*[".."] * max(depth, 1), "elsewhere", f"{given['kind']}-{given['id'][:12]}"])


def _token_set(found: Artifact) -> Iterator[Item]:
    """The set and its tokenizer, laid out as in a run."""
    given = found.manifest.inputs["tokenizer"]
    folder = Path(given.path)
    tokenizer = artifact.open_artifact(folder) if (folder / artifact.MANIFEST).is_file() else artifact.foreign(folder, given.kind)
    if tokenizer.id != given.id:
        raise ArtifactError(f"{folder} is not the tokenizer that {found.path} was packed with", "bring that one back, or pack again")
    place = f"pack/{found.manifest.settings['content']}/"
    yield from items_of(found, place, {"tokenizer": f"../../{_TOKENIZER}"})
    yield from items_of(tokenizer, f"{_TOKENIZER}/")
