"""The picture of a comparison of models: `comparison.py` as one self-contained page that explains itself."""

from __future__ import annotations

from collections.abc import Sequence

from fledge.core import page
from fledge.core.markup import element, join
from fledge.core.page import IntervalRow, Markup, Section
from fledge.core.wording import counted
from fledge.evaluation.comparison import (
    HOW_TO_READ,
    Comparison,
    Difference,
    answers_by_prompt,
    differences_table,
    scores_table,
    verdict,
)
from fledge.evaluation.score_words import score_title
from fledge.evaluation.statistics import Score

_PAIRS = (
    "All models got the same items. What is hard for one is mostly hard for the others, so the differences are known better than the "
    "scores: two scores whose intervals overlap may still differ beyond doubt."
)
_HASHES = "What was measured, by SHA-256: of the weights, of the tokenizer's meaning, and of the data. Other bytes are another comparison."


def comparison_page(comparison: Comparison) -> str:
    """The whole page; the same comparison gives the same bytes."""
    names = [model.name for model in comparison.models]
    parts = [_scores(comparison), _differences(comparison), _answers(comparison), _origin(comparison)]
    subtitle = f"{names[0]}, and {', '.join(names[1:])} against it, on the same items." if names[1:] else f"{names[0]} on its own."
    footer = "Written by Fledge. This page needs no network and holds all that it shows."
    return page.page("Models compared", *(part for part in parts if part is not None), subtitle=subtitle, footer=footer)


def _scores(comparison: Comparison) -> Section | None:
    names = dict.fromkeys(one.score.name for model in comparison.models for one in model.measured)
    if not names:
        return None
    columns, rows = scores_table(comparison)
    table = page.table(columns, rows, frozenset(range(1, len(columns))))
    return page.section("Scores", table, *(chart for name in names if (chart := _score_chart(comparison, name)) is not None))


def _score_chart(comparison: Comparison, name: str) -> Markup | None:
    """A line for each model; None for figures without an interval."""
    found = [(model.name, one.score) for model in comparison.models for one in model.measured if one.score.name == name]
    rows = [_row(model, score) for model, score in found if score.low is not None and score.high is not None]
    if not rows:
        return None
    drawn = page.interval_chart(score_title(name), rows, percent=found[0][1].unit == "share", baseline_label="guessing")
    notes = dict.fromkeys(f"{counted(score.n, 'items')}; {score.note}" if score.note else counted(score.n, "items") for _, score in found)
    return join([drawn, *(element("p", note, class_="muted") for note in notes)])


def _row(model: str, score: Score) -> IntervalRow:
    assert score.low is not None and score.high is not None
    return IntervalRow(model, score.value, score.low, score.high, score.baseline)


def _differences(comparison: Comparison) -> Section | None:
    if not comparison.differences:
        return None
    first, table = comparison.models[0].name, differences_table(comparison)
    with_interval = [one for one in comparison.differences if one.paired.low is not None]
    units = dict.fromkeys(one.unit for one in with_interval)
    charts = [_difference_chart([one for one in with_interval if one.unit == unit], first) for unit in units]
    return page.section("Differences", _PAIRS, page.table(*table, frozenset(range(2, 6))), *charts, HOW_TO_READ)


def _difference_chart(differences: Sequence[Difference], first: str) -> Markup:
    """A line for each difference that has an interval."""
    share = differences[0].unit == "share"
    scale = 100 if share else 1
    rows = [
        IntervalRow(
            f"{score_title(one.score)}, {one.model}: {verdict(one)}",
            scale * one.paired.difference,
            scale * one.paired.low,
            scale * one.paired.high,
            baseline=0.0,
        )
        for one in differences
        if one.paired.low is not None and one.paired.high is not None
    ]
    unit = "percentage points" if share else differences[0].unit.replace("_", " ")
    return page.interval_chart(f"Difference to {first}, in {unit}", rows, percent=False, baseline_label="no difference")


def _answers(comparison: Comparison) -> Section | None:
    drawn = [
        page.beside(prompt, [(name, text or "(nothing)") for name, text in answers]) for prompt, answers in answers_by_prompt(comparison)
    ]
    text = "Each model's likeliest answer, token by token; one that has not learned to answer goes on with the text instead."
    return page.section("Answers", text, *drawn) if drawn else None


def _origin(comparison: Comparison) -> Section:
    models = [
        (
            model.name,
            f"{model.path}: {model.parameters:,} parameters; checkpoint {model.checkpoint_id}; tokenizer {model.tokenizer_sha256}; "
            + ", ".join(f"{file} {digest}" for file, digest in model.weights_sha256.items()),
        )
        for model in comparison.models
    ]
    data = [(one.name, f"{one.what}: {one.sha256}") for one in comparison.data]
    asked = [(name.replace("_", " "), str(value)) for name, value in comparison.asked.items() if name not in ("models", "data", "prompts")]
    return page.section("What was compared", _HASHES, page.definition_list([*models, *data, *asked, *comparison.software.items()]))
