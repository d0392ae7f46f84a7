"""A model answers a benchmark: rows -> questions -> likelihoods or generated text -> one outcome per row -> scores.

Every score is a plain function of the outcomes, which are kept: two models that answered the same rows can be compared row by row.

    acc                 the choice with the largest log-likelihood is the right one; or, of a last word, each of its tokens is the most
                        likely one
    acc_norm            the same with log-likelihoods per character of the choice (bytes and tokens do not enter)
    perplexity          of a last word: exp of the mean over rows of its negative log-likelihood
    token_, word_, byte_perplexity, bits_per_byte
                        exp (for bits: 1 / ln 2 times) of all negative log-likelihoods over all tokens, words or bytes

Definitions and names are those of lm-evaluation-harness, which has no token_perplexity.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from fledge.evaluation.benchmarks.items import (
    ChoiceItem,
    ExactItem,
    TextItem,
    WordItem,
    choice_item,
    exact_item,
    text_item,
    word_item,
)
from fledge.evaluation.benchmarks.places import PlacedBenchmark, Row, bad_row, read_rows
from fledge.evaluation.benchmarks.settings import GenerateExact, LastWord, MultipleChoice, Perplexity, Task
from fledge.evaluation.benchmarks.templates import BadRow, fields_of
from fledge.evaluation.reader import Reader
from fledge.evaluation.scoring import BATCH_TOKENS
from fledge.evaluation.statistics import Score, bootstrap_score, share_score
from fledge.evaluation.tasks import majority_share
from fledge.inference.settings import GenerationSettings
from fledge.model.llama import Llama
from fledge.model.precision import Precision
from fledge.tokens.foreign import TextTokenizer

Item = TypeVar("Item")
AnyItem = ChoiceItem | WordItem | TextItem | ExactItem
Samples = int | Literal["quick", "standard", "comprehensive", "all"]

SAMPLES = {"quick": 50, "standard": 100, "comprehensive": 200}


@dataclass(frozen=True)
class Outcome:
    """What a row gave; a score is the sum of values over the sum of weights, then perhaps exponentiated."""

    item: str
    """The row: its number in the file and a hash of its content."""
    values: Mapping[str, float]
    """By metric: 1 or 0, or a negative log-likelihood in nats."""
    weights: Mapping[str, float]
    """By metric: 1, or the tokens, words or bytes of the row."""


@dataclass(frozen=True)
class BenchmarkResult:
    """A model on a benchmark."""

    name: str
    scores: tuple[Score, ...]
    """Named `BENCHMARK/METRIC`."""
    outcomes: tuple[Outcome, ...]
    """One per row that was drawn, in the order of the file."""
    data_sha256: str
    """Of the file with the rows."""


@dataclass(frozen=True)
class Questions:
    """The rows of a benchmark that are asked, read and made into questions: nothing of its file is needed any more."""

    placed: PlacedBenchmark
    rows: Sequence[Row]
    items: Sequence[AnyItem]
    """One per row."""
    drawn: str
    """How they were drawn, in words; empty if they are all."""


def run_benchmark(
    model: Llama,
    tokenizer: TextTokenizer,
    placed: PlacedBenchmark,
    *,
    samples: Samples = "all",
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    precision: Precision = "fp32",
    context_tokens: int | None = None,
    stride_tokens: int | None = None,
) -> BenchmarkResult:
    """The scores of a model; see `read_questions` for the rows it is asked and for what is raised."""
    reader = Reader(model, tokenizer, batch_tokens, precision, context_tokens, stride_tokens)
    return answer(reader, read_questions(placed, samples, seed))


def read_questions(placed: PlacedBenchmark, samples: Samples = "all", seed: int = 0) -> Questions:
    """As many rows as asked for: the same for every model, drawn with the seed.

    Texts whose perplexity is measured are not drawn but all read: they are few, and a figure of some of them has no name. Raises
    DataError naming file, row and field that cannot be asked.
    """
    rows = read_rows(placed)
    chosen = rows if isinstance(placed.benchmark.task, Perplexity) else draw(rows, samples, seed)
    drawn = "" if len(chosen) == len(rows) else f"{len(chosen)} of {len(rows):,} rows, drawn with seed {seed}"
    return Questions(placed, chosen, [_item(placed, row) for row in chosen], drawn)


def require_room(reader: Reader, questions: Questions) -> None:
    """Raise the DataError that asking would, for a choice or a last word that is longer than the model's context."""
    pairs = [pair for item in questions.items if isinstance(item, ChoiceItem) for pair in item.pairs]
    reader.require_room(pairs + [(item.context, item.word) for item in questions.items if isinstance(item, WordItem)])


def answer(reader: Reader, questions: Questions) -> BenchmarkResult:
    """What a model scores on the questions."""
    answer_kind = _ANSWERS[type(questions.placed.benchmark.task)]
    scores, outcomes = answer_kind(reader, questions.placed, questions.rows, questions.items, questions.drawn)
    return BenchmarkResult(questions.placed.name, tuple(scores), tuple(outcomes), questions.placed.file.sha256)


def sample_count(samples: Samples) -> int | None:
    """How many rows are drawn; None: all of them."""
    if isinstance(samples, int):
        return samples
    return None if samples == "all" else SAMPLES[samples]


def draw(rows: Sequence[Item], samples: Samples, seed: int) -> list[Item]:
    """So many of the rows, in their order."""
    count = sample_count(samples)
    if count is None or count >= len(rows):
        return list(rows)
    return [rows[index] for index in sorted(random.Random(seed).sample(range(len(rows)), count))]


Answered = tuple[list[Score], list[Outcome]]


def _item(placed: PlacedBenchmark, row: Row) -> AnyItem:
    task, prepare = placed.benchmark.task, placed.benchmark.prepare
    try:
        values = row.values if prepare is None else prepare(row.values)
        if isinstance(task, MultipleChoice):
            return choice_item(task, values)
        if isinstance(task, LastWord):
            return word_item(task, values)
        return text_item(task, values) if isinstance(task, Perplexity) else exact_item(task, values)
    except BadRow as error:
        raise bad_row(placed, row, error) from error


def _choose(reader: Reader, placed: PlacedBenchmark, rows: Sequence[Row], items: Sequence[ChoiceItem], drawn: str) -> Answered:
    pairs = [pair for item in items for pair in item.pairs]
    found = iter(reader.likelihoods(pairs))
    per_character = isinstance(placed.benchmark.task, MultipleChoice) and placed.benchmark.task.per_character
    outcomes = []
    for row, item in zip(rows, items, strict=True):
        nats = [next(found).log_probability for _ in item.pairs]
        values = {"acc": float(_largest(nats) == item.right)}
        if per_character:
            relative = [value / characters for value, characters in zip(nats, item.characters, strict=True)]
            values["acc_norm"] = float(_largest(relative) == item.right)
        outcomes.append(_outcome(row, values))
    chance = sum(1 / len(item.pairs) for item in items) / len(items)
    majority = majority_share([item.right for item in items]) if _has_constant_choices(placed.benchmark.task) else None
    notes = {"acc": drawn, "acc_norm": _joined("likelihood per character", drawn)}
    return [_share(placed, outcomes, metric, chance, majority, notes[metric]) for metric in outcomes[0].values], outcomes


def _has_constant_choices(task: Task) -> bool:
    """Whether every row has the same choices, so that one could always give the same. The place of others is nothing a model sees."""
    return isinstance(task, MultipleChoice) and isinstance(task.choices, tuple) and not any(map(fields_of, task.choices))


def _complete(reader: Reader, placed: PlacedBenchmark, rows: Sequence[Row], items: Sequence[WordItem], drawn: str) -> Answered:
    pairs = [(item.context, item.word) for item in items]
    found = reader.likelihoods(pairs)
    outcomes = [
        _outcome(row, {"acc": float(one.is_greedy), "perplexity": -one.log_probability}) for row, one in zip(rows, found, strict=True)
    ]
    chance = sum(item.guess_probability for item in items) / len(items)
    majority = majority_share([item.word for item in items])
    note = _joined("chance: a random word of the passage; majority: always the most frequent last word", drawn)
    price = _price_score(placed, outcomes, "perplexity", _joined("of the last word, per word", drawn))
    return [_share(placed, outcomes, "acc", chance, majority, note), price], outcomes


def _price(reader: Reader, placed: PlacedBenchmark, rows: Sequence[Row], items: Sequence[TextItem], _: str) -> Answered:
    prices = reader.prices([item.text for item in items])
    outcomes = []
    for row, item, price in zip(rows, items, prices, strict=True):
        weights = {
            "token_perplexity": price.tokens,
            "word_perplexity": item.words,
            "byte_perplexity": item.text_bytes,
            "bits_per_byte": item.text_bytes,
        }
        outcomes.append(Outcome(row.name, dict.fromkeys(weights, price.nats), {name: float(value) for name, value in weights.items()}))
    return [_price_score(placed, outcomes, metric, str(reader.windows)) for metric in outcomes[0].values], outcomes


def _write(reader: Reader, placed: PlacedBenchmark, rows: Sequence[Row], items: Sequence[ExactItem], drawn: str) -> Answered:
    task = placed.benchmark.task
    assert isinstance(task, GenerateExact)
    greedy = GenerationSettings(temperature=0, maximum_new_tokens=task.maximum_tokens)
    written = reader.continued([item.prompt for item in items], greedy, task.stop)
    outcomes = [
        _outcome(row, {"exact_match": float(text.strip() == item.answer)}) for row, item, text in zip(rows, items, written, strict=True)
    ]
    majority = majority_share([item.answer for item in items])
    return [_share(placed, outcomes, "exact_match", None, majority, drawn)], outcomes


_ANSWERS: Mapping[type[Task], Callable[[Reader, PlacedBenchmark, Sequence[Row], Sequence[Any], str], Answered]] = MappingProxyType(
    {MultipleChoice: _choose, LastWord: _complete, Perplexity: _price, GenerateExact: _write}
)


def _largest(values: Sequence[float]) -> int:
    """The place of the largest one, the first of several."""
    return max(range(len(values)), key=values.__getitem__)


def _outcome(row: Row, values: Mapping[str, float]) -> Outcome:
    return Outcome(row.name, values, dict.fromkeys(values, 1.0))


def _share(
    placed: PlacedBenchmark, outcomes: Sequence[Outcome], metric: str, chance: float | None, majority: float | None, note: str
) -> Score:
    right = sum(outcome.values[metric] for outcome in outcomes)
    return share_score(f"{placed.name}/{metric}", right, len(outcomes), chance=chance, majority=majority, note=note)


def _price_score(placed: PlacedBenchmark, outcomes: Sequence[Outcome], metric: str, note: str) -> Score:
    nats = [outcome.values[metric] for outcome in outcomes]
    weights = [outcome.weights[metric] for outcome in outcomes]
    unit: Literal["bits_per_byte", "perplexity"] = "bits_per_byte" if metric == "bits_per_byte" else "perplexity"
    return bootstrap_score(f"{placed.name}/{metric}", nats, weights, unit, note)


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
