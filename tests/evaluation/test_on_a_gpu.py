"""A GPU measures what a CPU measures."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from fledge.evaluation.checkpoint import evaluate_base, evaluate_chat
from fledge.evaluation.preference import pair_log_probabilities
from fledge.evaluation.reader import Reader
from fledge.evaluation.settings import EvaluateSettings
from fledge.inference.settings import GenerationSettings
from fledge.model.llama import Llama
from tests.evaluation.conftest import Corpus

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

SETTINGS = EvaluateSettings(questions=10, maximum_answer_tokens=20, compressors=False)


@pytest.fixture(scope="module")
def on_gpu(trained_model: Llama) -> Llama:
    return copy.deepcopy(trained_model).cuda()


@pytest.mark.parametrize("isolate_documents", [True, False])
def test_scores_of_text(trained_model: Llama, on_gpu: Llama, corpus: Corpus, isolate_documents: bool) -> None:
    ours, theirs = (
        evaluate_base(model, corpus.tokenizer, corpus.document_tokens, corpus.documents, SETTINGS, isolate_documents=isolate_documents)
        for model in (on_gpu, trained_model)
    )
    assert [score.name for score in ours] == [score.name for score in theirs]
    assert [score.value for score in ours] == pytest.approx([score.value for score in theirs], abs=1e-4)


def test_scores_of_answers(trained_model: Llama, on_gpu: Llama, corpus: Corpus) -> None:
    (ours, said), (theirs, expected) = (
        evaluate_chat(model, corpus.tokenizer, corpus.conversations, SETTINGS) for model in (on_gpu, trained_model)
    )
    assert said == expected
    assert [score.value for score in ours] == pytest.approx([score.value for score in theirs], abs=1e-4)


def test_scores_of_pairs(trained_model: Llama, on_gpu: Llama, corpus: Corpus) -> None:
    ours, theirs = (pair_log_probabilities(model, corpus.preference_tokens, SETTINGS) for model in (on_gpu, trained_model))
    assert ours.chosen == pytest.approx(theirs.chosen, abs=1e-3, rel=1e-5)
    assert ours.rejected == pytest.approx(theirs.rejected, abs=1e-3, rel=1e-5)


def test_the_three_questions(trained_model: Llama, on_gpu: Llama, corpus: Corpus) -> None:
    theirs = Reader(trained_model, corpus.tokenizer, context_tokens=64, stride_tokens=16)
    ours = replace(theirs, model=on_gpu)
    texts = [document.text for document in corpus.documents[:8]]
    pairs = [(text[:40], choice) for text in texts for choice in (" yes it is", " no", text[40:])]
    for mine, expected in zip(ours.likelihoods(pairs), theirs.likelihoods(pairs), strict=True):
        assert mine.log_probability == pytest.approx(expected.log_probability, abs=1e-4, rel=1e-5)
        assert mine.is_greedy == expected.is_greedy
    prices = [price.nats for price in theirs.prices(texts)]
    assert [price.nats for price in ours.prices(texts)] == pytest.approx(prices, abs=1e-4, rel=1e-5)
    greedy = GenerationSettings(temperature=0, maximum_new_tokens=12)
    prompts = [text[:60] for text in texts]
    assert ours.continued(prompts, greedy, ()) == theirs.continued(prompts, greedy, ())
