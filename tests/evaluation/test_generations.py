"""The form of an answer, and what every model says to the same prompts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fledge.evaluation.checkpoint import CheckpointEvaluation, evaluation_from_plain, replies_table, replies_text
from fledge.evaluation.generations import Answer, Sample, answer_scores, form_flaw, respond
from fledge.inference.engine import Completion
from fledge.model.llama import Llama
from fledge.tokens.settings import TemplateName, TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.trainers import write_definition


@pytest.fixture
def tokenizer_of(corpus: Any, tmp_path: Path) -> Any:
    """The corpus's tokenizer with another template."""

    def make(template: TemplateName) -> Tokenizer:
        write_definition(TokenizerSettings(vocabulary_size=400, template=template), corpus.tokenizer.definition, {}, tmp_path)
        return open_tokenizer(tmp_path)

    return make


@pytest.mark.parametrize(
    ("template", "text", "flaw"),
    [
        ("chatml", "It will mark the rows.", ""),
        ("chatml", "Human: is a word here", ""),
        ("chatml", "It <|im_start|>user", "control token"),
        ("chatml", "<|endoftext|>", "control token"),
        ("chatml", " \n ", "empty"),
        ("chatml", "", "empty"),
        ("chatml_newline", "It will.\n", ""),
        ("chatml_newline", "\n", "empty"),
        ("chat", " It will.", ""),
        ("chat", " It will, as the Human: said.", ""),
        ("chat", " It will.\n\nHuman: And then?", "role marker"),
        ("chat", " It will.\n  Assistant: Yes.", "role marker"),
        ("plain", " It will.\nUser: And then?", "role marker"),
        ("instruct", "It will.\n\n### Instruction:\nMore", "role marker"),
        ("instruct", "It will.\n\n### Input:\nMore", ""),
        ("alpaca", "It will.\n\n### Input:\nMore", "role marker"),
        ("alpaca", "It will.\n\n### Results", ""),
    ],
)
def test_an_answer_has_the_form_of_its_format(tokenizer_of: Any, template: TemplateName, text: str, flaw: str) -> None:
    tokenizer = tokenizer_of(template)
    end = tokenizer.end_ids(answers=True)[0]
    assert form_flaw(tokenizer, Completion(tokenizer.encode(text), end)) == flaw
    assert form_flaw(tokenizer, Completion(tokenizer.encode(text), None)) == "not stopped"


def test_an_answer_ends_as_answers_do_and_holds_no_control_token(corpus: Any) -> None:
    tokenizer = corpus.tokenizer
    turn_start, turn_end = tokenizer.require_turn_ids()
    ids = tokenizer.encode("It will.")
    assert form_flaw(tokenizer, Completion(ids, tokenizer.end_of_text)) == "wrong end"
    assert form_flaw(tokenizer, Completion([*ids, turn_start], turn_end)) == "control token"


def test_the_format_rate_counts_flaws_by_name() -> None:
    flaws = ["", "", "not stopped", "role marker", "not stopped"]
    answers = [Answer("q", "r", "text", flaw != "not stopped", flaw) for flaw in flaws]
    [score] = [one for one in answer_scores(answers, 8) if one.name == "format_rate"]
    assert (score.value, score.n) == (0.4, 5) and score.note.endswith("flaws: 2 not stopped, 1 role marker")
    assert next(one for one in answer_scores(answers[:2], 8) if one.name == "format_rate").note.endswith("flaws: none")


def test_a_prompt_is_answered_or_gone_on_with(trained_model: Llama, corpus: Any) -> None:
    question, text = corpus.conversations[0].messages[0].content, "tables.shift_rows(table)\n\n"
    [answer] = respond(trained_model, corpus.tokenizer, [question], True, 32)
    assert answer == Sample(question, corpus.conversations[0].messages[1].content)
    [continuation] = respond(trained_model, corpus.tokenizer, [text], False, 4)
    assert continuation.text and corpus.documents[0].text.partition("\n\n")[2].startswith(continuation.text)
    short, long = respond(trained_model, corpus.tokenizer, [question, "word " * 500], True, 4)
    assert short.text and long.text.startswith("(the prompt does not fit into the context")
    assert respond(trained_model, corpus.tokenizer, [], True, 4) == []


def test_replies_stand_side_by_side() -> None:
    first = CheckpointEvaluation("parent", (), (), (Sample("One?", "a"), Sample("Two?", "b\nc")))
    last = replace(first, name="sft", replies=(Sample("One?", "A."), Sample("Two?", "")))
    assert replies_table([first, last]) == (["prompt", "parent", "sft"], [["One?", "a", "A."], ["Two?", "b\nc", ""]])
    assert replies_text([first, last]) == "\n> One?\nparent: a\nsft: A.\n\n> Two?\nparent: b\nc\nsft: \n"
    assert evaluation_from_plain(asdict(last)) == last
    assert evaluation_from_plain({"name": "old", "scores": [], "answers": []}).replies == ()
    assert replies_text([replace(first, replies=())]) == "" == replies_text([])
