from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from fledge.core import chart, page
from fledge.core.markup import Markup, element, escape, join
from fledge.core.page import BarRow, IntervalRow, Series, Tile
from fledge.core.style import STYLE
from tests.contrast import contrast

EVIL = "<script>alert('x')</script> & \"quoted\" http://evil.example/ \x1b[31m \x00 \ud800 </text></style> ]]>"


def full_page(text: str = "plain") -> str:
    """Every building block, with `text` in every place that takes one."""
    steps = list(range(0, 1000, 10))
    falling = [5.0 - step / 300 for step in steps]
    return page.page(
        text,
        page.section(
            text,
            text,
            page.tiles([Tile(text, text, text)]),
            page.line_chart(
                text, [Series(text, steps, falling), Series(text, [0, 990], [4.0, 2.0])], text, text, False, [(3.2, text)], [(500, text)]
            ),
            page.line_chart(text, [Series(text, [1], [1.0])], text, text, log_y=True),
            page.line_chart(text, [Series(text, [1, 2, 3], [1.0, 2.0, 1.5], [(0.5, 1.5), (None, None), (1.0, 2.5)])], text, text),
            page.line_chart(text, [], text, text),
        ),
        page.section(
            text,
            page.bar_chart(text, [BarRow(text, 1.8, text, emphasis=True), BarRow(text, 3.2)], text),
            page.interval_chart(text, [IntervalRow(text, 0.6, 0.5, 0.7, 0.25), IntervalRow(text, 0.1, 0.0, 0.2)], baseline_label=text),
            page.table([text, text], [[text, text]], {1}, caption=text),
            page.definition_list([(text, text)]),
            page.text_block(text, monospace=True),
            page.exchange(text, text, text),
            page.details(text, text),
        ),
        subtitle=text,
        footer=text,
    )


def parse(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html)


def texts(root: ElementTree.Element) -> Iterator[str]:
    for node in root.iter():
        if node.tag != "style":
            yield from (text for text in (node.text, node.tail, *node.attrib.values()) if text)


# ---- markup


def test_text_is_escaped_and_markup_is_not() -> None:
    assert escape("<a & 'b' \"c\">") == "&lt;a &amp; &#x27;b&#x27; &quot;c&quot;&gt;"
    assert escape(Markup("<b>")) == "<b>"
    assert escape("a\x00b\x1bc\ud800d\tnew\nline") == "a\ufffdb\ufffdc\ufffdd\tnew\nline"
    assert element("p", "<", element("b", "x"), class_='"', data_x="1", id=None) == '<p class="&quot;" data-x="1">&lt;<b>x</b></p>'
    assert element("br") == "<br />"
    assert isinstance(join(["<", Markup("<b>")]), Markup)
    assert escape(Markup("<b>") + "<") == "&lt;b&gt;&lt;", "what is put together by hand is no longer taken for safe"


# ---- a whole page


def test_a_page_is_well_formed_html_and_xml() -> None:
    html = full_page()
    assert html.startswith('<!DOCTYPE html>\n<html lang="en">')
    root = parse(html)
    assert [child.tag for child in root] == ["head", "body"]
    opened: list[str] = []

    class Balanced(HTMLParser):
        def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            opened.append(tag)

        def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
            assert tag in {"meta", "br", "hr"}, f"<{tag} /> stays open in HTML"

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Balanced().feed(html)
    assert opened == []


def test_all_text_is_escaped_everywhere_also_in_svg() -> None:
    plain, evil = parse(full_page()), parse(full_page(EVIL))
    tags = lambda root: [node.tag for node in root.iter()]  # noqa: E731
    assert tags(evil) == tags(plain), "the text made or broke no element"
    assert "script" not in tags(evil)
    shown = EVIL.replace("\x1b", "\ufffd").replace("\x00", "\ufffd").replace("\ud800", "\ufffd")
    count = lambda root, text: sum(found.count(text) for found in texts(root))  # noqa: E731
    # Anchors are made of letters and digits only, so every other place holds the text as it was given.
    assert count(evil, shown) == count(plain, "plain") - count_of_anchors(plain)
    full_page(EVIL).encode("utf-8")


def count_of_anchors(root: ElementTree.Element) -> int:
    names = ("id", "href", "aria-labelledby")
    return sum("plain" in node.get(name, "") for node in root.iter() for name in names)


def test_a_page_refers_to_nothing_outside() -> None:
    html = full_page()
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<img|<iframe|\bon[a-z]+=", html)
    assert all(node.get("href", "#").startswith("#") for node in parse(html).iter())
    policy = next(node for node in parse(html).iter("meta") if node.get("http-equiv") == "Content-Security-Policy")
    assert policy.get("content", "").startswith("default-src 'none'")


def test_contents_point_to_sections_by_unique_names() -> None:
    root = parse(page.page("t", page.section("First one!"), page.section("Second", "words")))
    links = [node.get("href", "") for node in root.iter("a") if node.get("class") != "skip"]
    assert links == ["#first-one", "#second"]
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert {link[1:] for link in links} <= set(ids)
    assert len(ids) == len(set(ids))
    assert root.findall(".//nav")
    assert not parse(page.page("t", page.section("Only"))).findall(".//nav")


# ---- accessibility


def test_every_picture_has_a_name_and_every_chart_its_numbers() -> None:
    root = parse(full_page())
    pictures = [node for node in root.iter("svg") if node.get("role") == "img"]
    assert len(pictures) >= 6
    for picture in pictures:
        assert picture.get("aria-label")
        assert picture[0].tag == "title"
    parents = {child: parent for parent in root.iter() for child in parent}
    for drawn in root.iter("svg"):
        nested = any(above.tag == "svg" for above in ancestors(drawn, parents))
        assert drawn.get("role") == "img" or drawn.get("aria-hidden") == "true" or nested
    for canvas in (node for node in pictures if node.get("class") == "canvas"):
        assert canvas[1].tag == "desc"
        assert "points, from" in (canvas[1].text or "")
    for region in (node for node in root.iter() if node.get("class") == "scroll"):
        assert (region.get("tabindex"), region.get("role")) == ("0", "region")
        assert region.get("aria-label")
    assert all(node.get("scope") in {"row", "col"} for node in root.iter("th"))


def ancestors(node: ElementTree.Element, parents: dict[ElementTree.Element, ElementTree.Element]) -> Iterator[ElementTree.Element]:
    while node in parents:
        node = parents[node]
        yield node


@pytest.mark.parametrize("theme", [0, 1, 2], ids=["light", "dark", "print"])
def test_contrasts(theme: int) -> None:
    palettes = [dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.S)]
    assert len(palettes) == 3
    colors = palettes[theme]
    for ground in ("paper", "card"):
        for text in ("ink", "muted", "accent"):
            assert contrast(colors[text], colors[ground]) >= 4.5, (text, ground)
        for index in range(6):
            assert contrast(colors[f"series-{index}"], colors[ground]) >= 3, (index, ground)
    assert contrast(colors["ink"], colors["code"]) >= 4.5


def test_series_differ_by_dash_as_well_as_by_colour() -> None:
    dashes = [re.search(rf"\.series-{index} {{[^}}]*?(?:stroke-dasharray: ([^;]+);)? }}", STYLE) for index in range(6)]
    assert all(dashes)
    assert len({found[1] for found in dashes if found}) == 6


# ---- charts


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)),
        (1.61, 4.3, (2.0, 3.0, 4.0)),
        (0, 2000, (0, 500, 1000, 1500, 2000)),
        (10, 1990, (500, 1000, 1500)),
        (-3, 3, (-2, 0, 2)),
        (5, 5, (5,)),
    ],
)
def test_ticks_are_round(low: float, high: float, ticks: tuple[float, ...]) -> None:
    assert chart.round_ticks(low, high) == ticks


def test_ticks_stay_few_round_and_inside_for_any_range() -> None:
    numbers = random.Random(0)
    for _ in range(2000):
        low = numbers.uniform(-1, 1) * 10 ** numbers.randint(-6, 9)
        high = low + numbers.uniform(0.1, 10) * 10 ** numbers.randint(-3, 9)
        ticks = chart.round_ticks(low, high)
        assert 2 <= len(ticks) <= 7
        assert all(low - 1e-9 * (high - low) <= tick <= high + 1e-9 * (high - low) for tick in ticks)
        step = ticks[1] - ticks[0]
        assert round(step / 10 ** math.floor(math.log10(step) + 1e-4), 3) in {1, 2, 5}
        labels = [chart.format_tick(tick, step) for tick in ticks]
        assert len(set(labels)) == len(labels), labels


@pytest.mark.parametrize(
    ("value", "step", "text"),
    [
        (0, 1, "0"),
        (0.25, 0.25, "0.25"),
        (2.0, 0.5, "2.0"),
        (1500, 500, "1,500"),
        (20_000, 10_000, "20k"),
        (2e7, 1e7, "20M"),
        (500_000, 500_000, "0.5M"),
        (0, 500_000, "0"),
        (5e-5, 5e-5, "5e-5"),
    ],
)
def test_tick_labels(value: float, step: float, text: str) -> None:
    assert chart.format_tick(value, step) == text


def paths(html: str) -> list[str]:
    return [node.get("d", "") for node in parse(html).iter("path")]


def test_a_line_goes_through_its_points() -> None:
    (path,) = paths(chart.line_chart("t", [Series("a", [0, 5, 10], [0.0, 1.0, 0.5])], "x", "y"))
    assert path == "M0.0 1000.0L500.0 0.0L1000.0 500.0"


def test_what_is_not_finite_leaves_a_gap() -> None:
    (path,) = paths(chart.line_chart("t", [Series("a", [0, 1, 2, 3, 4], [0.0, 1.0, math.nan, None, 0.0])], "x", "y"))
    assert path.count("M") == 2
    assert path.count("L") == 1


def test_a_logarithmic_axis_leaves_out_what_is_not_positive_and_has_round_ticks() -> None:
    html = chart.line_chart("t", [Series("a", [0, 1, 2], [0.001, 0.0, 1.0])], "x", "y", log_y=True)
    labels = {node.text for node in parse(html).iter("text")}
    assert {"0.001", "0.01", "0.1", "1"} <= labels
    assert paths(html)[0].count("M") == 2


@pytest.mark.parametrize("ys", [[], [None], [math.nan, math.inf], [2.0], [2.0, 2.0], [0.0], [-1.0, -5.0], [1e-12, 1e12], [1e300, -1e300]])
@pytest.mark.parametrize("log_y", [True, False])
def test_any_series_can_be_drawn(ys: list[float | None], log_y: bool) -> None:
    html = chart.line_chart("t", [Series("a", list(range(len(ys))), ys)], "x", "y", log_y, marks=[(2.5, "m"), (-1.0, "n")])
    assert "nan" not in html
    assert parse(html).tag == "figure"


def test_a_long_series_stays_small_and_keeps_its_spikes() -> None:
    ys = [1.0] * 100_000
    ys[54_321], ys[70_000] = 9.0, -3.0
    html = chart.line_chart("t", [Series("a", range(100_000), ys)], "x", "y")
    assert len(html) < 40_000
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", paths(html)[0])]
    # 9 and -3 on an axis from -5 to 10, drawn from the top.
    assert (min(heights), max(heights)) == (pytest.approx(1000 / 15, abs=1), pytest.approx(1000 * 13 / 15, abs=1))


def test_the_numbers_of_a_chart_are_there_as_text() -> None:
    html = chart.line_chart(
        "t",
        [Series("train", range(0, 1001, 10), [5 - x / 500 for x in range(0, 1001, 10)]), Series("val", [500, 1000], [4.25, 3.5])],
        "step",
        "loss",
    )
    rows = [[cell.text for cell in row] for row in parse(html).iter("tr")]
    assert rows == [["step", "train", "val"], ["500", "4", "4.25"], ["1,000", "3", "3.5"]]


def test_bars_and_intervals_are_where_their_values_are() -> None:
    bars = parse(chart.bar_chart("t", [BarRow("a", 2.0), BarRow("b", 0.5)], "bits per byte"))
    assert [node.get("width") for node in bars.iter("rect") if node.get("class") == "bar"] == ["100.00%", "25.00%"]
    strip = parse(chart.interval_chart("t", [IntervalRow("a", 0.5, 0.4, 0.65, 0.25)])).find(".//li/svg")
    assert strip is not None
    assert strip.get("aria-label") == "a: 50.0 %, interval 40.0 % to 65.0 %, chance 25.0 %"
    interval = next(node for node in strip if node.get("class") == "interval")
    assert (interval.get("x1"), interval.get("x2")) == ("40.00%", "65.00%")
    assert next(node for node in strip if node.get("class") == "baseline").get("x1") == "25.00%"
    assert chart.interval_chart("t", [IntervalRow("a", -2.0, -3.0, 8.0)], percent=False)
    assert chart.bar_chart("t", [], "x")
    assert chart.interval_chart("t", [])


def test_a_row_of_another_length_is_our_mistake() -> None:
    with pytest.raises(ValueError, match="zip"):
        page.table(["a", "b"], [["1"]])


def test_a_band_is_drawn_around_a_line_and_read_with_its_figures() -> None:
    line = Series("model", [0, 10], [0.5, 0.6], [(0.4, 0.6), (0.5, 1.0)])
    drawn = parse(page.line_chart("acc", [line], "step", "share"))
    [band] = [node for node in drawn.iter() if node.tag.endswith("polygon")]
    # The axis holds the intervals: from 0.4 at the bottom to 1.0 at the top.
    assert band.get("points") == "0.0,1000.0 1000.0,833.3 1000.0,0.0 0.0,666.7"
    assert "0.6 (0.5 to 1)" in list(texts(drawn))
    assert not [node for node in parse(page.line_chart("acc", [line], "step", "share", log_y=True)).iter() if node.tag.endswith("polygon")]
