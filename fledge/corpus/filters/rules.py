"""Every quality rule by name: what it measures, the published threshold, where it comes from, and which presets hold it.

The one idea: a rule that drops documents compares one count, or the quotient of two counts, of `statistics.py` or `line_rules.py`
with one number; so the rules are a table, and what runs is chosen from it. The order of the table is the order in which rules are
applied and in which the first reason of a document is found: Gopher on the text as it came, then C4's lines, then FineWeb on the
lines that are left. That is the order of FineWeb's own pipeline.

Sources: Gopher, Rae et al. 2021 (https://arxiv.org/abs/2112.11446), section A.1.1 and table A1. C4, Raffel et al. 2020
(https://arxiv.org/abs/1910.10683), section 2.2, and its code. FineWeb, Penedo et al. 2024 (https://arxiv.org/abs/2406.17557),
section 3. Where a paper leaves room, the reading of datatrove 0.10 is taken, with which FineWeb was made;
`benchmarks/corpus_fidelity.py` compares the two rule by rule.

Texts that are mostly in scripts without spaces (Chinese, Japanese, Thai, ...) have a word per character. Rules marked `spaced_only` are
not applied to such texts: mean word length and stop words, which look at whole words, and repeated runs of 5 to 9 words, because
five characters are about three words and repeat in any text; runs of ten characters are still judged.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Preset = Literal["none", "web", "books", "docs", "code"]
Drops = Literal["documents", "lines"]

PRESETS: dict[Preset, str] = {
    "none": "no rules",
    "web": "what FineWeb ran: all but C4's terminal punctuation, which alone takes 30 % of all tokens",
    "books": "Gopher without its most words (novels have more); not C4 and FineWeb, which take verse, plays and wrapped lines for lists",
    "docs": "Gopher's size, prose and repetition by characters, and lorem ipsum; not what code, tables, headings and lists fail by nature",
    "code": "Gopher's size and its longest repetitions: program text repeats short runs, and has neither sentences nor stop words",
}
"""What each preset is, and why."""

_WEB: tuple[Preset, ...] = ("web",)
_PROSE: tuple[Preset, ...] = ("web", "books")
_TEXT: tuple[Preset, ...] = ("web", "books", "docs")
_ALL: tuple[Preset, ...] = ("web", "books", "docs", "code")
_LONGEST_RUN_WORDS = 10


@dataclass(frozen=True)
class Rule:
    """One row of the table: a document fails if count / per is above the maximum or below the minimum; without `per`, the count."""

    name: str
    description: str
    presets: tuple[Preset, ...]
    count: str = ""
    per: str = ""
    maximum: float | None = None
    minimum: float | None = None
    drops: Drops = "documents"
    remaining: bool = False
    """Sees what the line rules left, not the text as it came."""
    spaced_only: bool = False

    @property
    def threshold(self) -> float | None:
        """The published number; None for rules that look for a phrase."""
        return self.maximum if self.maximum is not None else self.minimum


def _repetition(
    name: str, description: str, count: str, per: str, maximum: float, presets: tuple[Preset, ...], spaced_only: bool = False
) -> Rule:
    described = f"{description} (Gopher, table A1)"
    return Rule(f"gopher_repetition_{name}", described, presets, count, per, maximum=maximum, spaced_only=spaced_only)


def _top(words: int, maximum: float) -> Rule:
    description = f"share of characters in the most frequent run of {words} words"
    return _repetition(f"top_{words}_gram", description, f"top_{words}_gram_characters", "characters", maximum, _PROSE)


def _again(words: int, maximum: float) -> Rule:
    description = f"share of characters in runs of {words} words that were said before"
    longest = words == _LONGEST_RUN_WORDS
    presets = _ALL if longest else _TEXT
    return _repetition(
        f"duplicate_{words}_grams", description, f"duplicate_{words}_gram_characters", "characters", maximum, presets, not longest
    )


RULES: tuple[Rule, ...] = (
    _repetition("duplicate_paragraphs", "share of paragraphs equal to an earlier one", "duplicate_paragraphs", "paragraphs", 0.30, _PROSE),
    _repetition(
        "duplicate_paragraph_characters", "share of characters in paragraphs equal to an earlier one",
        "duplicate_paragraph_characters", "characters", 0.20, _TEXT,
    ),
    _repetition("duplicate_lines", "share of lines equal to an earlier one", "duplicate_segments", "segments", 0.30, _PROSE),
    _repetition(
        "duplicate_line_characters", "share of characters in lines equal to an earlier one",
        "duplicate_segment_characters", "characters", 0.20, _TEXT,
    ),
    _top(2, 0.20),
    _top(3, 0.18),
    _top(4, 0.16),
    _again(5, 0.15),
    _again(6, 0.14),
    _again(7, 0.13),
    _again(8, 0.12),
    _again(9, 0.11),
    _again(10, 0.10),
    Rule("gopher_minimum_words", "words that are no symbols (Gopher)", _ALL, "plain_words", minimum=50),
    Rule("gopher_maximum_words", "words that are no symbols (Gopher)", ("web", "code"), "plain_words", maximum=100_000),
    Rule(
        "gopher_minimum_word_length", "mean characters of words (Gopher)", _ALL, "plain_word_characters", "plain_words",
        minimum=3, spaced_only=True,
    ),
    Rule(
        "gopher_maximum_word_length", "mean characters of words (Gopher)", _PROSE, "plain_word_characters", "plain_words",
        maximum=10, spaced_only=True,
    ),
    Rule("gopher_hash_symbols", "`#` per word (Gopher)", _PROSE, "hashes", "words", maximum=0.1),
    Rule("gopher_ellipsis_symbols", "ellipses per word (Gopher)", _TEXT, "ellipses", "words", maximum=0.1),
    Rule("gopher_bullet_lines", "share of lines that begin with a bullet (Gopher)", _PROSE, "bullet_lines", "lines", maximum=0.9),
    Rule("gopher_ellipsis_lines", "share of lines that end with an ellipsis (Gopher)", _TEXT, "ellipsis_lines", "lines", maximum=0.3),
    Rule("gopher_letter_words", "share of words with a letter (Gopher)", _PROSE, "letter_words", "words", minimum=0.8),
    Rule("gopher_stop_words", "different words of `stop_words` (Gopher)", _TEXT, "stop_words", minimum=2, spaced_only=True),
    Rule("c4_long_words", "removes lines with a word of more characters (code of C4)", _WEB, maximum=1_000, drops="lines"),
    Rule("c4_citations", "removes [1], [edit] and [citation needed] from lines (code of C4)", _WEB, drops="lines"),
    Rule("c4_terminal_punctuation", "removes lines that do not end a sentence or a quotation (C4)", (), drops="lines"),
    Rule("c4_words_per_line", "removes lines with fewer words (C4)", _WEB, minimum=3, drops="lines"),
    Rule("c4_javascript", "removes lines with the word javascript (C4)", _WEB, drops="lines"),
    Rule("c4_policy", "removes lines about cookies, terms of use and privacy policies (C4)", _WEB, drops="lines"),
    Rule("c4_lorem_ipsum", "lines with lorem ipsum (C4)", _TEXT, "lorem_ipsum_lines", remaining=True),
    Rule("c4_curly_bracket", "lines with a curly bracket (C4)", _WEB, "curly_bracket_lines", remaining=True),
    Rule("c4_sentences", "sentences in the lines that are left (C4)", _WEB, "sentences", minimum=5, remaining=True),
    Rule(
        "fineweb_line_punctuation", "share of lines that end a sentence (FineWeb)", _WEB, "terminal_rows", "rows",
        minimum=0.12, remaining=True,
    ),
    Rule(
        "fineweb_short_lines", "share of lines of at most 30 characters (FineWeb)", _WEB, "short_rows", "rows",
        maximum=0.67, remaining=True,
    ),
    Rule(
        "fineweb_duplicate_line_characters", "share of characters in lines equal to an earlier one (FineWeb)", _WEB,
        "duplicate_row_characters", "characters_in_rows", maximum=0.01, remaining=True,
    ),
    Rule("fineweb_newlines", "newlines per word (FineWeb)", _WEB, "newlines", "words", maximum=0.3, remaining=True),
)  # fmt: skip
"""In the order in which they are applied."""


def unknown(name: str, known: Collection[str]) -> str:
    """What to say about a name that is no rule."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return f"{name!r}, which is no rule; " + (f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}")


def chosen(preset: Preset, add: Collection[str], skip: Collection[str]) -> tuple[Rule, ...]:
    """The rules of a preset and those added, without those skipped, in the order in which they are applied."""
    return tuple(one for one in RULES if (preset in one.presets or one.name in add) and one.name not in skip)
