"""Pages for people: self-contained HTML with tables, charts and text, shared by the report and whatever else wants to be read.

A page needs no network and no script; it says so to the browser by a content security policy, so even a mistake here could not
load or run anything. All text is escaped (`markup.py`), charts are inline SVG (`chart.py`), the look is `style.py`.

    page("My run", section("Loss", line_chart(...)), section("Answers", exchange("What is ...?", answer)))
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fledge.core.chart import BarRow, IntervalRow, Series, bar_chart, interval_chart, line_chart
from fledge.core.markup import Markup, element, escape, join
from fledge.core.style import STYLE

__all__ = [
    "BarRow",
    "IntervalRow",
    "Markup",
    "Section",
    "Series",
    "Tile",
    "bar_chart",
    "beside",
    "definition_list",
    "details",
    "escape",
    "exchange",
    "grid",
    "interval_chart",
    "line_chart",
    "page",
    "section",
    "table",
    "text_block",
    "tiles",
]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


class Section(Markup):
    """A section that the page's table of contents can point to."""

    heading: str
    anchor: str


@dataclass(frozen=True)
class Tile:
    """One figure that the page is about, with what it means."""

    label: str
    value: str
    note: str = ""


def page(title: str, *sections: Markup, subtitle: str = "", footer: str = "") -> str:
    """A whole HTML5 document, also well-formed XML; contents are listed at the top if there are several sections."""
    listed = [one for one in sections if isinstance(one, Section)]
    links = [element("li", element("a", one.heading, href=f"#{one.anchor}")) for one in listed]
    header = element(
        "header",
        element("h1", title),
        element("p", subtitle, class_="subtitle") if subtitle else Markup(),
        element("nav", element("ul", *links), aria_label="Contents") if len(links) > 1 else Markup(),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("a", "Skip to the content", href="#content", class_="skip"),
        element(
            "div",
            header,
            element("main", *sections, id="content"),
            element("footer", footer) if footer else Markup(),
            class_="wrap",
        ),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def section(title: str, *content: str) -> Section:
    """A titled part of a page; plain strings in it are paragraphs."""
    anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
    made = Section(
        element("section", element("h2", title, id=f"{anchor}-title"), _flow(content), id=anchor, aria_labelledby=f"{anchor}-title")
    )
    made.heading, made.anchor = title, anchor
    return made


def tiles(items: Iterable[Tile]) -> Markup:
    """The headline figures of a page, side by side."""
    drawn = [
        element(
            "div",
            element("dt", one.label),
            element("dd", one.value, class_="figure"),
            element("dd", one.note, class_="note") if one.note else Markup(),
        )
        for one in items
    ]
    return element("dl", *drawn, class_="tiles")


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str]], numeric: set[int] | frozenset[int] = frozenset(), caption: str = ""
) -> Markup:
    """A table; columns whose number is in `numeric` are aligned to the right. The first column names the row."""
    kinds = ["number" if position in numeric else None for position in range(len(columns))]
    head = element("tr", *(element("th", column, scope="col", class_=kind) for column, kind in zip(columns, kinds, strict=True)))
    body = []
    for row in rows:
        first, *rest = [(cell, kind) for cell, kind in zip(row, kinds, strict=True)]
        cells = (element("td", cell, class_=kind) for cell, kind in rest)
        body.append(element("tr", element("th", first[0], scope="row", class_=first[1]), *cells))
    title = element("caption", caption) if caption else Markup()
    drawn = element("table", title, element("thead", head), element("tbody", *body))
    # A region that can be scrolled must be reachable by the keyboard.
    return element("div", drawn, class_="scroll", tabindex="0", role="region", aria_label=caption or ", ".join(columns))


def definition_list(items: Iterable[tuple[str, str]]) -> Markup:
    """Names and what they stand for, in two columns."""
    parts = (part for name, value in items for part in (element("dt", name), element("dd", value)))
    return element("dl", *parts, class_="facts")


def text_block(text: str, monospace: bool = False) -> Markup:
    """Text as it is, line breaks kept; `monospace` for code and raw documents."""
    return element("div", text, class_="text mono" if monospace else "text")


def exchange(asked: str, answered: str, *notes: str) -> Markup:
    """A question and its answer, or a prompt and how the model went on; each note is a line below it."""
    return element(
        "div",
        element("p", asked, class_="asked"),
        element("div", answered, class_="text"),
        *(element("p", note, class_="note") for note in notes),
        class_="quote",
    )


def beside(title: str, texts: Iterable[tuple[str, str]]) -> Markup:
    """Named texts next to one another, as many in a line as there is room for: what several models say to one prompt."""
    drawn = [element("div", element("p", name, class_="note"), element("div", text, class_="text")) for name, text in texts]
    return element("div", element("p", title, class_="asked"), element("div", *drawn, class_="columns"), class_="quote")


def grid(*charts: Markup) -> Markup:
    """Small charts side by side, two in a line where there is room."""
    return element("div", *charts, class_="grid-of-charts")


def details(summary: str, *content: str) -> Markup:
    """Content that is folded away until it is asked for."""
    return element("details", element("summary", summary), element("div", _flow(content)))


def _flow(content: Iterable[str]) -> Markup:
    return join(one if isinstance(one, Markup) else element("p", one) for one in content)
