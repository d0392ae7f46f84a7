"""Named benchmarks and one's own: rows, questions, scores, and what is said of rows that are none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fledge.core.errors import ConfigError, DataError
from fledge.evaluation.benchmarks.definitions import wikitext_pages
from fledge.evaluation.benchmarks.places import find_benchmark, read_rows
from fledge.evaluation.benchmarks.run import BenchmarkResult, draw, run_benchmark
from fledge.evaluation.benchmarks.templates import BadRow, fields_of, text_of, texts_of
from fledge.evaluation.score_words import score_title
from fledge.model.llama import Llama

from .benchmark_rows import PAGE, ROWS, write_rows
from .conftest import Corpus

RIDDLE = """kind: multiple_choice
file: riddles.jsonl
context: "Riddle: {riddle}\\nAnswer:"
choices: ["{first}", "{second}"]
answer: "{right}"
"""


def known_words(corpus: Corpus, count: int = 24) -> list[dict[str, str]]:
    """Beginnings of what was learned by heart, up to a word that follows from what is before."""
    return [{"text": " ".join(document.text.split(" ")[:6])} for document in corpus.documents[:count]]


def score(result: BenchmarkResult, metric: str) -> Any:
    return next(one for one in result.scores if one.name == f"{result.name}/{metric}")


def test_a_model_that_knows_the_words_is_always_right_and_another_never(
    corpus: Corpus, trained_model: Llama, uniform_model: Llama, tmp_path: Path
) -> None:
    placed = find_benchmark("lambada", write_rows(tmp_path / "rows.jsonl", known_words(corpus)))
    right, wrong = (run_benchmark(model, corpus.tokenizer, placed) for model in (trained_model, uniform_model))
    assert score(right, "acc").value == 1.0 and score(right, "perplexity").value < 2
    assert score(wrong, "acc").value == 0.0
    assert (right.name, score(right, "acc").n) == ("lambada_openai", 24)
    assert len({one.item for one in right.outcomes}) == 24
    assert score_title("lambada_openai/acc") == "LAMBADA (OpenAI's text): acc"


def test_all_tokens_of_a_word_must_be_right(corpus: Corpus, trained_model: Llama, tmp_path: Path) -> None:
    rows = known_words(corpus)
    broken = [{"text": row["text"][:-1] + "q"} for row in rows]
    placed = find_benchmark("lambada_openai", write_rows(tmp_path / "rows.jsonl", broken))
    assert score(run_benchmark(trained_model, corpus.tokenizer, placed), "acc").value == 0.0


@pytest.mark.parametrize("options", [{}, {"batch_tokens": 1}, {"stride_tokens": 7}, {"context_tokens": 16, "stride_tokens": 16}])
def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(
    options: dict[str, int], corpus: Corpus, uniform_model: Llama, tmp_path: Path
) -> None:
    placed = find_benchmark("wikitext", write_rows(tmp_path / "rows.jsonl", ROWS["wikitext"]))
    result = run_benchmark(uniform_model, corpus.tokenizer, placed, **options)  # type: ignore[arg-type]
    perplexity = score(result, "token_perplexity")
    assert perplexity.value == pytest.approx(uniform_model.config.vocabulary_size, rel=1e-5)
    assert "windows of" in perplexity.note
    tokens, text_bytes = (sum(one.weights[metric] for one in result.outcomes) for metric in ("token_perplexity", "bits_per_byte"))
    assert text_bytes == sum(len(row["page"].encode()) for row in ROWS["wikitext"])
    assert score(result, "bits_per_byte").value == pytest.approx(tokens * math.log2(uniform_model.config.vocabulary_size) / text_bytes)


def test_scores_are_sums_over_their_outcomes(corpus: Corpus, random_model: Llama, tmp_path: Path) -> None:
    """So that whoever holds the outcomes of two models can compare them row by row."""
    for name in ("hellaswag", "wikitext", "lambada_openai"):
        result = run_benchmark(random_model, corpus.tokenizer, find_benchmark(name, write_rows(tmp_path / f"{name}.jsonl", ROWS[name])))
        for one in result.scores:
            metric = one.name.partition("/")[2]
            ratio = sum(row.values[metric] for row in result.outcomes) / sum(row.weights[metric] for row in result.outcomes)
            expected = {"share": ratio, "bits_per_byte": ratio / math.log(2)}.get(one.unit) or math.exp(ratio) * (one.unit == "perplexity")
            assert one.value == pytest.approx(expected)
            assert one.low is not None and one.high is not None and one.low - 1e-12 <= one.value <= one.high + 1e-12


def test_baselines_and_the_word_for_it(corpus: Corpus, random_model: Llama, tmp_path: Path) -> None:
    rows = [{**ROWS["boolq"][0], "question": f"is it {place}", "label": int(place % 4 > 0)} for place in range(40)]
    acc = score(run_benchmark(random_model, corpus.tokenizer, find_benchmark("boolq", write_rows(tmp_path / "b.jsonl", rows))), "acc")
    assert (acc.chance, acc.majority, acc.n) == (0.5, 0.75, 40)
    assert "guessing (75 %)" in acc.verdict


def test_the_place_of_the_right_choice_is_no_answer(corpus: Corpus, random_model: Llama, tmp_path: Path) -> None:
    """SciQ's is always the last one, which a model that is always right must not be held against."""
    rows = [{**ROWS["sciq"][0], "question": f"what is {place}"} for place in range(12)]
    for name, given in (("sciq", rows), ("piqa", ROWS["piqa"])):
        result = run_benchmark(random_model, corpus.tokenizer, find_benchmark(name, write_rows(tmp_path / f"{name}.jsonl", given)))
        chance = {"sciq": 0.25, "piqa": 0.5}[name]
        assert [(one.chance, one.majority, one.baseline) for one in result.scores] == [(chance, None, chance)] * 2


def test_samples_are_drawn_alike_and_kept_in_order(corpus: Corpus, uniform_model: Llama, tmp_path: Path) -> None:
    rows = [{**ROWS["boolq"][0], "question": f"is it {place}"} for place in range(70)]
    placed = find_benchmark("boolq", write_rows(tmp_path / "b.jsonl", rows))
    first, again, other = (run_benchmark(uniform_model, corpus.tokenizer, placed, samples="quick", seed=seed) for seed in (1, 1, 2))
    assert first == again and first.outcomes != other.outcomes
    assert score(first, "acc").n == 50 and "50 of 70 rows, drawn with seed 1" in score(first, "acc").note
    numbers = [int(one.item.partition("-")[0]) for one in first.outcomes]
    assert numbers == sorted(numbers)
    assert [len(draw(range(300), samples, 0)) for samples in (7, "standard", "comprehensive", "all", 400)] == [7, 100, 200, 300, 300]  # type: ignore[arg-type]


def test_rows_may_lie_in_parquet_and_in_a_folder(corpus: Corpus, random_model: Llama, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS["arc_easy"]), tmp_path / "arc_easy.parquet")
    write_rows(tmp_path / "rows.jsonl", ROWS["arc_easy"])
    table, lines = (run_benchmark(random_model, corpus.tokenizer, find_benchmark("arc_easy", tmp_path / end)) for end in ("", "rows.jsonl"))
    assert table.scores == lines.scores and table.outcomes == lines.outcomes and table.data_sha256 != lines.data_sha256


def test_pages_are_those_of_the_published_rows() -> None:
    """The dataset's script joins a page's lines: the last page alone keeps the end of its last line."""
    text = " \n = First = \n \n One = 1 = . \n \n = = Section = = \n \n = = = Deeper = = = \n Two . \n \n = Second one = \n \n Three . \n"
    assert wikitext_pages(text) == [
        {"page": " = First = \n \n One = 1 = . \n \n = = Section = = \n \n = = = Deeper = = = \n Two . \n "},
        {"page": " = Second one = \n \n Three . \n"},
    ]
    assert wikitext_pages(" \n") == []


def test_a_text_is_pages_of_wikitext_or_one_text(corpus: Corpus, random_model: Llama, tmp_path: Path) -> None:
    (tmp_path / "pages.txt").write_text(f"{PAGE}{ROWS['wikitext'][2]['page']}", encoding="utf-8")
    write_rows(tmp_path / "pages.jsonl", [{"page": PAGE.removesuffix("\n")}, ROWS["wikitext"][2]])
    text, rows = (
        run_benchmark(random_model, corpus.tokenizer, find_benchmark("wikitext", tmp_path / f"pages.{end}")) for end in ("txt", "jsonl")
    )
    assert text.scores == rows.scores and score(text, "word_perplexity").n == 2
    assert wikitext_pages("no title\n") == [{"page": "no title\n"}]
    whole = run_benchmark(random_model, corpus.tokenizer, find_benchmark("text", tmp_path / "pages.txt"))
    assert score(whole, "token_perplexity").n == 1 and score(whole, "token_perplexity").low is None
    with pytest.raises(DataError, match=r"pages\.txt is a text, but boolq asks"):
        read_rows(find_benchmark("boolq", tmp_path / "pages.txt"))


def without(name: str, field: str) -> dict[str, Any]:
    return {key: value for key, value in ROWS[name][0].items() if key != field}


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("boolq", without("boolq", "passage"), "there is no field passage"),
        ("boolq", {**ROWS["boolq"][0], "label": 2}, "its answer is 2"),
        ("boolq", {**ROWS["boolq"][0], "label": "x"}, "its answer is 'x'"),
        ("hellaswag", {**ROWS["hellaswag"][0], "endings": "one"}, "{endings} is 'one', not a list"),
        ("arc_easy", {**ROWS["arc_easy"][0], "answerKey": "C"}, "its answer is 'C'"),
        ("arc_easy", {**ROWS["arc_easy"][0], "choices": {"text": ["a"], "label": ["B"]}}, "two or more"),
        ("piqa", {**ROWS["piqa"][0], "sol1": ""}, "none of them empty"),
        ("piqa", {**ROWS["piqa"][0], "goal": None}, "field goal is empty, not text"),
        ("winogrande", {**ROWS["winogrande"][0], "answer": "3"}, "its answer is ''"),
        ("winogrande", {**ROWS["winogrande"][0], "sentence": "Nothing is missing."}, "its sentence has no gap"),
        ("wikitext", {"page": ""}, "its text is empty"),
        ("wikitext", {"text": "x"}, "there is no field page (fields: text)"),
        ("lambada", 3, "it is no object"),
    ],
)
def test_a_bad_row_is_named_by_file_line_and_field(
    name: str, row: Any, said: str, corpus: Corpus, uniform_model: Llama, tmp_path: Path
) -> None:
    good = ROWS["lambada_openai" if name == "lambada" else name][0]
    placed = find_benchmark(name, write_rows(tmp_path / "rows.jsonl", [good, row]))
    with pytest.raises(DataError) as caught:
        run_benchmark(uniform_model, corpus.tokenizer, placed)
    assert f"{tmp_path / 'rows.jsonl'}, line 2, is no question of" in caught.value.problem and said in caught.value.problem


def test_what_is_missing_is_said_with_what_supplies_it(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        find_benchmark("piqa", tmp_path)
    assert f"fledge benchmarks piqa --to {tmp_path}" in caught.value.remedy and "baber/piqa (default, validation)" in caught.value.remedy
    with pytest.raises(DataError) as caught:
        find_benchmark("piqa", tmp_path / "data")
    assert f"fledge benchmarks piqa --to {tmp_path / 'data'}" in caught.value.remedy
    with pytest.raises(DataError, match="did you mean hellaswag"):
        find_benchmark("helaswag", tmp_path)
    with pytest.raises(DataError, match="there is no "):
        find_benchmark("text", tmp_path / "a.txt")
    for end in ("jsonl", "parquet"):
        (tmp_path / f"piqa.{end}").touch()
    with pytest.raises(DataError, match="more than one file"):
        find_benchmark("piqa", tmp_path)
    with pytest.raises(DataError, match="holds no row"):
        read_rows(find_benchmark("piqa", tmp_path / "piqa.jsonl"))


def own(folder: Path, task: str, rows: list[dict[str, Any]]) -> Path:
    write_rows(folder / "riddles.jsonl", rows)
    (folder / "own.yaml").write_text(task)
    return folder / "own.yaml"


def test_ones_own_in_six_lines(corpus: Corpus, trained_model: Llama, tmp_path: Path) -> None:
    rows = [{"riddle": f"what is {place}", "first": "rows", "second": "words", "right": place % 2} for place in range(8)]
    placed = find_benchmark("riddles", own(tmp_path, RIDDLE, rows))
    result = run_benchmark(trained_model, corpus.tokenizer, placed)
    assert [one.name for one in result.scores] == ["riddles/acc", "riddles/acc_norm"]
    assert score(result, "acc").value == 0.5, "the riddles differ in a number"
    assert placed.identity["context"] == "Riddle: {riddle}\nAnswer:" and "file" not in placed.identity


def test_ones_own_answer_is_written(corpus: Corpus, trained_model: Llama, tmp_path: Path) -> None:
    texts = [document.text for document in corpus.documents[:6]]
    rows = [{"start": " ".join(text.split(" ")[:8]), "rest": " ".join(text.split(" ")[8:]).partition(".")[0]} for text in texts]
    task = 'kind: generate_exact\nfile: riddles.jsonl\nprompt: "{start}"\nanswer: "{rest}"\nstop: ["."]\nmaximum_tokens: 60\n'
    result = run_benchmark(trained_model, corpus.tokenizer, find_benchmark("own", own(tmp_path, task, rows)))
    assert [one.name for one in result.scores] == ["own/exact_match"] and score(result, "exact_match").value > 0.5
    wrong = run_benchmark(trained_model, corpus.tokenizer, find_benchmark("own", own(tmp_path, task, [{"start": "turn", "rest": "q"}])))
    assert score(wrong, "exact_match").value == 0.0


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("kind: riddle\n", "kind is 'riddle'"),
        (RIDDLE.replace("{riddle}", "{riddle"), "has a brace"),
        (RIDDLE.replace('"{first}", ', ""), "choices must be at least 2"),
        (RIDDLE + "more: 1\n", "more"),
    ],
)
def test_a_wrong_description_is_refused(task: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"own\.yaml does not describe a benchmark") as caught:
        find_benchmark("own", own(tmp_path, task, [{}]))
    assert said in caught.value.problem and "docs/evaluation.md" in caught.value.remedy


def test_a_description_without_rows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="names no file"):
        find_benchmark("own", own(tmp_path, RIDDLE.replace("file: riddles.jsonl\n", ""), [{}]))


def test_templates_have_places_and_nothing_else() -> None:
    row = {"a": {"b": "x{c}", "l": [1, True]}, "c": "y"}
    assert text_of("{a.b} {{c}} {c}", row) == "x{c} {c} y", "one pass: what a field holds is no template"
    assert fields_of("{a.b} {{c}} {c}") == ["a.b", "c"]
    assert texts_of("{a.l}", row) == ["1", "true"]
    with pytest.raises(BadRow, match=r"no field a\.b\.d"):
        text_of("{a.b.d}", row)
    for broken in ("{", "a}b", "{}", "{a"):
        with pytest.raises(ValueError, match="has a brace"):
            fields_of(broken)
