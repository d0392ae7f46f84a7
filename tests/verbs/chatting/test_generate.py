"""`fledge generate`: prompts from options and files, texts to the screen and to files, and nothing half written."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from fledge.core import disk
from fledge.core.console import visible
from fledge.inference.engine import Engine
from fledge.inference.requests import Drawn
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import load_model
from fledge.tokens.tokenizer import Tokenizer
from fledge.verbs.chatting import speakers
from tests.command_line import Fledge, expect_error
from tests.verbs.chatting.conftest import MakeCheckpoint

GREEDY = ("--temperature", "0", "--max-tokens", "6")


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_batch_says_what_each_prompt_gets_alone(make_checkpoint: MakeCheckpoint, fledge: Fledge, tokenizer: Tokenizer) -> None:
    folder = make_checkpoint()
    engine = Engine(load_model(folder), tokenizer.vocabulary_size, tokenizer.end_ids(answers=True))
    prompts = ["row 3", "the next one says", "hello"]
    settings = GenerationSettings(temperature=0, maximum_new_tokens=6)
    expected = [
        tokenizer.decode(engine.generate([[*tokenizer.document_start, *tokenizer.encode(prompt)]], settings)[0].ids) for prompt in prompts
    ]
    for prompt, text in zip(prompts, expected, strict=True):
        assert fledge("generate", "demo", "--prompt", prompt, *GREEDY).said == visible(f"{prompt}{text}\n")
    options = [word for prompt in prompts for word in ("--prompt", prompt)]
    together = fledge("generate", "demo", *options, *GREEDY)
    assert together.said == visible("".join(f"{prompt}{text}\n" for prompt, text in zip(prompts, expected, strict=True)))
    lines = [json.loads(line) for line in fledge("generate", "demo", *options, *GREEDY, "--json").said.splitlines()]
    assert [(line["prompt"], line["completion"]) for line in lines] == list(zip(prompts, expected, strict=True))


def test_lines_of_json_keep_what_they_held(make_checkpoint: MakeCheckpoint, fledge: Fledge, tmp_path: Path) -> None:
    make_checkpoint()
    question = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is row 3?"}]
    given = [{"prompt": "row 7", "id": 7}, {"messages": question, "topic": "rows"}]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, given)) + "\n\n")
    arguments = ("generate", "demo", "--from", "in.jsonl", "--seed", "3", "--n", "2", "--max-tokens", "8")
    outcome = fledge(*arguments, "--to", "out.jsonl")
    assert outcome.exit_code == 0, outcome.noted
    lines = read(tmp_path / "out.jsonl")
    assert [(line.get("id"), line.get("topic"), line["sample"]) for line in lines] == [
        (7, None, 0), (7, None, 1), (None, "rows", 0), (None, "rows", 1)
    ]  # fmt: skip
    assert lines[2]["messages"] == question
    assert all(line["finish"] in ("stop", "length") and line["completion_tokens"] <= 8 for line in lines)  # type: ignore[operator]
    assert lines[0]["completion"] != lines[1]["completion"]
    fledge(*arguments, "--to", "again.jsonl")
    assert read(tmp_path / "again.jsonl") == lines


def test_seeds_decide_texts_whatever_else_is_drawn(make_checkpoint: MakeCheckpoint, fledge: Fledge) -> None:
    make_checkpoint()

    def texts(*arguments: str) -> list[str]:
        said = fledge("generate", "demo", *arguments, "--n", "3", "--max-tokens", "8", "--json").said
        return [json.loads(line)["completion"] for line in said.splitlines()]

    drawn = [text for seed in "123" for text in texts("--prompt", "row 7", "--seed", seed)]
    assert len(set(drawn)) == 9, "neighbouring seeds share no text"
    assert texts("--prompt", "hello", "--prompt", "row 7", "--seed", "1")[3:] == drawn[:3]


def test_lines_of_text_are_prompts_or_questions(make_checkpoint: MakeCheckpoint, fledge: Fledge, tmp_path: Path) -> None:
    make_checkpoint()
    (tmp_path / "in.txt").write_bytes("\ufeffrow 1\r\n\r\nrow 2\r\n".encode())
    continued = fledge("generate", "demo", "--from", "in.txt", *GREEDY, "--json")
    assert [json.loads(line)["prompt"] for line in continued.said.splitlines()] == ["row 1", "row 2"]
    answered = fledge("generate", "demo", "--from", "in.txt", *GREEDY, "--json", "--chat")
    asked = fledge("generate", "demo", "--prompt", "row 1", *GREEDY, "--chat")
    assert visible(json.loads(answered.said.splitlines()[0])["completion"]) == asked.said.removesuffix("\n")
    assert answered.said != continued.said


def test_a_stop_text_ends_a_text_and_is_no_part_of_it(make_checkpoint: MakeCheckpoint, fledge: Fledge, tokenizer: Tokenizer) -> None:
    make_checkpoint()
    arguments = ("generate", "demo", "--prompt", "row 3", "--temperature", "0", "--max-tokens", "20", "--json")
    whole = json.loads(fledge(*arguments).said)
    stop = whole["completion"][6:9]
    cut = json.loads(fledge(*arguments, "--stop", stop, "--stop", "never there").said)
    assert cut["completion"] == whole["completion"][: whole["completion"].index(stop)]
    assert cut["finish"] == "stop" and cut["completion_tokens"] < whole["completion_tokens"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", ("holds no prompt",)),
        ("\n  \n", ("holds no prompt",)),
        ('{"prompt": "a"}\n{"prompt": \n', ("in.jsonl, line 2, is no JSON",)),
        ('{"prompt": "a"}\n\n["a"]\n', ("in.jsonl, line 3, is no object with either",)),
        ('{"text": "a"}\n', ("in.jsonl, line 1", "`prompt` or `messages`")),
        ('{"prompt": "a", "messages": []}\n', ("in.jsonl, line 1", "either")),
        ('{"prompt": 3}\n', ("`prompt` is no text",)),
        ('{"messages": []}\n', ("do not end with one of the user",)),
        ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n', ("do not end with",)),
        ('{"messages": [{"role": "tool", "content": "a"}]}\n', ("message 1 has no role of system, user, assistant",)),
        ('{"messages": [{"role": ["user"], "content": "x"}]}\n', ("message 1 has no role of",)),
        ('{"messages": [{"role": "user", "content": null}]}\n', ("message 1", "no text")),
        ('{"prompt": "a"}\n{"prompt": "%s"}\n' % ("word " * 400), ("in.jsonl, line 2: it has", "the context of the model has 256")),
        ('{"prompt": "a \\ud800 b"}\n', ("in.jsonl, line 1",)),
    ],
)  # fmt: skip
def test_a_wrong_file_is_named_with_its_line(
    make_checkpoint: MakeCheckpoint, fledge: Fledge, tmp_path: Path, content: str, words: tuple[str, ...]
) -> None:
    make_checkpoint()
    (tmp_path / "in.jsonl").write_text(content)
    expect_error(fledge("generate", "demo", "--from", "in.jsonl", "--to", "out.jsonl"), 3, *words)
    assert not (tmp_path / "out.jsonl").exists()


def test_wrong_uses_are_explained_before_a_model_is_opened(fledge: Fledge, tmp_path: Path) -> None:
    (tmp_path / "there.jsonl").write_text("kept\n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    expect_error(fledge("generate", "demo"), 2, "prompts come from --prompt or from --from", "give one of them")
    expect_error(fledge("generate", "demo", "--prompt", "a", "--from", "there.jsonl"), 2, "give one of them")
    expect_error(fledge("generate", "demo", "--from", "nowhere.txt"), 3, "cannot read nowhere.txt")
    expect_error(fledge("generate", "demo", "--from", "latin.txt"), 3, "latin.txt is not UTF-8", "byte 3")
    for verb in (("generate", "demo", "--prompt", "a"), ("chat", "demo")):
        expect_error(fledge(*verb, "--temperature", "-1"), 2, "temperature must be at least 0")
        expect_error(fledge(*verb, "--max-tokens", "0"), 2, "maximum_new_tokens must be at least 1")
    expect_error(fledge("generate", "demo", "--prompt", "a", "--to", "there.jsonl"), 3, "there.jsonl is already there")
    assert (tmp_path / "there.jsonl").read_text() == "kept\n"


@pytest.mark.parametrize("operation", ["create", "write", "fsync", "rename"])
def test_nothing_is_half_written(
    make_checkpoint: MakeCheckpoint, fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    make_checkpoint()

    def fail(passed: str, path: Path) -> None:
        if passed == operation and path.name.startswith("out.jsonl"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk, "fail_point", fail)
    outcome = fledge("generate", "demo", "--prompt", "row", *GREEDY, "--to", "out.jsonl")
    assert (outcome.exit_code, "no space left" in outcome.noted) == (5, True), outcome.noted
    [kept] = tmp_path.glob("out.jsonl*")
    assert kept.name == "out.jsonl.unfinished" and len(read(kept)) == 1, "what was drawn is not lost with the file"


def test_what_is_interrupted_keeps_what_has_ended(
    make_checkpoint: MakeCheckpoint, fledge: Fledge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_checkpoint()
    step = Engine.step
    ended: list[Drawn] = []

    def step_until_one_has_ended(engine: Engine) -> list[Drawn]:
        if ended:
            signal.raise_signal(signal.SIGINT)
        drawn = step(engine)
        ended.extend(one for one in drawn if one.finish is not None)
        return drawn

    monkeypatch.setattr(Engine, "step", step_until_one_has_ended)
    monkeypatch.setattr(speakers, "MAXIMUM_BATCH_ROWS", 1)  # one text after the other
    prompts = ("--prompt", "row 3", "--prompt", "hello")
    arguments = ("generate", "demo", *prompts, *GREEDY, "--to", "out.jsonl")
    outcome = fledge(*arguments)
    assert outcome.exit_code == 130 and "kept in out.jsonl.unfinished" in outcome.noted, outcome.noted
    assert not (tmp_path / "out.jsonl").exists()
    assert [line["prompt"] for line in read(tmp_path / "out.jsonl.unfinished")] == ["row 3"]
    expect_error(fledge(*arguments), 3, "out.jsonl.unfinished is already there", "move it away")
    (tmp_path / "out.jsonl.unfinished").rename(tmp_path / "kept.jsonl")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert fledge(*arguments).exit_code == 0
    lines = read(tmp_path / "out.jsonl")
    assert [line["prompt"] for line in lines] == list(prompts[1::2]) and all(line in lines for line in read(tmp_path / "kept.jsonl"))
    assert not (tmp_path / "out.jsonl.unfinished").exists()
