"""Sides by content, shuffling in blocks, and token budgets."""

from __future__ import annotations

import random

import numpy as np
import pytest

from fledge.corpus.document import Document, Split
from fledge.tokens import sides
from fledge.tokens.sides import Budgets, shuffled_in_blocks, sides_by_content


def documents(count: int) -> list[Document]:
    return [Document(f"text number {number}", f"id-{number}", "books", f"group-{number}") for number in range(count)]


def test_a_side_is_a_function_of_the_text_and_the_seed() -> None:
    given = documents(2_000)
    sided = {document.text: split for split, document in sides_by_content(given, 0.1, seed=3)}
    renamed = [Document(one.text, f"other-{one.id}", "web", "g") for one in random.Random(0).sample(given, 500)]
    assert all(sided[document.text] == split for split, document in sides_by_content(renamed, 0.1, seed=3))
    other = {document.text: split for split, document in sides_by_content(given, 0.1, seed=4)}
    assert sided != other
    assert 140 < sum(split == "validation" for split in sided.values()) < 260


def test_copies_of_a_text_lie_on_one_side() -> None:
    twice = documents(300) + documents(300)
    found = [split for split, _ in sides_by_content(twice, 0.5, seed=0)]
    assert found[:300] == found[300:]


def sided(count: int) -> list[tuple[Split, Document]]:
    return [("train", document) for document in documents(count)]


def test_shuffling_moves_documents_within_their_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "SHUFFLE_BLOCK_DOCUMENTS", 100)
    given = sided(250)
    found = list(shuffled_in_blocks(iter(given), seed=1))
    for block in (slice(0, 100), slice(100, 200), slice(200, 250)):
        assert found[block] != given[block]
        assert sorted(one.id for _, one in found[block]) == sorted(one.id for _, one in given[block])
    assert found == list(shuffled_in_blocks(given, seed=1)) != list(shuffled_in_blocks(given, seed=2))


def test_long_documents_make_smaller_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides, "SHUFFLE_BLOCK_CHARACTERS", 150)
    given = sided(40)
    found = [document.id for _, document in shuffled_in_blocks(given, seed=0)]
    first = next(count for count in range(1, 40) if sum(len(one.text) for _, one in given[:count]) >= 150)
    assert sorted(found[:first]) == sorted(document.id for _, document in given[:first])
    assert list(shuffled_in_blocks([], seed=0)) == []


def test_a_budget_takes_up_to_the_document_that_fills_it() -> None:
    budgets = Budgets({"train": 100, "validation": 10}, {"books": 1, "web": 1})
    assert budgets.left("train", "books") == 50
    assert budgets.take("train", "books", np.array([20, 20])) == 2
    assert budgets.take("train", "books", np.array([9, 5, 1])) == 2
    assert budgets.left("train", "books") == 0 and budgets.take("train", "books", np.array([1])) == 0
    assert not budgets.spent
    for split, source in (("train", "web"), ("validation", "books"), ("validation", "web")):
        budgets.take(split, source, np.array([60]))
    assert budgets.spent


def test_a_budget_that_the_corpus_cannot_fill_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    budgets = Budgets({"train": 1_000, "validation": 100}, {"books": 1})
    budgets.warn_of_gaps({"train": 995, "validation": 100})
    assert capsys.readouterr().err == ""
    budgets.warn_of_gaps({"train": 400, "validation": 100})
    assert "400 of the 1,000 train tokens asked for (pack.split.train_tokens)" in capsys.readouterr().err
