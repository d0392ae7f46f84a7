"""Benchmarks while a stage trains: the figures of the evaluation, no bit of the weights, and what is told before the first step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fledge.core import artifact
from fledge.core.errors import ConfigError, DataError
from fledge.core.metrics import read_metrics
from fledge.evaluation.benchmarks.places import find_benchmark
from fledge.evaluation.benchmarks.run import run_benchmark
from fledge.model.folder import load_model
from fledge.stages import run_stage
from fledge.stages.run import Run
from fledge.tokens.tokenizer import open_tokenizer
from fledge.training.checkpoint_folders import CHECKPOINTS, list_checkpoints
from fledge.training.sound_checkpoints import checkpoint_folder, rewind

from .conftest import WORDS

MakeRun = Callable[..., Run]
Walk = Callable[..., None]


def rows(folder: Path) -> list[str]:
    """Writes 70 rows for two benchmarks; returns what a recipe says to have them asked."""
    folder.mkdir(exist_ok=True)
    words = [f"The {WORDS[number % 10]} by the {WORDS[number % 7]} is like a {WORDS[number % 9]}" for number in range(70)]
    facts = [{"passage": text, "question": "is it like this", "label": number % 2} for number, text in enumerate(words)]
    (folder / "lambada_openai.jsonl").write_text("".join(f"{json.dumps({'text': text})}\n" for text in words))
    (folder / "boolq.jsonl").write_text("".join(f"{json.dumps(fact)}\n" for fact in facts))
    places = f"{{lambada: {folder}, boolq: {folder}}}"
    return [f"evaluate.benchmarks={places}", "corpus.decontaminate.evaluated=false"]


def asked(run: Run) -> list[dict[str, Any]]:
    records = [record for record in read_metrics(run.folder / "pretrain") if "benchmark/boolq/acc" in record]
    return [{name: value for name, value in record.items() if name != "time"} for record in records]


def test_asked_or_not_resumed_or_not_the_weights_are_the_same_and_the_figures_those_of_the_evaluation(
    make_run: MakeRun, walk: Walk, tmp_path: Path
) -> None:
    named = [*rows(tmp_path / "rows"), "pretrain.keep_checkpoints=9"]
    asking = [*named, "pretrain.benchmarks=[lambada, boolq]", "pretrain.benchmark_every_steps=2"]
    plain = make_run(*named)
    walk(plain, "pack")
    whole, again = (replace(make_run(*asking), folder=tmp_path / name) for name in ("whole", "again"))
    shutil.copytree(plain.folder, whole.folder)
    run_stage("pretrain", plain)
    run_stage("pretrain", whole)
    assert [record["step"] for record in asked(whole)] == [2, 4, 6]
    assert asked(plain) == []

    shutil.copytree(whole.folder, again.folder)
    (again.folder / "pretrain" / artifact.MANIFEST).unlink()
    rewind(again.folder / "pretrain", checkpoint_folder(again.folder / "pretrain", 2))
    run_stage("pretrain", again)
    assert asked(again) == asked(whole)
    of_runs = [list_checkpoints(run.folder / "pretrain") for run in (plain, whole, again)]
    ends = [[(one.step, one.artifact.manifest.files["model.safetensors"]) for one in found if one.step > 2] for found in of_runs]
    assert ends[0] == ends[1] == ends[2] and len(ends[0]) == 2

    checkpoint = whole.folder / "pretrain" / CHECKPOINTS / "step-000006"
    for record, name in ((asked(whole)[-1], "lambada"), (asked(whole)[-1], "boolq")):
        result = run_benchmark(
            load_model(checkpoint).eval(), open_tokenizer(checkpoint), find_benchmark(name, tmp_path / "rows"), samples=50
        )
        for score in result.scores:
            bounds = {"": score.value, "/low": score.low, "/high": score.high, "/n": 50}
            assert {bound: record[f"benchmark/{score.name}{bound}"] for bound in bounds} == pytest.approx(bounds, rel=1e-6)


@pytest.mark.parametrize(
    ("spoil", "error", "problem"),
    [
        ("missing", DataError, r"no file boolq\.\* in .* with the rows of boolq"),
        ("no question", DataError, r"boolq\.jsonl, line 3, is no question of boolq"),
        ("no room", DataError, "a text of .* tokens is to be scored at once"),
    ],
)
def test_rows_that_cannot_be_asked_are_told_before_the_first_step(
    make_run: MakeRun, walk: Walk, tmp_path: Path, spoil: str, error: type[Exception], problem: str
) -> None:
    run = make_run(*rows(tmp_path / "rows"), "pretrain.benchmarks=[lambada, boolq]")
    walk(run, "pack")
    file = tmp_path / "rows" / "boolq.jsonl"
    if spoil == "missing":
        file.unlink()
    elif spoil == "no question":
        file.write_text(file.read_text().replace('"question"', '"querry"', 3).replace('"querry"', '"question"', 2))
    else:
        (tmp_path / "rows" / "lambada_openai.jsonl").write_text(json.dumps({"text": f"The {'x1y2' * 200}"}) + "\n")
    with pytest.raises(error, match=problem):
        run_stage("pretrain", run)
    assert read_metrics(run.folder / "pretrain") == []
    assert list_checkpoints(run.folder / "pretrain") == []


@pytest.mark.parametrize("overrides", [["evaluate=null"], [], ["evaluate.benchmarks={boolq: rows}"]])
def test_a_benchmark_without_a_place_is_told_when_the_recipe_is_read(make_run: MakeRun, overrides: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"sft\.benchmarks names lambada, but evaluate\.benchmarks does not say where its rows lie"):
        make_run(*overrides, "sft.benchmarks=[lambada]")
    make_run("evaluate.benchmarks={lambada: rows}", "sft.benchmarks=[lambada]")
