"""The page of the report: its data gathered from the artifacts of the run, and the answer of the last model."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from fledge.core import __version__, artifact, console, disk
from fledge.core.artifact import Artifact
from fledge.core.console import format_bytes
from fledge.core.metrics import read_metrics
from fledge.evaluation.checkpoint import evaluation_from_plain
from fledge.evaluation.compression import CompressorFigure
from fledge.evaluation.generations import Sample, answer_question
from fledge.evaluation.report import LineageLine, ReportData, StageUse, TrainingHistory, report
from fledge.stages import CONTENT_OF, REPORT, TRAINING_STAGES
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.making.evaluation import RESULTS
from fledge.stages.run import Run
from fledge.tokens.tokenizer import open_tokenizer


def make_report(run: Run, made: Mapping[str, Artifact], last: str | None, folder: Path) -> dict[str, Any]:
    """Write the page of these artifacts, by their place in the run. The model of stage `last` is asked the recipe's question.

    Returns figures: the size of the page, the question and the answer.
    """
    asked = _ask(run, made[last].path) if last is not None else None
    size_bytes = disk.write_text(folder / REPORT, report(_gather(run, made, asked))).size_bytes
    return {"size_bytes": size_bytes, **({"question": asked.prompt, "answer": asked.text} if asked else {})}


def _ask(run: Run, stage_folder: Path) -> Sample | None:
    """The recipe's question with the answer of a stage's final model; None, which is said, if its tokenizer has no turns."""
    question, folder = run.recipe.question, find_checkpoint(f"{stage_folder}@final")
    assert question is not None
    if open_tokenizer(folder).template is None:
        console.warn(f"the question is not asked: the tokenizer of {folder} has no tokens for the turns of a conversation")
        return None
    answer = answer_question(folder, question, run.recipe.generation.maximum_new_tokens)
    return Sample(question, answer, f"The question of the recipe, answered by the model after {stage_folder.name}.")


def _gather(run: Run, made: Mapping[str, Artifact], asked: Sample | None) -> ReportData:
    results = json.loads((made["evaluate"].path / RESULTS).read_text(encoding="utf-8"))
    trained = [stage for stage in TRAINING_STAGES if stage in made]
    return ReportData(
        run_name=run.folder.name,
        recipe_name=run.command,
        written_at=datetime.now().strftime("%Y-%m-%d %H:%M"),
        asked=asked,
        stages=[_use(place, found) for place, found in made.items()],
        training=[TrainingHistory(stage, read_metrics(made[stage].path), CONTENT_OF[stage]) for stage in trained],
        compressors=[CompressorFigure(**figure) for figure in results["compressors"]],
        samples=[Sample(**sample) for sample in results["samples"]],
        evaluations=[evaluation_from_plain(one) for one in results["evaluations"]],
        corpus=[
            fact for place, found in made.items() if place.startswith(("corpus/", "tokenizer", "pack/")) for fact in _facts(place, found)
        ],
        model=_model_facts(made[trained[0]]) if trained else (),
        lineage=_lineage(made[trained[-1]] if trained else made["evaluate"]),
        environment=[
            ("Fledge", __version__),
            ("Python", platform.python_version()),
            ("torch", torch.__version__),
            ("Machine", f"{platform.machine()}, {platform.system()}, {torch.get_num_threads()} threads"),
        ],
    )


def _use(place: str, found: Artifact) -> StageUse:
    stats = found.stats
    if place not in TRAINING_STAGES:
        return StageUse(place, seconds=stats.get("seconds"))
    by_source = [f"{name} {use['share']:.1%}, {use['epochs']:.2f} epochs" for name, use in stats["sources"].items()]
    return StageUse(
        place,
        seconds=stats.get("seconds"),
        planned_seconds=stats.get("planned_seconds"),
        peak_bytes=stats.get("peak_bytes"),
        planned_peak_bytes=stats.get("planned_peak_bytes"),
        planned_tokens=stats["planned_tokens"],
        used_tokens=stats["tokens"],
        note="; ".join([f"{stats['steps']:,} steps, {stats['epochs']:.2f} epochs", *(by_source if len(by_source) > 1 else [])]),
    )


def _facts(place: str, found: Artifact) -> Iterator[tuple[str, str]]:
    stats = found.stats
    if found.manifest.kind == "corpus":
        train, validation = stats["rows"]["train"], stats["rows"]["validation"]
        size_bytes = sum(sides["train"]["utf8_bytes"] for sides in stats["sources"].values())
        yield place, f"{train:,} for training ({format_bytes(size_bytes)}), {validation:,} held out"
    elif found.manifest.kind == "tokenizer":
        yield place, f"{stats['vocabulary_size']:,} entries, sha256 {stats['canonical_sha256'][:12]}"
    else:
        yield place, f"{stats['train']['tokens']:,} tokens for training, {stats['validation']['tokens']:,} held out"


def _model_facts(trained: Artifact) -> list[tuple[str, str]]:
    shape = trained.manifest.settings["model"] or {}
    facts = [("parameters", f"{trained.stats['parameters']:,}"), ("compute of pretraining", f"{trained.stats['flops']:.2e} FLOPs")]
    return [*facts, *((name, str(value)) for name, value in shape.items() if value is not None)]


def _lineage(root: Artifact) -> list[LineageLine]:
    lines = [LineageLine(0, "the last model", root.manifest.kind, root.id, str(root.path))]
    return lines + [LineageLine(depth, role, given.kind, given.id, given.path) for depth, role, given, _ in artifact.lineage(root)]
