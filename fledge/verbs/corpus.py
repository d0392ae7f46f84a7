"""`fledge corpus` beside its main work: the datasets known by name, raw chunks without a corpus, and the data card alone."""

from __future__ import annotations

from pathlib import Path

from fledge.core import console
from fledge.core.errors import DataError
from fledge.core.wording import counted
from fledge.corpus.build import CARD_PAGE
from fledge.corpus.resolve import resolve_sources
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.download import download as download_chunks
from fledge.corpus.sources.hub_presets import listing
from fledge.recipe import find_recipe, load_recipe
from fledge.stages import corpus as stage
from fledge.stages.run import Run
from fledge.stages.stand_ins import with_stand_ins

RAW = "raw"
TEST_CHUNKS = 2
DOWNLOAD_WORKERS = 8
CHUNK_DOCUMENTS = 100_000


def make(run: Run, rank: int, world: int) -> None:
    """The corpus itself."""
    stage.run(with_stand_ins(run, "corpus"), rank, world)


def list_presets(recipe: str | None, overrides: list[str]) -> None:
    """Print every preset with size, licence and field, and what of it lies in the cache (of the recipe, if one is given)."""
    found = load_recipe(find_recipe(recipe), overrides)[0].corpus if recipe else None
    default = CorpusSettings.__dataclass_fields__["cache_folder"].default
    cache_folder = Path(found.cache_folder if found else default).expanduser()
    console.table("datasets by name: {kind: hub, preset: NAME}", *listing(cache_folder))
    console.say(f"downloads lie in {cache_folder}")


def analyze(run: Run) -> None:
    """Write the data card and say where it lies."""
    folder = stage.analyze(with_stand_ins(run, "corpus"))
    console.say(f"analysis: {(folder / CARD_PAGE).resolve()}")


def download(run: Run, workers: int | None, chunk_documents: int | None, test: bool) -> None:
    """Write the rows of every source of documents as raw JSON Lines chunks, of the files that a build of this run reads."""
    settings: CorpusSettings = run.recipe.section("corpus")
    sources = resolve_sources(settings, "documents", run.folder / stage.WORK)
    if not sources:
        raise DataError("the recipe has no source of documents to download", "add one to corpus.sources")
    target = run.folder / RAW
    cache_folder = Path(settings.cache_folder).expanduser()
    chunks = TEST_CHUNKS if test else None
    counts = download_chunks(sources, target, cache_folder, workers or DOWNLOAD_WORKERS, chunk_documents or CHUNK_DOCUMENTS, chunks)
    for source, figures in counts.items():
        console.say(f"{target / source}: {counted(figures['documents'], 'documents')} in {counted(figures['chunks'], 'chunks')}")
