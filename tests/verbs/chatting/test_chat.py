"""`fledge chat` with lines from a pipe: what it answers, remembers, forgets, saves and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fledge.core.console import visible
from fledge.corpus.document import Conversation
from fledge.corpus.sources.records import Records
from fledge.corpus.sources.settings import JsonLinesSource
from tests.command_line import Fledge, expect_error
from tests.evaluation.benchmark_rows import ROWS
from tests.verbs.chatting.conftest import MakeCheckpoint, Talk


def saved(path: Path) -> list[list[tuple[str, str]]]:
    """What a source of conversations reads of a file."""
    records = Records.of(JsonLinesSource(name="talk", path=str(path), content="conversations"))
    rows = [records.row(json.loads(line), "id") for line in path.read_text().splitlines()]
    assert all(isinstance(row, Conversation) for row in rows)
    return [[(message.role, message.content) for message in row.messages] for row in rows if isinstance(row, Conversation)]


def test_a_conversation_is_answered_changed_and_saved(make_checkpoint: MakeCheckpoint, talk: Talk, tmp_path: Path) -> None:
    make_checkpoint()
    lines = 'What is row 3?\nSay\\\nhello\n/undo\n/system Be brief.\n"""two\nlines"""\n/save talk.jsonl\n'
    outcome = talk(lines, "demo", "--seed", "5")
    assert outcome.exit_code == 0, outcome.noted
    answers = outcome.said.splitlines()
    [messages] = saved(tmp_path / "talk.jsonl")
    assert messages[0] == ("system", "Be brief.")
    assert [content for role, content in messages if role == "user"] == ["What is row 3?", "two\nlines"]
    assert messages[2][0] == "assistant" and visible(messages[2][1]) == answers[0]
    assert "taken back: Say hello" in outcome.noted
    again = talk(lines.replace("talk.jsonl", "again.jsonl"), "demo", "--seed", "5")
    assert again.said == outcome.said


def test_an_answer_is_given_again_otherwise_and_a_new_conversation_knows_nothing(
    make_checkpoint: MakeCheckpoint, talk: Talk, tmp_path: Path
) -> None:
    make_checkpoint()
    outcome = talk("Hello\n/save 1\n/regenerate\n/save 2\n/new\nHello again\n/save 3\n/exit\nnever said\n", "demo", "--seed", "5")
    assert outcome.exit_code == 0
    [first], [second], [third] = (saved(tmp_path / name) for name in "123")
    assert first[0] == second[0] and first[1] != second[1]
    assert third[0] == ("user", "Hello again") and len(third) == 2
    assert "never said" not in outcome.said + outcome.noted


def test_an_answer_that_cannot_be_given_again_stays(make_checkpoint: MakeCheckpoint, talk: Talk, tmp_path: Path) -> None:
    make_checkpoint()
    lines = f"One\nTwo\n/save before\n/system {'word ' * 400}\n/regenerate\nThree\n/system\n/save after\n"
    outcome = talk(lines, "demo", "--temperature", "0")
    assert outcome.noted.count("longer than the model's context") == 2
    [before] = saved(tmp_path / "before")
    assert [content for role, content in before if role == "user"] == ["One", "Two"]
    assert saved(tmp_path / "after") == [before]


def test_what_cut_an_answer_off_is_named(make_checkpoint: MakeCheckpoint, talk: Talk) -> None:
    make_checkpoint(context_tokens=64)
    context, limit = (talk("Hello\n", "demo", "--temperature", "0", "--max-tokens", tokens).noted for tokens in ("64", "4"))
    assert "tokens: the context of 64 tokens is full" in context and "/set max_tokens" not in context
    assert "cut off after 4 tokens; /set max_tokens=NUMBER allows more" in limit


def test_what_the_checkpoint_says_of_generation_holds_until_it_is_changed(make_checkpoint: MakeCheckpoint, talk: Talk) -> None:
    make_checkpoint()
    own, given, changed = (
        line
        for line in talk("/set\n", "demo").said.splitlines()
        + talk("/set\n", "demo", "--temperature", "0.5", "--min-p", "0.1").said.splitlines()
        + talk("/set temperature=0.1, max-tokens=3 seed=null\n", "demo", "--seed", "4").said.splitlines()
    )
    assert own == ("temperature=0.9, top_k=40, top_p=0.9, min_p=0.0, repetition_penalty=1.0, maximum_new_tokens=12, seed=null")
    assert given.startswith("temperature=0.5, top_k=40") and "min_p=0.1" in given
    assert changed.startswith("temperature=0.1, ") and changed.endswith("maximum_new_tokens=3, seed=null")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/fly", ("there is no /fly", "/help")),
        ("/set heat=3", ("unknown key heat",)),
        ("/set temperature=-1", ("temperature must be at least 0",)),
        ("/set temperature", ("is not NAME=VALUE",)),
        ("/save", ("/save needs the name of a file",)),
        ("/save there.jsonl", ("there.jsonl is already there",)),
        ("/save new.jsonl", ("nothing was said yet",)),
        ("/system Be brief.\n/save new.jsonl\n/system", ("nothing was said yet",)),
        ("/regenerate", ("no answer to give again",)),
        ("/benchmark huge", ("there is no benchmark 'huge'", "quick, standard, comprehensive")),
        ("/benchmark quick", ("no file or folder data", "fledge benchmarks lambada_openai --to")),
        ("word " * 400, ("longer than the model's context of 256 tokens", "say less at once")),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_is_wrong_costs_itself_only(
    make_checkpoint: MakeCheckpoint, talk: Talk, tmp_path: Path, line: str, words: tuple[str, ...]
) -> None:
    make_checkpoint()
    (tmp_path / "there.jsonl").write_text("kept\n")
    outcome = talk(f"{line}\nHello\n/save after.jsonl\n", "demo", "--temperature", "0")
    assert outcome.exit_code == 0
    for word in words:
        assert word in outcome.noted
    [messages] = saved(tmp_path / "after.jsonl")
    assert [role for role, _ in messages] == ["user", "assistant"]
    assert (tmp_path / "there.jsonl").read_text() == "kept\n"


def test_a_full_context_forgets_the_oldest_turns_and_says_so_once(make_checkpoint: MakeCheckpoint, talk: Talk) -> None:
    make_checkpoint(context_tokens=96)
    outcome = talk("row 3 of the table holds words\n" * 8, "demo", "--max-tokens", "8")
    assert outcome.exit_code == 0
    assert outcome.noted.count("the oldest turns are forgotten") == 1


def test_a_text_may_begin_with_a_slash_and_a_stop_text_ends_an_answer(make_checkpoint: MakeCheckpoint, talk: Talk, tmp_path: Path) -> None:
    make_checkpoint()
    whole = talk("//etc is a folder\n/save whole.jsonl\n", "demo", "--temperature", "0")
    assert whole.exit_code == 0
    [[question, (_, answer)]] = saved(tmp_path / "whole.jsonl")
    assert question == ("user", "/etc is a folder")
    stop = answer[len(answer) // 2 :][:2]
    talk("//etc is a folder\n/save cut.jsonl\n", "demo", "--temperature", "0", "--stop", stop)
    [[_, (_, cut)]] = saved(tmp_path / "cut.jsonl")
    assert cut == answer[: answer.index(stop)].strip()


def test_several_models_answer_each_question(make_checkpoint: MakeCheckpoint, talk: Talk, tmp_path: Path) -> None:
    make_checkpoint("one", seed=1)
    make_checkpoint("two", seed=2)
    outcome = talk("Hello\nAnd now?\n/undo\n/save both.jsonl\n", "--compare", "one", "two", "--temperature", "0")
    assert outcome.exit_code == 0, outcome.noted
    labels = [line.partition("> ")[0] for line in outcome.said.splitlines() if line.startswith(("one> ", "two> "))]
    assert labels == ["one", "two", "one", "two"]
    both = [json.loads(line) for line in (tmp_path / "both.jsonl").read_text().splitlines()]
    assert [one["model"] for one in both] == ["one", "two"]
    first, second = (talks[1][1] for talks in saved(tmp_path / "both.jsonl"))
    assert first != second
    for name, expected in (("one", first), ("two", second)):
        talk(f"Hello\n/save {name}.jsonl\n", name, "--temperature", "0")
        [[_, (_, alone)]] = saved(tmp_path / f"{name}.jsonl")
        assert alone == expected, "beside another one a model says what it says alone"


def test_lambada_is_measured_on_rows_that_were_fetched(make_checkpoint: MakeCheckpoint, talk: Talk, tmp_path: Path) -> None:
    make_checkpoint()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "lambada_openai.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS["lambada_openai"]))
    outcome = talk("/benchmark\n/benchmark comprehensive data/lambada_openai.jsonl\n", "demo")
    assert outcome.exit_code == 0 and "error" not in outcome.noted
    assert outcome.said.count("LAMBADA (OpenAI's text): acc") == 2


def test_wrong_uses_are_explained(make_checkpoint: MakeCheckpoint, fledge: Fledge) -> None:
    make_checkpoint()
    expect_error(fledge("chat"), 2, "no checkpoint is given", "fledge chat RUN")
    expect_error(fledge("chat", "--compare", "demo"), 2, "--compare wants several")
    expect_error(fledge("chat", "demo", "demo"), 2, "several want it", "fledge chat --compare")
    expect_error(fledge("chat", "dmeo"), 4, "did you mean demo?")
    expect_error(fledge("chat", "demo", "--top-p", "0"), 2, "top_p must be above 0 and at most 1, not 0.0 (command line)")
