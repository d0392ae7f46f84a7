"""Preference figures: definitions on hand-made numbers, the reference scored alike, and a preference that is really there."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from fledge.evaluation.preference import PairLogProbabilities, pair_log_probabilities, preference_scores
from fledge.evaluation.scoring import continuation, loglikelihoods
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score
from fledge.model.llama import Llama
from fledge.tokens.chat import render

SETTINGS = EvaluateSettings(batch_tokens=1000)


def by_name(scores: list[Score]) -> dict[str, Score]:
    return {score.name: score for score in scores}


def test_definitions() -> None:
    model = PairLogProbabilities((-10.0, -20.0, -5.0, -8.0), (-12.0, -18.0, -9.0, -9.0), ("cut", "cut", "repeat", "repeat"))
    reference = PairLogProbabilities((-11.0, -20.0, -5.0, -9.0), (-12.0, -19.0, -7.0, -9.0), model.damages)
    scores = by_name(preference_scores(model, reference, beta=0.5))
    assert scores["reward_margin"].value == pytest.approx(0.5 * (1.0 - 1.0 + 2.0 + 1.0) / 4)
    assert scores["reward_accuracy"].value == 0.75
    assert scores["reward_accuracy/cut"].value == 0.5
    assert scores["reward_accuracy/repeat"].value == 1.0
    assert scores["raw_accuracy"].value == 0.75
    assert (scores["raw_accuracy/cut"].n, scores["raw_accuracy"].n) == (2, 4)


def test_perplexities_are_per_token_over_all_answers() -> None:
    pairs = PairLogProbabilities((-10.0, -20.0), (-12.0, -18.0), ("", ""), (5, 10), (3, 3))
    scores = by_name(preference_scores(pairs, None))
    assert scores["chosen_perplexity"].value == pytest.approx(math.exp(30 / 15))
    assert scores["rejected_perplexity"].value == pytest.approx(math.exp(30 / 6))
    assert scores["rejected_perplexity"].low is not None and scores["rejected_perplexity"].low < scores["rejected_perplexity"].value


def test_ties_count_half_and_have_no_margin() -> None:
    same = PairLogProbabilities((-3.0, -4.0), (-5.0, -2.0), ("cut", "cut"))
    scores = by_name(preference_scores(same, same))
    assert scores["reward_accuracy"].value == 0.5
    assert scores["reward_margin"].value == 0.0
    assert scores["reward_accuracy"].distinguishable is False


def test_without_a_reference_only_raw_accuracy() -> None:
    pairs = PairLogProbabilities((-1.0,), (-2.0,), ("",))
    assert [score.name for score in preference_scores(pairs, None)] == ["raw_accuracy"]


def test_no_pairs_no_scores() -> None:
    assert preference_scores(PairLogProbabilities((), (), ()), None) == []


def test_another_number_of_reference_pairs_is_refused() -> None:
    with pytest.raises(ValueError, match="1 reference pairs for 2 pairs"):
        preference_scores(PairLogProbabilities((0.0, 0.0), (0.0, 0.0), ("", "")), PairLogProbabilities((0.0,), (0.0,), ("",)))


def test_pairs_are_scored_as_conversations_alone(random_model: Llama, corpus: Any) -> None:
    """The log-probability of an answer does not depend on what shares its row."""
    found = pair_log_probabilities(random_model, corpus.preference_tokens, SETTINGS)
    expected = {}
    for conversation in corpus.conversations:
        prompt = render(corpus.tokenizer, conversation.messages[:-1], answer_follows=True).ids
        whole = render(corpus.tokenizer, conversation.messages).ids
        (likelihood,) = loglikelihoods(random_model, [continuation(prompt, whole[len(prompt) :])])
        expected[round(likelihood.log_probability, 2)] = likelihood.log_probability
    assert len(found.chosen) == len(found.chosen_tokens) == len(corpus.conversations)
    assert sorted(found.chosen) == pytest.approx(sorted(expected.values()), rel=1e-5)
    assert set(found.damages) == {"cut", "repeat"}


def test_the_same_pairs_are_drawn_for_every_model(uniform_model: Llama, random_model: Llama, corpus: Any) -> None:
    few = replace(SETTINGS, preference_pairs=7)
    first, second = (pair_log_probabilities(model, corpus.preference_tokens, few) for model in (uniform_model, random_model))
    assert first.damages == second.damages
    assert len(first.chosen) == 7


def test_a_model_against_itself_has_no_preference(trained_model: Llama, corpus: Any) -> None:
    pairs = pair_log_probabilities(trained_model, corpus.preference_tokens, SETTINGS)
    scores = by_name(preference_scores(pairs, pairs))
    assert scores["reward_accuracy"].value == 0.5
    assert scores["reward_margin"].value == 0.0


def test_a_model_that_learned_the_answers_prefers_them(trained_model: Llama, random_model: Llama, corpus: Any) -> None:
    reference = pair_log_probabilities(random_model, corpus.preference_tokens, SETTINGS)
    scores = by_name(preference_scores(pair_log_probabilities(trained_model, corpus.preference_tokens, SETTINGS), reference))
    assert scores["raw_accuracy"].value == 1.0
    assert scores["reward_accuracy/repeat"].value == 1.0
    assert scores["reward_margin"].low is not None and scores["reward_margin"].low > 0
