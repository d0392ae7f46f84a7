"""Pairs of texts as lm-eval encodes them, and a context that is read once for all of its choices, without that showing in a figure."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from fledge.core.errors import DataError
from fledge.evaluation import continuations
from fledge.evaluation.continuations import Continuation, continuation_likelihoods, encode_pairs
from fledge.model.llama import Llama

from .conftest import ROW_TOKENS, Corpus


class Words:
    """A tokenizer of few words; "ab" is one token where "a" and "b" meet, as superwords do."""

    sha256, vocabulary_size, document_start = "", 10, (9,)

    def __init__(self, opening: tuple[int, ...] = ()) -> None:
        self.opening = opening

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        known = {"ab": 1, "a": 2, "b": 3, " ": 4, "c": 5, "S": 9}
        found = []
        for text in texts:
            ids = []
            while text:
                piece = next(piece for piece in known if text.startswith(piece))
                ids.append(known[piece])
                text = text[len(piece) :]
            found.append(ids)
        return found

    def decode(self, ids: Sequence[int]) -> str:
        raise NotImplementedError


def encoded(context: str, continued: str, opening: tuple[int, ...] = ()) -> tuple[list[int], list[int]]:
    [found] = encode_pairs(Words(opening), [(context, continued)])
    return list(found.context), list(found.continued)


def test_pairs_are_encoded_as_one_text_and_divided() -> None:
    assert encoded("a c", " b") == ([2, 4, 5], [4, 3])
    assert encoded("c ", "b") == ([5], [4, 3]), "white space belongs to what follows"
    assert encoded("c a", "bc") == ([5, 4, 2], [5]), "what exceeds the ids of the context, as lm-eval counts"
    assert encoded("c a", "b") == ([5, 4, 2], [3]), "one token took both: lm-eval has no answer here"
    assert encoded("c", "b", opening=(8,)) == ([8, 5], [3])


def test_a_text_with_nothing_before_it_comes_after_the_start_of_a_document() -> None:
    assert encoded("", "bc") == ([9], [3, 5])
    assert encoded(" ", "b") == ([9], [4, 3])
    assert encoded("", "Sb") == ([9], [3]), "which it may bring along"
    assert encoded("", "S") == ([9], [9])
    assert encoded("", "b", opening=(8,)) == ([9], [3])


def test_an_empty_text_is_refused() -> None:
    with pytest.raises(DataError, match="an empty text"):
        encoded("a", "")


def plain(model: Llama, one: Continuation) -> tuple[float, bool]:
    """One by one, the textbook formula, of what fits."""
    ids = [*one.context, *one.continued][-(ROW_TOKENS + 1) :]
    logits = model(torch.tensor([ids[:-1]]))[0].double()[-len(one.continued) :]
    targets = torch.tensor(list(one.continued))
    return float(logits.log_softmax(-1).gather(1, targets[:, None]).sum()), bool((logits.argmax(-1) == targets).all())


def choices(count: int, longest_context: int) -> list[Continuation]:
    """Questions with two to five choices each, of one to nine tokens."""
    chosen = random.Random(2)

    def ids(most: int) -> list[int]:
        return [chosen.randrange(300) for _ in range(chosen.randint(1, most))]

    found = []
    for _ in range(count):
        context = ids(longest_context)
        found += [Continuation(context, ids(9)) for _ in range(chosen.randint(2, 5))]
    return found


@pytest.mark.parametrize("batch_tokens", [1, 300, 100_000])
def test_choices_that_share_a_context_cost_what_they_cost_alone(random_model: Llama, batch_tokens: int) -> None:
    asked = choices(12, 60)
    found = continuation_likelihoods(random_model, asked, batch_tokens)
    for one, likelihood in zip(asked, found, strict=True):
        log_probability, is_greedy = plain(random_model, one)
        assert likelihood.log_probability == pytest.approx(log_probability, rel=1e-5)
        assert likelihood.is_greedy == is_greedy


def test_few_tokens_are_read(random_model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """ " yes" and " no" add nothing to their question; longer choices add themselves; a context shorter than its choices is not shared."""
    read = []
    monkeypatch.setattr(
        random_model.model, "forward", lambda tokens, *rest, whole=random_model.model.forward: read.append(tokens) or whole(tokens, *rest)
    )
    question = list(range(20))
    continuation_likelihoods(random_model, [Continuation(question, [1]), Continuation(question, [2])])
    continuation_likelihoods(random_model, [Continuation(question, [1, 2, 3]), Continuation(question, [4, 5])])
    continuation_likelihoods(random_model, [Continuation([7], [1, 2, 3]), Continuation([7], [4, 5, 6])])
    assert [tuple(tokens.shape) for tokens in read] == [(1, 20), (1, 23), (2, 3)]


def test_many_choices_are_read_in_several_rows(random_model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(continuations, "MAXIMUM_BRANCHED_TOKENS", 10)
    asked = [Continuation(list(range(30)), [place, 5, 6, 7, 8]) for place in range(7)]
    for one, likelihood in zip(asked, continuation_likelihoods(random_model, asked), strict=True):
        assert likelihood.log_probability == pytest.approx(plain(random_model, one)[0], rel=1e-5)


def test_a_context_that_is_too_long_loses_its_beginning(random_model: Llama) -> None:
    context = [place % 300 for place in range(3 * ROW_TOKENS)]
    asked = [Continuation(context, [3, 4, 5]), Continuation(context, [6]), Continuation(context, [7])]
    for one, likelihood in zip(asked, continuation_likelihoods(random_model, asked), strict=True):
        assert likelihood.log_probability == pytest.approx(plain(random_model, one)[0], rel=1e-5)
    [whole] = continuation_likelihoods(random_model, [Continuation([1], context[:ROW_TOKENS])])
    assert whole.log_probability == pytest.approx(plain(random_model, Continuation([1], context[:ROW_TOKENS]))[0], rel=1e-5)
    with pytest.raises(DataError, match=f"{ROW_TOKENS + 1} tokens"):
        continuation_likelihoods(random_model, [Continuation([1], context[: ROW_TOKENS + 1])])


def test_nothing_is_greedy_where_nobody_asks(trained_model: Llama, corpus: Corpus) -> None:
    ids = corpus.tokenizer.encode(corpus.documents[0].text)
    asked = [Continuation([*corpus.tokenizer.document_start, *ids[:20]], ids[20:24])]
    [told], [untold] = (continuation_likelihoods(trained_model, asked, judge_greedy=judged) for judged in (True, False))
    assert told.is_greedy and not untold.is_greedy
    assert told.log_probability == untold.log_probability
