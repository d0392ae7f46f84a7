"""What datatrove's own filters do, for `benchmarks/corpus_fidelity.py`: runs in the peer's environment, reads and writes JSON Lines.

    python corpus_fidelity_peer.py DOCUMENTS LINES OUT

A line of DOCUMENTS is {"text", "words", "long"}: `words` is null where `str.split` gives them. LINES holds single lines of text. OUT
gets one JSON object: the rules each document fails with the given words and with the words of spaCy, the lines each line rule removes,
and what the filters make of a document one after another.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import datatrove.pipeline.filters.fineweb_quality_filter as fineweb_module
import datatrove.pipeline.filters.gopher_quality_filter as gopher_module
import datatrove.pipeline.filters.gopher_repetition_filter as repetition_module
from datatrove.data import Document
from datatrove.pipeline.filters.c4_filters import C4QualityFilter
from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter
from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter
from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter
from datatrove.utils.text import split_into_words

NO_QUALITY: dict[str, Any] = dict.fromkeys(
    ("min_doc_words", "max_doc_words", "min_avg_word_length", "max_avg_word_length", "max_symbol_word_ratio", "max_bullet_lines_ratio",
     "max_ellipsis_lines_ratio", "max_non_alpha_words_ratio", "min_stop_words")
)  # fmt: skip
NO_REPETITION: dict[str, Any] = {
    "dup_line_frac": None, "dup_para_frac": None, "dup_line_char_frac": None, "dup_para_char_frac": None,
    "top_n_grams": (), "dup_n_grams": (),
}  # fmt: skip
NO_C4: dict[str, Any] = {
    "remove_citations": False, "filter_no_terminal_punct": False, "min_num_sentences": -1, "min_words_per_line": -1, "max_word_length": -1,
    "filter_lorem_ipsum": False, "filter_javascript": False, "filter_curly_bracket": False, "filter_policy": False,
}  # fmt: skip
NO_FINEWEB: dict[str, Any] = {"line_punct_thr": 0.0, "short_line_thr": 1.0, "char_duplicates_ratio": 1.0, "new_line_ratio": float("inf")}
SPACY_DOCUMENT_BYTES = 100_000


def document_rules() -> dict[str, tuple[Any, str | None]]:
    """For each of our rules that drop documents: a filter with that rule alone, and the reason it gives where it may give others."""
    rules: dict[str, tuple[Any, str | None]] = {}
    for name, option, value, reason in (
        ("minimum_words", "min_doc_words", 50, "gopher_short_doc"),
        ("maximum_words", "max_doc_words", 100_000, "gopher_long_doc"),
        ("minimum_word_length", "min_avg_word_length", 3, "gopher_below_avg_threshold"),
        ("maximum_word_length", "max_avg_word_length", 10, "gopher_above_avg_threshold"),
        ("bullet_lines", "max_bullet_lines_ratio", 0.9, None),
        ("ellipsis_lines", "max_ellipsis_lines_ratio", 0.3, None),
        ("letter_words", "max_non_alpha_words_ratio", 0.8, None),
        ("stop_words", "min_stop_words", 2, None),
        ("hash_symbols", "max_symbol_word_ratio", 0.1, "gopher_too_many_hashes"),
        ("ellipsis_symbols", "max_symbol_word_ratio", 0.1, "gopher_too_many_ellipsis"),
    ):
        rules[f"gopher_{name}"] = (GopherQualityFilter(**{**NO_QUALITY, option: value}), reason)
    for name, option, value in (
        ("duplicate_paragraphs", "dup_para_frac", 0.3),
        ("duplicate_paragraph_characters", "dup_para_char_frac", 0.2),
        ("duplicate_lines", "dup_line_frac", 0.3),
        ("duplicate_line_characters", "dup_line_char_frac", 0.2),
        *((f"top_{n}_gram", "top_n_grams", ((n, threshold),)) for n, threshold in ((2, 0.2), (3, 0.18), (4, 0.16))),
        *((f"duplicate_{n}_grams", "dup_n_grams", ((n, 0.2 - 0.01 * n),)) for n in range(5, 11)),
    ):
        # 0.2 - 0.01 n is 0.15 for 5 up to 0.10 for 10; rounded, since 0.2 - 0.07 is not 0.13 in binary.
        value = tuple((n, round(threshold, 2)) for n, threshold in value) if isinstance(value, tuple) else value
        rules[f"gopher_repetition_{name}"] = (GopherRepetitionFilter(**{**NO_REPETITION, option: value}), None)
    rules["c4_lorem_ipsum"] = (C4QualityFilter(**{**NO_C4, "filter_lorem_ipsum": True}), None)
    rules["c4_curly_bracket"] = (C4QualityFilter(**{**NO_C4, "filter_curly_bracket": True}), None)
    rules["c4_sentences"] = (C4QualityFilter(**{**NO_C4, "min_words_per_line": 3, "min_num_sentences": 5}), None)
    for name, option, value in (
        ("line_punctuation", "line_punct_thr", 0.12),
        ("short_lines", "short_line_thr", 0.67),
        ("duplicate_line_characters", "char_duplicates_ratio", 0.01),
        ("newlines", "new_line_ratio", 0.3),
    ):
        rules[f"fineweb_{name}"] = (FineWebQualityFilter(**{**NO_FINEWEB, option: value}), None)
    return rules


OF_WORDS = (
    "gopher_m", "gopher_hash", "gopher_ellipsis_symbols", "gopher_letter", "gopher_stop", "gopher_repetition_top", "fineweb_newlines",
    *(f"gopher_repetition_duplicate_{n}" for n in range(5, 11)),
)  # fmt: skip
"""How the names of the rules begin that depend on what a word is."""

LINE_RULES: dict[str, dict[str, Any]] = {
    "c4_long_words": {"max_word_length": 1_000},
    "c4_citations": {"remove_citations": True},
    "c4_terminal_punctuation": {"filter_no_terminal_punct": True},
    "c4_words_per_line": {"min_words_per_line": 3},
    "c4_javascript": {"filter_javascript": True},
    "c4_policy": {"filter_policy": True},
}


def use_words(split: Callable[..., list[str]]) -> None:
    """Replace what the filters take words from."""
    for module in (gopher_module, repetition_module, fineweb_module):
        module.split_into_words = split


def drops(name: str, filter_and_reason: tuple[Any, str | None], text: str) -> bool:
    """Whether a filter drops a text, for that reason if one is given."""
    one, reason = filter_and_reason
    if name == "gopher_ellipsis_symbols":
        # The filter looks at `#` first and says no more.
        text = text.replace("#", "@")
    answer = one.filter(Document(text=text, id=""))
    return isinstance(answer, tuple) and (reason is None or answer[1] == reason)


def pipeline(filters: dict[str, Any], text: str) -> list[str]:
    """[filter that drops, ""] or ["", hash of what is left]."""
    document = Document(text=text, id="")
    for name, one in filters.items():
        if one.filter(document) is not True:
            return [name, ""]
    return ["", hashlib.sha256(document.text.encode()).hexdigest()]


def main() -> None:
    documents_path, lines_path, out_path = map(Path, sys.argv[1:])
    documents = [json.loads(line) for line in documents_path.read_text(encoding="utf-8").split("\n") if line]
    lines = [json.loads(line) for line in lines_path.read_text(encoding="utf-8").split("\n") if line]
    rules = document_rules()
    web = {
        "gopher_repetition": GopherRepetitionFilter(),
        "gopher": GopherQualityFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
    }
    full_c4 = {"c4": C4QualityFilter()}
    started = time.process_time()
    given, spacy, after_web, after_c4 = [], [], [], []
    for document in documents:
        text = document["text"]
        words = text.split() if document["words"] is None else document["words"]
        use_words(lambda _text, _language, words=words: words)
        if document["long"]:
            given.append(["gopher_maximum_words"] * drops("", rules["gopher_maximum_words"], text))
            after_web.append(["long", ""])
            after_c4.append(["long", ""])
            spacy.append(None)
            continue
        given.append([name for name, one in rules.items() if drops(name, one, text)])
        after_web.append(pipeline({"gopher_repetition": web["gopher_repetition"], "gopher": web["gopher"]}, text))
        if not after_web[-1][0]:
            # What is left has other words than the text.
            use_words(lambda left, _language: left.split())
            after_web[-1] = pipeline({"c4": web["c4"], "fineweb": web["fineweb"]}, text)
        after_c4.append(pipeline(full_c4, text))
        use_words(split_into_words)
        small = len(text.encode()) <= SPACY_DOCUMENT_BYTES
        spacy.append([name for name, one in rules.items() if name.startswith(OF_WORDS) and drops(name, one, text)] if small else None)
    removed = {name: [_changes(C4QualityFilter(**{**NO_C4, **options}), line) for line in lines] for name, options in LINE_RULES.items()}
    versions = {name: metadata.version(name) for name in ("datatrove", "spacy")}
    result = {
        "given": given,
        "spacy": spacy,
        "web": after_web,
        "c4": after_c4,
        "lines": removed,
        "of_words": OF_WORDS,
        "versions": versions,
    }
    result["seconds"] = time.process_time() - started
    out_path.write_text(json.dumps(result), encoding="utf-8")


def _changes(one: C4QualityFilter, line: str) -> bool:
    document = Document(text=line, id="")
    one.filter(document)
    return document.text != line


if __name__ == "__main__":
    main()
