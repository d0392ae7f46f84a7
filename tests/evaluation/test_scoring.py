"""Likelihoods against the plain formula, independence of batch and padding, and bits per byte that count every token once."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fledge.corpus.document import Document
from fledge.evaluation import scoring
from fledge.evaluation.scoring import ScoredSequence, bits_per_byte, continuation, leading_documents, leading_texts, loglikelihoods
from fledge.model.llama import Llama
from fledge.tokens.document_packing import pack_documents
from fledge.tokens.shards import TokenSet, open_token_set


def plain_log_probability(model: Llama, sequence: ScoredSequence) -> tuple[float, bool]:
    """One sequence, all logits, the textbook formula."""
    logits = model(torch.tensor([list(sequence.ids)]))[0].double()
    log_probabilities = logits.log_softmax(dim=-1)
    places = [place for place in range(1, len(sequence.ids)) if sequence.scored[place]]
    total = sum(float(log_probabilities[place - 1, sequence.ids[place]]) for place in places)
    return total, all(int(logits[place - 1].argmax()) == sequence.ids[place] for place in places)


def random_sequences(count: int, vocabulary: int) -> list[ScoredSequence]:
    chosen = random.Random(1)
    return [
        continuation(
            [chosen.randrange(vocabulary) for _ in range(chosen.randint(1, 40))],
            [chosen.randrange(vocabulary) for _ in range(chosen.randint(1, 9))],
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("batch_tokens", [1, 100, 100_000])
def test_likelihoods_are_the_formula_in_any_batch(random_model: Llama, batch_tokens: int) -> None:
    sequences = random_sequences(30, 300)
    found = loglikelihoods(random_model, sequences, batch_tokens)
    for sequence, likelihood in zip(sequences, found, strict=True):
        expected, is_greedy = plain_log_probability(random_model, sequence)
        assert likelihood.log_probability == pytest.approx(expected, rel=1e-5)
        assert likelihood.is_greedy == is_greedy


@pytest.mark.parametrize(("chunk", "block"), [(7, 1_024), (2_048, 100), (100, 447)])
def test_small_chunks_and_blocks_of_the_head_change_nothing(
    random_model: Llama, monkeypatch: pytest.MonkeyPatch, chunk: int, block: int
) -> None:
    sequences = random_sequences(30, 300)
    expected = loglikelihoods(random_model, sequences)
    monkeypatch.setattr(scoring, "HEAD_CHUNK_TOKENS", chunk)
    monkeypatch.setattr(scoring, "HEAD_BLOCK_ENTRIES", block)
    found = loglikelihoods(random_model, sequences)
    assert [one.log_probability for one in found] == pytest.approx([one.log_probability for one in expected], rel=1e-6)
    assert [one.is_greedy for one in found] == [one.is_greedy for one in expected]


@pytest.mark.parametrize("judge_greedy", [True, False])
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_blocks_of_the_head_give_log_softmax_however_large_its_logits(
    random_model: Llama, monkeypatch: pytest.MonkeyPatch, judge_greedy: bool, scale: float
) -> None:
    """exp of a logit above 88 is no number; the largest one may lie in any block."""
    monkeypatch.setattr(scoring, "HEAD_BLOCK_ENTRIES", 64)
    hidden = scale * torch.randn(40, 64, generator=torch.Generator().manual_seed(0))
    logits = (hidden @ random_model.lm_head.weight.T).double()
    most_likely = logits.argmax(dim=-1)
    targets = torch.where(torch.arange(40) % 2 == 0, most_likely, torch.arange(40) * 9)
    found, is_greedy = scoring.score_tokens(random_model, hidden, targets, judge_greedy)
    expected = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    assert len({int(place) // 64 for place in most_likely}) > 3
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6 * max(1.0, float(logits.abs().max())))
    assert is_greedy is None if not judge_greedy else torch.equal(is_greedy, most_likely == targets)


def test_of_equally_likely_tokens_the_first_one_is_greedy(uniform_model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "HEAD_BLOCK_ENTRIES", 64)
    sequences = [continuation([1, 2], [token]) for token in (0, 1, 64, 65)]
    assert [one.is_greedy for one in loglikelihoods(uniform_model, sequences)] == [True, False, False, False]


def test_a_greedy_continuation_is_greedy_and_one_other_token_ends_that(random_model: Llama) -> None:
    ids = [5, 6, 7]
    for _ in range(4):
        ids.append(int(random_model(torch.tensor([ids]))[0, -1].argmax()))
    assert loglikelihoods(random_model, [continuation(ids[:3], ids[3:])])[0].is_greedy
    ids[-1] += 1
    assert not loglikelihoods(random_model, [continuation(ids[:3], ids[3:])])[0].is_greedy


def test_a_uniform_model_gives_each_token_one_in_vocabulary(uniform_model: Llama) -> None:
    (likelihood,) = loglikelihoods(uniform_model, [continuation([1, 2], [3, 4, 5])])
    assert likelihood.log_probability == pytest.approx(-3 * math.log(uniform_model.config.vocabulary_size))


def test_no_sequences_no_likelihoods(uniform_model: Llama) -> None:
    assert loglikelihoods(uniform_model, []) == []


@pytest.mark.parametrize("window_tokens", [2, 7, 64, 128])
@pytest.mark.parametrize("isolate", [True, False])
def test_every_token_is_counted_once(uniform_model: Llama, corpus: Any, window_tokens: int, isolate: bool) -> None:
    """With a uniform model the bits are tokens times log2 of the vocabulary, whatever the windows."""
    (shard,) = corpus.document_tokens.shards("validation")
    score = bits_per_byte(uniform_model, corpus.document_tokens, window_tokens, isolate_documents=isolate, batch_tokens=200)
    text_bytes = sum(len(document.text.encode()) for document in corpus.documents)
    assert score.value == pytest.approx(len(shard.tokens) * math.log2(uniform_model.config.vocabulary_size) / text_bytes, rel=1e-6)
    assert score.n == len(corpus.documents)


def test_isolated_documents_cost_what_they_cost_alone(random_model: Llama, corpus: Any) -> None:
    """A window that holds the whole stream equals scoring each document by itself, with its end of text."""
    (shard,) = corpus.document_tokens.shards("validation")
    sequences = []
    for start, length in zip(shard.starts, shard.lengths, strict=True):
        ids = [*shard.tokens[start : start + length].tolist(), corpus.tokenizer.end_of_text]
        sequences.append(ScoredSequence(ids, [False] + [True] * (len(ids) - 1)))
    nats = -sum(likelihood.log_probability for likelihood in loglikelihoods(random_model, sequences))
    score = bits_per_byte(random_model, corpus.document_tokens, len(shard.tokens), isolate_documents=True)
    assert score.value == pytest.approx(nats / math.log(2) / int(shard.text_bytes.sum()), rel=1e-5)


def test_more_context_helps_a_model_that_learned(trained_model: Llama, corpus: Any) -> None:
    short, long = (bits_per_byte(trained_model, corpus.document_tokens, window, isolate_documents=True) for window in (4, 128))
    assert long.value < 0.6 * short.value
    assert long.low is not None and long.low < long.value


def test_a_byte_budget_takes_leading_documents(uniform_model: Llama, corpus: Any) -> None:
    (shard,) = corpus.document_tokens.shards("validation")
    budget = int(shard.text_bytes[:10].sum())
    assert leading_documents(corpus.document_tokens, "validation", budget)[0][1] == 10
    score = bits_per_byte(uniform_model, corpus.document_tokens, 32, isolate_documents=True, maximum_text_bytes=budget)
    assert score.n == 10
    tokens = int(shard.starts[10])
    assert score.value == pytest.approx(tokens * math.log2(uniform_model.config.vocabulary_size) / budget, rel=1e-6)
    assert leading_documents(corpus.document_tokens, "validation", 1)[0][1] == 1
    assert leading_documents(corpus.document_tokens, "validation", None)[0][1] == 40


def test_several_sources_share_one_figure(uniform_model: Llama, corpus: Any, tmp_path: Path) -> None:
    rows = [Document(document.text, document.id, f"source-{index % 2}", document.group) for index, document in enumerate(corpus.documents)]
    pack_documents(rows, corpus.tokenizer, tmp_path, "validation")
    both: TokenSet = open_token_set(tmp_path)
    assert len(both.shards("validation")) == 2
    whole = bits_per_byte(uniform_model, corpus.document_tokens, 32, isolate_documents=True)
    assert bits_per_byte(uniform_model, both, 32, isolate_documents=True).value == pytest.approx(whole.value, rel=1e-6)
    half_bytes = sum(int(shard.text_bytes.sum()) for shard in both.shards("validation")) // 2
    assert all(8 <= documents <= 11 for _, documents in leading_documents(both, "validation", half_bytes))


def test_bf16_is_close(random_model: Llama) -> None:
    sequences = random_sequences(10, 300)
    exact = np.array([likelihood.log_probability for likelihood in loglikelihoods(random_model, sequences)])
    rough = np.array([likelihood.log_probability for likelihood in loglikelihoods(random_model, sequences, precision="bf16")])
    assert np.abs(rough / exact - 1).max() < 0.05
    assert not np.array_equal(rough, exact)


def test_compressors_get_the_very_text(corpus: Any) -> None:
    texts = [document.text for document in corpus.documents]
    assert leading_texts(corpus.document_tokens, corpus.tokenizer, "validation") == texts
    (shard,) = corpus.document_tokens.shards("validation")
    budget = int(shard.text_bytes[:7].sum())
    assert leading_texts(corpus.document_tokens, corpus.tokenizer, "validation", budget) == texts[:7]
