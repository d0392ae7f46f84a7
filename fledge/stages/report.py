"""Stage 9: everything the run left behind, gathered into one page."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from fledge.core import __version__, artifact, disk
from fledge.core.artifact import Artifact
from fledge.core.console import format_bytes
from fledge.core.errors import ArtifactError
from fledge.core.metrics import read_metrics
from fledge.corpus.sources.settings import Content
from fledge.evaluation.checkpoint import evaluation_from_plain
from fledge.evaluation.compression import CompressorFigure
from fledge.evaluation.generations import Sample
from fledge.evaluation.report import LineageLine, ReportData, StageUse, TrainingHistory, report
from fledge.stages import REPORT, STAGES, TRAINING_STAGES, has_stage
from fledge.stages.evaluate import RESULTS
from fledge.stages.run import Run, make

CONTENT_OF: dict[str, Content] = {"pretrain": "documents", "sft": "conversations", "dpo": "preferences"}


def run(run: Run) -> None:
    made = dict(_artifacts(run))
    if "evaluate" not in made:
        raise ArtifactError(f"{run.folder} has no evaluation to report", f"make it first: fledge evaluate {run.command}")

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        stats["size_bytes"] = disk.write_text(folder / REPORT, report(_gather(run, made))).size_bytes
        return f"{REPORT}, {format_bytes(stats['size_bytes'])}"

    make(run, "report", artifact.request("report", {}, made), fill)


def _artifacts(run: Run) -> Iterator[tuple[str, Artifact]]:
    """Every finished artifact of the run before this stage, by its place: "corpus/documents", "pretrain", ..."""
    for stage in STAGES[:-1]:
        for path in [run.folder / stage / artifact.MANIFEST, *sorted((run.folder / stage).glob(f"*/{artifact.MANIFEST}"))]:
            if path.is_file() and has_stage(stage, run):
                yield path.parent.relative_to(run.folder).as_posix(), artifact.open_artifact(path.parent)


def _gather(run: Run, made: dict[str, Artifact]) -> ReportData:
    results = json.loads((made["evaluate"].path / RESULTS).read_text(encoding="utf-8"))
    trained = [stage for stage in TRAINING_STAGES if stage in made]
    return ReportData(
        run_name=run.folder.name,
        recipe_name=run.command,
        written_at=datetime.now().strftime("%Y-%m-%d %H:%M"),
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
