from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import TypeVar

import pytest

from fledge.core.errors import DataError
from fledge.corpus.document import Row
from fledge.corpus.sources.damage import DAMAGES
from fledge.corpus.sources.near_duplicates import SIMILARITY, normalised, shingles
from fledge.corpus.sources.python_docs import (
    Entry,
    conversations,
    documents,
    preferences,
    stdlib_entries,
    stdlib_fingerprint,
    stdlib_folder,
)
from fledge.corpus.split import Splitter

AnyRow = TypeVar("AnyRow", bound=Row)

SPLITTER = Splitter(0.08, 0)


def test_documents_start_with_the_name_and_signature(library: Path) -> None:
    by_id = {document.id: document for document in documents("docs", stdlib_entries(library))}
    assert list(by_id) == [
        "docs:alpha",
        "docs:alpha.dedent",
        "docs:alpha.Reader",
        "docs:alpha.Reader.close",
        "docs:alpha.fetch",
        "docs:alpha.fetch#2",
        "docs:package",
        "docs:package.beta.Writer",
        "docs:package.beta.Writer.close",
        "docs:assert",
        "docs:assert#2",
        "docs:assert#3",
        "docs:zeta",
    ]
    dedent = by_id["docs:alpha.dedent"].text
    assert dedent.startswith("alpha.dedent(text, *, width: int=8)\n\nRemove common leading whitespace\nfrom every line.\n\nMore")
    assert by_id["docs:package"].text == "package\n\nA package that holds one module about beta."
    assert by_id["docs:assert#2"].text.startswith("assert\n\nParagraph ")
    assert all(len(document.text) <= 4_020 for document in by_id.values())


def test_conversations_ask_for_the_first_paragraph(library: Path) -> None:
    asked = {row.messages[0].content: row.messages[1].content for row in conversations("q", stdlib_entries(library))}
    assert asked["What does `alpha.dedent` do?"] == "Remove common leading whitespace from every line."
    # The first of two definitions, one of two names with the same answer, no help topics, nothing short.
    assert asked["What does `alpha.fetch` do?"] == "Fetch a page and return the letters on it."
    assert list(asked.values()).count("Close the reader and the stream under it.") == 1
    assert len(asked) == 7


def test_groups_join_near_duplicates_equal_names_and_pieces_of_a_topic(library: Path) -> None:
    groups = {document.id: document.group for document in documents("d", stdlib_entries(library))}
    assert groups["d:alpha.Reader.close"] == groups["d:package.beta.Writer.close"] == "python:alpha.Reader.close"
    assert groups["d:alpha.fetch"] == groups["d:alpha.fetch#2"]
    assert groups["d:assert"] == groups["d:assert#2"] == groups["d:assert#3"]
    assert len(set(groups.values())) == len(groups) - 4


def test_what_is_missing_is_tolerated_as_long_as_something_remains(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "alone.py").write_text('"""The only module there is, with a docstring."""\n')
    assert [entry.name for entry in stdlib_entries(tmp_path / "one")] == ["alone"]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="has no readable docstrings"):
        stdlib_entries(tmp_path / "none")
    with pytest.raises(DataError, match="has no readable docstrings"):
        stdlib_entries(tmp_path / "absent")


def test_the_fingerprint_follows_the_files_read(library: Path) -> None:
    before = stdlib_fingerprint(library)
    assert stdlib_fingerprint(library) == before
    (library / "test" / "test_alpha.py").write_text("# skipped")
    assert stdlib_fingerprint(library) == before
    (library / "alpha.py").write_text('"""Another text in the same place."""')
    assert stdlib_fingerprint(library) != before


def test_a_lone_entry_never_runs_on() -> None:
    lone = [Entry("a", "a", "The one and only answer.", "The one and only answer.", "python:a")]
    damages = {pair.damage for seed in range(40) for pair in preferences("p", lone, Splitter(0.0, seed))}
    assert damages == {"cut", "repeat"}


@pytest.fixture(scope="module")
def entries() -> tuple[Entry, ...]:
    return stdlib_entries(stdlib_folder())


def sides(rows: list[AnyRow]) -> tuple[list[AnyRow], list[AnyRow]]:
    """Train and validation."""
    held = [row for row in rows if SPLITTER.side(row.group) == "validation"]
    return [row for row in rows if SPLITTER.side(row.group) == "train"], held


def test_the_library_is_large_enough_and_so_is_what_is_held_out(entries: tuple[Entry, ...]) -> None:
    texts = list(documents("d", entries))
    assert len(texts) > 6_000 and sum(len(document.text) for document in texts) > 1_800_000
    assert len(sides(texts)[1]) >= 450
    asked = list(conversations("q", entries))
    assert len(asked) > 5_500 and len(sides(asked)[1]) >= 400
    assert len({document.id for document in texts}) == len(texts)


def test_no_cluster_is_so_large_that_it_decides_a_side(entries: tuple[Entry, ...]) -> None:
    largest = Counter(entry.group for entry in entries).most_common(1)[0][1]
    assert largest < 0.01 * len(entries)


def test_no_held_out_document_has_a_near_duplicate_in_train(entries: tuple[Entry, ...]) -> None:
    train, held = sides(list(documents("d", entries)))
    sets = [shingles(document.text) for document in train]
    holders: defaultdict[str, list[int]] = defaultdict(list)
    for index, members in enumerate(sets):
        for shingle in members:
            holders[shingle].append(index)
    for document in held:
        members = shingles(document.text)
        shared = Counter(index for shingle in members for index in holders.get(shingle, ()))
        for index, common in shared.items():
            assert common / (len(members) + len(sets[index]) - common) < SIMILARITY, (document.id, train[index].id)


def test_no_held_out_name_or_answer_is_asked_in_train(entries: tuple[Entry, ...]) -> None:
    train, held = sides(list(conversations("q", entries)))
    for position in (0, 1):
        seen = {normalised(row.messages[position].content) for row in train}
        assert not seen & {normalised(row.messages[position].content) for row in held}


def test_a_name_lies_on_the_same_side_in_every_content(entries: tuple[Entry, ...]) -> None:
    found: defaultdict[str, set[str]] = defaultdict(set)
    rows: list[Row] = [*documents("x", entries), *conversations("x", entries), *preferences("x", entries, SPLITTER)]
    for row in rows:
        found[row.id.partition("#")[0]].add(SPLITTER.side(row.group))
    assert all(len(names) == 1 for names in found.values())


def test_pairs_are_damaged_each_way_about_equally_often_within_their_side(entries: tuple[Entry, ...]) -> None:
    pairs = list(preferences("p", entries, SPLITTER))
    answers = {row.id.partition(":")[2]: row.messages[1].content for row in conversations("q", entries)}
    assert {pair.id.partition(":")[2]: pair.chosen for pair in pairs} == answers
    assert all(pair.rejected != pair.chosen for pair in pairs)
    for side in sides(pairs):
        counts = Counter(pair.damage for pair in side)
        assert set(counts) == set(DAMAGES) and min(counts.values()) > 0.8 * len(side) / 3
        own = {pair.chosen for pair in side}
        run_on = [pair for pair in side if pair.damage == "run_on"]
        assert all(pair.rejected.removeprefix(f"{pair.chosen} ") in own for pair in run_on)
    assert pairs == list(preferences("p", entries, SPLITTER))
