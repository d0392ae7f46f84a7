"""Stage 8: what each checkpoint of the run can do, measured on text and questions that none of them has seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fledge.core import artifact, console
from fledge.core.artifact import Artifact
from fledge.core.config import identity
from fledge.core.errors import ArtifactError, CheckpointError
from fledge.evaluation.benchmarks.places import find_benchmarks
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.text_files import find_text_files
from fledge.stages import TRAINING_STAGES, has_stage
from fledge.stages.checkpoint_names import open_checkpoint
from fledge.stages.run import Run, make
from fledge.tokens.folder import META_FILE


def run(run: Run) -> None:
    settings: EvaluateSettings = run.recipe.section("evaluate")
    checkpoints = _checkpoints(run, settings)
    given = run.recipe.pack.corpus if run.recipe.pack else ()
    corpora = {content: run.corpora(given, content) for content in ("documents", "conversations")}
    tokens = {content: _tokens(run, stage, content) for stage, content in (("pretrain", "documents"), ("dpo", "preferences"))}
    inputs = {f"checkpoint.{name}": found for name, found in checkpoints.items()}
    inputs |= {f"{content}.{role}": found for content, by_role in (corpora | tokens).items() for role, found in by_role.items()}

    files, benchmarks = find_text_files(settings.files), find_benchmarks(settings.benchmarks)
    hashes: dict[str, Any] = {"file_hashes": [[file.name, file.sha256] for file in files]} if files else {}
    if benchmarks:
        hashes["benchmark_tasks"] = [placed.identity for placed in benchmarks]

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        from fledge.stages.making.evaluation import Asked, make_evaluation

        evaluations = make_evaluation(run, checkpoints, _tokenizers(checkpoints), corpora, tokens, Asked(files, benchmarks), folder)
        stats["scores"] = sum(len(one.scores) for one in evaluations)
        return f"{stats['scores']} scores of {len(evaluations)} checkpoints"

    make(run, "evaluate", artifact.request("evaluation", {**identity(settings), **hashes}, inputs), fill)


def _checkpoints(run: Run, settings: EvaluateSettings) -> dict[str, Artifact]:
    """By name, in the order of training: each stage behind the checkpoint that it started from, if that is none of the others."""
    named, ordered = dict(_named(run, settings)), dict[str, Artifact]()
    for name, found in named.items():
        start_from = getattr(run.recipe, name).start_from if name in TRAINING_STAGES else None
        parent = _parent(start_from, found) if start_from is not None else None
        if parent is not None and parent.id not in {one.id for one in (*named.values(), *ordered.values())}:
            ordered[f"{start_from} (before {name})"] = parent
        ordered[name] = found
    return ordered


def _parent(start_from: str, child: Artifact) -> Artifact | None:
    """What is found under the name that a stage started from, if it is still what the stage did start from."""
    try:
        parent = open_checkpoint(start_from)
    except (ArtifactError, CheckpointError) as error:
        console.warn(f"the checkpoint {start_from} is not measured: {error.problem}")
        return None
    if parent.id != child.manifest.inputs["start_from"].id:
        console.warn(f"the checkpoint {start_from} is not measured: it is another than the one that {child.path} was trained from")
        return None
    return parent


def _tokenizers(checkpoints: Mapping[str, Artifact]) -> dict[str, Path]:
    """Where the tokenizer of each checkpoint lies: beside its weights; of a model of others, which has no such folder, that of the stage
    after it, which is the same.
    """
    folders, found = dict[str, Path](), None
    for name, checkpoint in reversed(list(checkpoints.items())):
        found = checkpoint.path if found is None or (checkpoint.path / META_FILE).is_file() else found
        folders[name] = found
    return folders


def _named(run: Run, settings: EvaluateSettings) -> Iterator[tuple[str, Artifact]]:
    for name in settings.checkpoints:
        if name not in TRAINING_STAGES:
            yield name, open_checkpoint(name)
        elif has_stage(name, run):
            yield name, open_checkpoint(f"{run.folder / name}@final")


def _tokens(run: Run, stage: str, content: str) -> dict[str, Artifact]:
    """The token sets that a stage was trained on, by role; of a stage the recipe lacks, this run's own if there are any."""
    training = getattr(run.recipe, stage)
    if training is not None and training.tokens:
        return {f"tokens.{role}": found for role, found in run.token_sets(training.tokens, content).items()}
    found = run.own(f"pack/{content}", "tokens")
    return {"tokens": found} if found else {}
