"""Bits per byte on files: each as it lies, under a name that tells it from the others, and nothing that is no text."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from fledge.core.errors import DataError
from fledge.evaluation import text_files
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score
from fledge.evaluation.text_files import find_text_files, text_file_scores
from fledge.model.llama import Llama

from .conftest import Corpus


def scores(model: Llama, corpus: Corpus, *given: Path, **values: int) -> list[Score]:
    files = find_text_files([str(path) for path in given])
    return text_file_scores(model, corpus.tokenizer, files, EvaluateSettings(**values), isolate_documents=True)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return path


def test_a_uniform_model_pays_the_same_for_every_token(corpus: Corpus, uniform_model: Llama, tmp_path: Path) -> None:
    text = "\n\n".join(document.text for document in corpus.documents[:5])
    [score] = scores(uniform_model, corpus, written(tmp_path / "a.txt", text))
    tokens = len(corpus.tokenizer.encode(text)) + 1  # and the end of the text
    bits = tokens * math.log2(uniform_model.config.vocabulary_size)
    assert score.value == pytest.approx(bits / len(text.encode()), rel=1e-6)
    assert (score.name, score.n, score.unit) == ("bits_per_byte/a.txt", 1, "bits_per_byte")
    assert "pieces of at most 8,000 characters" in score.note


def test_what_was_learned_costs_less_than_what_was_not(corpus: Corpus, trained_model: Llama, random_model: Llama, tmp_path: Path) -> None:
    known = written(tmp_path / "known.txt", corpus.documents[3].text)
    strange = written(tmp_path / "strange.md", corpus.documents[3].text[::-1])
    learned = scores(trained_model, corpus, known, strange)
    assert [score.name for score in learned] == ["bits_per_byte/known.txt", "bits_per_byte/strange.md"]
    assert learned[0].value < 0.3 * scores(random_model, corpus, known)[0].value
    assert learned[0].value < 0.3 * learned[1].value


def test_a_long_file_is_measured_in_pieces(corpus: Corpus, uniform_model: Llama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are what the interval is made of."""
    monkeypatch.setattr(text_files, "DOCUMENT_CHARACTERS", 400)
    path = written(tmp_path / "a.txt", "\n\n".join(document.text for document in corpus.documents))
    [score] = scores(uniform_model, corpus, path)
    assert score.n > 10
    assert score.low is not None and score.high is not None and score.low < score.value < score.high
    [start] = scores(uniform_model, corpus, path, maximum_text_bytes=1_000)
    assert 1 < start.n < score.n


def test_line_ends_and_a_mark_at_the_beginning_do_not_count(corpus: Corpus, random_model: Llama, tmp_path: Path) -> None:
    text = corpus.documents[0].text
    plain, windows = written(tmp_path / "a.txt", text), written(tmp_path / "b.txt", "\ufeff" + text.replace("\n", "\r\n"))
    one, other = scores(random_model, corpus, plain, windows)
    assert one.value == other.value


def test_files_of_the_same_name_are_told_apart(corpus: Corpus, uniform_model: Llama, tmp_path: Path) -> None:
    for folder in ("news", "law"):
        written(tmp_path / folder / "test.txt", f"Text about {folder}.")
    found = scores(uniform_model, corpus, tmp_path / "law", tmp_path / "news" / "*.txt", tmp_path / "law" / "test.txt")
    assert [score.name for score in found] == ["bits_per_byte/law/test.txt", "bits_per_byte/news/test.txt"]


@pytest.mark.parametrize("name", ["questions.jsonl", "table.parquet", "words.json", "text.txt.gz"])
def test_what_is_no_text_is_refused(tmp_path: Path, name: str) -> None:
    path = written(tmp_path / name, json.dumps({"question": "What is it?"}))
    with pytest.raises(DataError) as caught:
        find_text_files([str(path)])
    assert name in str(caught.value)


def test_no_files_no_scores(corpus: Corpus, uniform_model: Llama, tmp_path: Path) -> None:
    assert scores(uniform_model, corpus) == []
    with pytest.raises(DataError, match="there is no"):
        find_text_files([str(tmp_path / "nowhere.txt")])


def test_files_without_text_are_named(corpus: Corpus, uniform_model: Llama, tmp_path: Path) -> None:
    blank = written(tmp_path / "blank.txt", " \n\n ")
    with pytest.raises(DataError, match=r"blank\.txt holds no text to measure"):
        scores(uniform_model, corpus, blank)
    (tmp_path / "latin.txt").write_bytes("Gr\u00fc\u00dfe".encode("latin-1"))
    with pytest.raises(DataError, match=r"latin\.txt is not UTF-8 text \(byte 2\)"):
        scores(uniform_model, corpus, tmp_path / "latin.txt")
    gone = written(tmp_path / "gone.txt", "x")
    files = find_text_files([str(gone)])
    gone.unlink()
    with pytest.raises(DataError, match=r"gone\.txt cannot be read"):
        text_file_scores(uniform_model, corpus.tokenizer, files, EvaluateSettings(), isolate_documents=True)
