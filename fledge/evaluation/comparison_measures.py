"""What a comparison measures on one model: a checkpoint and what is asked for -> scores with their items, and answers.

Models are measured one after the other, so only one has to fit into memory. Texts are encoded with the tokenizer as it lies beside the
model, ours or another's, so every model is measured with the ids that its own library would give it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.errors import DataError
from fledge.corpus.document import Document
from fledge.evaluation.benchmarks.places import PlacedBenchmark
from fledge.evaluation.benchmarks.run import BenchmarkResult, Samples, run_benchmark, sample_count
from fledge.evaluation.checkpoint import answers_questions
from fledge.evaluation.comparison import ComparedData, ComparedModel, Measured, Outcomes
from fledge.evaluation.generations import Sample, respond
from fledge.evaluation.reader import Reader
from fledge.evaluation.statistics import Z_95_PERCENT, Score, Unit, perplexity_score, ratio_score, share_score
from fledge.inference.settings import GenerationSettings
from fledge.model.adapter_config import find_base, is_adapter, open_base
from fledge.model.cost import parameter_count
from fledge.model.folder import load_model
from fledge.tokens.foreign import open_text_tokenizer
from fledge.tokens.tokenizer import Tokenizer

SAME_AS_BITS = ("token_perplexity", "word_perplexity", "byte_perplexity")
"""Other forms of the bits per byte of the same text, so their difference is tested once, there."""

HARNESS_SHARES = frozenset({"acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em"})
"""lm-eval's metrics that count right answers; of others, an F1 or a BLEU, it does not say what they are shares of."""

MAXIMUM_NATS_PER_WORD = 100.0
"""Above it a text is not divided into words by white space, and a perplexity per word has 44 digits."""


@dataclass(frozen=True)
class Text:
    """Documents to measure bits per byte and perplexity on; every model gets the same ones."""

    data: ComparedData
    documents: Callable[[], Iterable[Document]]
    note: str


@dataclass(frozen=True)
class Questions:
    """What every model is asked."""

    texts: tuple[Text, ...] = ()
    benchmarks: tuple[PlacedBenchmark, ...] = ()
    harness: Mapping[str, Path | None] | None = None
    """Tasks of lm-eval, with the file of their rows where they are not taken from the hub."""
    prompts: tuple[str, ...] = ()
    samples: Samples = "all"
    seed: int = 0
    maximum_new_tokens: int = 64
    context_tokens: int | None = None
    stride_tokens: int | None = None


def measure(name: str, checkpoint: Artifact, asked: Questions, device: torch.device) -> ComparedModel:
    """Everything that is asked of a model. Raises CheckpointError or DataError if it cannot be opened, or a text is empty."""
    model, tokenizer = load_model(checkpoint.path, device).eval(), open_text_tokenizer(checkpoint.path)
    reader = Reader(model, tokenizer, context_tokens=asked.context_tokens, stride_tokens=asked.stride_tokens)
    measured = [*_on_texts(reader, asked.texts), *_on_benchmarks(reader, asked), *_by_harness(reader, asked)]
    return ComparedModel(
        name,
        str(checkpoint.path),
        checkpoint.id,
        weights_sha256(checkpoint),
        tokenizer.sha256,
        parameter_count(model.config),
        tuple(measured),
        tuple(_say(reader, checkpoint, asked)),
    )


def weights_sha256(checkpoint: Artifact) -> dict[str, str]:
    """The hashes of the files that hold a model's weights; of an adapter those of its base too."""
    own = {name: digest.sha256 for name, digest in checkpoint.manifest.files.items() if name.endswith(".safetensors") and "/" not in name}
    if not is_adapter(checkpoint.path):
        return own
    return own | {f"base/{name}": digest for name, digest in weights_sha256(open_base(find_base(checkpoint.path))).items()}


def damaged_files(checkpoint: Artifact) -> list[str]:
    """What of a model's folder is no longer as its manifest says, one line each; what only training reads is left out."""
    read = {name: digest for name, digest in checkpoint.manifest.files.items() if "/" not in name}
    return artifact.changed_files(checkpoint.path, read)


def _say(reader: Reader, checkpoint: Artifact, asked: Questions) -> list[Sample]:
    """A model that was trained on conversations answers, any other goes on with the text."""
    if not asked.prompts:
        return []
    model, tokenizer = reader.model, reader.tokenizer
    if isinstance(tokenizer, Tokenizer) and answers_questions(checkpoint, model, tokenizer):
        return respond(model, tokenizer, asked.prompts, True, asked.maximum_new_tokens, reader.precision)
    greedy = GenerationSettings(temperature=0, maximum_new_tokens=asked.maximum_new_tokens)
    texts = reader.continued(asked.prompts, greedy, stop=())
    return [Sample(prompt, text.strip()) for prompt, text in zip(asked.prompts, texts, strict=True)]


def _on_texts(reader: Reader, texts: Iterable[Text]) -> Iterator[Measured]:
    for text in texts:
        pieces = [document.text for document in text.documents()]
        if not pieces:
            raise DataError(f"{text.data.name} holds no text to measure", "name a file with text in it")
        prices = reader.prices(pieces, scores_opening=False)
        nats, tokens = [price.nats for price in prices], [float(price.tokens) for price in prices]
        text_bytes = [float(len(piece.encode("utf-8"))) for piece in pieces]
        words = [float(len(re.split(r"\s+", piece))) for piece in pieces]
        bits = [value / math.log(2) for value in nats]
        note = "; ".join(part for part in (str(reader.windows), text.note) if part)
        scores = [
            ratio_score("bits_per_byte", bits, text_bytes, "bits_per_byte", note),
            perplexity_score("token_perplexity", nats, tokens, f"of this model's own tokens; {note}"),
        ]
        if sum(nats) < MAXIMUM_NATS_PER_WORD * sum(words):
            scores.insert(1, perplexity_score("word_perplexity", nats, words, note))
        items = tuple(str(number) for number in range(len(pieces)))
        outcomes = Outcomes(items, tuple(bits), tuple(text_bytes), "bits_per_byte")
        for score in scores:
            named = replace(score, name=f"{score.name}/{text.data.name}")
            yield Measured(named, text.data.sha256, None if score.name in SAME_AS_BITS else outcomes)


def _on_benchmarks(reader: Reader, asked: Questions) -> Iterator[Measured]:
    for placed in asked.benchmarks:
        result = run_benchmark(
            reader.model,
            reader.tokenizer,
            placed,
            samples=asked.samples,
            seed=asked.seed,
            batch_tokens=reader.batch_tokens,
            precision=reader.precision,
            context_tokens=asked.context_tokens,
            stride_tokens=asked.stride_tokens,
        )
        for score in result.scores:
            yield Measured(score, result.data_sha256, _benchmark_outcomes(result, score))


def _benchmark_outcomes(result: BenchmarkResult, score: Score) -> Outcomes | None:
    """Per row right or wrong, or what it cost; None where the test of another score is the same."""
    metric = score.name.removeprefix(f"{result.name}/")
    if metric in SAME_AS_BITS and "bits_per_byte" in result.outcomes[0].values:
        return None
    items = tuple(outcome.item for outcome in result.outcomes)
    values = tuple(outcome.values[metric] for outcome in result.outcomes)
    if score.unit == "share":
        return Outcomes(items, values)
    weights = tuple(outcome.weights[metric] for outcome in result.outcomes)
    if score.unit == "bits_per_byte":
        return Outcomes(items, tuple(value / math.log(2) for value in values), weights, "bits_per_byte")
    return Outcomes(items, values, weights, "nats")


def _by_harness(reader: Reader, asked: Questions) -> Iterator[Measured]:
    """lm-eval tells no outcome per row, so there is nothing to pair."""
    if not asked.harness:
        return
    from fledge.core import disk
    from fledge.evaluation.harness import harness_results

    files = {name: path for name, path in asked.harness.items() if path is not None}
    limit = sample_count(asked.samples)
    found = harness_results(reader.model, reader.tokenizer, list(asked.harness), files, limit, batch_tokens=reader.batch_tokens)
    for task, figures in found.items():
        sha256 = disk.digest_file(files[task]).sha256 if task in files else ""
        yield from (Measured(score, sha256) for score in harness_scores(task, figures, limit))


def harness_scores(task: str, figures: Mapping[str, Any], limit: int | None) -> Iterator[Score]:
    """lm-eval's figures of a task as scores, named "lm-eval TASK/METRIC", or "METRIC,FILTER" where lm-eval filtered the answers.

    Shares get Wilson's interval, whatever else is a mean that of lm-eval's standard error, if it told one.
    """
    n = int(figures.get("sample_len") or limit or 0)
    note = f"lm-eval, the first {limit} rows" if limit else "lm-eval"
    for key, value in figures.items():
        metric, _, ways = key.partition(",")
        if not ways or metric.endswith("_stderr") or not isinstance(value, (int, float)):
            continue
        name = f"lm-eval {task}/{metric if ways == 'none' else key}"
        if metric in HARNESS_SHARES and n and 0 <= value <= 1:
            yield share_score(name, value * n, n, note=note)
            continue
        error = figures.get(f"{metric}_stderr,{ways}")
        half_width = Z_95_PERCENT * error if isinstance(error, (int, float)) else None
        low, high = (None, None) if half_width is None else (value - half_width, value + half_width)
        unit: Unit = "perplexity" if "perplexity" in metric else "bits_per_byte" if metric == "bits_per_byte" else "number"
        yield Score(name, float(value), n, low, high, unit=unit, note=note)
