"""The data card as a page for people: what went in, what was dropped and why with examples, what is left.

Built of the parts of `core/page.py`, so whatever a document holds is text on it; needs no script and no network. Examples are the
documents with the smallest hash, so nobody picked them.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fledge.core import page
from fledge.core.chart import format_tick, round_ticks
from fledge.core.console import format_bytes, format_count
from fledge.core.markup import Markup, element, escape, join
from fledge.core.page import Section
from fledge.core.wording import counted
from fledge.corpus import card_figures, card_rules
from fledge.corpus.card_figures import CONTAMINATED, Figures, share, shown
from fledge.corpus.card_rules import RuleFigures

_EXCERPT_CHARACTERS = 600
_SHOWN_BARS = 20
_SHOWN_PAIRS = 3
_LABELLED_COLUMNS = 8
_SHOWN_ROWS = 200
_TOKENS = re.compile(r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\uffff]+|\s+|.", re.DOTALL)
"""Words, gaps, and single characters of what has no words between spaces."""

_NOTE_STYLE = "font-size: 0.86rem;"
_PAIR_STYLE = "display: grid; grid-template-columns: repeat(auto-fit, minmax(min(19rem, 100%), 1fr)); gap: 0 1.2rem;"
_LABEL_STYLE = "margin: 0 0 0.3rem; font-size: 0.84rem; overflow-wrap: anywhere;"
_DIFFERENCE_STYLE = (
    "background: none; color: inherit; font-weight: 650; text-decoration: underline 2px var(--series-1); text-underline-offset: 0.2em;"
)


def card_page(stats: Mapping[str, Any]) -> str:
    """The page as self-contained HTML; the same stats give the same bytes."""
    figures = card_figures.figures_of(stats)
    parts = [
        page.section("In short", " ".join(card_figures.summary(figures)), page.tiles(_tiles(figures))),
        _origin(figures),
        _way(figures),
        _rules(figures),
        _turns(figures),
        _lengths(figures),
        _languages(figures),
        _duplicates(figures),
        _contamination(figures),
        _rejects(figures),
        page.section("Known limits", element("ul", *(element("li", limit) for limit in card_figures.limits(figures)))),
        _settings(figures),
    ]
    footer = "Written by Fledge from stats.json. This page needs no network and holds all that it shows."
    subtitle = f"{figures.kept:,} {figures.noun}" + (f" from {card_figures.joined(_names(figures))}" if figures.source_names else "")
    return page.page("Data card", *(part for part in parts if part is not None), subtitle=subtitle, footer=footer)


def _names(figures: Figures) -> list[str]:
    return [shown(name, 60) for name in figures.source_names]


def _tiles(figures: Figures) -> Iterator[page.Tile]:
    of = f"{share(figures.kept, figures.read)} of {format_count(figures.read)} read" if figures.read else ""
    yield page.Tile(figures.noun.capitalize(), format_count(figures.kept), of)
    if figures.utf8_bytes:
        yield page.Tile("Text", format_bytes(figures.utf8_bytes), f"about {format_count(figures.utf8_bytes / 4)} tokens at 4 bytes each")
    if figures.dropped:
        yield page.Tile("Dropped by rules", share(figures.dropped, figures.read), counted(figures.dropped, "documents"))
    if figures.duplicates:
        yield page.Tile("Duplicates", share(figures.duplicates, figures.read), counted(figures.duplicates, "documents"))
    if figures.contaminated:
        yield page.Tile("Contaminated", share(figures.contaminated, figures.read), counted(figures.contaminated, "documents"))
    held_out = figures.stats.get("rows", {}).get("validation", 0)
    if held_out:
        yield page.Tile("Held out", share(held_out, figures.kept), f"{held_out:,} {figures.noun} for validation")


def _origin(figures: Figures) -> Section | None:
    """Provenance and licences, and how much each source gave."""
    content: list[Markup | str] = []
    provenance, volumes = card_figures.provenance_rows(figures), card_figures.volume_rows(figures)
    if provenance:
        # The fingerprint is for tools: it is in the Markdown card and stats.json.
        rows = [row[:-1] for row in provenance]
        content.append(page.table(card_figures.PROVENANCE_COLUMNS[:-1], rows, frozenset({4, 5}), "Provenance and licences"))
    if volumes:
        content.append(page.table(card_figures.VOLUME_COLUMNS, volumes, frozenset({2, 3, 4}), "What is in the corpus"))
        if any(row[1] == "validation" for row in volumes):
            content.append(card_figures.SPLIT)
    return page.section("Where the texts come from", *content) if content else None


def _way(figures: Figures) -> Section | None:
    """From read to kept, and what cleaning changed."""
    if not figures.read:
        return None
    way = card_figures.way(figures)
    bars = [page.BarRow("read", figures.read)]
    for (_, before), (label, left) in itertools.pairwise(way):
        note = f"{before - left:,} dropped, {share(before - left, figures.read)} of what was read"
        bars.append(page.BarRow(label, left, note, emphasis=label == way[-1][0]))
    content: list[Markup | str] = [page.bar_chart("What became of the documents", bars, "documents", decimals=0)] if len(bars) > 1 else []
    cleaned = card_figures.cleaning_rows(figures)
    if cleaned:
        rows = [[_explained(step, what), changed, part] for step, what, changed, part in cleaned]
        content.append(page.table(("cleaning step", "changed", "share"), rows, frozenset({1, 2}), "Cleaning"))
    return page.section("How it was made", *content) if content else None


def _turns(figures: Figures) -> Section | None:
    facts = card_figures.turn_facts(figures)
    return page.section("Turns and answers", page.table(("", ""), facts, frozenset({1}), "")) if facts else None


def _rules(figures: Figures) -> Section | None:
    rules = card_rules.rules(figures)
    removed = card_rules.removed_lines(figures)
    if not rules and not removed:
        return None
    hit = [rule for rule in rules if rule.dropped or rule.failed]
    idle = [rule for rule in rules if rule not in hit]
    content: list[Markup | str] = []
    if hit:
        bars = [_bar(rule, figures) for rule in hit[:_SHOWN_BARS] if rule.dropped]
        content += [card_rules.RULES, page.bar_chart("Documents dropped, by rule", bars, "documents", decimals=0)]
        content.append(_rule_table(hit, figures))
        content += [_examples(rule) for rule in hit if rule.examples and rule.name != CONTAMINATED]
    if removed:
        rows = [[_explained(name, what), f"{count:,}"] for name, what, count in removed]
        content.append(page.table(("rule", "lines"), rows, frozenset({1}), "Lines removed from documents, or mended"))
    if idle:
        told = [[shown(rule.name), card_rules.explanation(rule.description, rule.threshold)] for rule in idle]
        content.append(page.details(f"{counted(len(idle), 'rules')} that no document failed", page.table(("rule", ""), told)))
    return page.section("What was dropped, and why", *content)


def _rule_table(rules: Sequence[RuleFigures], figures: Figures) -> Markup:
    rows = []
    for rule in rules:
        told = card_rules.explanation(rule.description, rule.threshold)
        failed = "" if rule.failed is None else f"{rule.failed:,}"
        rows.append([_explained(shown(rule.name), told), f"{rule.dropped:,}", share(rule.dropped, figures.read), failed])
    return page.table(("rule", "dropped", "share", "fail it"), rows, frozenset({1, 2, 3}), "Rules")


def _bar(rule: RuleFigures, figures: Figures) -> page.BarRow:
    note = f"{share(rule.dropped, figures.read)} of what was read, {format_bytes(rule.dropped_bytes)}"
    return page.BarRow(shown(rule.name), rule.dropped, note)


def _explained(name: str, what: str) -> Markup:
    return join([name, element("br"), element("span", what, class_="muted", style=_NOTE_STYLE)]) if what else escape(name)


def _examples(rule: RuleFigures) -> Markup:
    shown_texts = [_excerpt(example.get("id", ""), shown(example.get("text", ""), _EXCERPT_CHARACTERS)) for example in rule.examples]
    return page.details(f"{shown(rule.name)}: {counted(len(shown_texts), 'examples')} of {rule.dropped:,}", *shown_texts)


def _excerpt(name: object, text: str, label: str = "") -> Markup:
    """The beginning of a document, in its own direction of writing."""
    head = element("p", label, element("span", shown(name), dir="auto"), class_="muted", style=_LABEL_STYLE)
    return element("div", head, element("div", text or "(empty)", class_="text mono", dir="auto"))


def _lengths(figures: Figures) -> Section | None:
    lengths = card_figures.lengths(figures)
    return page.section("Lengths", card_figures.lengths_text(figures), _histogram(lengths)) if lengths else None


def _histogram(lengths: Sequence[tuple[int, int]]) -> Markup:
    """A column for every doubling of the length; the numbers below it as a table."""
    title = "Documents by number of characters"
    shapes = [element("title", title), _levels(max(count for _, count in lengths)), _columns(lengths)]
    drawn = element("svg", *shapes, class_="canvas", role="img", aria_label=title, width="100%", height="100%")
    total = sum(count for _, count in lengths)
    rows = [[card_figures.doubling(exponent), f"{count:,}", share(count, total)] for exponent, count in lengths]
    return element(
        "figure",
        element("figcaption", title),
        element("p", "documents", class_="axis-name", aria_hidden="true"),
        element("div", drawn, class_="plot"),
        element("p", "characters (1k is 1,024)", class_="axis-name x", aria_hidden="true"),
        page.details("Numbers", page.table(("characters", "documents", "share"), rows, frozenset({1, 2}))),
        class_="chart",
    )


def _levels(highest: int) -> Markup:
    """Lines across at round numbers of documents."""
    ticks = [tick for tick in round_ticks(0, highest, 4) if tick == int(tick)]
    shapes = []
    for tick in ticks:
        place = f"{100 * (1 - tick / highest):.2f}%"
        shapes.append(element("line", x1="0", x2="100%", y1=place, y2=place, class_="grid"))
        label = format_tick(tick, ticks[1] if len(ticks) > 1 else 1)
        shapes.append(element("text", label, x="0", dx="-8", y=place, dy="0.32em", text_anchor="end"))
    return element("g", *shapes)


def _columns(lengths: Sequence[tuple[int, int]]) -> Markup:
    """The columns, and below the left edge of some of them where they begin."""
    highest, width = max(count for _, count in lengths), 100 / len(lengths)
    every = math.ceil(len(lengths) / _LABELLED_COLUMNS)
    shapes = []
    for place, (exponent, count) in enumerate(lengths):
        spoken = element("title", f"{card_figures.doubling(exponent)} characters: {counted(count, 'documents')}")
        across = {"x": f"{(place + 0.06) * width:.2f}%", "width": f"{0.88 * width:.2f}%"}
        upright = {"y": f"{100 - 100 * count / highest:.2f}%", "height": f"{100 * count / highest:.2f}%"}
        shapes.append(element("rect", spoken, **across, **upright, class_="bar"))
        if place % every == 0:
            begin = f"{2**exponent:,}" if exponent < 10 else f"{2 ** (exponent - 10):,}k"
            shapes.append(element("text", begin, x=f"{place * width:.2f}%", y="100%", dy="1.5em", text_anchor="middle"))
    return element("g", *shapes, class_="main")


def _languages(figures: Figures) -> Section | None:
    languages = card_figures.by_count(figures.counts.get("languages", {}))
    if not languages:
        return None
    total = sum(count for _, count in languages)
    bars = [page.BarRow(shown(code), count, share(count, total)) for code, count in languages[:_SHOWN_BARS]]
    others = sum(count for _, count in languages[_SHOWN_BARS:])
    if others:
        bars.append(page.BarRow(f"{len(languages) - _SHOWN_BARS:,} others", others, share(others, total)))
    return page.section("Languages", page.bar_chart("Documents by language", bars, "documents", decimals=0))


def _duplicates(figures: Figures) -> Section | None:
    facts = card_figures.duplicate_facts(figures)
    if not facts:
        return None
    found = figures.stats["duplicates"]
    content: list[Markup | str] = [card_figures.DUPLICATES, page.definition_list(facts)]
    sizes = found.get("sizes") or {}
    if sizes:
        bars = [page.BarRow(f"{shown(size)} documents", count) for size, count in sizes.items()]
        content.append(page.bar_chart("Clusters by size", bars, "clusters", decimals=0))
    pairs = [_pair(sample) for sample in found.get("samples", ())]
    if pairs:
        content += [element("h3", "Some pairs"), "What differs is underlined.", *pairs[:_SHOWN_PAIRS]]
    if pairs[_SHOWN_PAIRS:]:
        content.append(page.details(f"{len(pairs) - _SHOWN_PAIRS} more pairs", *pairs[_SHOWN_PAIRS:]))
    return page.section("Duplicates", *content)


def _pair(sample: Mapping[str, Any]) -> Markup:
    kept, dropped = sample["kept"], sample["dropped"]
    texts = _with_differences(*(shown(one["text"], _EXCERPT_CHARACTERS) for one in (kept, dropped)))
    alike = sample.get("similarity")
    told = [
        "the same words" if sample.get("exact") or alike == 1 else "" if alike is None else f"{100 * alike:.0f} % of the n-grams in common",
        f"cluster of {sample['cluster']:,}" if sample.get("cluster", 0) > 2 else "",
    ]
    sides = (_excerpt(one["id"], text, label) for one, text, label in zip((kept, dropped), texts, ("kept: ", "dropped: "), strict=True))
    return element(
        "div",
        element("p", ", ".join(part for part in told if part), style="margin: 0 0 0.5rem; font-size: 0.9rem;"),
        element("div", *sides, style=_PAIR_STYLE),
        style="break-inside: avoid;",
    )


def _with_differences(one: str, other: str) -> tuple[Markup, Markup]:
    """Both texts, with the words marked that the other one does not have there."""
    ones, others = _TOKENS.findall(one), _TOKENS.findall(other)
    marked: tuple[list[Markup], list[Markup]] = ([], [])
    for kind, start, end, other_start, other_end in difflib.SequenceMatcher(None, ones, others, autojunk=False).get_opcodes():
        for side, tokens in zip(marked, (ones[start:end], others[other_start:other_end]), strict=True):
            text = escape("".join(tokens))
            side.append(text if kind == "equal" or not text else element("mark", text, style=_DIFFERENCE_STYLE))
    return page.Markup("".join(marked[0])), page.Markup("".join(marked[1]))


def _contamination(figures: Figures) -> Section | None:
    rows = card_figures.contamination_rows(figures)
    if not rows:
        return None
    told = card_figures.contamination_text(figures)
    content: list[Markup | str] = [told, _long_table(("evaluation file", "dropped", "share"), rows, frozenset({1, 2}))]
    content += [_examples(rule) for rule in card_rules.rules(figures) if rule.name == CONTAMINATED and rule.examples]
    return page.section("Contamination", *content)


def _rejects(figures: Figures) -> Section | None:
    rows = card_figures.reject_rows(figures)
    if not rows:
        return None
    table = _long_table(("source", "reason", "count", "share"), rows, frozenset({2, 3}))
    return page.section("Rejects", card_figures.REJECTS, table)


def _long_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: frozenset[int]) -> Markup:
    left = len(rows) - _SHOWN_ROWS
    note = [element("p", f"{left:,} more are in stats.json.", class_="muted")] if left > 0 else []
    return page.Markup("".join([page.table(columns, rows[:_SHOWN_ROWS], numeric), *note]))


def _settings(figures: Figures) -> Section | None:
    rows = card_figures.setting_rows(figures)
    return page.section("Settings", page.details("All settings that decide the rows", page.definition_list(rows))) if rows else None
