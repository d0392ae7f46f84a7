"""Run folders as a training leaves them, made of a few lines: for tests of the board, which only reads."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fledge.core import artifact
from fledge.core.artifact import Artifact

STAGES = ("corpus", "tokenizer", "pack", "pretrain", "sft", "score", "dpo", "evaluate", "report")
STARTED = 1_700_000_000.0

PLAN = {
    "seed": 0,
    "start": {"step": 0, "tokens": 0},
    "sources": {"web": {"tokens": 900, "content": "a"}, "books": {"tokens": 100, "content": "b"}},
    "phases": [
        {"steps": 60, "batch_rows": 8, "row_tokens": 64, "weights": {"web": "3/4", "books": "1/4"}},
        {"steps": 40, "batch_rows": 4, "row_tokens": 128, "weights": {"web": "1", "books": "1"}},
    ],
}


def record(step: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl."""
    return {
        "step": step,
        "time": STARTED + step,
        "train/loss": 8 / (1 + step / 20),
        "train/learning_rate": 0.01,
        "train/gradient_norm": 1.0,
        "train/tokens": 512 * step,
        "train/tokens_per_second_smoothed": 500.0,
        "train/seconds_left_smoothed": 100.0 - step,
        "train/peak_memory_bytes": 300_000_000,
        "train/source_tokens/web": 384 * step,
        "train/source_tokens/books": 128 * step,
        **more,
    }


def append(folder: Path, *records: Mapping[str, Any], torn: str = "") -> None:
    """Lines at the end of a stage's metrics, and the beginning of one that is not written yet."""
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("".join(f"{json.dumps(one)}\n" for one in records) + torn)


def made(folder: Path, kind: str, inputs: Mapping[str, Artifact] | None = None, stats: Mapping[str, Any] | None = None) -> Artifact:
    """A finished artifact that is built whole."""
    with artifact.build(folder, artifact.request(kind, {"name": folder.name}, inputs)) as (partial, figures):
        (partial / "content.txt").write_text(str(folder), encoding="utf-8")
        figures.update(stats or {"outcome": f"a {kind}", "seconds": 1.0})
    return artifact.open_artifact(folder)


def begun(run: Path, stage: str = "pretrain", settings: Mapping[str, Any] | None = None, steps: Sequence[int] = range(1, 51)) -> Path:
    """A training stage in the middle of its work."""
    tokens = (
        made(run / "pack" / "documents", "tokens") if not (run / "pack").exists() else artifact.open_artifact(run / "pack" / "documents")
    )
    folder = run / stage
    training = {"stage": stage, "training": {"learning_rate": 0.01, "seed": 0, **(settings or {})}}
    artifact.begin(folder, artifact.request("training", training, {"tokens.0": tokens}))
    (folder / "plan.json").write_text(json.dumps(PLAN), encoding="utf-8")
    append(folder, *(record(step) for step in steps))
    return folder


def finished(run: Path, stage: str = "pretrain", settings: Mapping[str, Any] | None = None, steps: Sequence[int] = range(1, 51)) -> Path:
    """The same, brought to its end."""
    folder = begun(run, stage, settings, steps)
    wanted = artifact.started_as(folder)
    assert wanted is not None
    stats = {"parameters": 1000, "steps": len(steps), "tokens": 512 * len(steps), "loss": 2.5, "seconds": 50.0}
    artifact.finish(folder, wanted, {}, stats)
    return folder


def recorded(run: Path, outcome: str | None, stages: Sequence[str] = ("pack", "pretrain"), config: Sequence[Any] = (), **more: Any) -> None:
    """What the run was last asked for."""
    content = {
        "command": f"own.yaml --name {run.name}",
        "stages": list(stages),
        "config": list(config),
        "fledge_version": "0.1.0",
        "started_unix_seconds": time.time() - 60,
        "ended_unix_seconds": None if outcome is None else time.time(),
        "outcome": outcome,
        **more,
    }
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps(content), encoding="utf-8")


SCORE = {"name": "bits_per_byte", "value": 2.0, "n": 10, "low": 1.9, "high": 2.1, "unit": "bits_per_byte", "note": "in windows"}
GUESSED = {"name": "yes_no", "value": 0.5, "n": 10, "low": 0.2, "high": 0.8, "chance": 0.5, "majority": 0.5, "distinguishable": False}


def evaluated(run: Path, scores: Sequence[Mapping[str, Any]] = (SCORE, GUESSED), answers: Sequence[Mapping[str, Any]] = ()) -> None:
    """Results of an evaluation of the last checkpoint."""
    (run / "evaluate").mkdir(parents=True, exist_ok=True)
    plain = [{"chance": None, "majority": None, "distinguishable": None, "unit": "share", "note": "", **score} for score in scores]
    results = {"evaluations": [{"name": "pretrain", "scores": plain, "answers": list(answers)}], "compressors": [], "samples": []}
    (run / "evaluate" / "results.json").write_text(json.dumps(results), encoding="utf-8")


def sampled(folder: Path, *samples: tuple[int, str, str]) -> None:
    """What a stage's model wrote."""
    lines = [json.dumps({"step": step, "prompt": prompt, "text": text}) for step, prompt, text in samples]
    (folder / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
