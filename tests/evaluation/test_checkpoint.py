"""The whole evaluation of a checkpoint: right for a model that learned, at chance for one that did not, and plain as JSON."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from fledge.corpus.document import Conversation, Document, Message
from fledge.evaluation.checkpoint import (
    CheckpointEvaluation,
    answer_perplexity_score,
    context_window_tokens,
    evaluate_base,
    evaluate_chat,
    evaluation_from_plain,
    format_score,
    last_word_score,
    results_csv,
    results_table,
    results_text,
    score_title,
    yes_no_score,
)
from fledge.evaluation.generations import Answer, answer_scores
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score, share_score
from fledge.model.llama import Llama

SETTINGS = EvaluateSettings(maximum_answer_tokens=30, batch_tokens=2000)


def base(model: Llama, corpus: Any, settings: EvaluateSettings = SETTINGS) -> dict[str, Score]:
    scores = evaluate_base(model, corpus.tokenizer, corpus.document_tokens, corpus.documents, settings)
    return {score.name: score for score in scores}


def test_a_model_that_learned_the_text(trained_model: Llama, corpus: Any) -> None:
    scores = base(trained_model, corpus)
    assert scores["bits_per_byte"].value < 0.5
    assert scores["last_word"].value > 0.9
    assert scores["last_word"].distinguishable is True
    assert scores["last_word"].chance is not None and scores["last_word"].chance < 0.3


def test_a_model_that_knows_nothing(uniform_model: Llama, corpus: Any) -> None:
    """All logits are equal: " no" against " yes" goes by their number of tokens, so one answer always wins or all tie."""
    scores = base(uniform_model, corpus)
    assert scores["last_word"].value == 0.0
    assert scores["yes_no"].value == 0.5
    assert scores["yes_no"].verdict.startswith("not distinguishable from guessing")


def test_samples_follow_the_seed_not_the_model(trained_model: Llama, random_model: Llama, corpus: Any) -> None:
    few = replace(SETTINGS, last_word_passages=10, yes_no_questions=10)
    assert base(trained_model, corpus, few) == base(trained_model, corpus, few)
    for name in ("last_word", "yes_no"):
        assert base(trained_model, corpus, few)[name].chance == base(random_model, corpus, few)[name].chance
        assert base(random_model, corpus, few)[name].n == 10


def test_the_batch_does_not_matter(random_model: Llama, corpus: Any) -> None:
    small, large = (base(random_model, corpus, replace(SETTINGS, batch_tokens=tokens)) for tokens in (50, 50_000))
    for name, score in small.items():
        assert score.value == pytest.approx(large[name].value, rel=1e-5)


def test_text_without_samples_gives_no_scores(random_model: Llama, corpus: Any) -> None:
    plain = [Document("only a few words", "d", "s", "g")]
    assert last_word_score(random_model, corpus.tokenizer, plain, SETTINGS) is None
    assert yes_no_score(random_model, corpus.tokenizer, plain, SETTINGS) is None
    assert evaluate_chat(random_model, corpus.tokenizer, [], SETTINGS) == ([], [])


def test_items_longer_than_the_context_are_left_out(random_model: Llama, corpus: Any) -> None:
    long = "word again " * 79
    documents = [Document(f"{'%&$' * 100} {long}again.", "d", "s", "g")]
    assert last_word_score(random_model, corpus.tokenizer, documents, SETTINGS) is None
    huge = Conversation((Message("user", long * 3), Message("assistant", "yes")), "c", "s", "g")
    scores, answers = evaluate_chat(random_model, corpus.tokenizer, [huge, huge], SETTINGS)
    assert (scores, answers) == ([], [])


def test_a_chat_model_answers_and_stops(trained_model: Llama, corpus: Any) -> None:
    scores, answers = evaluate_chat(trained_model, corpus.tokenizer, corpus.conversations, SETTINGS)
    found = {score.name: score for score in scores}
    assert found["stop_rate"].value == 1.0
    assert found["distinct_answers"].value == len({answer.reference for answer in answers}) == 30
    assert found["answer_choice"].value > 0.9
    assert sum(answer.text == answer.reference for answer in answers) >= 28
    assert {answer.question for answer in answers} == {conversation.messages[0].content for conversation in corpus.conversations}


def test_answers_are_likely_for_a_model_that_learned_them(trained_model: Llama, uniform_model: Llama, corpus: Any) -> None:
    learned, unlearned = (
        answer_perplexity_score(model, corpus.tokenizer, corpus.conversations, SETTINGS) for model in (trained_model, uniform_model)
    )
    assert learned is not None and unlearned is not None
    assert learned.value < 1.2
    assert unlearned.value == pytest.approx(uniform_model.config.vocabulary_size, rel=1e-3)
    assert learned.n == 30


def test_figures_of_answers() -> None:
    repeated, plain = Answer("q", "r", "so it is so it is so it is", False), Answer("q", "r", "it is a bird", True)
    found = {score.name: score for score in answer_scores([repeated, plain], 9)}
    assert found["distinct_1"].value == 5 / 13
    assert found["distinct_2"].value == 5 / 11
    assert found["repetition"].value == pytest.approx((1 - 3 / 6) / 2)
    assert found["answer_words"].value == 6.5
    assert {score.name: score.value for score in answer_scores([Answer("q", "r", "", True)], 9)}["distinct_2"] == 0.0


def test_results_as_text_and_as_a_table_for_programs() -> None:
    one = CheckpointEvaluation(
        "sft", (share_score("yes_no", 100, 200, chance=0.5), Score("answer_words", 6.5, 9, None, None, unit="words"))
    )
    text = results_text([one]).splitlines()
    assert text[0].split() == ["score", "sft", "guessing", "n"]
    assert "6.5" in text[2] and not text[2].endswith(" ")
    rows = list(csv.DictReader(io.StringIO(results_csv([one]))))
    assert (rows[0]["score"], float(rows[0]["value"]), float(rows[0]["baseline"]), rows[1]["low"]) == ("yes_no", 0.5, 0.5, "")


def test_a_model_that_cannot_answer_is_seen_through(uniform_model: Llama, corpus: Any) -> None:
    scores, answers = evaluate_chat(uniform_model, corpus.tokenizer, corpus.conversations, replace(SETTINGS, questions=10))
    found = {score.name: score for score in scores}
    assert len(answers) == 10
    assert (found["stop_rate"].value, found["distinct_answers"].value) == (0.0, 1)
    assert found["answer_choice"].value == 0.5


def test_the_window_is_never_longer_than_the_context(random_model: Llama) -> None:
    assert context_window_tokens(random_model, SETTINGS) == 128
    assert context_window_tokens(random_model, replace(SETTINGS, window_tokens=64)) == 64
    assert context_window_tokens(random_model, replace(SETTINGS, window_tokens=4096)) == 128


def test_an_evaluation_survives_json_without_nan(trained_model: Llama, corpus: Any) -> None:
    scores, answers = evaluate_chat(trained_model, corpus.tokenizer, corpus.conversations, SETTINGS)
    evaluation = CheckpointEvaluation("sft", (*base(trained_model, corpus).values(), *scores), tuple(answers))
    assert evaluation_from_plain(json.loads(json.dumps(asdict(evaluation), allow_nan=False))) == evaluation
    assert evaluation.score("stop_rate") in scores
    assert evaluation.score("absent") is None


def test_the_table_has_a_row_per_score_and_a_column_per_checkpoint() -> None:
    first = CheckpointEvaluation("pretrain", (share_score("yes_no", 100, 200, chance=0.5),))
    second = CheckpointEvaluation(
        "dpo", (share_score("yes_no", 180, 200, chance=0.5), Score("reward_margin/run_on", 1.25, 9, None, None, unit="nats"))
    )
    columns, rows = results_table([first, second])
    assert columns == ["score", "pretrain", "dpo", "guessing", "n"]
    assert rows[0] == ["Yes/no (BoolQ's form)", "50.0 % (43.1 to 56.9) ?", "90.0 % (85.1 to 93.4)", "50.0 %", "200"]
    assert rows[1] == ["Reward margin: run on", "", "1.250", "", "9"]


def test_units_and_titles() -> None:
    assert format_score(Score("distinct_answers", 96, 100, None, None, unit="count")) == "96"
    assert format_score(Score("bits_per_byte", 1.8444, 10, 1.8, 1.9, unit="bits_per_byte")) == "1.844 (1.800 to 1.900)"
    assert score_title("reward_accuracy/cut") == "Reward accuracy: cut"
    assert score_title("anything_else") == "anything else"
