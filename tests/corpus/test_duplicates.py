from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.corpus import duplicates
from fledge.corpus.batches import batches_of
from fledge.corpus.clean import CHARACTERS, EXACT, CleanUnit, Steps
from fledge.corpus.dedup.settings import DeduplicateSettings
from fledge.corpus.document import Document
from fledge.corpus.duplicates import ClusterUnit, EdgeUnit, edge_units, iter_rows, row_count, samples
from fledge.corpus.engine.units import Done, WorkFolder
from fledge.corpus.filters.settings import QualitySettings
from fledge.corpus.limits import Limits
from fledge.corpus.sources.piece import InputFile, Piece
from fledge.corpus.sources.settings import JsonLinesSource
from fledge.corpus.split import Splitter

from .corpus_assembly import near_copy, texts, write_lines

Keep = Literal["first", "longest", "all"]


@pytest.fixture
def work(tmp_path: Path) -> WorkFolder:
    return WorkFolder(tmp_path / "work")


def cleaned(work: WorkFolder, *pieces: Sequence[str], deduplicate: DeduplicateSettings, seed: int = 0) -> tuple[Done, ...]:
    """One clean unit for each list of texts."""
    steps = Steps((), QualitySettings(), deduplicate, (), 13, Splitter(0.5, seed))
    done = []
    for number, piece in enumerate(pieces):
        path = write_lines(work.folder.parent / f"{number}.jsonl", piece)
        file = InputFile(str(path), path.name, path.stat().st_size, "")
        unit = CleanUnit(JsonLinesSource(name=f"s{number}", path="x"), f"{number}", Piece((file,)), Limits(), steps)
        done.append(work.make(unit))
    return tuple(done)


def clustered(
    work: WorkFolder, clean: tuple[Done, ...], deduplicate: DeduplicateSettings, keep: Keep = "first", fraction: float = 0.0
) -> tuple[Done, dict[str, Any]]:
    """The result of phases 2 and 3, and its arrays."""
    edges = tuple(work.make(unit) for unit in edge_units(clean, deduplicate))
    done = work.make(ClusterUnit(clean, edges, keep, fraction))
    return done, {path.stem: np.load(path) for path in done.folder.glob("*.npy")}


NEAR, EXACT_ONLY, NONE = (DeduplicateSettings(kind=kind) for kind in ("near", "exact", "none"))  # type: ignore[arg-type]
A, B, C, D = texts(4, seed=9, words=60)


# ---- which rows are the same


@pytest.mark.parametrize(
    ("deduplicate", "expected"), [(NEAR, [0, 1, 0, 0, 4, 1, 0]), (EXACT_ONLY, [0, 1, 2, 0, 4, 1, 2]), (NONE, [0, 1, 2, 0, 4, 1, 2])]
)
def test_rows_with_equal_keys_become_clusters_over_all_units(
    work: WorkFolder, deduplicate: DeduplicateSettings, expected: list[int]
) -> None:
    clean = cleaned(work, [A, B, near_copy(A)], [A.upper(), C, B], [near_copy(A)], deduplicate=deduplicate)
    _, arrays = clustered(work, clean, deduplicate)
    assert arrays["first"].tolist() == expected


def test_any_number_of_parts_finds_the_same(work: WorkFolder) -> None:
    pieces = [[*texts(40), near_copy(A)], [*texts(30, seed=2), *texts(40)], [A, B, near_copy(B)]]
    clean = cleaned(work, *pieces, deduplicate=NEAR)
    expected = clustered(work, clean, NEAR)[1]["first"].tolist()
    assert len(set(expected)) == 40 + 30 + 2
    for parts in (2, 3):
        edges = [work.make(EdgeUnit(clean, band, part, parts)) for band in (None, *range(NEAR.bands)) for part in range(parts)]
        found = work.make(ClusterUnit(clean, tuple(edges), "first", 0.0))
        assert np.load(found.folder / duplicates.FIRST).tolist() == expected


def test_little_memory_means_many_parts(work: WorkFolder) -> None:
    clean = tuple(replace(done, counts={"kept": {"documents": 100_000}}) for done in cleaned(work, [A], deduplicate=NEAR))
    units = edge_units(clean, replace(NEAR, memory_bytes=1 << 20))
    parts = {unit.parts for unit in units if isinstance(unit, EdgeUnit)}
    assert len(parts) == 1 and len(units) == 15 * parts.pop()
    assert len({unit.key for unit in units}) == len(units)
    assert len(edge_units(clean, NEAR)) == 15
    assert len(edge_units(clean, EXACT_ONLY)) == len(edge_units(clean, NONE)) == 1


def test_half_a_hash_in_common_is_no_duplicate(work: WorkFolder) -> None:
    clean = cleaned(work, [A, B, B], [B, C, D], deduplicate=EXACT_ONLY)
    for done in clean:
        exact = np.load(done.folder / EXACT)
        exact[:, 0] = 7
        np.save(done.folder / EXACT, exact)
    _, arrays = clustered(work, clean, EXACT_ONLY)
    assert arrays["first"].tolist() == [0, 1, 1, 1, 4, 5]


def test_keys_follow_the_results_before_them(work: WorkFolder) -> None:
    clean = cleaned(work, [A], [B], deduplicate=NEAR)
    unit = EdgeUnit(clean, 0, 0, 1)
    other = replace(clean[1], id="other")
    different = [EdgeUnit(clean, None, 0, 1), EdgeUnit(clean, 1, 0, 1), EdgeUnit(clean, 0, 1, 2), EdgeUnit((clean[0], other), 0, 0, 1)]
    different.append(EdgeUnit(clean[::-1], 0, 0, 1))
    assert len({unit.key, *(one.key for one in different)}) == 6
    assert replace(unit, clean=(replace(clean[0], folder=Path("elsewhere")), clean[1])).key == unit.key
    assert pickle.loads(pickle.dumps(unit)).key == unit.key
    edges = (work.make(unit),)
    clusters = ClusterUnit(clean, edges, "first", 0.1)
    others = [replace(clusters, keep="longest"), replace(clusters, validation_fraction=0.2), replace(clusters, edges=())]
    assert len({clusters.key, *(one.key for one in others)}) == 4
    assert [unit.label, different[0].label, clusters.label] == [
        "duplicates, band 0, part 1 of 1",
        "duplicates, exact, part 1 of 1",
        "clusters of duplicates",
    ]


# ---- which row stays


@pytest.mark.parametrize(("keep", "expected"), [("first", [1, 1, 0, 0, 0]), ("longest", [0, 1, 0, 1, 0]), ("all", [1, 1, 1, 1, 1])])
def test_one_row_of_a_cluster_stays(work: WorkFolder, keep: Keep, expected: list[int]) -> None:
    longer = f"{A} And more."
    clean = cleaned(work, [A, B, near_copy(A)], [longer, A], deduplicate=NEAR)
    done, arrays = clustered(work, clean, NEAR, keep)
    assert arrays["first"].tolist() == [0, 1, 0, 0, 0]
    assert arrays["keep"].astype(int).tolist() == expected
    exact, near = {"first": (1, 2), "longest": (0, 3), "all": (0, 0)}[keep]
    assert (done.counts["exact"], done.counts["near"], done.counts["clusters"], done.counts["largest"]) == (exact, near, 1, 4)
    assert done.counts["sizes"] == {"3-4": 1}
    assert (done.counts["rows"], done.counts["kept"]) == (5, {"documents": sum(expected)})


def test_sizes_of_clusters_are_counted_in_ranges(work: WorkFolder) -> None:
    given = [text for text, copies in zip(texts(6), (1, 2, 2, 3, 6, 12), strict=True) for _ in range(copies)]
    done, _ = clustered(work, cleaned(work, given, deduplicate=EXACT_ONLY), EXACT_ONLY)
    assert done.counts["sizes"] == {"2": 2, "3-4": 1, "5-9": 1, "10-99": 1}
    assert (done.counts["clusters"], done.counts["largest"], done.counts["exact"], done.counts["near"]) == (5, 12, 20, 0)


def test_no_rows_no_clusters(work: WorkFolder) -> None:
    done, arrays = clustered(work, cleaned(work, [], deduplicate=NEAR), NEAR, fraction=0.5)
    assert [array.size for array in arrays.values()] == [0] * 4
    assert (done.counts["largest"], done.counts["clusters"], done.counts["sizes"]) == (1, 0, {})


# ---- which side it lies on


@pytest.mark.parametrize("keep", ["first", "longest", "all"])
def test_a_cluster_lies_on_one_side(work: WorkFolder, keep: Keep) -> None:
    originals = texts(60, words=40)
    pieces = [originals[:40], [*originals[30:], *map(near_copy, originals[::2])], [text.upper() for text in originals[::3]]]
    done, arrays = clustered(work, cleaned(work, *pieces, deduplicate=NEAR), NEAR, keep, fraction=0.5)
    assert done.counts["clusters"] >= 40
    sides: dict[int, set[bool]] = {}
    for first, held_out in zip(arrays["first"].tolist(), arrays["side"].tolist(), strict=True):
        sides.setdefault(first, set()).add(held_out)
    assert all(len(found) == 1 for found in sides.values())
    assert {True, False} == set(itertools.chain(*sides.values()))
    assert (arrays["groups"] == arrays["groups"][arrays["first"]]).all()


def test_exact_duplicates_lie_on_one_side_though_all_are_kept(work: WorkFolder) -> None:
    given = texts(40)
    _, arrays = clustered(work, cleaned(work, given, given, deduplicate=NONE), NONE, "all", fraction=0.5)
    assert arrays["keep"].all()
    assert arrays["side"][:40].tolist() == arrays["side"][40:].tolist()
    assert 5 < arrays["side"][:40].sum() < 35


def test_a_row_added_moves_no_other(work: WorkFolder) -> None:
    given = texts(50)
    few = clustered(work, cleaned(work, given[:30], deduplicate=NEAR), NEAR, fraction=0.3)[1]["side"]
    more = clustered(
        WorkFolder(work.folder / "more"), cleaned(WorkFolder(work.folder / "more"), given, deduplicate=NEAR), NEAR, fraction=0.3
    )
    assert more[1]["side"][:30].tolist() == few.tolist()


def test_a_larger_share_keeps_what_was_held_out(work: WorkFolder) -> None:
    clean = cleaned(work, texts(60), deduplicate=EXACT_ONLY)
    less, more = (clustered(work, clean, EXACT_ONLY, fraction=fraction)[1]["side"] for fraction in (0.2, 0.4))
    assert less.sum() < more.sum() < 60
    assert more[less].all()


def test_the_last_group_is_not_held_out(work: WorkFolder) -> None:
    clean = cleaned(work, [A, near_copy(A), B], deduplicate=NEAR)
    _, arrays = clustered(work, clean, NEAR, fraction=0.999_999)
    assert (arrays["keep"] & ~arrays["side"]).sum() == 1
    assert (arrays["keep"] & arrays["side"]).sum() == 1


def named(work: WorkFolder, documents: Sequence[Document], deduplicate: DeduplicateSettings, monkeypatch: pytest.MonkeyPatch) -> Done:
    """A clean unit of a source that names groups."""
    steps = Steps((), QualitySettings(), deduplicate, (), 13, Splitter(0.5, 0))
    with monkeypatch.context() as patch:
        patch.setattr("fledge.corpus.clean.read_batches", lambda *given: batches_of(documents))
        return work.make(CleanUnit(JsonLinesSource(name="named", path="x"), "named", Piece(), Limits(), steps))


def test_named_groups_stay_together_and_take_their_duplicates_along(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    given = texts(40)
    documents = [Document(text, f"d{number}", "named", f"group {number // 2}") for number, text in enumerate(given)]
    plain = cleaned(work, given[::2], deduplicate=NONE)
    clean = (*plain, named(work, documents, NONE, monkeypatch))
    _, arrays = clustered(work, clean, NONE, "all", fraction=0.5)
    sides = arrays["side"].tolist()
    assert sides[20::2] == sides[21::2], "of one group"
    assert sides[:20] == sides[20::2], "the same text, with and without a named group"
    assert set(sides) == {True, False}


# ---- what is shown


def test_samples_show_the_largest_clusters_and_others(work: WorkFolder) -> None:
    originals = texts(30, words=60)
    pieces = [originals, [near_copy(text) for text in originals], [near_copy(A, number) for number in range(5)], [originals[7].upper()]]
    clean = cleaned(work, *pieces, deduplicate=NEAR)
    done, _ = clustered(work, clean, NEAR)
    shown = samples(clean, done, NEAR.shingle_words)
    assert len(shown) == 12
    assert shown[0]["cluster"] == 5 and shown[1]["cluster"] == 3
    assert all(pair["kept"]["text"] != pair["dropped"]["text"] for pair in shown)
    assert all(0.8 < pair["similarity"] < 1 and not pair["exact"] for pair in shown if pair["cluster"] == 2)
    assert samples(clean, done, NEAR.shingle_words) == shown
    alone = cleaned(WorkFolder(work.folder / "alone"), [A, B], deduplicate=NEAR)
    assert samples(alone, clustered(work, alone, NEAR)[0], 5) == []
    same = cleaned(WorkFolder(work.folder / "same"), [A, B], [B.upper()], deduplicate=EXACT_ONLY)
    [pair] = samples(same, clustered(work, same, EXACT_ONLY)[0], 5)
    assert (pair["exact"], pair["similarity"], pair["kept"]["id"], pair["dropped"]["id"]) == (
        True,
        1.0,
        f"s0:0.jsonl:{len(A) + 13}",
        "s1:1.jsonl:0",
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Done:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fledge.corpus.clean._RECORD_ROWS", 4)
        patch.setattr("fledge.corpus.batches.BATCH_DOCUMENTS", 10)
        return cleaned(WorkFolder(tmp_path_factory.mktemp("stored") / "work"), texts(33), deduplicate=EXACT_ONLY)[0]


@given(start=st.integers(0, 32), length=st.integers(1, 33))
def test_a_stretch_of_rows_is_read_as_it_was_written(stored: Done, start: int, length: int) -> None:
    assert row_count(stored) == 33
    end = min(33, start + length)
    found = [text for batch in iter_rows(stored, start, end) for text in batch["text"].to_pylist()]
    assert found == texts(33)[start:end]
    assert [len(text) for text in found] == np.load(stored.folder / CHARACTERS)[start:end].tolist()
