"""The disk that texts and their tokens take, before they are there: [recipe, what lies there] -> bytes of each kind at their most.

Sizes of datasets known by name are those of `hub_presets`, of which a limit takes a share; files at hand are looked at. Each kind says
where it comes to lie and what of it is there, because downloads need not lie on the disk of the run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fledge.core import artifact
from fledge.corpus.limits import BYTES_PER_TOKEN
from fledge.corpus.request import contents
from fledge.corpus.resolve import lies_elsewhere
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.hub import snapshot_folder
from fledge.corpus.sources.hub_presets import PRESETS, Preset, preset_bytes
from fledge.corpus.sources.settings import HubSource, PythonDocsSource, Source
from fledge.model.settings import ModelConfig
from fledge.stages.corpus import WORK
from fledge.stages.pack import HUB
from fledge.stages.run import Run
from fledge.tokens.plain_bin import BIN_FILES, HUB_BYTES

PYTHON_DOCS_BYTES = 4_000_000
DOWNLOADS, TOKEN_DOWNLOADS = "downloads", "downloads of tokens"


@dataclass(frozen=True)
class DiskUse:
    """What lies on disk when it is most."""

    what: str
    size_bytes: int | None
    how: str
    folder: str
    """Where it comes to lie."""
    there_bytes: int = 0
    """What lies there already."""

    @property
    def missing_bytes(self) -> int:
        """What is still to be written, as far as that is known."""
        return max(0, (self.size_bytes or 0) - self.there_bytes)


def texts_and_tokens(run: Run, config: ModelConfig) -> Iterator[DiskUse]:
    """What is downloaded, what the corpus is made by, the corpus, and its tokens."""
    corpus, text_bytes, how = run.recipe.corpus, *_text_bytes(run)
    if corpus is not None:
        folder = run.folder / "corpus"
        if how != "there":
            yield from _downloads(corpus)
            work_bytes = text_bytes and text_bytes // (2 if corpus.compress_work else 1)
            there_bytes = folder_bytes(run.folder / WORK)
            yield DiskUse("work of the corpus", work_bytes, "about as large as the text", str(run.folder / WORK), there_bytes)
        yield DiskUse("corpus", text_bytes, how, str(folder), folder_bytes(folder))
    if run.recipe.pack is not None:
        yield from _tokens(run, run.recipe.pack.import_bin, text_bytes and text_bytes // BYTES_PER_TOKEN * token_bytes(config))


def made_parts(run: Run, stage: str) -> list[Path]:
    """The folders of the artifacts that corpus or pack makes, one for each content; empty if that is not known."""
    folder = run.folder / stage
    if run.recipe.corpus is not None:
        return [folder / content for content in contents(run.recipe.corpus)]
    return sorted(path for path in folder.glob("*") if path.is_dir() and "~" not in path.name)


def token_bytes(config: ModelConfig) -> int:
    """Of a token in a shard."""
    return 2 if config.vocabulary_size <= 1 << 16 else 4


def folder_bytes(place: Path) -> int:
    """Of a file, or of all files in a folder; 0 if there is none."""
    if place.is_file():
        return place.stat().st_size
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) if place.is_dir() else 0


def _is_made(run: Run, stage: str) -> bool:
    parts = made_parts(run, stage)
    return bool(parts) and all((part / artifact.MANIFEST).is_file() for part in parts)


def _text_bytes(run: Run) -> tuple[int | None, str]:
    """Of the corpus, and how that is known."""
    if run.recipe.corpus is None or _is_made(run, "corpus"):
        return folder_bytes(run.folder / "corpus") or None, "there"
    sizes = [_text_of(source) for source in run.recipe.corpus.sources]
    if not all(sizes):
        return None, "not known before the corpus is built: a source has no limit"
    return sum(size for size in sizes if size), "at most, from the sources and their limits"


def _tokens(run: Run, import_bin: str | None, estimated_bytes: int | None) -> Iterator[DiskUse]:
    """The shards, and the files that they are imported from, if those lie on the hub."""
    folder, how = run.folder / "pack", f"estimated, {BYTES_PER_TOKEN} bytes of text a token"
    there_bytes, size_bytes = folder_bytes(folder), estimated_bytes
    if _is_made(run, "pack"):
        size_bytes, how = there_bytes, "there"
    elif import_bin is not None:
        repository = import_bin.removeprefix(HUB).partition("@")[0] if import_bin.startswith(HUB) else None
        how = "as large as the files that are imported"
        if repository is None:
            size_bytes = sum(folder_bytes(Path(import_bin) / name) for name in BIN_FILES.values()) or None
        else:
            size_bytes, cache = HUB_BYTES.get(repository), snapshot_folder(repository, "dataset")
            yield DiskUse(TOKEN_DOWNLOADS, size_bytes, "as the hub has them, for all runs", str(cache), folder_bytes(cache / "blobs"))
    yield DiskUse("token shards", size_bytes, how, str(folder), there_bytes)


def _text_of(source: Source) -> int | None:
    """Bytes of text, at most; None if nothing limits it and nobody knows."""
    limit, there = _limit_bytes(source), _whole_text_bytes(source)
    preset = _preset(source)
    if there and preset is not None and preset.documents and source.maximum_documents:
        there = round(there * min(1.0, source.maximum_documents / preset.documents))
    return min(limit, there) if limit and there else limit or there


def _limit_bytes(source: Source) -> int | None:
    return source.maximum_bytes or (source.maximum_tokens_estimate or 0) * BYTES_PER_TOKEN or None


def _whole_text_bytes(source: Source) -> int | None:
    preset = _preset(source)
    if preset is not None:
        return round(preset.tokens * BYTES_PER_TOKEN if preset.tokens else preset.size_bytes)
    if isinstance(source, HubSource):
        return None
    return PYTHON_DOCS_BYTES if isinstance(source, PythonDocsSource) else folder_bytes(Path(source.path)) or None


def _downloads(corpus: CorpusSettings) -> Iterator[DiskUse]:
    """Whole files that are kept, as they are downloaded: of a dataset known by name the share that the limit takes of its text."""
    cache, sizes, there_bytes = Path(corpus.cache_folder).expanduser(), list[int | None](), 0
    for source in corpus.sources:
        if isinstance(source, PythonDocsSource) or source.cache == "none" or not lies_elsewhere(source):
            continue
        preset, taken, whole = _preset(source), _text_of(source), _whole_text_bytes(source)
        size = round(preset.size_bytes * min(1.0, taken / whole)) if preset is not None and taken and whole else None
        sizes.append(size)
        if preset is not None and size is not None:
            there_bytes += min(size, preset_bytes(preset, cache))
    if sizes:
        known = [size for size in sizes if size is not None]
        how = f"estimated, in {corpus.cache_folder}, for all runs"
        yield DiskUse(DOWNLOADS, sum(known) if len(known) == len(sizes) else None, how, str(cache), there_bytes)


def _preset(source: Source) -> Preset | None:
    return PRESETS.get(source.preset or "") if isinstance(source, HubSource) else None
