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
from fledge.core.console import format_seconds
from fledge.core.metrics import read_metrics
from fledge.core.samples import read_samples
from fledge.evaluation.checkpoint import evaluation_from_plain
from fledge.evaluation.compression import CompressorFigure
from fledge.evaluation.generations import Sample, answer_question
from fledge.evaluation.report import report
from fledge.evaluation.report_data import LineageLine, OtherRun, ReportData, SourceShare, StageUse, TrainingHistory
from fledge.evaluation.run_data import RESULTS, corpus_card, dotted, phase_use
from fledge.stages import CONTENT_OF, REPORT, TRAINING_STAGES
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import Run
from fledge.tokens.tokenizer import open_tokenizer
from fledge.training.checkpoint import read_order


def make_report(
    run: Run, made: Mapping[str, Artifact], last: str | None, others: Mapping[str, Mapping[str, Artifact]], folder: Path
) -> dict[str, Any]:
    """Write the page of these artifacts, by their place in the run. The model of stage `last` is asked the recipe's question.

    `others` are runs to compare with, by name. Returns figures: the size of the page, the question and the answer.
    """
    asked = _ask(run, made[last].path) if last is not None else None
    size_bytes = disk.write_text(folder / REPORT, report(_gather(run, made, asked, others))).size_bytes
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


def _gather(run: Run, made: Mapping[str, Artifact], asked: Sample | None, others: Mapping[str, Mapping[str, Artifact]]) -> ReportData:
    results = _results(made)
    trained = [stage for stage in TRAINING_STAGES if stage in made]
    return ReportData(
        run_name=run.folder.name,
        recipe_name=run.command,
        written_at=datetime.now().strftime("%Y-%m-%d %H:%M"),
        asked=asked,
        stages=[_use(place, found) for place, found in made.items()],
        training=[_history(stage, made[stage]) for stage in trained],
        compressors=[CompressorFigure(**figure) for figure in results["compressors"]],
        samples=[Sample(**sample) for sample in results["samples"]],
        evaluations=[evaluation_from_plain(one) for one in results["evaluations"]],
        others=[_other(name, found) for name, found in {run.folder.name: made, **others}.items()] if others else (),
        cards=[corpus_card(place, found) for place, found in made.items() if place.startswith("corpus/")],
        corpus=[fact for place, found in made.items() if place.startswith(("tokenizer", "pack/")) for fact in _facts(place, found)],
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


def _history(stage: str, found: Artifact) -> TrainingHistory:
    """A training stage: what it recorded and wrote, and the phases and sources of its plan."""
    identity, _ = read_order(found.path / found.stats["final"])
    samples = [(one.step, Sample(one.prompt, one.text)) for one in read_samples(found.path)]
    return TrainingHistory(
        stage,
        read_metrics(found.path),
        CONTENT_OF[stage],
        [phase_use(phase) for phase in identity["phases"]],
        [SourceShare(name, use["tokens"], use["share"], use["epochs"]) for name, use in found.stats["sources"].items()],
        samples,
    )


def _other(name: str, made: Mapping[str, Artifact]) -> OtherRun:
    """A run as far as it is finished, in what can stand beside another."""
    trained = [stage for stage in TRAINING_STAGES if stage in made]
    facts: dict[str, str] = {}
    settings: dict[str, str] = {}
    for stage in trained:
        stats = made[stage].stats
        facts |= {
            f"parameters, {stage}": f"{stats['parameters']:,}",
            f"tokens, {stage}": f"{stats['tokens']:,}",
            f"steps, {stage}": f"{stats['steps']:,}",
            f"loss, {stage}": f"{stats['loss']:.4f}",
            **({f"validation loss, {stage}": f"{stats['validation_loss']:.4f}"} if stats.get("validation_loss") is not None else {}),
            f"time, {stage}": format_seconds(stats["seconds"]),
        }
        asked = made[stage].manifest.settings
        settings |= {f"{stage}.{key}": str(value) for key, value in dotted(asked["training"])}
        settings |= {f"model.{key}": str(value) for key, value in dotted(asked["model"] or {})}
    evaluations = [evaluation_from_plain(one) for one in _results(made)["evaluations"]] if "evaluate" in made else []
    return OtherRun(name, [_history(stage, made[stage]) for stage in trained], evaluations, facts, settings)


def _results(made: Mapping[str, Artifact]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((made["evaluate"].path / RESULTS).read_text(encoding="utf-8"))
    return found


def _facts(place: str, found: Artifact) -> Iterator[tuple[str, str]]:
    stats = found.stats
    if found.manifest.kind == "tokenizer":
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
