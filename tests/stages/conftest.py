"""A road small enough for every test: a few hundred words, a few thousand parameters, seconds."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fledge.recipe import Recipe, load_recipe
from fledge.stages import STAGES, Stage, corpus, has_stage, run_stage
from fledge.stages.run import Run, set_aside

from ..corpus.corpus_assembly import lines_source, near_copy, settings, spy_on_units, texts, write_lines
from ..corpus.corpus_assembly import settings as corpus_settings
from .corpus_stage_assembly import OPTIONS, Make

RECIPE = """
corpus:
  validation_fraction: 0.2
  sources:
    - {kind: text, name: text, path: "TEXT", maximum_document_characters: 200}
    - {kind: jsonl, name: talks, content: conversations, path: "TALKS"}
    - {kind: jsonl, name: pairs, content: preferences, path: "PAIRS"}
tokenizer: {vocabulary_size: 300}
pack: {sequence_length: 128}
model: {hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 48, max_position_embeddings: 128}
pretrain:
  steps: 6
  batch_rows: 4
  sequence_length: 32
  precision: fp32
  threads: 1
  save_every_steps: 2
  metrics: &quiet {tensorboard: false}
sft: {steps: 4, batch_rows: 4, precision: fp32, threads: 1, metrics: *quiet}
dpo: {steps: 4, batch_rows: 4, precision: fp32, threads: 1, objective: {kind: preference}, metrics: *quiet}
evaluate: {questions: 4, choice_questions: 8, last_word_passages: 8, yes_no_questions: 8, preference_pairs: 8, maximum_answer_tokens: 8}
generation: {maximum_new_tokens: 8}
question: "What is a bird?"
"""

LONG_AGO = 1_700_000_000
"""Seconds: a file written just now may be written again in the same instant, so its fingerprint is not remembered."""

WORDS = ["bird", "river", "stone", "cloud", "letter", "window", "garden", "song", "winter", "road"]


def sentence(source: random.Random) -> str:
    one, other, third = source.sample(WORDS, 3)
    return f"The {one} by the {other} is like a {third}."


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A run of the tiny recipe in a folder of its own; overrides as on the command line."""
    source = random.Random(0)
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(sentence(source) for _ in range(4)) for _ in range(60)))
    talks, pairs = [], []
    for number in range(40):
        question, answer = f"What is number {number}?", sentence(source)
        talks.append({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
        pairs.append({"prompt": question, "chosen": answer, "rejected": answer[: len(answer) // 2]})
    for name, rows in (("talks", talks), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = RECIPE
    for word, file in (("TEXT", "text.txt"), ("TALKS", "talks.jsonl"), ("PAIRS", "pairs.jsonl")):
        recipe = recipe.replace(word, str(tmp_path / file))
    path = tmp_path / "tiny.yaml"
    path.write_text(recipe)

    def make(*overrides: str, name: str = "run") -> Run:
        return Run(load_recipe(path, list(overrides))[0], tmp_path / name, str(path))

    return make


@pytest.fixture
def walk() -> Callable[..., None]:
    """Run the stages of a run up to one."""

    def walk_to(run: Run, last: Stage = "report") -> None:
        for stage in STAGES[: STAGES.index(last) + 1]:
            if has_stage(stage, run):
                run_stage(stage, run)

    return walk_to


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """Three files of 40 documents, each for a source of its own; the last has near copies of the first."""
    for number, name in enumerate("abc"):
        write_lines(tmp_path / "inputs" / f"{name}.jsonl", texts(40, seed=number, words=60))
    with (tmp_path / "inputs" / "c.jsonl").open("a") as file:
        file.writelines(json.dumps({"text": f"{near_copy(text)} Or so."}) + "\n" for text in texts(5, words=60))
        file.write("bad\n")
    for path in (tmp_path / "inputs").iterdir():
        os.utime(path, (LONG_AGO, LONG_AGO))
    return tmp_path / "inputs"


@pytest.fixture
def make(tmp_path: Path, inputs: Path) -> Make:
    """Runs the stage on the three files, in a folder of that name; settings may differ."""

    def make(name: str = "run", force: bool = False, evaluate: Any = None, rank: int = 0, world: int = 1, **changes: Any) -> Run:
        sources = [lines_source(inputs / f"{source}.jsonl") for source in "abc"]
        deduplicate = settings(*sources).deduplicate
        values = {"deduplicate": replace(deduplicate, bands=4), **OPTIONS, **changes}
        wanted = corpus_settings(*values.pop("sources", sources), **values)
        run = Run(Recipe(corpus=wanted, evaluate=evaluate), tmp_path / name, "recipe.yaml")
        if force:
            set_aside(run, ["corpus"])
        corpus.run(run, rank, world)
        return run

    return make


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the units that are run, in order, found ones left out."""
    return spy_on_units(monkeypatch)
