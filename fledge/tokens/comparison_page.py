"""The picture of a comparison of tokenizers: `comparison.py` as one self-contained page."""

from __future__ import annotations

from collections.abc import Sequence

from fledge.core.console import format_bytes, format_count
from fledge.core.page import BarRow, Tile, bar_chart, page, section, table, tiles
from fledge.tokens.comparison import Compression, TokenizerFigures

COLUMNS = ("tokenizer", "vocabulary", "characters/token", "bytes/token", "tokens saved", "vocabulary used", "MB/CPU s", "engine")
SOURCE_CAPTION = "characters / bytes per token"


def table_rows(figures: Sequence[TokenizerFigures]) -> list[list[str]]:
    """What the terminal shows, one row for each tokenizer, in `COLUMNS`."""
    return [
        [
            one.name,
            f"{one.vocabulary_size:,}",
            f"{one.total.characters_per_token:.3f}",
            f"{one.total.bytes_per_token:.3f}",
            _saved(one, figures[0]),
            f"{one.vocabulary_use:.1%}",
            f"{one.megabytes_per_cpu_second:.2f}",
            one.engine,
        ]
        for one in figures
    ]


def source_rows(figures: Sequence[TokenizerFigures]) -> list[list[str]]:
    """Characters / bytes per token: a row for each source, a column for each tokenizer."""
    return [[source, *(_both(one.sources[source]) for one in figures)] for source in figures[0].sources]


def longest_rows(figures: Sequence[TokenizerFigures]) -> list[list[str]]:
    """The longest tokens of each vocabulary, a column for each tokenizer."""
    columns = [one.longest_tokens for one in figures]
    return [[str(place), *row] for place, row in enumerate(zip(*columns, strict=True), 1)]


def comparison_page(figures: Sequence[TokenizerFigures], text: str) -> str:
    """The whole page; `text` says in words what was compared on."""
    total = figures[0].total
    densest, fastest = _best(figures)
    size = f"{format_count(total.characters)} characters, {format_bytes(total.text_bytes)}"
    numeric = frozenset(range(1, len(COLUMNS) - 1))
    names = [one.name for one in figures]
    return page(
        "Tokenizers compared",
        section(
            "At a glance",
            tiles(
                [
                    Tile("Most text in a token", f"{densest.total.bytes_per_token:.3f} bytes", densest.name),
                    Tile("Tokens saved", _saved(densest, figures[0]), f"{densest.name} against {figures[0].name}"),
                    Tile("Fastest", f"{fastest.megabytes_per_cpu_second:.1f} MB", f"{fastest.name}, in a second of one core"),
                ]
            ),
            table(COLUMNS, table_rows(figures), numeric, f"All text; saved against {figures[0].name}"),
        ),
        section(
            "Compression",
            _bars("Bytes per token", [(one, one.total.bytes_per_token) for one in figures], "bytes", 3, densest),
            table(["source", *names], source_rows(figures), frozenset(range(1, len(names) + 1)), f"By source: {SOURCE_CAPTION}"),
        ),
        section(
            "Vocabulary",
            _bars("Ids that occur in the text", [(one, 100 * one.vocabulary_use) for one in figures], "%", 1, None),
            "A small text leaves much of any vocabulary unused; what counts is the difference between tokenizers of one size.",
            table(["", *names], longest_rows(figures), caption="Longest tokens of the vocabulary"),
        ),
        section(
            "Speed",
            _bars("Encoding", [(one, one.megabytes_per_cpu_second) for one in figures], "MB per CPU second", 2, fastest),
            "A megabyte is a million bytes of UTF-8. CPU seconds count all threads, so they do not depend on the number of cores. "
            "Below some megabytes of text they are rough.",
        ),
        subtitle=f"On {text}: {size}. More text in a token means fewer tokens to train on, and longer texts in a context.",
    )


def _bars(title: str, values: Sequence[tuple[TokenizerFigures, float]], unit: str, decimals: int, best: TokenizerFigures | None) -> str:
    rows = [BarRow(one.name, value, f"{one.vocabulary_size:,} entries", emphasis=one is best) for one, value in values]
    return bar_chart(title, rows, unit, decimals)


def _best(figures: Sequence[TokenizerFigures]) -> tuple[TokenizerFigures, TokenizerFigures]:
    """The one with most text in a token, and the fastest."""
    return (
        max(figures, key=lambda one: one.total.bytes_per_token),
        max(figures, key=lambda one: one.megabytes_per_cpu_second),
    )


def _both(figures: Compression) -> str:
    return f"{figures.characters_per_token:.3f} / {figures.bytes_per_token:.3f}"


def _saved(one: TokenizerFigures, first: TokenizerFigures) -> str:
    return "-" if one is first else f"{one.total.tokens_saved(first.total):+.2%}"
