from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.core.errors import DataError
from fledge.corpus import build
from fledge.corpus.document import Content, read_conversations, read_preferences
from fledge.corpus.filters.settings import DecontaminateSettings, TurnSettings
from fledge.corpus.sources.settings import JsonLinesSource

from .corpus_assembly import built, settings, statistics_of


def source(folder: Path, *records: dict[str, Any], content: Content = "conversations", **values: Any) -> JsonLinesSource:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return JsonLinesSource(name="talks", content=content, path=str(path), **values)


def talk(question: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def questions(folder: Path) -> list[str]:
    return [row.messages[0].content for side in ("train", "validation") for row in read_conversations(folder / "corpus", side)]  # type: ignore[arg-type]


TALKS = (
    talk("What is it?", "A bird."),
    talk("what IS  it?", "a bird."),
    talk("What is it?", "A song."),
    talk("Why?", "No."),
    talk("Tell me all.", "word " * 60),
)


def test_what_says_the_same_or_is_too_short_or_too_long_is_dropped(tmp_path: Path) -> None:
    turns = TurnSettings(minimum_answer_characters=5, maximum_characters=200)
    stats = built(tmp_path, settings(source(tmp_path, *TALKS), turns=turns, validation_fraction=0.0), "conversations")
    assert questions(tmp_path) == ["What is it?", "What is it?"]
    assert stats["dropped"] == {"duplicate": 1, "short_answer": 1, "too_long": 1}
    card = (tmp_path / "corpus" / build.DATA_CARD).read_text(encoding="utf-8")
    assert "dropped: says the same as one before: 1" in card and "dropped: too long: 1" in card


def test_all_of_it_can_be_kept(tmp_path: Path) -> None:
    stats = built(
        tmp_path, settings(source(tmp_path, *TALKS), turns=TurnSettings(deduplicate=False), validation_fraction=0.0), "conversations"
    )
    assert len(questions(tmp_path)) == 5 and "dropped" not in stats
    assert statistics_of(tmp_path / "corpus")["answer_characters"] == {"median": 7, "ninth_decile": 182, "longest": 299}


def test_pairs_with_another_answer_stay(tmp_path: Path) -> None:
    pairs = [{"prompt": "q", "chosen": chosen, "rejected": "bad"} for chosen in ("good", "better", "GOOD ", "good!")]
    stats = built(tmp_path, settings(source(tmp_path, *pairs, content="preferences"), validation_fraction=0.0), "preferences")
    assert [row.chosen for row in read_preferences(tmp_path / "corpus", "train")] == ["good", "better", "good!"]
    assert stats["dropped"] == {"duplicate": 1}


def test_what_gives_away_an_evaluation_is_dropped(tmp_path: Path) -> None:
    question = "how many ducks are needed to lay sixteen eggs on every day of a week"
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(json.dumps({"question": question}) + "\n", encoding="utf-8")
    wanted = settings(
        source(tmp_path, talk(question.upper() + "?", "Seven."), *TALKS[:1]),
        validation_fraction=0.0,
        decontaminate=DecontaminateSettings(files=(str(benchmark),)),
    )
    stats = built(tmp_path, wanted, "conversations", evaluation=[benchmark])
    assert questions(tmp_path) == ["What is it?"] and stats["dropped"] == {"contaminated": 1}


def test_a_source_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    wanted = settings(source(tmp_path, *TALKS), turns=TurnSettings(minimum_answer_characters=1_000))
    with pytest.raises(DataError, match=r"gives 0 conversations .* of all sources 5 dropped: short_answer"):
        built(tmp_path, wanted, "conversations")


TWENTY_BAD = (
    "not json",
    "[]",
    "7",
    "{}",
    json.dumps({"messages": None}),
    json.dumps({"messages": "text"}),
    json.dumps({"messages": []}),
    json.dumps({"messages": [{"role": "user"}]}),
    json.dumps({"messages": [{"content": "x"}]}),
    json.dumps({"messages": [7]}),
    json.dumps({"messages": [["user", "x"]]}),
    json.dumps({"messages": [{"role": "tool", "content": "x"}]}),
    json.dumps({"messages": [{"role": None, "content": "x"}]}),
    json.dumps({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]}),
    json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": " \n"}]}),
    json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": 7}]}),
    json.dumps({"messages": [{"role": "user", "content": "q"}]}),
    json.dumps({"messages": [{"role": "assistant", "content": "a"}]}),
    json.dumps({"messages": [{"role": "user", "content": "q"}] * 2 + [{"role": "assistant", "content": "a"}]}),
    json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]}),
    json.dumps({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\ud800"}]}),
)


def test_rows_that_are_bad_in_twenty_ways_are_rejects_and_nothing_good_is_lost(tmp_path: Path) -> None:
    good = [json.dumps(talk(f"Question {number}?", f"Answer {number}.")) for number in range(len(TWENTY_BAD) + 1)]
    lines = [line for pair in zip(good, TWENTY_BAD, strict=False) for line in pair] + good[-1:]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    given = JsonLinesSource(name="talks", content="conversations", path=str(path), maximum_reject_share=0.9)
    stats = built(tmp_path, settings(given, validation_fraction=0.0), "conversations")
    assert questions(tmp_path) == [f"Question {number}?" for number in range(len(good))]
    assert stats["rejects"]["talks"]["rejected"] == len(TWENTY_BAD) >= 20
    told = [json.loads(line) for line in (tmp_path / "corpus" / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [reject["line"] for reject in told] == list(range(2, 2 * len(TWENTY_BAD) + 1, 2)) and all(reject["reason"] for reject in told)
