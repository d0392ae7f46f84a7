"""Charts as inline SVG: lines, bars and intervals that read at any width, without a script and without colour vision.

The one idea: geometry is fluid and text is not. Positions are percentages and lines lie in a nested SVG that stretches without
thickening its strokes, so a chart fits a phone and a sheet of paper with labels of the same size. Series differ by dash as well as
by colour; the palette and the rest of the style are in `style.py`. Every chart carries its numbers as text.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fledge.core.markup import Markup, element

_MAXIMUM_POINTS = 800
_MAXIMUM_DOTS = 40
_TABLE_ROWS = 12
_PALETTE_SIZE = 6
_MARK_GAP = 0.08
# Unit, its size, and the distance of ticks from which on it is used.
_UNITS = (("B", 1e9, 1e8), ("M", 1e6, 1e5), ("k", 1e3, 5e3))


@dataclass(frozen=True)
class Series:
    """A line: y over x. None and what is not finite leave a gap."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    intervals: Sequence[tuple[float | None, float | None]] = ()
    """Of each y, drawn as a band around the line; empty: none."""

    def band(self) -> list[tuple[float, float, float]]:
        """x, low and high, where an interval is known."""
        known = zip(self.xs, self.intervals, strict=False)
        return [(x, low, high) for x, (low, high) in known if low is not None and high is not None]


@dataclass(frozen=True)
class BarRow:
    """A bar; `emphasis` marks the one that the chart is about."""

    label: str
    value: float
    note: str = ""
    emphasis: bool = False


@dataclass(frozen=True)
class IntervalRow:
    """A value with the interval that it is known to; `baseline` is what guessing gets."""

    label: str
    value: float
    low: float
    high: float
    baseline: float | None = None


Points = Sequence[tuple[float, float]]
Line = tuple[Series, Points]
"""A series and those of its points that can be drawn."""


@dataclass(frozen=True)
class _Axis:
    """Maps values to 0..1; `ticks` are round numbers."""

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def share(self, value: float) -> float:
        low, high, at = (math.log10(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return min(1.0, max(0.0, (at - low) / (high - low))) if high > low else 0.5

    def label(self, value: float) -> str:
        if self.logarithmic:
            return format_tick(value, value)
        return format_tick(value, min(abs(b - a) for a, b in zip(self.ticks, self.ticks[1:], strict=False)) if self.ticks[1:] else 1)


def round_ticks(low: float, high: float, count: int = 5) -> tuple[float, ...]:
    """About `count` multiples of 1, 2 or 5 times a power of ten that cover low..high from inside."""
    if not high > low:
        return (low,)
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return tuple(round(index * step, 12) + 0.0 for index in range(first, last + 1))


def format_tick(value: float, step: float) -> str:
    """A label for an axis whose ticks are `step` apart, in one unit for the whole axis: `0.25`, `1,500`, `20k`, `0.5M`."""
    if 0 < abs(value) < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-")
    unit, size = next(((unit, size) for unit, size, least in _UNITS if step >= least), ("", 1.0))
    # The tolerance is wide because a difference of large neighbours is not exact.
    scaled = [(count, step / size * 10**count) for count in range(9)]
    decimals = next((count for count, whole in scaled if math.isclose(whole, round(whole), rel_tol=1e-4)), 9)
    return f"{value / size:,.{decimals}f}{unit}" if value else "0"


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    y_label: str,
    log_y: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    x_marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """Lines over a common x. `marks` are named levels of y (a baseline), `x_marks` named places on x (the best step)."""
    lines = [(one, points) for one in series if (points := _points(one, log_y))]
    if not lines:
        return _figure(title, element("p", "Nothing was recorded.", class_="muted"))
    x_axis = _axis_inside([x for _, points in lines for x, _ in points])
    levels = [level for level, _ in marks if not log_y or level > 0]
    ends = [] if log_y else [end for one, _ in lines for _, low, high in one.band() for end in (low, high)]
    y_axis = _axis_around([y for _, points in lines for _, y in points] + levels + ends, log_y)
    canvas = element(
        "svg",
        element("title", title),
        element("desc", _describe(lines, x_label, y_label, marks)),
        _grid(x_axis, y_axis),
        _marks(marks, x_marks, lines, x_axis, y_axis),
        _lines(lines, x_axis, y_axis),
        _dots(lines, x_axis, y_axis),
        class_="canvas",
        role="img",
        aria_label=title,
        width="100%",
        height="100%",
    )
    names = [one.name for one, _ in lines]
    return _figure(
        title,
        _legend(names) if len(names) > 1 else Markup(),
        element("p", y_label + (" (logarithmic)" if log_y else ""), class_="axis-name", aria_hidden="true"),
        element("div", canvas, class_="plot"),
        element("p", x_label, class_="axis-name x", aria_hidden="true"),
        _numbers(lines, x_label),
    )


def bar_chart(title: str, rows: Sequence[BarRow], unit: str, decimals: int = 2) -> Markup:
    """Horizontal bars from zero; values must not be negative."""
    axis = _Axis(0.0, max([row.value for row in rows], default=1.0) or 1.0, ())
    drawn = []
    for row in rows:
        figure = f"{row.value:,.{decimals}f}"
        strip = _strip(
            f"{row.label}: {figure} {unit}",
            element("rect", width="100%", height="10", y="3", rx="5", class_="track"),
            element("rect", width=_percent(axis.share(row.value)), height="10", y="3", rx="5", class_="bar"),
            height="16",
        )
        note = element("span", row.note, class_="muted") if row.note else Markup()
        value = element("span", element("strong", figure), f" {unit}", class_="value")
        drawn.append(element("li", element("span", row.label, class_="label"), value, strip, note, class_="main" if row.emphasis else None))
    return _figure(title, element("ul", *drawn, class_="rows"))


def interval_chart(title: str, rows: Sequence[IntervalRow], percent: bool = True, baseline_label: str = "chance") -> Markup:
    """Values with their intervals, and a tick where `baseline_label` stands. With `percent`, shares of 1 on an axis of 0 to 100 %."""
    known = [x for row in rows for x in (row.value, row.low, row.high, row.baseline) if x is not None]
    axis = _Axis(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0)) if percent else _axis_around(known or [0.0, 1.0], logarithmic=False)
    drawn = [_interval_row(row, axis, percent, baseline_label) for row in rows]
    ticks = [
        element("text", _figure_text(tick, percent, axis, 0), x=_percent(axis.share(tick)), y="12", text_anchor=_anchor(axis.share(tick)))
        for tick in axis.ticks
    ]
    scale = element("svg", *ticks, class_="scale", width="100%", height="16", aria_hidden="true")
    key = [element("span", class_="key interval"), "value and 95 % interval"]
    if any(row.baseline is not None for row in rows):
        key += [element("span", class_="key baseline"), baseline_label]
    return _figure(title, element("ul", *drawn, class_="rows"), scale, element("p", *key, class_="legend"))


def _interval_row(row: IntervalRow, axis: _Axis, percent: bool, baseline_label: str) -> Markup:
    value, low, high = (_figure_text(x, percent, axis, 1) for x in (row.value, row.low, row.high))
    baseline = "" if row.baseline is None else f"{baseline_label} {_figure_text(row.baseline, percent, axis, 1)}"
    ticks = [_percent(axis.share(tick)) for tick in axis.ticks]
    grid = [element("line", x1=tick, x2=tick, y1="0", y2="22", class_="grid") for tick in ticks]
    left, right, middle = (_percent(axis.share(x)) for x in (row.low, row.high, row.value))
    shapes = [*grid, element("line", x1=left, x2=right, y1="11", y2="11", class_="interval")]
    if row.baseline is not None:
        at = _percent(axis.share(row.baseline))
        shapes.append(element("line", x1=at, x2=at, y1="1", y2="21", class_="baseline"))
    shapes.append(element("circle", cx=middle, cy="11", r="5", class_="dot"))
    spoken = f"{row.label}: {value}, interval {low} to {high}" + (f", {baseline}" if baseline else "")
    notes = ", ".join([f"{low} to {high}", baseline] if baseline else [f"{low} to {high}"])
    figures = element("span", element("strong", value), " ", element("span", notes, class_="muted"), class_="value")
    return element("li", element("span", row.label, class_="label"), figures, _strip(spoken, *shapes, height="22"))


def _figure(title: str, *content: str) -> Markup:
    return element("figure", element("figcaption", title), *content, class_="chart")


def _strip(spoken: str, *shapes: str, height: str) -> Markup:
    return element("svg", element("title", spoken), *shapes, class_="strip", role="img", aria_label=spoken, width="100%", height=height)


def _legend(names: Sequence[str]) -> Markup:
    def swatch(index: int) -> Markup:
        line = element("line", x1="0", x2="28", y1="6", y2="6", class_=f"line {_style(index)}")
        return element("svg", line, width="28", height="12", aria_hidden="true")

    return element("ul", *(element("li", swatch(index), name) for index, name in enumerate(names)), class_="legend")


def _grid(x_axis: _Axis, y_axis: _Axis) -> Markup:
    shapes = []
    for tick in y_axis.ticks:
        at = _percent(1 - y_axis.share(tick))
        shapes.append(element("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        shapes.append(element("text", y_axis.label(tick), x="-8", y=at, dy="0.32em", text_anchor="end"))
    for tick in x_axis.ticks:
        at = _percent(x_axis.share(tick))
        shapes.append(element("line", x1=at, x2=at, y1="100%", y2="100%", class_="grid tick"))
        shapes.append(element("text", x_axis.label(tick), x=at, y="100%", dy="1.7em", text_anchor="middle"))
    shapes.append(element("line", x1="0", x2="100%", y1="100%", y2="100%", class_="axis"))
    return element("g", *shapes, aria_hidden="true")


def _marks(
    marks: Sequence[tuple[float, str]], x_marks: Sequence[tuple[float, str]], lines: Sequence[Line], x_axis: _Axis, y_axis: _Axis
) -> Markup:
    shapes = []
    levels = sorted((1 - y_axis.share(level), name) for level, name in marks if _drawable(level, y_axis.logarithmic))
    # Where the lines end, seen from the top: a name above its level must not lie on them, nor on the name above.
    taken = [1 - y_axis.share(y) for _, points in lines for x, y in points if x_axis.share(x) > 0.6]
    for at, name in levels:
        below = at < 1 - _MARK_GAP and any(at - _MARK_GAP < other <= at for other in taken)
        taken.append(at + _MARK_GAP / 2 if below else at)
        shapes.append(element("line", x1="0", x2="100%", y1=_percent(at), y2=_percent(at), class_="mark"))
        dy = "1.05em" if below else "-0.35em"
        shapes.append(element("text", name, x="100%", y=_percent(at), dy=dy, text_anchor="end", class_="mark-name"))
    for position, name in x_marks:
        place, late = _percent(x_axis.share(position)), x_axis.share(position) > 0.5
        anchor, offset = ("end", "-6") if late else ("start", "6")
        shapes.append(element("line", x1=place, x2=place, y1="0", y2="100%", class_="mark"))
        shapes.append(element("text", name, x=place, y="0", dx=offset, dy="0.9em", text_anchor=anchor, class_="mark-name"))
    return element("g", *shapes)


def _lines(lines: Sequence[Line], x_axis: _Axis, y_axis: _Axis) -> Markup:
    paths = []
    for index, (one, points) in enumerate(lines):
        steps = [
            f"{'M' if starts else 'L'}{1000 * x_axis.share(x):.1f} {1000 * (1 - y_axis.share(y)):.1f}"
            for x, y, starts in _with_starts(one, _thinned(points), y_axis.logarithmic)
        ]
        band = [] if y_axis.logarithmic else one.band()
        if len(band) > 1:
            around = [(x, low) for x, low, _ in band] + [(x, high) for x, _, high in reversed(band)]
            corners = " ".join(f"{1000 * x_axis.share(x):.1f},{1000 * (1 - y_axis.share(y)):.1f}" for x, y in around)
            paths.append(element("polygon", points=corners, class_=f"band {_style(index)}"))
        paths.append(element("path", d="".join(steps), class_=f"line {_style(index)}"))
    return element("svg", *paths, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%", class_="stretched")


def _dots(lines: Sequence[Line], x_axis: _Axis, y_axis: _Axis) -> Markup:
    """A dot with its figures for every point of a short series, and for the last point of any."""
    dots = []
    for index, (one, points) in enumerate(lines):
        for x, y in points if len(points) <= _MAXIMUM_DOTS else points[-1:]:
            place = {"cx": _percent(x_axis.share(x)), "cy": _percent(1 - y_axis.share(y))}
            spoken = element("title", f"{one.name}: {_short(y)}{_interval(one, x)} at {x:,.10g}")
            dots.append(element("circle", spoken, **place, r="3", class_=f"dot {_style(index)}"))
    return element("g", *dots)


def _numbers(lines: Sequence[Line], x_label: str) -> Markup:
    """The chart as a table, at some places of its shortest series; other series give what they last said by then."""
    shortest = min((points for _, points in lines), key=len)
    every = max(1, math.ceil(len(shortest) / _TABLE_ROWS))
    places = [x for x, _ in shortest][::-1][::every][::-1]
    head = element("tr", *(element("th", name, scope="col") for name in (x_label, *(one.name for one, _ in lines))))
    body = []
    for place in places:
        said = [next((f"{_short(y)}{_interval(one, x)}" for x, y in reversed(points) if x <= place), "") for one, points in lines]
        cells = (element("td", figures) for figures in said)
        body.append(element("tr", element("th", f"{place:,.10g}", scope="row"), *cells))
    numbers = element("table", element("thead", head), element("tbody", *body), class_="numbers")
    region = element("div", numbers, class_="scroll", tabindex="0", role="region", aria_label="The numbers of this chart")
    return element("details", element("summary", "Numbers"), region)


def _interval(series: Series, x: float) -> str:
    """The interval at a place, in words; empty if there is none."""
    return next((f" ({_short(low)} to {_short(high)})" for at, low, high in series.band() if at == x), "")


def _describe(lines: Sequence[Line], x_label: str, y_label: str, marks: Sequence[tuple[float, str]]) -> str:
    ends = [(one.name, len(points), points[0], points[-1]) for one, points in lines]
    parts = [
        f"{name}: {count} points, from {_short(first[1])} at {first[0]:,.10g} to {_short(last[1])} at {last[0]:,.10g}"
        for name, count, first, last in ends
    ]
    return "; ".join([f"{y_label} over {x_label}", *parts, *(f"{name}: {_short(level)}" for level, name in marks)])


def _points(series: Series, log_y: bool) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(series.xs, series.ys, strict=True) if _drawable(y, log_y) and y is not None]


def _drawable(y: float | None, log_y: bool) -> bool:
    return y is not None and math.isfinite(y) and (not log_y or y > 0)


def _with_starts(series: Series, points: Points, log_y: bool) -> Iterator[tuple[float, float, bool]]:
    """The points, each with whether the line starts anew there: at the first one, and after a gap."""
    gaps = [x for x, y in zip(series.xs, series.ys, strict=True) if not _drawable(y, log_y)]
    before = -math.inf
    for x, y in points:
        starts = before == -math.inf or any(before < gap < x for gap in gaps)
        yield x, y, starts
        before = x


def _thinned(points: Points) -> Points:
    """At most about 800 points: of every run of neighbours the lowest and the highest, so that no spike is lost."""
    if len(points) <= _MAXIMUM_POINTS:
        return points
    run = math.ceil(2 * len(points) / _MAXIMUM_POINTS)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(points), run):
        some = points[start : start + run]
        kept += sorted({min(some, key=lambda point: point[1]), max(some, key=lambda point: point[1])})
    return [points[0], *kept, points[-1]]


def _axis_inside(values: Sequence[float]) -> _Axis:
    low, high = min(values), max(values)
    return _Axis(low, high, round_ticks(low, high))


def _axis_around(values: Sequence[float], logarithmic: bool) -> _Axis:
    low, high = min(values), max(values)
    if logarithmic:
        return _logarithmic_axis(low, high)
    if low == high:
        around = abs(low) / 10 or 0.5
        low, high = low - around, high + around
    ticks = round_ticks(low, high)
    step = ticks[1] - ticks[0] if len(ticks) > 1 else high - low
    low, high = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
    return _Axis(low, high, round_ticks(low, high, count=max(1, round((high - low) / step))))


def _logarithmic_axis(low: float, high: float) -> _Axis:
    exponents = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    candidates = [factor * 10.0**exponent for exponent in exponents for factor in (1, 2, 5)]
    below = max(x for x in candidates if x <= low * 1.0000001)
    above = min(x for x in candidates if x >= high * 0.9999999)
    if below == above:
        above = min(x for x in candidates if x > below)
    ticks = tuple(x for x in candidates if below <= x <= above)
    decades = tuple(x for x in ticks if math.log10(x) == round(math.log10(x)))
    return _Axis(below, above, ticks if len(ticks) <= 7 else decades, logarithmic=True)


def _figure_text(value: float, percent: bool, axis: _Axis, decimals: int) -> str:
    return f"{100 * value:.{decimals}f} %" if percent else _short(value) if decimals else axis.label(value)


def _anchor(share: float) -> str:
    return "start" if share < 0.02 else "end" if share > 0.98 else "middle"


def _short(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _style(index: int) -> str:
    return f"series-{index % _PALETTE_SIZE}"
