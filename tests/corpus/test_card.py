from __future__ import annotations

import copy
import re
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from markdown_it import MarkdownIt

from fledge.corpus.card import card_page, data_card
from fledge.corpus.card_figures import share

EVIL = (
    "<script>alert(1)</script></details></td> | `code` ``` [link](http://evil.example) ![x](y) **bold** \n# heading\n---\n"
    "\x1b[31m\x00 \u202ereversed\u2066 \ud800 &amp; \"quoted\" 'too' {x} $math$ \\ \r\n| a | b |"
)
PAIR = {
    "kept": {"id": "web/a:1", "text": "The quick brown fox jumps over the lazy dog."},
    "dropped": {"id": "web/b:2", "text": "The quick red fox jumps over the lazy, lazy dog."},
    "similarity": 0.8125,
    "exact": False,
    "cluster": 17,
}


def counts(word: str = "plain") -> dict[str, Any]:
    return {
        "read": {"documents": 1000, "characters": 3_000_000, "utf8_bytes": 3_100_000},
        "changed": {"unicode": 7, "email": 12},
        "dropped": {"gopher_stop_words": 120, "language": 40, "empty": 3, "contaminated": 10, f"own {word}": 5},
        "dropped_bytes": {"gopher_stop_words": 300_000, "language": 90_000, "contaminated": 9_000, f"own {word}": 100},
        "failed": {"gopher_stop_words": 130, "language": 40, f"own {word}": 6, "gopher_minimum_words": 2},
        "removed_lines": {"c4_policy": 33},
        "examples": {
            "gopher_stop_words": [{"hash": "0", "id": f"web/{word}:9", "text": f"an example {word}"}],
            "empty": [{"hash": "1", "id": "web/c:3", "text": ""}],
            "contaminated": [{"hash": "2", "id": f"web/{word}:4", "text": f"How many apples {word}"}],
        },
        "kept": {"documents": 822, "characters": 2_466_000, "utf8_bytes": 2_500_000},
        "contaminated": {f"tests {word}.jsonl": 10},
        "languages": {"en": 800, "de": 20, "fi": 2},
        "lengths": {"8": 22, "10": 500, "11": 300},
    }


def stats(word: str = "plain") -> dict[str, Any]:
    duplicates = {"kind": "near", "keep": "first", "exact": 20, "near": 30, "clusters": 25, "largest": 17, "sizes": {"2": 24, "10-99": 1}}
    pair = {side: {"id": f"web/{word}:1", "text": f"{PAIR[side]['text']} {word}"} for side in ("kept", "dropped")}  # type: ignore[index]
    return {
        "content": "documents",
        "kept": 772,
        "rows": {"train": 730, "validation": 42},
        "sources": {
            "web": {
                "train": {"rows": 730, "characters": 2_200_000, "utf8_bytes": 2_210_000},
                "validation": {"rows": 42, "characters": 100_000, "utf8_bytes": 101_000},
            }
        },
        "groups": {"train": 730, "validation": 42},
        "rejects": {"web": {"seen": 1050, "rejected": 50, "reasons": {f"not JSON {word}": 48, "too long": 2}}},
        "filters": {"web": counts(word)},
        "duplicates": {**duplicates, "samples": [pair]},
        "evaluation_files": [f"tests {word}.jsonl", f"other {word}.txt"],
        "provenance": [
            {
                "source": "web", "kind": "hub", "address": f"hub:someone/{word}", "revision": "0123456789abcdef" * 2, "files": 3,
                "bytes": 9_000_000, "license": "ODC-By-1.0", "fingerprint": "ab" * 32,
            }
        ],
        "settings": {
            "cleaning": ["unicode", "whitespace", "email"],
            "quality": {
                "preset": "web", "skip": ["c4_sentences"], "thresholds": {"gopher_minimum_words": 40}, "languages": ["en", "de"],
                "language_confidence": 0.65, "own_rules": [f"mine.py:{word}"],
            },
            "deduplicate": {"kind": "near", "keep": "first", "bands": 14, "rows": 8, "shingle_words": 5, "seed": 1},
            "decontaminate": {"files": [], "shingle_words": 13, "evaluated": True},
            "validation_fraction": 0.05,
            "format": "jsonl.zst",
        },
    }  # fmt: skip


def parse(html: str) -> ElementTree.Element:
    return ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))


def text_of(html: str) -> str:
    return " ".join(" ".join(parse(html).find("body").itertext()).split())  # type: ignore[union-attr]


def headings(html: str) -> list[str]:
    return [node.text or "" for node in parse(html).iter("h2")]


def tokens(markdown: str) -> list[Any]:
    body = markdown.split("\n---\n", 1)[1]
    parsed = MarkdownIt("commonmark").enable("table").parse(body)
    return [*parsed, *(child for token in parsed for child in token.children or ())]


# ---- the page


def test_the_page_tells_all_of_it() -> None:
    html = card_page(stats())
    assert headings(html) == [
        "In short", "Where the texts come from", "How it was made", "What was dropped, and why", "Lengths", "Languages", "Duplicates",
        "Contamination", "Rejects", "Known limits", "Settings",
    ]  # fmt: skip
    text = text_of(html)
    for told in (
        "772 documents, 2.3 MB of text, from the source web",
        "1,000 documents were read. Dropped were 16.8 % by rules on their text, 1.0 % because they give away",
        "ODC-By-1.0",
        "0123456789ab",
        "gopher_stop_words: 1 example of 120",
        "at least 40 (published: 50)",
        "own plain",
        "rules that no document failed",
        "256 to 511 characters: 22 documents",
        "They have 3,000 characters on average.",
        "MinHash of word 5-grams in 14 bands of 8",
        "the largest of 17 documents",
        "A document that shares a run of 13 words",
        "other plain.txt",
        "not JSON plain",
    ):
        assert told in text, told
    assert "c4_sentences" not in text.replace("quality.skip c4_sentences", "")


def test_what_differs_between_duplicates_is_marked_on_both_sides() -> None:
    page = copy.deepcopy(stats())
    page["duplicates"]["samples"] = [PAIR]
    marks = ["".join(node.itertext()) for node in parse(card_page(page)).iter("mark")]
    assert marks == ["brown", "red", ", lazy"]
    page["duplicates"]["samples"] = [{**PAIR, "dropped": PAIR["kept"], "similarity": 1.0}]
    html = card_page(page)
    assert not list(parse(html).iter("mark"))
    assert "the same words" in html
    japanese = {"id": "j", "text": "今日は天気がいいです"}, {"id": "k", "text": "今日は天気がよいです"}
    page["duplicates"]["samples"] = [{"kept": japanese[0], "dropped": japanese[1], "similarity": 0.5}]
    assert ["".join(node.itertext()) for node in parse(card_page(page)).iter("mark")] == ["い", "よ"]


def test_hostile_text_is_text_and_no_more() -> None:
    tags = lambda html: [node.tag for node in parse(html).iter() if node.tag != "mark"]  # noqa: E731
    evil = card_page(stats(EVIL))
    assert tags(evil) == tags(card_page(stats()))
    assert not re.search("<script|[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", evil)
    assert "alert(1)" in text_of(evil)
    evil.encode("utf-8")


def test_monstrous_texts_are_cut() -> None:
    monster = stats("word " * 2_000_000)
    html, markdown = card_page(monster), data_card(monster)
    assert len(html) < 80_000
    assert len(markdown) < 30_000
    many = stats()
    many["rejects"] = {"web": {"seen": 9_000, "rejected": 5_000, "reasons": {f"reason {number}": 1 for number in range(5_000)}}}
    assert "more are in stats.json" in card_page(many)
    assert len(card_page(many)) < 80_000


def test_every_text_keeps_its_direction_and_every_picture_has_a_name() -> None:
    root = parse(card_page(stats()))
    examples = [node for node in root.iter("div") if node.get("class") == "text mono"]
    assert len(examples) == 5
    assert all(node.get("dir") == "auto" for node in examples)
    assert all(node.get("aria-label") for node in root.iter("svg") if node.get("role") == "img")
    assert all(node.get("href", "#").startswith("#") for node in root.iter())
    ids = [node.get("id") for node in root.iter() if node.get("id")]
    assert len(ids) == len(set(ids))


# ---- both forms


def test_equal_figures_give_equal_bytes_whatever_their_order() -> None:
    turned = stats()
    for name in ("dropped", "failed", "changed", "languages", "lengths", "contaminated", "examples"):
        turned["filters"]["web"][name] = dict(reversed(turned["filters"]["web"][name].items()))
    assert card_page(turned) == card_page(stats())
    assert data_card(turned) == data_card(stats())


def test_sources_are_added_up() -> None:
    double = stats()
    double["filters"]["more"] = counts()
    assert "240" in card_page(double)
    assert "2,000 documents were read" in data_card(double)


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in stats().items() if name not in names}


def quiet() -> dict[str, Any]:
    """A corpus from which nothing was dropped."""
    same = {name: counts()[name] for name in ("read", "kept", "lengths")}
    return {**without("rejects", "evaluation_files", "settings"), "filters": {"web": same}, "duplicates": {"kind": "none"}}


@pytest.mark.parametrize(
    ("figures", "gone"),
    [
        (quiet(), ["What was dropped, and why", "Languages", "Duplicates", "Contamination", "Rejects", "Settings", "Rules"]),
        (without("provenance", "sources", "rows", "groups"), ["Where the texts come from", "Provenance and licences", "What is in it"]),
        (without("filters", "duplicates", "evaluation_files"), ["How it was made", "Lengths", "Duplicates", "Contamination", "Rules"]),
        ({"content": "conversations", "rows": {"train": 5, "validation": 0}, "sources": {}}, ["Lengths", "Rejects", "Settings"]),
        ({}, ["Lengths", "Rejects", "Settings", "Duplicates", "Where the texts come from"]),
    ],
)
def test_parts_without_content_vanish(figures: dict[str, Any], gone: list[str]) -> None:
    html, markdown = card_page(figures), data_card(figures)
    shown = [*headings(html), *re.findall("^## (.*)$", markdown, re.M)]
    assert not set(gone) & set(shown)
    assert "Known limits" in shown
    assert "None" not in text_of(html)


def test_an_analysis_has_no_shards_to_tell_of() -> None:
    analysis = without("rows", "sources", "groups")
    assert text_of(card_page(analysis)).startswith("Skip to the content Data card 772 documents from web")
    assert "configs" not in yaml.safe_load(data_card(analysis).split("\n---\n")[0])


def limits_of(**changed: Any) -> str:
    figures = stats()
    figures["settings"] = {**figures["settings"], **changed.pop("settings", {})}
    return data_card({**figures, **changed}).partition("## Known limits")[2].partition("##")[0]


def test_limits_fit_how_the_corpus_was_made() -> None:
    assert "Near duplicates are found by chance" in limits_of()
    assert "Near duplicates were not looked for" in limits_of(duplicates={"kind": "exact", "keep": "first"})
    assert "Duplicates were not looked for" in limits_of(duplicates={"kind": "none"})
    assert "found by its form" in limits_of()
    assert "Personal data was not looked for" in limits_of(settings={"cleaning": ["unicode"]})
    assert "not stated" not in limits_of()
    assert "The licence of a and b is not stated" in limits_of(provenance=[{"source": "a", "license": "not stated"}, {"source": "b"}])


def test_a_share_is_never_nothing_or_all_unless_it_is() -> None:
    assert [share(part, 10_000) for part in (0, 1, 10, 5_000, 9_999, 10_000)] == [
        "0.0\u00a0%", "<\u00a00.1\u00a0%", "0.1\u00a0%", "50.0\u00a0%", ">\u00a099.9\u00a0%", "100.0\u00a0%",
    ]  # fmt: skip
    assert share(3, 0) == ""


# ---- Markdown


def test_the_header_is_what_the_hub_reads() -> None:
    markdown = data_card(stats())
    header = yaml.safe_load(markdown.split("\n---\n")[0])
    assert header == {
        "license": ["odc-by"],
        "language": ["en", "de"],
        "size_categories": ["n<1K"],
        "task_categories": ["text-generation"],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": "train", "path": "train-*.jsonl.zst"}, {"split": "validation", "path": "validation-*.jsonl.zst"}],
            }
        ],
    }
    other = stats()
    other["provenance"] = [{"source": name, "license": name} for name in ("CC BY-SA 4.0", "PSF-2.0", "not stated", "mit\n---\nx: 'y")]
    other["rows"] = {"train": 2_500_000, "validation": 0}
    header = yaml.safe_load(data_card(other).split("\n---\n")[0])
    assert header["license"] == ["cc-by-sa-4.0", "other", "unknown"]
    assert header["license_name"].startswith("PSF-2.0, mit")
    assert header["size_categories"] == ["1M<n<10M"]


def test_the_markdown_tells_rules_thresholds_and_counts() -> None:
    markdown = data_card(stats())
    assert "| `gopher_stop_words` | different words of stop\\_words (Gopher) | at least 2 | 120 | 12.0\u00a0% | 130 |" in markdown
    assert "| `gopher_minimum_words` | words that are no symbols (Gopher) | at least 40 (published: 50) | 0 | 0.0\u00a0% | 2 |" in markdown
    assert "| `own plain` |  |  | 5 | 0.5\u00a0% | 6 |" in markdown
    assert "| `other plain.txt` | 0 | 0.0\u00a0% |" in markdown
    assert "`c4_sentences`" not in markdown.partition("## Settings")[0]


def test_no_document_text_and_no_markup_gets_into_the_markdown() -> None:
    plain, evil = tokens(data_card(stats())), tokens(data_card(stats(EVIL)))
    kinds = lambda found: [token.type for token in found if token.type not in {"text", "softbreak", "text_special"}]  # noqa: E731
    assert kinds(evil) == kinds(plain)
    assert not {"html_inline", "html_block", "link_open", "image", "strong_open"} & set(kinds(evil))
    assert not re.search("[\x00-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", data_card(stats(EVIL)))
    assert "How many apples" not in data_card(stats())
