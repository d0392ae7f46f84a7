"""Requests at random times, lengths, parameters and cancels: what each gets is what it gets alone, and nothing is left behind."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from fledge.core.errors import DataError
from fledge.inference.engine import Engine
from fledge.inference.forward import Chunk, TorchForward
from fledge.inference.graph_forward import GraphForward
from fledge.inference.kernel_forward import KernelForward, PackedModel
from fledge.inference.requests import Drawn, Failure, Request, TokenLogprobs
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.model.llama import Llama

VOCABULARY_SIZE = 500
GREEDY = GenerationSettings(temperature=0, maximum_new_tokens=20)
POISON = 499
"""A token that the model of these tests fails on."""


@dataclass
class Answer:
    """All that was told of a request."""

    ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs | None] = field(default_factory=list)
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    end: Drawn | None = None

    def hear(self, drawn: Drawn) -> None:
        assert self.end is None, "nothing is told after the end"
        if drawn.token is not None:
            self.ids.append(drawn.token)
            self.logprobs.append(drawn.logprobs)
        self.prompt_logprobs = drawn.prompt_logprobs or self.prompt_logprobs
        self.end = drawn if drawn.finish else None


@pytest.fixture
def torch_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: the model itself computes."""
    monkeypatch.setattr(PackedModel, "fits", staticmethod(lambda _: False))


@pytest.fixture
def graph_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU where requests come and go, but for the recording."""
    monkeypatch.setattr(
        Engine,
        "_lasting_forward",
        lambda engine, slots, context: GraphForward(engine.model, torch.float32, slots, context, lambda one: one),
    )


def make_engine(model: Llama, **settings: object) -> Engine:
    return Engine(model, VOCABULARY_SIZE, model.config.end_token_ids, settings=replace(EngineSettings(slots=4), **settings))


def run(engine: Engine, requests: Sequence[Request]) -> list[Answer]:
    tickets = {engine.submit(request): Answer() for request in requests}
    while engine.has_work:
        for drawn in engine.step():
            tickets[drawn.ticket].hear(drawn)
    return list(tickets.values())


def random_requests(count: int, seed: int, greedy_only: bool = False) -> list[Request]:
    chosen = random.Random(seed)
    requests = []
    for index in range(count):
        prompt = tuple(chosen.randrange(VOCABULARY_SIZE) for _ in range(chosen.choice((1, 2, 5, 12, 40))))
        settings = GenerationSettings(
            temperature=0.0 if greedy_only or chosen.random() < 0.5 else chosen.choice((0.3, 1.0, 2.0)),
            top_k=chosen.choice((0, 1, 5, 50)),
            top_p=chosen.choice((1.0, 0.9, 0.5)),
            min_p=chosen.choice((0.0, 0.1)),
            repetition_penalty=chosen.choice((1.0, 1.3)),
            maximum_new_tokens=chosen.choice((1, 3, 12)),
            seed=index,
        )
        requests.append(
            Request(prompt, settings, chosen.choice((None, 0, 3)), prompt_logprobs=chosen.random() < 0.2, ignore_end=chosen.random() < 0.3)
        )
    return requests


def under_load(engine: Engine, requests: Sequence[Request], seed: int) -> tuple[dict[int, Answer], set[int]]:
    """Index -> answer for requests that arrive a few at a time, one in eight of which is cancelled at some moment; and which those are."""
    chosen = random.Random(seed)
    answers: dict[int, Answer] = {}
    owners: dict[int, int] = {}
    cancelled: set[int] = set()
    waiting = list(range(len(requests)))
    while waiting or engine.has_work:
        for index in waiting[: chosen.choice((0, 1, 3))]:
            waiting.remove(index)
            answers[index] = Answer()
            owners[engine.submit(requests[index])] = index
        live = [ticket for ticket, index in owners.items() if answers[index].end is None and index not in cancelled]
        if live and chosen.random() < 0.125:
            ticket = chosen.choice(live)
            engine.cancel(ticket)
            engine.cancel(ticket)
            cancelled.add(owners[ticket])
        for drawn in engine.step():
            answers[owners[drawn.ticket]].hear(drawn)
    return answers, cancelled


@pytest.mark.parametrize(
    ("path", "count"),
    [
        ("kernels", 150),
        pytest.param("kernels", 1000, marks=pytest.mark.slow),
        ("torch", 60),
        ("torch with batch_invariant", 60),
        ("graph", 60),
    ],
)
def test_requests_get_under_load_what_they_get_alone(tiny_model: Llama, path: str, count: int, request: pytest.FixtureRequest) -> None:
    """To the bit with the kernels and with `batch_invariant`; else up to the rounding of products of another shape, so without a choice
    between logits that are nearly equal, which this model has none of."""
    if path != "kernels":
        request.getfixturevalue(f"{path.split()[0]}_path")
    engine = make_engine(tiny_model, batch_invariant="invariant" in path, prefill_tokens=16)
    requests = random_requests(count, seed=1, greedy_only=path in ("torch", "graph"))
    answers, cancelled = under_load(engine, requests, seed=2)
    assert (engine.load.running, engine.load.waiting, engine.has_work) == (0, 0, False)
    assert len(cancelled) > len(requests) // 20
    lone = make_engine(tiny_model, slots=1, batch_invariant="invariant" in path, prefill_tokens=16)
    ends = set()
    for index, answer in answers.items():
        assert answer.end is not None
        ends.add(answer.end.finish)
        [expected] = run(lone, [requests[index]])
        if answer.end.finish == "cancelled":
            assert index in cancelled
            assert answer.ids == expected.ids[: len(answer.ids)]
        elif path in ("torch", "graph"):
            assert answer.ids == expected.ids
            compare_logprobs(answer, expected)
        else:
            assert replace(answer.end, ticket=0) == replace(expected.end or answer.end, ticket=0)
            assert (answer.ids, answer.logprobs, answer.prompt_logprobs) == (expected.ids, expected.logprobs, expected.prompt_logprobs)
    assert ends == {"stop", "length", "cancelled"}


def compare_logprobs(answer: Answer, expected: Answer) -> None:
    for ours, theirs in zip(answer.logprobs, expected.logprobs, strict=True):
        if ours is not None and theirs is not None:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert [value for _, value in ours.top] == pytest.approx([value for _, value in theirs.top], abs=1e-4)


def test_the_kernels_equal_the_model(tiny_model: Llama) -> None:
    """Of all requests, whatever company they had: tokens and log probabilities by a whole forward pass of the text."""
    requests = [replace(one, logprobs=3) for one in random_requests(40, seed=5, greedy_only=True)]
    for request, answer in zip(requests, run(make_engine(tiny_model), requests), strict=True):
        ids = [*request.prompt, *answer.ids]
        with torch.no_grad():
            logits = tiny_model(torch.tensor([ids]))
        assert isinstance(logits, Tensor)
        expected = logits[0, :, :VOCABULARY_SIZE].log_softmax(dim=-1)
        for place, logprobs in enumerate(answer.logprobs, len(request.prompt)):
            assert logprobs is not None
            assert logprobs.logprob == pytest.approx(float(expected[place - 1, ids[place]]), abs=1e-4)
            assert [value for _, value in logprobs.top] == pytest.approx(expected[place - 1].topk(3).values.tolist(), abs=1e-4)
        if request.prompt_logprobs and answer.prompt_logprobs:
            assert answer.prompt_logprobs[0] is None
            found = [one.logprob for one in answer.prompt_logprobs if one]
            assert found == pytest.approx([float(expected[place - 1, ids[place]]) for place in range(1, len(request.prompt))], abs=1e-4)


def test_prompt_logprobs_of_prompts_in_pieces(tiny_model: Llama) -> None:
    request = Request(tuple(range(50)), GREEDY, logprobs=2, prompt_logprobs=True)
    [whole], [pieces] = (run(make_engine(tiny_model, prefill_tokens=tokens), [request]) for tokens in (256, 7))
    assert whole == pieces
    assert whole.prompt_logprobs is not None
    assert len(whole.prompt_logprobs) == 50


def test_a_long_prompt_holds_up_nobody(tiny_model: Llama) -> None:
    """One who is being answered gets a token in every step, while 80 tokens are read ten at a time."""
    engine = make_engine(tiny_model, prefill_tokens=10)
    first = engine.submit(Request((1,), GREEDY, ignore_end=True))
    engine.step()
    second = engine.submit(Request(tuple(range(80)), GREEDY, ignore_end=True))
    told = [[drawn.ticket for drawn in engine.step()] for _ in range(9)]
    assert told == [*[[first]] * 7, [first, second], [first, second]]


def test_a_cancel_takes_effect_before_the_next_pass(tiny_model: Llama) -> None:
    engine = make_engine(tiny_model, slots=1)
    running, waiting, next_one = (engine.submit(Request((token,), GREEDY, ignore_end=True)) for token in (1, 2, 3))
    engine.step()
    engine.cancel(running)
    engine.cancel(waiting)
    told = engine.step()
    assert [(drawn.ticket, drawn.finish, drawn.token is None) for drawn in told] == [
        (running, "cancelled", True),
        (waiting, "cancelled", True),
        (next_one, None, False),
    ]
    engine.cancel(running)
    engine.cancel(12345)
    assert [drawn.ticket for drawn in engine.step()] == [next_one]


def poisoned(monkeypatch: pytest.MonkeyPatch, kind: type[KernelForward | TorchForward | GraphForward]) -> None:
    whole = kind.run

    def run_or_fail(self: KernelForward, chunks: Sequence[Chunk]) -> list[Tensor]:
        if any(POISON in chunk.ids for chunk in chunks):
            raise RuntimeError("out of luck")
        return whole(self, chunks)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, "run", run_or_fail)


@pytest.mark.parametrize("path", ["kernels", "torch", "graph"])
def test_a_request_that_fails_inside_fails_alone(
    tiny_model: Llama, path: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path != "kernels":
        request.getfixturevalue(f"{path}_path")
    requests = [Request((token, 1, 2), GREEDY, ignore_end=True) for token in (5, POISON, 6)]
    expected = run(make_engine(tiny_model), [requests[0], requests[2]])
    poisoned(monkeypatch, {"kernels": KernelForward, "torch": TorchForward, "graph": GraphForward}[path])
    engine = make_engine(tiny_model)
    first, broken, last = run(engine, requests)
    assert [first.ids, last.ids] == [one.ids for one in expected]
    assert broken.end is not None
    assert (broken.ids, broken.end.finish, broken.end.failure) == ([], "failed", Failure("other", "RuntimeError: out of luck"))
    assert engine.load.running == 0


def test_a_draw_that_is_tried_again_takes_no_other_number(tiny_model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    """All draws of several rows fail, where the numbers have been drawn; each row by itself then gets what it would have got."""
    sampled = GenerationSettings(temperature=1.0, maximum_new_tokens=15, seed=9)
    requests = [Request((token, 1, 2), sampled, ignore_end=True) for token in (5, 6)]
    expected = run(make_engine(tiny_model), requests)
    whole, failed = torch.searchsorted, []

    def fail_together(cumulative: Tensor, threshold: Tensor, **options: bool) -> Tensor:
        if len(cumulative) > 1:
            failed.append(len(cumulative))
            raise MemoryError
        return whole(cumulative, threshold, **options)

    monkeypatch.setattr(torch, "searchsorted", fail_together)
    assert [answer.ids for answer in run(make_engine(tiny_model), requests)] == [answer.ids for answer in expected]
    assert failed == [2] * 15


def test_logits_that_are_not_numbers_end_one_request(tiny_model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = KernelForward.run

    def run_broken(self: KernelForward, chunks: Sequence[Chunk]) -> list[Tensor]:
        return [logits * float("nan") if POISON in chunk.ids else logits for chunk, logits in zip(chunks, whole(self, chunks), strict=True)]

    monkeypatch.setattr(KernelForward, "run", run_broken)
    good, broken = run(make_engine(tiny_model), [Request((5,), GREEDY, ignore_end=True), Request((POISON,), GREEDY)])
    assert len(good.ids) == 20
    assert broken.end is not None
    assert broken.end.failure == Failure("numbers", "the model answers with logits that are not numbers")


def test_a_slot_keeps_no_trace(tiny_model: Llama) -> None:
    """The same request in a fresh slot and in one that held a long text before."""
    engine = make_engine(tiny_model, slots=1)
    request = Request((7, 8), replace(GREEDY, temperature=1.0, seed=3), logprobs=5)
    [before] = run(engine, [request])
    run(engine, [Request(tuple(range(100, 190)), GREEDY)])
    assert run(engine, [request]) == [replace_ticket(before, 2)]


def replace_ticket(answer: Answer, ticket: int) -> Answer:
    return replace(answer, end=replace(answer.end, ticket=ticket) if answer.end else None)


def test_equal_seeds_equal_texts_whatever_the_load(tiny_model: Llama) -> None:
    request = Request((3, 1), GenerationSettings(temperature=1.0, maximum_new_tokens=15, seed=9), ignore_end=True)
    engine = make_engine(tiny_model)
    answers = run(engine, [request, *random_requests(10, seed=4), *[request] * 10])
    assert {tuple(answer.ids) for answer in (answers[0], *answers[-10:])} == {tuple(run(engine, [request])[0].ids)}
    other = replace(request, generation=replace(request.generation, seed=10))
    assert run(engine, [other])[0].ids != answers[0].ids


def test_an_end_token_is_not_told_unless_it_is_ignored(tiny_model: Llama) -> None:
    requests = [Request((token,), replace(GREEDY, maximum_new_tokens=60)) for token in range(9)]
    stopped, request = next(
        (answer, request)
        for answer, request in zip(run(make_engine(tiny_model), requests), requests, strict=True)
        if answer.end and answer.end.finish == "stop"
    )
    [ignoring] = run(make_engine(tiny_model), [replace(request, ignore_end=True)])
    assert stopped.end is not None
    assert stopped.end.end_token in tiny_model.config.end_token_ids
    assert ignoring.ids[: len(stopped.ids) + 1] == [*stopped.ids, stopped.end.end_token]
    assert len(ignoring.ids) == 60


@pytest.mark.parametrize(
    ("prompt", "problem"), [((), "0 tokens"), ((1,) * 96, "96 tokens"), ((500,), "token id 500"), ((-1,), "token id -1")]
)
def test_impossible_requests_are_refused(tiny_model: Llama, prompt: tuple[int, ...], problem: str) -> None:
    engine = make_engine(tiny_model)
    with pytest.raises(DataError, match=problem):
        engine.submit(Request(prompt, GREEDY))
    assert not engine.has_work


def test_the_context_of_the_engine_limits(tiny_model: Llama) -> None:
    [answer] = run(make_engine(tiny_model, context_tokens=10), [Request((1,) * 8, GREEDY, ignore_end=True)])
    assert len(answer.ids) == 2
    assert answer.end is not None
    assert answer.end.finish == "length"


def test_more_threads_change_nothing(tiny_model: Llama, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = random_requests(12, seed=8)
    expected = run(make_engine(tiny_model), requests)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert run(make_engine(tiny_model), requests) == expected


def test_generate_does_not_disturb_requests(tiny_model: Llama) -> None:
    engine = make_engine(tiny_model)
    request = Request((5,), GREEDY, ignore_end=True)
    [expected] = run(engine, [request])
    ticket = engine.submit(request)
    told = engine.step()
    engine.generate([[9], [8]], GREEDY)
    while engine.has_work:
        told += engine.step()
    assert [drawn.token for drawn in told if drawn.ticket == ticket] == expected.ids
