"""Stage 1: sources become one corpus artifact per content (documents, conversations, preferences).

Documents are made by the factory, whose intermediate results lie below the run in `work/corpus`: a rerun after a kill, or after an edit
of a rule, an input or a shard, makes again what is missing or depends on the edit, and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledge.core import artifact, console, disk
from fledge.core.errors import ArtifactError, DataError, FledgeError, MachineError
from fledge.core.wording import counted
from fledge.corpus.document import Content
from fledge.corpus.engine.units import Executor, WorkFolder
from fledge.corpus.filters.evaluation_files import EvaluationFile, find_evaluation_files
from fledge.corpus.rejects import REJECTS_FILE
from fledge.corpus.request import contents, corpus_identity
from fledge.corpus.resolve import Resolved, are_places_known, remember_places, resolve_sources
from fledge.corpus.settings import CorpusSettings
from fledge.corpus.sources.inputs import NotAsExpected
from fledge.evaluation.benchmarks.places import find_benchmarks
from fledge.stages.run import Run, free_name, make

if TYPE_CHECKING:
    from fledge.corpus.factory import Factory

WORK = Path("work") / "corpus"
ANALYSIS = "analysis"
_OF_ANALYSIS = "of-analysis"
"""Marks intermediate results that only an analysis made."""


def run(run: Run, rank: int = 0, world: int = 1) -> None:
    """Make what is missing. Of `world` ranks on a shared file system each does its share, and rank 0 brings the results together."""
    settings: CorpusSettings = run.recipe.section("corpus")
    for content in contents(settings):
        sources = _sources(run, settings, content, rank)
        if sources is None:
            continue
        if content == "documents":
            _make_documents(run, settings, sources, rank, world)
        if rank != 0:
            continue
        if content != "documents":
            _make_rows(run, settings, content, sources)
        remember_places(sources, run.folder / WORK)


def analyze(run: Run) -> Path:
    """Write the data card of the documents, and nothing else; returns its folder.

    What a corpus made before is used, and stays; what an analysis makes for itself stays only if it does not come to its end.
    """
    from fledge.corpus import build, factory

    settings: CorpusSettings = run.recipe.section("corpus")
    target, work = run.folder / ANALYSIS, run.folder / WORK
    is_ours = run.own("corpus/documents", "corpus") is None and (not work.exists() or (work / _OF_ANALYSIS).exists())
    files, results = _evaluation_files(run, settings), WorkFolder(work)
    if is_ours:
        disk.write_text(work / _OF_ANALYSIS, "")
    try:
        sources = resolve_sources(settings, "documents", work)
        if not sources:
            raise DataError("the recipe has no source of documents to analyse", "add one to corpus.sources")
        surveyed = _factory(settings, files, results).survey(sources, may_be_empty=True)
        stats = factory.statistics(settings, surveyed, files)
    except FledgeError:
        # Hours of work are worth as much after a server that stayed away as after a Ctrl-C.
        if is_ours and not results.names():
            disk.remove(work.parent)
        raise
    if is_ours:
        disk.remove(work.parent)
    elif not settings.keep_work:
        results.discard_all_but(())
    disk.remove(target)
    with disk.staging(target) as folder:
        build.write_card(folder, stats)
    return target


def _make_documents(run: Run, settings: CorpusSettings, sources: Sequence[Resolved], rank: int, world: int) -> None:
    files = _evaluation_files(run, settings)
    work = WorkFolder(run.folder / WORK)
    folder = run.folder / "corpus" / "documents"
    wanted = artifact.request("corpus", corpus_identity(settings, "documents", sources, files))
    if rank != 0:
        if not (folder / artifact.MANIFEST).is_file() or artifact.read_key(folder / artifact.MANIFEST) != wanted.key:
            factory = _factory(settings, files, work, rank, world)
            factory.shards(factory.survey(sources))
        return
    _move_aside_if_edited(folder)
    used: set[str] = set()

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        from fledge.corpus import build

        factory = _factory(settings, files, work, rank, world)
        stats.update(content="documents", **build.build_documents(factory, settings, sources, files, folder))
        used.update(factory.used)
        return _outcome("documents", stats)

    make(run, "corpus/documents", wanted, fill)
    # Other ranks may still read what lies there.
    if not settings.keep_work and world == 1:
        work.discard_all_but(())
    elif used:
        work.discard_all_but(used)


def _make_rows(run: Run, settings: CorpusSettings, content: Content, sources: Sequence[Resolved]) -> None:
    files = _evaluation_files(run, settings)
    wanted = artifact.request("corpus", corpus_identity(settings, content, sources, files))

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        from fledge.corpus import rows

        stats.update(content=content, **rows.build_rows(settings, content, sources, files, folder))
        return _outcome(content, stats)

    make(run, f"corpus/{content}", wanted, fill)


def _factory(settings: CorpusSettings, files: Sequence[EvaluationFile], work: WorkFolder, rank: int = 0, world: int = 1) -> Factory:
    from fledge.corpus.factory import Factory

    return Factory(settings, files, work, _executor(settings, rank, world))


def _executor(settings: CorpusSettings, rank: int, world: int) -> Executor:
    if world > 1:
        from fledge.corpus.engine.ranks import RankExecutor

        return RankExecutor(rank, world)
    if settings.executor == "ray":
        from fledge.corpus.engine.ray_cluster import RayExecutor

        return RayExecutor()
    from fledge.corpus.engine.pool import LocalExecutor

    return LocalExecutor(settings.workers)


def _evaluation_files(run: Run, settings: CorpusSettings) -> tuple[EvaluationFile, ...]:
    """The files a model will be evaluated on, by this recipe or because the corpus settings name them."""
    evaluate = run.recipe.evaluate if settings.decontaminate.evaluated else None
    benchmarks = find_benchmarks(evaluate.benchmarks) if evaluate else []
    files = (*settings.decontaminate.files, *(evaluate.files if evaluate else ()))
    return find_evaluation_files([*files, *(placed.file.path for placed in benchmarks)])


def _sources(run: Run, settings: CorpusSettings, content: Content, rank: int) -> list[Resolved] | None:
    """The sources of a content; None, which is said, if they cannot be read any more but the corpus is finished as asked.

    As asked is only what names the same places: another path that cannot be read is a mistake in the recipe.
    """
    try:
        return resolve_sources(settings, content, run.folder / WORK, remember=rank == 0)
    except NotAsExpected:
        raise
    except (DataError, MachineError) as error:
        made = run.own(f"corpus/{content}", "corpus")
        named = [source for source in settings.sources if source.content == content]
        if made is None or not are_places_known(named, run.folder / WORK):
            raise
        told = {source["name"]: source["fingerprint"] for source in made.manifest.settings["sources"]}
        unread = [Resolved(source, (), None, told.get(source.name, "")) for source in named]
        if (
            artifact.request("corpus", corpus_identity(settings, content, unread, _evaluation_files(run, settings))).key
            != made.manifest.key
        ):
            raise
        console.info(f"corpus/{content}: already done; its sources cannot be read any more ({error.problem})")
        return None


def _move_aside_if_edited(folder: Path) -> None:
    """A finished corpus with a file that was changed since goes aside, so that it is made again from the intermediate results."""
    manifest = folder / artifact.MANIFEST
    if not manifest.is_file():
        return
    try:
        files = artifact.open_artifact(folder).manifest.files
    except ArtifactError:
        edited = True
    else:
        # Hashing a large corpus at every run would cost minutes; a file nobody touched since the manifest is left alone. Equal
        # times say nothing: the clock of files has steps of some milliseconds.
        newer = [name for name in files if (folder / name).stat().st_mtime_ns >= manifest.stat().st_mtime_ns]
        edited = any(disk.digest_file(folder / name) != files[name] for name in newer)
    if edited:
        target = free_name(folder.with_name(f"{folder.name}~edited"))
        disk.move(folder, target)
        console.warn(f"{folder} was changed after it was made: moved aside to {target} and made again")


def _outcome(content: Content, stats: dict[str, Any]) -> str:
    size_bytes = sum(sides["train"]["utf8_bytes"] for sides in stats["sources"].values() if "train" in sides)
    rows = stats["rows"]
    parts = [f"{rows['train']:,} {content} ({console.format_bytes(size_bytes)}) to train on", f"{rows['validation']:,} held out"]
    dropped = sum(stats.get("dropped", {}).values())
    if dropped:
        parts.append(f"{dropped:,} dropped by rules")
    duplicates = sum(stats.get("duplicates", {}).values())
    if duplicates:
        parts.append(counted(duplicates, "duplicates"))
    rejected = sum(tally["rejected"] for tally in stats["rejects"].values())
    if rejected:
        parts.append(f"{rejected:,} rejected (see {REJECTS_FILE})")
    return ", ".join(parts)
