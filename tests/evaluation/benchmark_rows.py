"""Rows in the form in which the datasets of the known benchmarks have them, written for the tests: few, and awkward."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LONG = " ".join(f"The {thing} of the table stay as they are, and so do all {thing}." for thing in ("rows", "words", "pages") * 12)
"""Several times the context of the tests' models."""

PAGE = """ = Tables of the <unk> =

 In 1887 the " rows " of a table were 1 @,@ 200 @-@ odd , said the clerk 's aide ; and ( as ever ) 3 @.@ 5 % were lost .

 = = Words = =

 They stay : shift , turn and copy . 25 ° C is warm ! Is it ?
"""

ROWS: dict[str, list[dict[str, Any]]] = {
    "lambada_openai": [
        {"text": "shift all rows of a table one after the other. The first and the last of the rows stay as they are in the rows"},
        {"text": "She said the naïve café was “closed”, and walked  home to the café"},
        {"text": "a  double  space before the  words"},
        {"text": f"{LONG} The first and the last of the pages"},
    ],
    "boolq": [
        {"passage": "turn all words of a table one after the other.", "question": "does it turn words", "label": 1, "idx": 0},
        {"passage": "Ein Straßenname — ohne Rücksicht ", "question": "is this a street", "label": 0, "idx": 1},
        {"passage": LONG, "question": "do the pages stay", "label": 1, "idx": 2},
    ],
    "hellaswag": [
        {
            "ctx_a": "A clerk sorts [step] the rows of a table.",
            "ctx_b": "the first of them",
            "activity_label": "Sorting tables",
            "endings": ["stays as it is [title] and so on", "is read  twice.", "turns into a café.", "is marked, then dropped."],
            "label": "0",
        },
        {
            "ctx_a": "Pages are folded.",
            "ctx_b": "",
            "activity_label": "Folding",
            "endings": ["They stay.", "All of the words of all of the pages are counted one after the other.", "No.", "[x] Who knows?"],
            "label": "3",
        },
        {"ctx_a": LONG, "ctx_b": "the pages", "activity_label": "Long", "endings": ["stay", "go away", "are read", "turn"], "label": "1"},
    ],
    "arc_easy": [
        {"question": "Which of these is a table?", "choices": {"text": ["a row", "rows of words"], "label": ["A", "B"]}, "answerKey": "B"},
        {
            "question": "What stays at 25 °C?",
            "choices": {"text": ["the first", "the last", "all the pages in the list", "none"], "label": ["1", "2", "3", "4"]},
            "answerKey": "3",
        },
        {"question": LONG, "choices": {"text": ["rows", "the words of it", "pages"], "label": ["A", "B", "C"]}, "answerKey": "A"},
    ],
    "piqa": [
        {"goal": "sort the words", "sol1": "Put the first of them last.", "sol2": "Turn all rows of the table, one by one.", "label": 0},
        {"goal": "fold a page ", "sol1": "fold it", "sol2": "read it", "label": 1},
        {"goal": LONG, "sol1": "count", "sol2": "drop all of them", "label": 1},
    ],
    "winogrande": [
        {"sentence": "The row did not fit the table because _ was too long.", "option1": "the row", "option2": "the table", "answer": "1"},
        {"sentence": f"{LONG} Ann thanked Bea, for _ had helped.", "option1": "Ann", "option2": "Bea", "answer": "2"},
    ],
    "openbookqa": [
        {"question_stem": "A table has", "choices": {"text": ["rows", "no words at all"], "label": ["A", "B"]}, "answerKey": " A"},
    ],
    "sciq": [
        {
            "support": " \nRows stay as they are.",
            "question": "What stays?",
            "distractor1": "words",
            "distractor2": "the first page",
            "distractor3": "nothing",
            "correct_answer": "rows",
        },
        {"support": "", "question": "What turns?", "distractor1": "a", "distractor2": "b", "distractor3": "c", "correct_answer": "lists"},
    ],
    "wikitext": [{"page": PAGE}, {"page": f" = Long = \n\n {LONG} \n"}, {"page": " = Naïve = \n\n “ Straße ” \n"}],
}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path
