"""What a run left behind, read off its files as plain data: for the report, which is written once, and for the board, which looks on.

Nothing here computes, and nothing loads a model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Any

from fledge.core.artifact import Artifact
from fledge.corpus import card_figures
from fledge.corpus.build import CARD_PAGE, STATS
from fledge.evaluation.report_data import CorpusCard, PhaseUse

RESULTS = "results.json"
"""What the stage `evaluate` writes."""
PLAN = "plan.json"
"""Beside a training stage from its first step on: the identity of its plan."""


def phase_use(plain: Mapping[str, Any]) -> PhaseUse:
    """A phase as the identity of a plan has it, its weights as shares."""
    weights = {name: float(Fraction(weight)) for name, weight in plain["weights"].items()}
    whole = sum(weights.values())
    return PhaseUse(plain["steps"], plain["row_tokens"], plain["batch_rows"], {name: weight / whole for name, weight in weights.items()})


def corpus_card(place: str, found: Artifact) -> CorpusCard:
    """The data card in short; the whole one lies beside the corpus."""
    figures = card_figures.figures_of(json.loads((found.path / STATS).read_text(encoding="utf-8")))
    summary = f"{' '.join(card_figures.summary(figures))} The whole data card is {found.path / CARD_PAGE}."
    return CorpusCard(place, summary, card_figures.VOLUME_COLUMNS, card_figures.volume_rows(figures), card_figures.limits(figures))


def dotted(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a settings tree by its dotted name."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
