"""What the sources of a recipe hold now: their files, and the fingerprint that goes into the key of the corpus.

What lies on the web or the hub is looked up once. The list of its files, at the commit found then, is kept beside the run
(`work/corpus/sources.json`), so that a rerun reads the same and needs no network; remove that file to look again.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fledge.core import console, disk
from fledge.core.artifact import hash_json
from fledge.corpus.document import Content
from fledge.corpus.rejects import Rejects
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources import python_docs
from fledge.corpus.sources.hub_presets import license_of
from fledge.corpus.sources.inputs import Fingerprints, localise, resolve, revision
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.settings import (
    CsvSource,
    FileSource,
    HubSource,
    JsonSource,
    ParquetSource,
    PathSource,
    PythonDocsSource,
    Source,
    TextSource,
)
from fledge.corpus.sources.transport import is_remote, shown
from fledge.corpus.sources.unpacking import GIVEN_UP

_LOOKED_UP = "sources.json"
_FINGERPRINTS = "fingerprints.json"
_PLACES = "places.json"
_DECIDES_FILES = ("path", "preset", "repository", "files", "revision", "sha256")
_WAVE_FILES = (1, 2, 4)
_LARGEST_WAVE_FILES = 8
"""Constants, because they decide how files are grouped into pieces."""


@dataclass(frozen=True)
class Resolved:
    """A source and what it holds now."""

    source: Source
    files: tuple[InputFile, ...]
    revision: str | None
    """Commit of a hub source."""
    fingerprint: str

    def fingerprint_of(self, piece: Piece) -> str:
        """Of what one piece reads; a source without files is read whole."""
        return hash_json([[file.name, file.fingerprint] for file in piece.files]) if piece.files else self.fingerprint

    def provenance(self) -> dict[str, Any]:
        """For the data card: where the texts come from. A local path says nothing to others, so it is left out."""
        return {
            "source": self.source.name,
            "kind": self.source.kind,
            "address": _address(self.source),
            "revision": self.revision,
            "files": len(self.files),
            "bytes": sum(file.size_bytes for file in self.files),
            "license": license_of(self.source),
            "fingerprint": self.fingerprint,
        }


def resolve_sources(settings: CorpusSettings, content: Content, work: Path, remember: bool = True) -> list[Resolved]:
    """The sources of one content, in order. Raises DataError or MachineError naming the source that cannot be read.

    Of several processes in one work folder only one may `remember`, for they would write the same files.
    """
    fingerprints = Fingerprints(work / _FINGERPRINTS)
    resolved = [_resolve(settings, source, fingerprints, work, remember) for source in settings.sources if source.content == content]
    if remember:
        fingerprints.save()
    return resolved


def remember_places(sources: Sequence[Resolved], work: Path) -> None:
    """Keep where the sources of a corpus lay. Beside the run and not in its manifest: a path says nothing to others."""
    known = _read_object(work / _PLACES)
    places = {**known, **{resolved.source.name: _place(resolved.source) for resolved in sources}}
    if places != known:
        disk.write_json(work / _PLACES, places)


def are_places_known(sources: Iterable[Source], work: Path) -> bool:
    """Whether the sources lie where they lay when the corpus was made."""
    known = _read_object(work / _PLACES)
    return all(known.get(source.name) == _place(source) for source in sources)


def known_of_sources(work: Path) -> list[Path]:
    """The files by which another machine finds a corpus finished without its sources: places, and what was looked up.

    What was looked up stays here if an address in it holds something secret, such as a password or a signature.
    """
    looked_up = _read_object(work / _LOOKED_UP).values()
    is_open = all(shown(file["address"]) == file["address"] for found in looked_up for file in found["files"])
    return [path for path in (work / _PLACES, work / _LOOKED_UP) if path.is_file() and (is_open or path.name != _LOOKED_UP)]


def _place(source: Source) -> str:
    """Hashed, for an address may hold a password."""
    return hash_json([getattr(source, field, None) for field in _DECIDES_FILES])


def _resolve(settings: CorpusSettings, source: Source, fingerprints: Fingerprints, work: Path, remember: bool) -> Resolved:
    if isinstance(source, PythonDocsSource):
        return Resolved(source, (), None, python_docs.stdlib_fingerprint(python_docs.stdlib_folder()))
    if not lies_elsewhere(source):
        return _with_fingerprint(source, resolve(source, fingerprints), None)
    known = _read_object(work / _LOOKED_UP)
    name = hash_json([source.kind, _place(source), asdict(source.expect)])
    if name not in known:
        commit = revision(source)
        files = resolve(source, fingerprints, commit, Path(settings.cache_folder).expanduser())
        # What may be secret in an address stays in the recipe.
        known[name] = {"revision": commit, "files": [asdict(replace(file, address=shown(file.address))) for file in files]}
        if remember:
            disk.write_json(work / _LOOKED_UP, known)
    files = [_with_secrets(InputFile(**file), source) for file in known[name]["files"]]
    return _with_fingerprint(source, files, known[name]["revision"])


def _with_secrets(file: InputFile, source: Source) -> InputFile:
    """A file of the web that was looked up, with the address that the recipe has now."""
    is_its_own = isinstance(source, PathSource) and shown(source.path) == file.address
    return replace(file, address=source.path) if is_its_own else file  # type: ignore[union-attr]  # a PathSource has a path


def _with_fingerprint(source: FileSource, files: Sequence[InputFile], commit: str | None) -> Resolved:
    fingerprint = hash_json([[file.name, file.fingerprint] for file in files])
    return Resolved(source, tuple(files), commit, fingerprint)  # type: ignore[arg-type]  # every FileSource we make is a Source


def here_files(settings: CorpusSettings, source: Source, files: Sequence[InputFile]) -> Sequence[InputFile]:
    """The files as they are read: downloaded first, if the source wants that."""
    if not isinstance(source, FileSource):
        return files
    return localise(source, files, Path(settings.cache_folder).expanduser(), settings.download_workers)


def waves(source: Source, files: Sequence[InputFile]) -> Iterator[Sequence[InputFile]]:
    """Files that are brought here together: few at first, where a part of the source may be all that is wanted."""
    if not lies_elsewhere(source):
        yield files
        return
    start = 0
    for size in itertools.chain(_WAVE_FILES, itertools.repeat(_LARGEST_WAVE_FILES)):
        if start >= len(files):
            return
        yield files[start : start + size]
        start += size


def lies_elsewhere(source: Source) -> bool:
    """Whether reading needs a network, unless it is cached."""
    return isinstance(source, HubSource) or (isinstance(source, PathSource) and is_remote(source.path))


def _address(source: Source) -> str:
    if isinstance(source, HubSource):
        place = source.preset or source.repository or ""
        return f"hub:{place}" + (f"/{source.files}" if source.files else "")
    if isinstance(source, PathSource):
        return shown(source.path) if is_remote(source.path) else "local files"
    return "the documentation of the Python that built this corpus"


def _read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def require_few_rejects(source: Source, rejects: Rejects) -> None:
    """Raise DataError if more of a source was unusable than its settings allow; warn of files that were not read to their end."""
    for reject in rejects.kept:
        if reject.reason.startswith(GIVEN_UP):
            console.warn(f"source {source.name}: {reject.file} is not read to its end: it expands like a bomb")
    if isinstance(source, FileSource):
        units = (
            "files" if isinstance(source, TextSource) else "rows" if isinstance(source, ParquetSource | JsonSource | CsvSource) else "lines"
        )
        rejects.require_few(source.name, units, source.maximum_reject_share, at_end=True)
