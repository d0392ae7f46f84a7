"""Texts in windows: each token once, in the windows of lm-eval, and against a plain script of transformers' kind."""

from __future__ import annotations

import math

import pytest
import torch

from fledge.evaluation.continuations import Continuation
from fledge.evaluation.rolling import Windows, rolling_windows, text_prices, windows_of
from fledge.model.llama import Llama

from .conftest import ROW_TOKENS, Corpus


def windows(tokens: int, context: int, stride: int) -> list[Continuation]:
    return list(rolling_windows(range(1, tokens + 1), 0, Windows(context, stride)))


def test_the_windows_of_ten_tokens() -> None:
    """The example of lm-eval's documentation, and the same with a stride."""
    assert [(list(one.context), list(one.continued)) for one in windows(10, 4, 4)] == [
        ([0], [1, 2, 3, 4]),
        ([4], [5, 6, 7, 8]),
        ([6, 7, 8], [9, 10]),
    ]
    assert [(list(one.context), list(one.continued)) for one in windows(7, 4, 2)] == [
        ([0], [1, 2, 3, 4]),
        ([2, 3, 4], [5, 6]),
        ([3, 4, 5, 6], [7]),
    ]


@pytest.mark.parametrize("tokens", [0, 1, 3, 4, 5, 8, 9, 33])
@pytest.mark.parametrize(("context", "stride"), [(4, 4), (4, 1), (4, 3), (1, 1), (40, 7)])
def test_each_token_is_scored_once_and_no_window_is_too_long(tokens: int, context: int, stride: int) -> None:
    found = windows(tokens, context, stride)
    assert [token for one in found for token in one.continued] == list(range(1, tokens + 1))
    for one in found:
        whole = [*one.context, *one.continued]
        assert len(whole) <= context + 1 and whole == list(range(whole[0], whole[-1] + 1))
        assert len(one.context) >= min(one.continued[0], context - stride + 1)


@pytest.mark.parametrize("stride", [ROW_TOKENS, 50, 1])
@pytest.mark.parametrize("batch_tokens", [1, 500])
def test_a_uniform_model_pays_the_logarithm_of_its_vocabulary(uniform_model: Llama, corpus: Corpus, stride: int, batch_tokens: int) -> None:
    texts = ["shift all rows " * 30, "", "turn"]
    found = text_prices(uniform_model, corpus.tokenizer, texts, Windows(ROW_TOKENS, stride), batch_tokens)
    assert [price.tokens for price in found] == [len(ids) for ids in corpus.tokenizer.encode_batch(texts)]
    for price in found:
        assert price.nats == pytest.approx(price.tokens * math.log(uniform_model.config.vocabulary_size), rel=1e-6)


def test_more_context_makes_a_text_cheaper(trained_model: Llama, corpus: Corpus) -> None:
    texts = [" ".join(document.text for document in corpus.documents[:3])]
    disjoint, overlapping = (text_prices(trained_model, corpus.tokenizer, texts, Windows(24, stride))[0].nats for stride in (24, 4))
    assert overlapping < disjoint


def test_windows_are_at_most_the_context_of_the_model(random_model: Llama) -> None:
    assert windows_of(random_model) == Windows(ROW_TOKENS, ROW_TOKENS)
    assert windows_of(random_model, 10 * ROW_TOKENS, 3) == Windows(ROW_TOKENS, 3)
    assert windows_of(random_model, 16) == windows_of(random_model, 16, 99) == Windows(16, 16)
    assert str(Windows(16, 16)) == "windows of 16 tokens without overlap" and "by 4 tokens" in str(Windows(16, 4))
    with pytest.raises(ValueError, match="read nothing"):
        windows_of(random_model, 0)


def test_the_price_is_that_of_one_pass_after_the_other(random_model: Llama, corpus: Corpus) -> None:
    """Independent of the code above: strides over the ids, all logits, the textbook formula."""
    text = " ".join(document.text for document in corpus.documents[:6])
    ids = [*corpus.tokenizer.document_start, *corpus.tokenizer.encode(text)]
    nats, scored = 0.0, 1
    while scored < len(ids):
        end = min(len(ids), scored + (ROW_TOKENS if scored == 1 else 48))
        begin = max(0, end - 1 - ROW_TOKENS)
        log_probabilities = random_model(torch.tensor([ids[begin : end - 1]]))[0].double().log_softmax(-1)
        nats -= sum(float(log_probabilities[place - begin - 1, ids[place]]) for place in range(scored, end))
        scored = end
    [price] = text_prices(random_model, corpus.tokenizer, [text], Windows(ROW_TOKENS, 48))
    assert price.nats == pytest.approx(nats, rel=1e-6)
