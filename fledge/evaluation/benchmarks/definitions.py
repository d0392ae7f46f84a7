"""The benchmarks that are known by name: where their rows are published, and what is asked, in the words of lm-evaluation-harness 0.4.

Every prompt, delimiter and preparation is that of its task of the same name, so that scores agree to the last printed digit with those
that others publish. The hub keeps a copy of every dataset in Parquet, `CONFIG/SPLIT/*.parquet` on the branch `refs/convert/parquet`,
which is where rows are taken from: no code of a dataset is run.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fledge.core.config import identity
from fledge.evaluation.benchmarks.settings import LastWord, MultipleChoice, Perplexity, Task
from fledge.evaluation.benchmarks.templates import BadRow, field, text_field, texts_of

Values = Mapping[str, Any]
Prepare = Callable[[Values], Values]


@dataclass(frozen=True)
class Published:
    """Rows of a dataset of the hub."""

    repository: str
    config: str
    split: str

    @property
    def files(self) -> str:
        """A glob within the branch of Parquet copies."""
        return f"{self.config}/{self.split}/*.parquet"


@dataclass(frozen=True)
class Benchmark:
    """What is asked of a model, on rows that lie elsewhere."""

    name: str
    title: str
    task: Task
    published: Published | None = None
    """None of one's own."""
    prepare: Prepare | None = None
    """What is done to a row before the task sees it."""
    cut_text: Callable[[str], list[dict[str, str]]] | None = None
    """How a plain text becomes rows, where one will do."""

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the questions, besides the rows."""
        asked = identity(self.task)
        return {"name": self.name, **{name: asked[name] for name in asked if name != "file"}}


def wikitext_pages(text: str) -> list[dict[str, str]]:
    """Pages of WikiText as `EleutherAI/wikitext_document_level` has them: each begins at a line " = Title = ".

    The lines of a page are joined, so what divides two pages, a line's end, belongs to neither.
    """
    lines = text.split("\n")
    borders = sorted({0, len(lines), *(number for number, line in enumerate(lines) if _is_page_title(line))})
    pages = ["\n".join(lines[first:last]) for first, last in itertools.pairwise(borders)]
    return [{"page": page} for page in pages if page.strip()]


def _is_page_title(line: str) -> bool:
    """Whether one sign of equality stands on either side, alone; titles of sections have two or more."""
    joined = line.replace("= = =", "===").replace("= =", "==").strip()
    return joined.startswith("= ") and joined.endswith(" =")


def whole_text(text: str) -> list[dict[str, str]]:
    """A text is one row."""
    return [{"text": text}] if text.strip() else []


_BEFORE_DETOKENIZING = (
    (re.escape("s '"), "s'"),
    (r"/' [0-9]/", r"/'[0-9]/"),
    (re.escape(" @-@ "), "-"),
    (re.escape(" @,@ "), ","),
    (re.escape(" @.@ "), "."),
    (re.escape(" : "), ": "),
    (re.escape(" ; "), "; "),
    (re.escape(" . "), ". "),
    (re.escape(" ! "), "! "),
    (re.escape(" ? "), "? "),
    (re.escape(" , "), ", "),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r'"\s*([^"]*?)\s*"', r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    (re.escape("= = = ="), "===="),
    (re.escape("= = ="), "==="),
    (re.escape("= ="), "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
"""The way back from WikiText's spacing to that of written English, in this order."""


def _detokenized(row: Values) -> Values:
    text = text_field(row, "page")
    for pattern, replacement in _BEFORE_DETOKENIZING:
        text = re.sub(pattern, replacement, text)
    return {"page": text_field(row, "page"), "text": text}


def _hellaswag(row: Values) -> Values:
    context = f"{text_field(row, 'ctx_a')} {text_field(row, 'ctx_b').capitalize()}"
    return {
        "query": _without_brackets(f"{text_field(row, 'activity_label')}: {context}"),
        "choices": [_without_brackets(ending) for ending in texts_of("{endings}", row)],
        "label": field(row, "label"),
    }


def _without_brackets(text: str) -> str:
    """Titles and marks in brackets are left over from WikiHow."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _winogrande(row: Values) -> Values:
    before, gap, after = text_field(row, "sentence").partition("_")
    if not gap:
        raise BadRow("its sentence has no gap, _")
    return {**row, "before": before, "after": after.strip(), "place": {"1": 0, "2": 1}.get(text_field(row, "answer"), "")}


def _openbookqa(row: Values) -> Values:
    return {**row, "answerKey": text_field(row, "answerKey").lstrip()}


def _sciq(row: Values) -> Values:
    return {**row, "support": text_field(row, "support").lstrip()}


def _arc(name: str, title: str, config: str) -> Benchmark:
    task = MultipleChoice(
        kind="multiple_choice",
        context="Question: {question}\nAnswer:",
        choices="{choices.text}",
        labels="{choices.label}",
        answer="{answerKey}",
    )
    return Benchmark(name, title, task, Published("allenai/ai2_arc", config, "test"))


def _lambada(name: str, title: str, published: Published) -> Benchmark:
    return Benchmark(name, title, LastWord(kind="last_word", text="{text}"), published)


_ALL = (
    _lambada("lambada_openai", "LAMBADA (OpenAI's text)", Published("EleutherAI/lambada_openai", "default", "test")),
    _lambada("lambada_standard", "LAMBADA (as published)", Published("cimec/lambada", "plain_text", "test")),
    Benchmark(
        "boolq",
        "BoolQ",
        MultipleChoice(
            kind="multiple_choice",
            context="{passage}\nQuestion: {question}?\nAnswer:",
            choices=("no", "yes"),
            answer="{label}",
            per_character=False,
        ),
        Published("aps/super_glue", "boolq", "validation"),
    ),
    Benchmark(
        "hellaswag",
        "HellaSwag",
        MultipleChoice(kind="multiple_choice", context="{query}", choices="{choices}", answer="{label}"),
        Published("Rowan/hellaswag", "default", "validation"),
        _hellaswag,
    ),
    _arc("arc_easy", "ARC, easy", "ARC-Easy"),
    _arc("arc_challenge", "ARC, challenge", "ARC-Challenge"),
    Benchmark(
        "piqa",
        "PIQA",
        MultipleChoice(kind="multiple_choice", context="Question: {goal}\nAnswer:", choices=("{sol1}", "{sol2}"), answer="{label}"),
        Published("baber/piqa", "default", "validation"),
    ),
    Benchmark(
        "winogrande",
        "WinoGrande",
        # The choices end the context; what is scored is the rest of the sentence.
        MultipleChoice(
            kind="multiple_choice",
            context="{before}{choice}",
            continued=" {after}",
            choices=("{option1}", "{option2}"),
            answer="{place}",
            per_character=False,
        ),
        Published("allenai/winogrande", "winogrande_xl", "validation"),
        _winogrande,
    ),
    Benchmark(
        "openbookqa",
        "OpenBookQA",
        MultipleChoice(
            kind="multiple_choice",
            context="{question_stem}",
            choices="{choices.text}",
            labels="{choices.label}",
            answer="{answerKey}",
        ),
        Published("allenai/openbookqa", "main", "test"),
        _openbookqa,
    ),
    Benchmark(
        "sciq",
        "SciQ",
        MultipleChoice(
            kind="multiple_choice",
            context="{support}\nQuestion: {question}\nAnswer:",
            choices=("{distractor1}", "{distractor2}", "{distractor3}", "{correct_answer}"),
            answer="3",
        ),
        Published("allenai/sciq", "default", "test"),
        _sciq,
    ),
    Benchmark(
        "wikitext",
        "WikiText-2",
        # Words and bytes are those of the page as distributed, what is scored is the page in written English.
        Perplexity(kind="perplexity", text="{text}", counted="{page}"),
        Published("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", "test"),
        _detokenized,
        wikitext_pages,
    ),
    Benchmark("text", "Text", Perplexity(kind="perplexity"), cut_text=whole_text),
)
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType({one.name: one for one in _ALL})
ALIASES = MappingProxyType({"lambada": "lambada_openai"})
