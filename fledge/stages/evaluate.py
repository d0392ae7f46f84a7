"""Stage 8: what each checkpoint of the run can do, measured on text and questions that none of them has seen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.config import identity
from fledge.evaluation.benchmarks.places import find_benchmarks
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.text_files import find_text_files
from fledge.stages import TRAINING_STAGES, has_stage
from fledge.stages.checkpoint_names import open_checkpoint
from fledge.stages.run import Run, make


def run(run: Run) -> None:
    settings: EvaluateSettings = run.recipe.section("evaluate")
    checkpoints = dict(_checkpoints(run, settings))
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

        evaluations = make_evaluation(run, checkpoints, corpora, tokens, Asked(files, benchmarks), folder)
        stats["scores"] = sum(len(one.scores) for one in evaluations)
        return f"{stats['scores']} scores of {len(evaluations)} checkpoints"

    make(run, "evaluate", artifact.request("evaluation", {**identity(settings), **hashes}, inputs), fill)


def _checkpoints(run: Run, settings: EvaluateSettings) -> Iterator[tuple[str, Artifact]]:
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
