from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.core.errors import DataError
from fledge.corpus.filters.contamination import Contamination, find_evaluation_files

WORDS = [f"w{number}" for number in range(1_000)]
QUESTION = "Which of the old bridges over the river was built first, and by whom was it paid for?"
HALF = "The mitochondrion is the powerhouse of a cell."


@pytest.fixture
def contamination(tmp_path: Path) -> Callable[..., Contamination]:
    """From text files of the given contents, in their order."""

    def make(*contents: str, shingle_words: int = 13) -> Contamination:
        for index, content in enumerate(contents):
            (tmp_path / f"{index}.txt").write_text(content, encoding="utf-8")
        return Contamination(find_evaluation_files([tmp_path / f"{index}.txt" for index in range(len(contents))]), shingle_words)

    return make


def found(contamination: Contamination, *texts: str) -> list[int]:
    return contamination(pa.array(texts, pa.large_string())).tolist()


def text(first: int, last: int) -> str:
    return " ".join(WORDS[first:last])


def test_thirteen_words_in_a_row_and_not_twelve(contamination: Callable[..., Contamination]) -> None:
    finds = contamination(text(0, 40))
    assert found(finds, text(0, 13), text(27, 40), text(14, 27)) == [0, 0, 0]
    assert found(finds, text(0, 12), text(28, 40), f"{text(0, 12)} x {text(12, 24)}", "") == [-1, -1, -1, -1]
    assert found(finds, f"x y {text(5, 18)} z", f"{text(500, 900)} {text(3, 16)}") == [0, 0]


def test_eight_to_twelve_words_count_as_a_whole(contamination: Callable[..., Contamination]) -> None:
    finds = contamination(text(0, 12), text(20, 28), text(40, 47), text(60, 72) + " end")
    assert found(finds, f"x {text(0, 12)} y", f"x {text(20, 28)} y") == [0, 1]
    assert found(finds, text(0, 11), text(1, 12), text(20, 27)) == [-1, -1, -1]
    assert found(finds, text(40, 47), text(60, 72)) == [-1, -1]
    assert finds.run_counts == {"0.txt": 1, "1.txt": 1, "2.txt": 0, "3.txt": 1}


def test_case_punctuation_and_layout_do_not_count(contamination: Callable[..., Contamination]) -> None:
    finds = contamination(QUESTION)
    assert found(finds, QUESTION.upper(), QUESTION.replace(" ", "\n\n— "), f"Q: “{QUESTION.lower().strip('?')}” A:") == [0, 0, 0]
    assert found(finds, QUESTION.replace("river", "valley"), QUESTION[15:], QUESTION[:60]) == [-1, 0, -1]


def test_lines_of_a_text_file_are_running_text(contamination: Callable[..., Contamination]) -> None:
    assert found(contamination(text(0, 7) + "\n" + text(7, 14)), text(0, 13)) == [0]


def test_a_run_never_reaches_into_the_next_string(tmp_path: Path) -> None:
    rows = [{"question": text(0, 10), "answer": text(10, 20)}, {"question": text(20, 33)}]
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    finds = Contamination(find_evaluation_files([tmp_path]), 13)
    assert found(finds, text(4, 17), text(12, 25), text(0, 10), text(10, 20), text(20, 33)) == [-1, -1, 0, 0, 0]


def test_unspaced_scripts_by_characters(contamination: Callable[..., Contamination]) -> None:
    question = "下列哪一座古桥最早建成是由谁出资修建的"
    finds = contamination(question)
    assert found(finds, f"问: {question[3:16]}。", question[3:15], question[::-1]) == [0, -1, -1]
    assert found(finds, "、".join(question), question.replace("桥", "塔")) == [0, -1]


def test_both_forms_of_accents_are_found(contamination: Callable[..., Contamination]) -> None:
    decomposed = "le cafe\u0301 de la gare e\u0301tait ferme\u0301 ce jour la"
    composed = "le café de la gare était fermé ce jour la"
    assert found(contamination(decomposed), decomposed, composed) == [0, 0]
    assert found(contamination(composed), decomposed, composed) == [-1, 0]


def test_the_first_of_several_files_is_named(contamination: Callable[..., Contamination]) -> None:
    finds = contamination(text(0, 20), text(7, 40), text(30, 60))
    assert found(finds, text(27, 60), text(5, 25), f"{text(40, 60)} {text(0, 13)}", text(7, 20)) == [1, 0, 0, 0]


@pytest.mark.parametrize(("shingle_words", "shared_words", "expected"), [(3, 3, 0), (3, 2, -1), (20, 20, 0), (20, 19, -1), (1, 1, 0)])
def test_other_lengths(contamination: Callable[..., Contamination], shingle_words: int, shared_words: int, expected: int) -> None:
    finds = contamination(text(0, 40), shingle_words=shingle_words)
    assert found(finds, f"x {text(9, 9 + shared_words)} y") == [expected]


def test_the_shortest_whole_text_of_short_runs(contamination: Callable[..., Contamination]) -> None:
    assert found(contamination(text(0, 3), shingle_words=3), text(0, 3), text(0, 2)) == [0, -1]
    assert found(contamination(text(0, 2), shingle_words=3), text(0, 2)) == [-1]


@given(st.data())
def test_agrees_with_plain_python(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    texts = st.lists(st.lists(st.sampled_from("abc"), max_size=24), max_size=4)
    files, documents = data.draw(texts), data.draw(texts)
    folder = tmp_path_factory.mktemp("files")
    for index, words in enumerate(files):
        (folder / f"{index}.txt").write_text(" ".join(words), encoding="utf-8")
    finds = Contamination(find_evaluation_files([folder] if files else []), 13)

    def runs(words: list[str], lengths: range) -> set[str]:
        return {" ".join(words[start : start + length]) for length in lengths for start in range(len(words) - length + 1)}

    expected = []
    for document in documents:
        held = runs(document, range(8, 14))
        shared = [
            index
            for index, words in enumerate(files)
            if len(words) >= 8 and held & runs(words, range(min(13, len(words)), min(13, len(words)) + 1))
        ]
        expected.append(min(shared, default=-1))
    assert found(finds, *map(" ".join, documents)) == expected


def test_many_runs_are_found_and_others_are_not(contamination: Callable[..., Contamination]) -> None:
    random = Random(0)
    held = [" ".join(random.choices(WORDS, k=300)) for _ in range(200)]
    others = [" ".join(random.choices(WORDS, k=300)) for _ in range(500)]
    finds = contamination("\n".join(held), " ".join(held[:3]))
    assert finds.run_counts == {"0.txt": 200 * 300 - 12, "1.txt": 3 * 300 - 12}
    cut = [" ".join(one.split()[random.randrange(250) :][:20]) for one in held]
    assert found(finds, *held, *cut, *others) == [0] * 400 + [-1] * 500


def test_pickled_sliced_and_empty(contamination: Callable[..., Contamination]) -> None:
    finds = contamination(text(0, 30))
    copy = pickle.loads(pickle.dumps(finds))
    texts = pa.array([text(0, 13), text(1, 13), text(2, 20)], pa.large_string())
    assert copy(texts).tolist() == finds(texts).tolist() == [0, -1, 0]
    assert finds(texts[1:]).tolist() == [-1, 0]
    assert finds(texts[:0]).tolist() == []
    assert Contamination((), 13)(texts).tolist() == [-1, -1, -1]


def test_identity_follows_names_contents_and_length(contamination: Callable[..., Contamination]) -> None:
    one = contamination(QUESTION, HALF).identity
    assert json.loads(json.dumps(one)) == one == contamination(QUESTION, HALF).identity
    assert [name for name, _ in one["files"]] == ["0.txt", "1.txt"]
    assert one != contamination(QUESTION, HALF, shingle_words=12).identity
    assert one != contamination(QUESTION, QUESTION).identity


def test_a_file_that_changed_since_it_was_found(tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text(QUESTION, encoding="utf-8")
    files = find_evaluation_files([path])
    path.write_text(HALF, encoding="utf-8")
    with pytest.raises(DataError, match="has changed"):
        Contamination(files, 13)
