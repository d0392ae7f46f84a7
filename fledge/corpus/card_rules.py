"""What the data card tells about rules: all that were applied, with what they look at, their thresholds and what they dropped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.corpus.card_figures import CONTAMINATED, EMPTY, Figures, by_count, joined, share, shown
from fledge.corpus.filters import rules as published

RULES = (
    "A document is dropped by the first rule that it fails, in a fixed order. The last column counts all that fail a rule, whether or "
    "not an earlier one dropped them."
)
_LANGUAGE = "language"
_DESCRIPTION_CHARACTERS = 300


@dataclass(frozen=True)
class RuleFigures:
    """What one rule did to the documents."""

    name: str
    """As it was given; rules of one's own are named by whoever wrote them."""
    dropped: int
    failed: int | None
    """Documents that fail it, also those that an earlier rule dropped; None where this was not counted."""
    dropped_bytes: int
    description: str
    threshold: str
    examples: Sequence[Mapping[str, Any]]


def rules(figures: Figures) -> list[RuleFigures]:
    """Every rule that was applied or dropped anything, most drops first, equal ones in the order of the table of rules."""
    counts, failed = figures.counts, figures.counts.get("failed", {})
    applied = [one.name for one in _applied(figures) if one.drops == "documents"]
    dropped = {**dict.fromkeys([*applied, *failed], 0), **counts.get("dropped", {})}
    sizes, examples = counts.get("dropped_bytes", {}), counts.get("examples", {})
    return [
        RuleFigures(
            name,
            dropped[name],
            failed.get(name, 0 if name in applied else None),
            sizes.get(name, 0),
            *described(name, figures),
            examples.get(name, ()),
        )
        for name in sorted(dropped, key=lambda name: -dropped[name])
    ]


def removed_lines(figures: Figures) -> list[tuple[str, str, int]]:
    """Line rules that removed or mended any: (name, what it does, lines)."""
    told = []
    for name, count in by_count(figures.counts.get("removed_lines", {})):
        told.append((shown(name), explanation(*described(name, figures)), count))
    return told


def _applied(figures: Figures) -> tuple[published.Rule, ...]:
    quality = figures.part("quality")
    preset = quality.get("preset", "none")
    if preset not in published.PRESETS or not figures.read:
        return ()
    return published.chosen(preset, quality.get("add", ()), quality.get("skip", ()))


def described(name: str, figures: Figures) -> tuple[str, str]:
    """What a rule looks at, and what it lets pass; both empty for rules that are not known here."""
    quality, decontaminate = figures.part("quality"), figures.part("decontaminate")
    if name == EMPTY:
        return "texts of which cleaning and line rules left nothing", ""
    if name == CONTAMINATED:
        words = decontaminate.get("shingle_words")
        return f"runs of {f'{words} words' if words else 'words'} shared with an evaluation file", ""
    if name == _LANGUAGE and quality.get("languages"):
        surely = f" with a confidence of at least {quality.get('language_confidence')}"
        return "identified language", f"{joined([shown(code) for code in quality['languages']])}{surely}"
    one = next((one for one in published.RULES if one.name == name), None)
    return (shown(one.description.replace("`", ""), _DESCRIPTION_CHARACTERS), _threshold(one, figures)) if one else ("", "")


def _threshold(rule: published.Rule, figures: Figures) -> str:
    if rule.threshold is None:
        return ""
    used = figures.part("quality").get("thresholds", {}).get(rule.name, rule.threshold)
    side = "at most" if rule.maximum is not None else "at least"
    return f"{side} {_number(used)}" + ("" if used == rule.threshold else f" (published: {_number(rule.threshold)})")


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def explanation(description: str, threshold: str) -> str:
    """Both in one line."""
    return ": ".join(part for part in (description, threshold) if part)


def rule_columns(told: Sequence[RuleFigures], figures: Figures) -> tuple[dict[str, list[str]], frozenset[int]]:
    """A table of the rules by column, without columns of which nothing is known, and the numbers of those that hold figures."""
    columns = {
        "rule": [shown(rule.name) for rule in told],
        "looks at": [rule.description for rule in told],
        "lets pass": [rule.threshold for rule in told],
        "dropped": [f"{rule.dropped:,}" for rule in told],
        "share": [share(rule.dropped, figures.read) for rule in told],
        "fail it": ["" if rule.failed is None else f"{rule.failed:,}" for rule in told],
    }
    known = {name: cells for name, cells in columns.items() if any(cells)}
    return known, frozenset(place for place, name in enumerate(known) if name in {"dropped", "share", "fail it"})
