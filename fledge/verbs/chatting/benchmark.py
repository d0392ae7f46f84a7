"""LAMBADA in the middle of a conversation: do the models know the last word of a passage?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fledge.core import console
from fledge.core.errors import ConfigError
from fledge.evaluation.benchmarks.places import find_benchmark
from fledge.evaluation.benchmarks.run import SAMPLES, run_benchmark
from fledge.evaluation.checkpoint import CheckpointEvaluation, results_table
from fledge.verbs.chatting.speakers import Speaker

BENCHMARK = "lambada_openai"
FETCHED_TO = Path("data")
"""Where rows are looked for if nothing is said."""


def measure(speakers: Sequence[Speaker], size: str, place: Path = FETCHED_TO) -> None:
    """Print a table of scores on 50, 100 or 200 passages, the same for every model.

    `place` is a file with the rows or a folder that `fledge benchmarks` fetched them into. Raises ConfigError for another size, DataError
    if there are no rows.
    """
    if size not in SAMPLES:
        raise ConfigError(f"there is no benchmark {size!r}", f"say one of {', '.join(SAMPLES)}")
    placed = find_benchmark(BENCHMARK, place)
    evaluations = []
    for speaker in speakers:
        with console.progress(f"{speaker.name}: {BENCHMARK}", None, ""):
            result = run_benchmark(speaker.engine.model, speaker.tokenizer, placed, samples=SAMPLES[size])
        evaluations.append(CheckpointEvaluation(speaker.name, result.scores))
    console.table(f"{BENCHMARK} (? : not distinguishable from guessing)", *results_table(evaluations))
