"""The disk that texts and their tokens take, before they are there: [recipe, what lies there] -> bytes of each kind at their most.

Sizes of datasets known by name are those of `hub_presets`, of which a limit takes a share; files at hand are looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fledge.corpus.limits import BYTES_PER_TOKEN
from fledge.corpus.resolve import lies_elsewhere
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.hub_presets import PRESETS, Preset
from fledge.corpus.sources.settings import HubSource, PythonDocsSource, Source
from fledge.model.settings import ModelConfig
from fledge.stages.run import Run

PYTHON_DOCS_BYTES = 4_000_000


@dataclass(frozen=True)
class DiskUse:
    """What lies on disk when it is most."""

    what: str
    size_bytes: int | None
    how: str


def texts_and_tokens(run: Run, config: ModelConfig) -> Iterator[DiskUse]:
    """What is downloaded, what the corpus is made by, the corpus, and its tokens."""
    corpus, text_bytes, how = run.recipe.corpus, *_text_bytes(run)
    if corpus is not None:
        if how != "there":
            yield from _downloads(corpus)
            yield DiskUse(
                "work of the corpus", text_bytes and text_bytes // (2 if corpus.compress_work else 1), "about as large as the text"
            )
        yield DiskUse("corpus", text_bytes, how)
    if run.recipe.pack is not None:
        made = folder_bytes(run.folder / "pack")
        tokens = text_bytes and text_bytes // BYTES_PER_TOKEN * token_bytes(config)
        yield DiskUse("token shards", made or tokens, "there" if made else f"estimated, {BYTES_PER_TOKEN} bytes of text a token")


def token_bytes(config: ModelConfig) -> int:
    """Of a token in a shard."""
    return 2 if config.vocabulary_size <= 1 << 16 else 4


def folder_bytes(place: Path) -> int:
    """Of a file, or of all files in a folder; 0 if there is none."""
    if place.is_file():
        return place.stat().st_size
    return sum(path.stat().st_size for path in place.rglob("*") if path.is_file()) if place.is_dir() else 0


def _text_bytes(run: Run) -> tuple[int | None, str]:
    """Of the corpus, and how that is known."""
    made = folder_bytes(run.folder / "corpus")
    if made or run.recipe.corpus is None:
        return made or None, "there"
    sizes = [_text_of(source) for source in run.recipe.corpus.sources]
    if not all(sizes):
        return None, "not known before the corpus is built: a source has no limit"
    return sum(size for size in sizes if size), "at most, from the sources and their limits"


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
    sizes = list[int | None]()
    for source in corpus.sources:
        if isinstance(source, PythonDocsSource) or source.cache == "none" or not lies_elsewhere(source):
            continue
        preset, taken = _preset(source), _text_of(source)
        whole = _whole_text_bytes(source)
        sizes.append(round(preset.size_bytes * min(1.0, taken / whole)) if preset is not None and taken and whole else None)
    if sizes:
        known = [size for size in sizes if size is not None]
        how = f"estimated, in {corpus.cache_folder}, for all runs"
        yield DiskUse("downloads", sum(known) if len(known) == len(sizes) else None, how)


def _preset(source: Source) -> Preset | None:
    return PRESETS.get(source.preset or "") if isinstance(source, HubSource) else None
