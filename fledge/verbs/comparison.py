"""`fledge evaluate A B C`: several models on the same items, side by side; with `--to FOLDER` kept as an artifact.

A comparison that is kept names what it was made from by hash: its key follows from the weights, the tokenizers and the data. So asking
again measures nothing if all is as it was, measures anew, and says so, if anything has changed, and what is shown of one whose models or
data are no longer there as they were is refused as stale.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledge.core import __version__, artifact, console, disk
from fledge.core.artifact import Artifact
from fledge.core.errors import ArtifactError, CheckpointError, ConfigError, DataError, FledgeError
from fledge.corpus.document import Document, read_documents
from fledge.evaluation.comparison import (
    HOW_TO_READ,
    RESULTS,
    ComparedData,
    Comparison,
    answers_by_prompt,
    comparison_csv,
    comparison_json,
    comparison_text,
    differences_table,
    find_differences,
    outcomes_csv,
    read_comparison,
    scores_table,
)
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.text_files import IN_PIECES, find_text_files, text_file_documents
from fledge.stages.checkpoint_names import open_checkpoint
from fledge.stages.run import free_name, smoke_name

KIND = "comparison"
DATA = "data"
"""Kind of an input that is a file."""
PAGE = "comparison.html"
HELD_OUT = "held-out"
WHOLE_FILE_BYTES = 1 << 62
"""A file that is named is measured to its end."""


@dataclass(frozen=True)
class Use:
    """What `fledge evaluate A B C` is asked for, as the options say it."""

    files: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    prompt_file: Path | None = None
    maximum_new_tokens: int = 64
    window_tokens: int | None = None
    seed: int = 0
    folder: Path | None = None
    """Where to keep it."""


@dataclass(frozen=True)
class _Data:
    """Something to measure on: what it is, the input that names it, and its documents."""

    told: ComparedData
    given: Artifact
    note: str = ""

    def documents(self) -> Iterable[Document]:
        if self.given.manifest.kind == DATA:
            return text_file_documents(self.given.path)
        # One source, so that every tokenizer meets the documents in one order.
        return (replace(document, source=HELD_OUT) for document in read_documents(self.given.path, "validation"))


def compare(places: Sequence[str], use: Use, small: bool) -> None:
    """Measure models on the same items and print what they score, how they differ and what they say; keep it if a folder is given.

    Raises ConfigError if there is nothing to measure, CheckpointError or DataError if a model or a text cannot be read, ArtifactError if
    something else lies in the folder.
    """
    names = _distinct(places)
    models = {name: open_sound_checkpoint(smoke_name(place) if small else place) for name, place in zip(names, places, strict=True)}
    prompts = (*use.prompts, *(_read_prompts(use.prompt_file) if use.prompt_file else ()))
    data = _texts(use.files, list(models.values()), has_other_work=bool(prompts))
    settings = EvaluateSettings(window_tokens=use.window_tokens, maximum_answer_tokens=use.maximum_new_tokens, seed=use.seed)
    if use.files:
        settings = replace(settings, maximum_text_bytes=WHOLE_FILE_BYTES)
    asked = {
        "models": names,
        "data": [one.told.name for one in data],
        "prompts": list(prompts),
        **{name: getattr(settings, name) for name in ("window_tokens", "maximum_text_bytes", "maximum_answer_tokens", "seed", "precision")},
    }
    inputs = {f"model.{place}": found for place, found in enumerate(models.values())}
    inputs |= {f"data.{one.told.name}": one.given for one in data}
    wanted = artifact.request(KIND, asked, inputs)
    if use.folder is not None and _is_measured(use.folder, wanted):
        console.say(f"{use.folder}: measured before on the same weights, tokenizers and data, which is shown again")
        _print(read_comparison((use.folder / RESULTS).read_text(encoding="utf-8")))
        return
    comparison = _measure(models, data, prompts, settings, asked)
    _print(comparison)
    if use.folder is not None:
        with artifact.build(use.folder, wanted) as (partial, stats):
            stats |= {"models": len(models), "scores": sum(len(model.measured) for model in comparison.models)}
            _write(partial, comparison)
        console.say(f"kept in {use.folder}: {RESULTS}, results.csv, outcomes.csv, results.txt, {PAGE}")


def open_sound_checkpoint(reference: str) -> Artifact:
    """A checkpoint by name whose every byte is as it was written. Raises CheckpointError."""
    from fledge.evaluation.comparison_measures import damaged_files

    found = open_checkpoint(reference)
    damaged = damaged_files(found) if found.manifest.kind != "huggingface" else []
    if damaged:
        raise CheckpointError(
            f"{reference} is not what was trained: {'; '.join(damaged)}", "name another checkpoint, or bring the file back"
        )
    return found


def stale_inputs(comparison: Artifact) -> list[str]:
    """Which of the models and data of a comparison are no longer what was measured, one line each."""
    return [f"{role} ({given.path})" for role, given in comparison.manifest.inputs.items() if _current_id(given) != given.id]


def show_comparison(found: Artifact) -> None:
    """Print a comparison that was kept. Raises ArtifactError if it is damaged, or stale."""
    problems = artifact.verify(found)
    if problems:
        raise ArtifactError("; ".join(problems), "measure again: fledge evaluate MODEL ... --to FOLDER, in another folder")
    stale = stale_inputs(found)
    if stale:
        models = " ".join(found.manifest.settings["models"])
        raise ArtifactError(
            f"{found.path} is stale: {', '.join(stale)} is not what was measured any more",
            f"measure again: fledge evaluate {models} --to {found.path}, with the options of then",
        )
    _print(read_comparison((found.path / RESULTS).read_text(encoding="utf-8")))


def _current_id(given: artifact.Input) -> str | None:
    """The id of what lies at an input's place now; None if there is nothing, or it is damaged."""
    place = Path(given.path)
    try:
        if given.kind in (DATA, "huggingface"):
            return artifact.foreign(place, given.kind).id
        if given.kind == "checkpoint":
            return open_sound_checkpoint(given.path).id
        return artifact.open_artifact(place).id
    except FledgeError:
        return None


def _distinct(places: Sequence[str]) -> list[str]:
    names = [place.rstrip("/") or place for place in places]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"{twice} is named twice", "name every model once")
    return names


def _read_prompts(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts {path} cannot be read: {error}", "give a file of UTF-8 text with a prompt on each line") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataError(f"--prompts {path} holds no prompt", "write one on each line")
    return prompts


def _texts(files: Sequence[str], models: Sequence[Artifact], has_other_work: bool) -> list[_Data]:
    """The text files that are named, else what the first model that knows its corpus was not trained on, else nothing."""
    if files:
        return [
            _Data(ComparedData(file.name, file.sha256, f"text file {file.path}"), artifact.foreign(file.path, DATA), IN_PIECES)
            for file in find_text_files(files, "--file")
        ]
    if has_other_work:
        return []
    for model in models:
        corpus = _corpus_of(model)
        if corpus is not None:
            console.info(f"measured on the held-out documents of {corpus.path}, which a model of another run may have been trained on")
            return [_Data(ComparedData(HELD_OUT, corpus.id, f"held-out documents of {corpus.path}"), corpus)]
    raise ConfigError("there is nothing to measure on", "give --file TEXT, --prompt TEXT, or a model whose corpus is still there")


def _corpus_of(model: Artifact) -> Artifact | None:
    """The first corpus in the lineage of a model that has held-out documents."""
    for _, _, given, found in artifact.lineage(model):
        is_of_documents = given.kind == "corpus" and found is not None and found.manifest.settings["content"] == "documents"
        if found is not None and is_of_documents and found.stats["rows"]["validation"]:
            return found
    return None


def _is_measured(folder: Path, wanted: artifact.Request) -> bool:
    """Whether a folder holds this very comparison; another one is told and moved aside. Raises ArtifactError if it holds anything else."""
    try:
        if artifact.state(folder, wanted) != "finished":
            return False
    except ArtifactError as error:
        if artifact.open_artifact(folder).manifest.kind != KIND:
            raise
        aside = free_name(folder.with_name(f"{folder.name}~{artifact.read_key(folder / artifact.MANIFEST)[:8]}"))
        disk.move(folder, aside)
        console.say(f"{error.problem}: measured again; what was there is now {aside}")
        return False
    problems = artifact.verify(artifact.open_artifact(folder))
    if problems:
        raise ArtifactError("; ".join(problems), f"remove {folder}, so that it is measured again")
    return True


def _measure(
    models: dict[str, Artifact], data: Sequence[_Data], prompts: tuple[str, ...], settings: EvaluateSettings, asked: dict[str, Any]
) -> Comparison:
    import torch

    from fledge.core.process import keep_freed_memory
    from fledge.evaluation.comparison_measures import Questions, Text, measure
    from fledge.model.precision import use_fast_fp32

    keep_freed_memory()
    use_fast_fp32("cpu")
    questions = Questions(tuple(Text(one.told, one.documents, one.note) for one in data), prompts, settings)
    measured = []
    with console.progress("evaluate", len(models), "models") as progress:
        for name, found in models.items():
            measured.append(measure(name, found, questions))
            progress.advance(note=name)
    software = {"fledge": __version__, "torch": torch.__version__, "python": platform.python_version()}
    return Comparison(tuple(measured), tuple(one.told for one in data), find_differences(measured, settings.seed), asked, software)


def _write(folder: Path, comparison: Comparison) -> None:
    from fledge.evaluation.comparison_page import comparison_page

    disk.write_json(folder / RESULTS, comparison_json(comparison))
    disk.write_text(folder / "results.csv", comparison_csv(comparison))
    disk.write_text(folder / "outcomes.csv", outcomes_csv(comparison))
    disk.write_text(folder / "results.txt", comparison_text(comparison))
    disk.write_text(folder / PAGE, comparison_page(comparison))


def _print(comparison: Comparison) -> None:
    if any(model.measured for model in comparison.models):
        console.table("scores (? : not distinguishable from guessing)", *scores_table(comparison))
    if comparison.differences:
        console.table("differences, item by item", *differences_table(comparison))
        console.info(HOW_TO_READ)
    for line in _answer_lines(comparison):
        console.say(line)


def _answer_lines(comparison: Comparison) -> Iterator[str]:
    for prompt, answers in answers_by_prompt(comparison):
        yield f"\n> {prompt}"
        yield from (f"  {name}: {text}" for name, text in answers)
