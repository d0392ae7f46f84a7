"""Sending a result to the hub: a checkpoint or a folder of others as a model, a corpus or a token set as a dataset."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from fledge.core import artifact, console
from fledge.core.artifact import Artifact
from fledge.core.wording import counted
from fledge.corpus.sources.hub import Kind
from fledge.corpus.sources.piece import InputFile
from fledge.corpus.sources.remote import open_input
from fledge.publish.hub import Repository, Stale, create, publish, require_name, require_token
from fledge.publish.parcel import Item, as_manifest, parcel

DATASETS = frozenset({"corpus", "tokens"})
"""Kinds of artifacts that are datasets on the hub, unless --kind says otherwise; all else is a model."""


def push(folder: Path, name: str, kind: Kind | None, public: bool, revision: str) -> str:
    """Send an artifact, or a folder of others, after hashing all of it again; says what was sent.

    What an artifact that was there before had and this one has not is removed; files of others on the hub stay. Raises ArtifactError if it
    is damaged, DataError if the hub refuses, MachineError if there is no token or the hub stays away.
    """
    require_name(name)
    require_token()
    found = (
        artifact.open_artifact(folder, sizes=False) if (folder / artifact.MANIFEST).is_file() else artifact.foreign(folder, "huggingface")
    )
    items = parcel(found)
    repository = Repository(name, kind or ("dataset" if found.manifest.kind in DATASETS else "model"), revision)
    create(repository, public)
    is_changed = publish(repository, items, _message(found), _of_the_one_before(items))
    size = console.format_bytes(sum(item.digest.size_bytes for item in items))
    return f"{repository}@{revision}: {counted(len(items), 'files')}, {size}" + ("" if is_changed else "; all of it was there already")


def _message(found: Artifact) -> str:
    step = found.stats.get("step")
    return f"{found.manifest.kind} {found.id[:12]}" + (f" of step {step}" if step is not None else "")


def _of_the_one_before(items: Sequence[Item]) -> Stale:
    """What the manifests name that lie on the hub where ours will: files of an artifact of ours, so that this one may take them away."""
    ours = {item.name for item in items if PurePosixPath(item.name).name == artifact.MANIFEST}

    def stale(there: Collection[InputFile]) -> list[str]:
        named = []
        for file in there:
            if file.name in ours:
                with open_input(file) as opened:
                    written = as_manifest(opened.read())
                named += [(PurePosixPath(file.name).parent / name).as_posix() for name in (written or {}).get("files", ())]
        return named

    return stale
