"""The data card of a corpus: `DATA_CARD.md`, in the form of the cards on the Hugging Face hub, and `card.html` (`card_page.py`).

It answers what Gebru et al. 2021 (Datasheets for Datasets) ask of a data set and a program can know: what it is, where it comes from,
how it was made, what was dropped and why, what it must not be trusted with. Foreign text stands in code spans, where Markdown and
HTML mean nothing; examples of documents are on the page only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from fledge.corpus import card_figures, card_rules
from fledge.corpus.card_figures import NOT_STATED, Figures, share, shown
from fledge.corpus.card_markdown import hub_license, plain, table, yaml_list
from fledge.corpus.card_page import card_page

__all__ = ["card_page", "data_card"]

_LEAST_LANGUAGE_SHARE = 0.01
_SIZES = ("1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T")
"""Borders of the hub's size categories: a thousand, ten thousand, ..."""


def data_card(stats: Mapping[str, Any]) -> str:
    """The card as Markdown; the same stats give the same bytes."""
    figures = card_figures.figures_of(stats)
    sections = [
        f"# Data card: {figures.noun}\n\n{plain(' '.join(card_figures.summary(figures)))}",
        *_origin(figures),
        *_making(figures),
        *_rules(figures),
        *_turns(figures),
        *_contents(figures),
        *_duplicates(figures),
        *_contamination(figures),
        *_rejects(figures),
        "## Known limits\n\n" + "\n".join(f"- {plain(limit)}" for limit in card_figures.limits(figures)),
        *_settings(figures),
    ]
    return "\n".join(["---", *_header(figures), "---", "", "\n\n".join(sections), ""])


def _header(figures: Figures) -> Iterator[str]:
    """YAML for the hub; JSON strings are YAML strings."""
    stated = dict.fromkeys(str(one.get("license", NOT_STATED)) for one in figures.stats.get("provenance", ()))
    known = dict.fromkeys(hub_license(license_) for license_ in stated)
    yield from yaml_list("license", known)
    if "other" in known:
        yield f"license_name: {json.dumps(shown(', '.join(name for name in stated if hub_license(name) == 'other')))}"
    total = sum(figures.counts.get("languages", {}).values())
    languages = card_figures.by_count(figures.counts.get("languages", {}))
    yield from yaml_list("language", [code for code, count in languages if count >= _LEAST_LANGUAGE_SHARE * total])
    yield from yaml_list("size_categories", [_size_category(figures.kept)])
    yield from yaml_list("task_categories", ["text-generation"])
    splits = [side for side, rows in figures.stats.get("rows", {}).items() if rows]
    if splits:
        extension = figures.settings.get("format", "parquet") if figures.noun == "documents" else "parquet"
        yield "configs:\n- config_name: default\n  data_files:"
        yield from (f"  - split: {side}\n    path: {json.dumps(f'{side}-*.{extension}')}" for side in splits)


def _size_category(rows: int) -> str:
    place = next((place for place in range(len(_SIZES)) if rows < 1_000 * 10**place), len(_SIZES))
    if place == 0:
        return f"n<{_SIZES[0]}"
    return f"{_SIZES[place - 1]}<n<{_SIZES[place]}" if place < len(_SIZES) else f"n>{_SIZES[-1]}"


def _origin(figures: Figures) -> Iterator[str]:
    provenance, volumes = card_figures.provenance_rows(figures), card_figures.volume_rows(figures)
    if provenance:
        yield "## Provenance and licences\n\n" + table(card_figures.PROVENANCE_COLUMNS, provenance, {4, 5})
    if volumes:
        yield "## What is in it\n\n" + table(card_figures.VOLUME_COLUMNS, volumes, {2, 3, 4})
        if any(row[1] == "validation" for row in volumes) and figures.noun == "documents":
            yield card_figures.SPLIT


def _making(figures: Figures) -> Iterator[str]:
    if figures.read:
        yield "## How it was made\n\n" + table(
            ("", "documents", "share"),
            [(label, f"{count:,}", share(count, figures.read)) for label, count in card_figures.way(figures)],
            {1, 2},
        )
    cleaned = card_figures.cleaning_rows(figures)
    if cleaned:
        yield "Cleaning, before any rule looked at a text:\n\n" + table(
            ("step", "what it does", "documents changed", "share"), cleaned, {2, 3}, foreign={0}
        )


def _rules(figures: Figures) -> Iterator[str]:
    rules = card_rules.rules(figures)
    if rules:
        columns, numeric = card_rules.rule_columns(rules, figures)
        rows = list(zip(*columns.values(), strict=True))
        yield f"## Rules\n\n{card_rules.RULES}\n\n" + table(list(columns), rows, numeric, foreign={0})
    removed = [(name, what, f"{count:,}") for name, what, count in card_rules.removed_lines(figures)]
    if removed:
        yield "Lines removed from documents, or mended:\n\n" + table(("rule", "what it does", "lines"), removed, {2}, foreign={0})


def _turns(figures: Figures) -> Iterator[str]:
    facts = card_figures.turn_facts(figures)
    if facts:
        yield "## Turns and answers\n\n" + "\n".join(f"- {plain(name)}: {plain(value)}" for name, value in facts)


def _contents(figures: Figures) -> Iterator[str]:
    lengths = card_figures.lengths(figures)
    if lengths:
        total = sum(count for _, count in lengths)
        rows = [(card_figures.doubling(exponent), f"{count:,}", share(count, total)) for exponent, count in lengths]
        yield f"## Lengths\n\n{card_figures.lengths_text(figures)}\n\n" + table(("characters", "documents", "share"), rows, {0, 1, 2})
    languages = card_figures.by_count(figures.counts.get("languages", {}))
    if languages:
        total = sum(count for _, count in languages)
        rows = [(shown(code), f"{count:,}", share(count, total)) for code, count in languages]
        yield "## Languages\n\n" + table(("language", "documents", "share"), rows, {1, 2}, foreign={0})


def _duplicates(figures: Figures) -> Iterator[str]:
    facts = card_figures.duplicate_facts(figures)
    if facts:
        yield f"## Duplicates\n\n{card_figures.DUPLICATES}\n\n" + "\n".join(f"- {name}: {plain(value)}" for name, value in facts)
        sizes = figures.stats["duplicates"].get("sizes") or {}
        if sizes:
            rows = [(shown(size), f"{count:,}") for size, count in sizes.items()]
            yield table(("documents in a cluster", "clusters"), rows, {0, 1})


def _contamination(figures: Figures) -> Iterator[str]:
    rows = card_figures.contamination_rows(figures)
    if rows:
        told = card_figures.contamination_text(figures)
        yield f"## Contamination\n\n{told}\n\n" + table(("evaluation file", "documents dropped", "share"), rows, {1, 2}, foreign={0})


def _rejects(figures: Figures) -> Iterator[str]:
    rows = card_figures.reject_rows(figures)
    if rows:
        told = table(("source", "reason", "lines, rows or files", "share"), rows, {2, 3}, foreign={0, 1})
        yield f"## Rejects\n\n{card_figures.REJECTS}\n\n{told}"


def _settings(figures: Figures) -> Iterator[str]:
    rows = card_figures.setting_rows(figures)
    if rows:
        yield "## Settings\n\n" + table(("setting", "value"), rows, foreign={0, 1})
