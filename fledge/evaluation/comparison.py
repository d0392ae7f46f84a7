"""Several models on the same items, side by side: their scores in one table, and which differences are more than chance.

    what was measured on each model -> differences to the first model, item by item (`paired.py`) -> table, CSV, text, JSON

The first model is what the others are measured against. Measuring needs a model and stands in `comparison_measures.py`; here is only
data, so that a comparison that was written can be read, checked and shown without any.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fledge.evaluation.checkpoint import CheckpointEvaluation, plain_columns, results_table, results_text
from fledge.evaluation.generations import Sample
from fledge.evaluation.paired import SIGNIFICANCE_LEVEL, PairedDifference, compare_ratios, compare_shares, holm
from fledge.evaluation.score_words import format_value, score_title
from fledge.evaluation.statistics import Score, score_from_plain

COMPARISON_RESULTS = "results.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Outcomes:
    """What a model made of each item of a score."""

    items: tuple[str, ...]
    values: tuple[float, ...]
    """0 wrong, 1 right, a tie 0.5; with weights: numerators of a ratio of sums, such as bits."""
    weights: tuple[float, ...] | None = None
    """Denominators, such as bytes; None for shares."""
    unit: str = "share"
    """Of a value over its weight."""


@dataclass(frozen=True)
class Measured:
    """One score of one model, on which data, and its items."""

    score: Score
    data_sha256: str
    outcomes: Outcomes | None = None
    """None where pairs say nothing: a figure per token, say, between models of different tokenizers."""


@dataclass(frozen=True)
class ComparedModel:
    """A model as it was when it was measured, named so that it cannot be confused with what lies there later."""

    name: str
    """As the user gave it."""
    path: str
    checkpoint_id: str
    """Of ours the checkpoint's; of a folder of others a hash over its files."""
    weights_sha256: Mapping[str, str]
    """By file; of an adapter its base's as well, as base/FILE."""
    tokenizer_sha256: str
    """Over the meaning of tokenizer.json."""
    parameters: int
    measured: tuple[Measured, ...] = ()
    answers: tuple[Sample, ...] = ()
    """To the same prompts for every model."""

    @property
    def evaluation(self) -> CheckpointEvaluation:
        return CheckpointEvaluation(self.name, tuple(one.score for one in self.measured))


@dataclass(frozen=True)
class ComparedData:
    """What was measured on."""

    name: str
    sha256: str
    what: str


@dataclass(frozen=True)
class Difference:
    """How a model's score differs from the first model's."""

    score: str
    model: str
    against: str
    unit: str
    paired: PairedDifference


@dataclass(frozen=True)
class Comparison:
    """All of it."""

    models: tuple[ComparedModel, ...]
    data: tuple[ComparedData, ...]
    differences: tuple[Difference, ...]
    asked: Mapping[str, Any]
    """What decides the figures besides: samples, seed, precision, windows."""
    software: Mapping[str, str]
    """Versions of what computed them."""

    @property
    def evaluations(self) -> list[CheckpointEvaluation]:
        return [model.evaluation for model in self.models]


def find_differences(models: Sequence[ComparedModel], seed: int = 0) -> tuple[Difference, ...]:
    """Of every score of every later model to the first model's, on the items that both have; p-values adjusted together."""
    first, *others = models
    named = []
    for other in others:
        for one in other.measured:
            base = next((found for found in first.measured if _is_same_test(found, one)), None)
            if base is not None and base.outcomes is not None and one.outcomes is not None:
                paired = _paired(one.outcomes, base.outcomes, seed)
                if paired is not None:
                    named.append((one, one.outcomes.unit, other.name, paired))
    adjusted = holm([paired for *_, paired in named])
    return tuple(
        Difference(one.score.name, name, first.name, unit, paired) for (one, unit, name, _), paired in zip(named, adjusted, strict=True)
    )


def _is_same_test(one: Measured, other: Measured) -> bool:
    return (one.score.name, one.data_sha256) == (other.score.name, other.data_sha256)


def _paired(ours: Outcomes, theirs: Outcomes, seed: int) -> PairedDifference | None:
    """None if the two have no item in common. A model may lack items that do not fit into its context."""
    places = {item: place for place, item in enumerate(theirs.items)}
    pairs = [(place, places[item]) for place, item in enumerate(ours.items) if item in places]
    if not pairs or (ours.weights is None) != (theirs.weights is None):
        return None
    mine, other = [place for place, _ in pairs], [place for _, place in pairs]
    if ours.weights is None or theirs.weights is None:
        return compare_shares(_chosen(ours.values, mine), _chosen(theirs.values, other))
    return compare_ratios(
        (_chosen(ours.values, mine), _chosen(ours.weights, mine)),
        (_chosen(theirs.values, other), _chosen(theirs.weights, other)),
        seed,
    )


def _chosen(values: Sequence[float], places: Sequence[int]) -> list[float]:
    return [values[place] for place in places]


def differences_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows: how far from the first model, with the interval of the difference, and what may be said."""
    rows = []
    for one in comparison.differences:
        paired = one.paired
        interval = _signed(paired.difference, one.unit)
        if paired.low is not None and paired.high is not None:
            low, high = (_signed(end, one.unit).removesuffix(" %") for end in (paired.low, paired.high))
            interval += f" ({low} to {high})"
        interval += " nats" if one.unit == "nats" else ""
        counts = f"{paired.higher:,} / {paired.lower:,}"
        p_value = paired.p_value if paired.adjusted_p_value is None else paired.adjusted_p_value
        rows.append([score_title(one.score), one.model, interval, counts, f"{paired.n:,}", format_p_value(p_value), verdict(one)])
    first = comparison.models[0].name
    return ["score", "model", f"difference to {first}", "items higher / lower", "n", "p", ""], rows


def verdict(difference: Difference) -> str:
    """What the test allows one to say, in plain words."""
    paired = difference.paired
    if not paired.is_significant:
        return "not distinguishable"
    is_better = paired.difference < 0 if difference.unit in ("bits_per_byte", "perplexity", "nats") else paired.difference > 0
    return "better" if is_better else "worse"


def format_p_value(p_value: float) -> str:
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def _signed(value: float, unit: str) -> str:
    text = format_value(abs(value), unit)
    return f"{'-' if value < 0 else '+'}{text}"


HOW_TO_READ = (
    "In brackets 95 % intervals; a ? marks a score that its interval cannot tell from guessing. Differences are of pairs: both models "
    f"answered the same items. p is adjusted for all differences of the table (Holm), and 'not distinguishable' means p >= "
    f"{SIGNIFICANCE_LEVEL}."
)


def comparison_text(comparison: Comparison) -> str:
    """The tables, the answers and the hashes as plain text."""
    parts = [results_text(comparison.evaluations)] if any(model.measured for model in comparison.models) else []
    if comparison.differences:
        titles, rows = differences_table(comparison)
        parts.append(plain_columns(titles, rows))
    if parts:
        parts.append(f"{HOW_TO_READ}\n")
    for prompt, answers in answers_by_prompt(comparison):
        parts.append("\n".join([f"prompt: {prompt}", *(f"  {name}: {text}" for name, text in answers), ""]))
    models = [
        f"{one.name}: {one.path}, checkpoint {one.checkpoint_id}, tokenizer {one.tokenizer_sha256}, weights "
        + ", ".join(f"{file} {digest}" for file, digest in one.weights_sha256.items())
        for one in comparison.models
    ]
    data = [f"{one.name}: {one.what}, sha256 {one.sha256}" for one in comparison.data]
    return "\n".join([*parts, *models, *data]) + "\n"


def answers_by_prompt(comparison: Comparison) -> list[tuple[str, list[tuple[str, str]]]]:
    """Each prompt with what every model says to it, as (name, text)."""
    prompts = [answer.prompt for answer in comparison.models[0].answers]
    return [(prompt, [(model.name, model.answers[place].text) for model in comparison.models]) for place, prompt in enumerate(prompts)]


def scores_table(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """A row for each score, a column for each model."""
    return results_table(comparison.evaluations)


def comparison_csv(comparison: Comparison) -> str:
    """A line per model and score, with the difference to the first model where there is one."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    fields = ["value", "low", "high", "n", "unit", "baseline"]
    paired_fields = ["difference", "difference_low", "difference_high", "p_value", "adjusted_p_value"]
    writer.writerow(["model", "checkpoint", "tokenizer", "score", *fields, "data_sha256", *paired_fields])
    found = {(one.model, one.score): one.paired for one in comparison.differences}
    for model in comparison.models:
        for one in model.measured:
            paired = found.get((model.name, one.score.name))
            figures = [getattr(one.score, name) for name in fields]
            pairs = [paired.difference, paired.low, paired.high, paired.p_value, paired.adjusted_p_value] if paired else [None] * 5
            cells = [model.name, model.checkpoint_id, model.tokenizer_sha256, one.score.name, *figures, one.data_sha256, *pairs]
            writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def outcomes_csv(comparison: Comparison) -> str:
    """A line per score and item with what each model made of it: all that is needed to test the differences again."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["score", "item", *(model.name for model in comparison.models), "weight"])
    names = dict.fromkeys(one.score.name for model in comparison.models for one in model.measured if one.outcomes is not None)
    for name in names:
        by_model = [_outcomes_of(model, name) for model in comparison.models]
        items = dict.fromkeys(item for values in by_model for item in values)
        for item in items:
            cells = [values.get(item, ("", "")) for values in by_model]
            weight = next((weight for _, weight in cells if weight != ""), "")
            writer.writerow([name, item, *(value for value, _ in cells), weight])
    return text.getvalue()


def _outcomes_of(model: ComparedModel, name: str) -> dict[str, tuple[float | str, float | str]]:
    found = next((one.outcomes for one in model.measured if one.score.name == name), None)
    if found is None:
        return {}
    weights: Sequence[float | str] = found.weights if found.weights is not None else [""] * len(found.items)
    return {item: (value, weight) for item, value, weight in zip(found.items, found.values, weights, strict=True)}


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """Plain JSON; the items are in outcomes.csv."""
    models = [
        {**asdict(model), "measured": [{"score": asdict(one.score), "data_sha256": one.data_sha256} for one in model.measured]}
        for model in comparison.models
    ]
    return {
        "format_version": FORMAT_VERSION,
        "models": models,
        "data": [asdict(one) for one in comparison.data],
        "differences": [asdict(one) for one in comparison.differences],
        "asked": dict(comparison.asked),
        "software": dict(comparison.software),
    }


def read_comparison(text: str) -> Comparison:
    """A comparison from its results.json, without the items."""
    plain = json.loads(text)
    models = tuple(
        ComparedModel(
            **{
                **one,
                "measured": tuple(Measured(score_from_plain(found["score"]), found["data_sha256"]) for found in one["measured"]),
                "answers": tuple(Sample(**answer) for answer in one["answers"]),
            }
        )
        for one in plain["models"]
    )
    differences = tuple(Difference(**{**one, "paired": PairedDifference(**one["paired"])}) for one in plain["differences"])
    data = tuple(ComparedData(**one) for one in plain["data"])
    return Comparison(models, data, differences, plain["asked"], plain["software"])
