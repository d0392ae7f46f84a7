"""The official client of OpenAI, unmodified, against a server of ours: everything it promises to understand."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from fledge.inference.engine import Engine
from fledge.inference.settings import GenerationSettings
from tests.serving.running import CONTEXT_TOKENS, NAME, Running, tiny_model, tiny_tokenizer

MESSAGES: Any = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
        yield client


def greedy(prompt: list[int], tokens: int) -> str:
    """What the engine says by itself."""
    tokenizer = tiny_tokenizer()
    engine = Engine(tiny_model(), tokenizer.vocabulary_size, tokenizer.end_ids(answers=True))
    [completion] = engine.generate([prompt], GenerationSettings(temperature=0, maximum_new_tokens=tokens))
    return tokenizer.decode(completion.ids)


def ids_of(text: str) -> list[int]:
    return [*tiny_tokenizer().document_start, *tiny_tokenizer().encode(text)]


@contextlib.contextmanager
def refused(kind: type[openai.APIStatusError], param: str | None, code: str | None = None) -> Iterator[None]:
    with pytest.raises(kind) as raised:
        yield
    error = raised.value.body
    assert isinstance(error, dict) and (error["param"], error["code"]) == (param, code), error


def test_models(client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.object, model.owned_by) == (NAME, "model", "fledge")
    assert model.max_model_len == CONTEXT_TOKENS  # type: ignore[attr-defined]
    assert client.models.retrieve(NAME) == model
    with refused(openai.NotFoundError, "model", "model_not_found"):
        client.models.retrieve("other/one")


def test_completion_is_what_the_engine_says(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt="row 3", max_tokens=9, temperature=0)
    assert answer.choices[0].text == greedy(ids_of("row 3"), 9)
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids_of("row 3")) and answer.usage.completion_tokens == 9
    assert answer.choices[0].finish_reason == "length" and answer.object == "text_completion"
    assert client.completions.create(model=NAME, prompt="row 3", temperature=0).usage.completion_tokens == 16  # type: ignore[union-attr]


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, max_tokens=7)
    [choice] = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and answer.object == "chat.completion"
    assert answer.usage is not None and answer.usage.completion_tokens == 7
    wins = client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, max_tokens=7, max_completion_tokens=3)
    assert wins.usage is not None and wins.usage.completion_tokens == 3
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]}]
    assert client.chat.completions.create(model=NAME, messages=parts, temperature=0, max_tokens=7).choices == answer.choices


def test_chat_stream_with_usage(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, max_tokens=20)
    events = list(
        client.chat.completions.create(
            model=NAME, messages=MESSAGES, temperature=0, max_tokens=20, stream=True, stream_options={"include_usage": True}
        )
    )
    first, *middle, end, usage = events
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert "".join(event.choices[0].delta.content or "" for event in middle) == whole.choices[0].message.content and len(middle) > 3
    assert end.choices[0].finish_reason == whole.choices[0].finish_reason and end.choices[0].delta.content is None
    assert usage.choices == [] and usage.usage is not None and usage.usage.completion_tokens == whole.usage.completion_tokens  # type: ignore[union-attr]
    assert len({(event.id, event.created, event.model) for event in events}) == 1
    assert {event.object for event in events} == {"chat.completion.chunk"}
    without = list(client.chat.completions.create(model=NAME, messages=MESSAGES, temperature=0, max_tokens=2, stream=True))
    assert all(event.usage is None and event.choices for event in without)


def test_completion_stream(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=NAME, prompt="row 3", max_tokens=20, temperature=0)
    events = list(client.completions.create(model=NAME, prompt="row 3", max_tokens=20, temperature=0, stream=True))
    assert "".join(event.choices[0].text for event in events) == whole.choices[0].text and len(events) > 3
    assert [event.choices[0].finish_reason for event in events] == [None] * (len(events) - 1) + ["length"]


def test_a_list_of_prompts_and_token_ids(client: openai.OpenAI) -> None:
    texts = ["row 3", "the table", "hello"]
    alone = [client.completions.create(model=NAME, prompt=text, max_tokens=6, temperature=0).choices[0].text for text in texts]
    together = client.completions.create(model=NAME, prompt=texts, max_tokens=6, temperature=0)
    assert [choice.text for choice in together.choices] == alone and [choice.index for choice in together.choices] == [0, 1, 2]
    by_ids = client.completions.create(model=NAME, prompt=[ids_of(text) for text in texts], max_tokens=6, temperature=0)
    assert [choice.text for choice in by_ids.choices] == alone
    one = client.completions.create(model=NAME, prompt=ids_of(texts[0]), max_tokens=6, temperature=0)
    assert one.choices[0].text == alone[0]


def test_several_choices(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=NAME, prompt=["row 3", "hello"], n=2, max_tokens=8, temperature=1.5, seed=5)
    assert len(answer.choices) == 4 and answer.choices[0].text != answer.choices[1].text
    alone = client.completions.create(model=NAME, prompt="hello", n=2, max_tokens=8, temperature=1.5, seed=5)
    assert [choice.text for choice in alone.choices] == [choice.text for choice in answer.choices[2:]]
    assert answer.usage is not None and answer.usage.prompt_tokens == len(ids_of("row 3")) + len(ids_of("hello"))
    streamed = ["", "", "", ""]
    for event in client.completions.create(model=NAME, prompt=["row 3", "hello"], n=2, max_tokens=8, temperature=1.5, seed=5, stream=True):
        streamed[event.choices[0].index] += event.choices[0].text
    assert streamed == [choice.text for choice in answer.choices]
    chat = client.chat.completions.create(model=NAME, messages=MESSAGES, n=2, max_tokens=8, temperature=1.5, seed=5)
    assert len(chat.choices) == 2 and chat.choices[0].message.content != chat.choices[1].message.content
    next_seed = client.chat.completions.create(model=NAME, messages=MESSAGES, n=2, max_tokens=8, temperature=1.5, seed=6)
    assert len({choice.message.content for choice in (*chat.choices, *next_seed.choices)}) == 4


def test_stop_strings_are_not_in_the_text(client: openai.OpenAI) -> None:
    whole = client.completions.create(model=NAME, prompt="row 3", max_tokens=30, temperature=0).choices[0].text
    stop = whole[12:15]
    for stops in (stop, ["never", stop]):
        choice = client.completions.create(model=NAME, prompt="row 3", max_tokens=30, temperature=0, stop=stops, logprobs=0).choices[0]
        assert choice.text == whole[: whole.index(stop)] and choice.finish_reason == "stop"
        assert choice.logprobs is not None and max(choice.logprobs.text_offset or []) < len(choice.text)


def test_logprobs_with_echo(client: openai.OpenAI) -> None:
    ids = ids_of("row 3 of the table")
    answer = client.completions.create(model=NAME, prompt=ids, max_tokens=3, temperature=0, echo=True, logprobs=2)
    [choice] = answer.choices
    told = choice.logprobs
    assert told is not None and told.tokens is not None and told.token_logprobs is not None and told.top_logprobs is not None
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(ids) + 3
    assert told.token_logprobs[0] is None and all(logprob is not None and logprob <= 0 for logprob in told.token_logprobs[1:])  # type: ignore[redundant-expr]
    assert all(top[token] == max(top.values()) for token, top in list(zip(told.tokens, told.top_logprobs, strict=True))[-3:])
    continued = client.completions.create(model=NAME, prompt=ids, max_tokens=3, temperature=0, logprobs=2).choices[0]
    assert continued.logprobs is not None and continued.logprobs.token_logprobs == pytest.approx(told.token_logprobs[-3:], abs=1e-4)
    assert choice.text.endswith(continued.text)


def test_echo_alone_measures_a_text(client: openai.OpenAI) -> None:
    text = "row 3 of the table"
    answer = client.completions.create(model=NAME, prompt=text, max_tokens=0, echo=True, logprobs=0)
    [choice] = answer.choices
    assert choice.text == text and choice.finish_reason == "length"
    assert answer.usage is not None and answer.usage.completion_tokens == 0
    assert choice.logprobs is not None and "".join(choice.logprobs.tokens or []) == text
    assert all(logprob is not None for logprob in choice.logprobs.token_logprobs or [])  # after the token that opens a document
    assert client.completions.create(model=NAME, prompt=text, max_tokens=0, echo=True).choices[0].text == text
    streamed = list(client.completions.create(model=NAME, prompt=text, max_tokens=2, temperature=0, echo=True, stream=True))
    assert "".join(event.choices[0].text for event in streamed).startswith(text)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3)
    [choice] = answer.choices
    assert choice.logprobs is not None and choice.logprobs.content is not None and len(choice.logprobs.content) == 5
    for token in choice.logprobs.content:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].token == token.token and token.bytes is not None
    assert b"".join(bytes(token.bytes or []) for token in choice.logprobs.content).decode("utf-8", "replace") == choice.message.content
    with refused(openai.BadRequestError, "top_logprobs"):
        client.chat.completions.create(model=NAME, messages=MESSAGES, top_logprobs=3)


def test_equal_seeds_give_equal_texts(client: openai.OpenAI) -> None:
    texts = [
        client.completions.create(model=NAME, prompt="row 3", max_tokens=12, temperature=1.5, seed=seed).choices[0].text
        for seed in (7, 7, 8, -1, -1)
    ]
    assert texts[0] == texts[1] != texts[2] and texts[3] == texts[4]
    unseeded = {client.completions.create(model=NAME, prompt="row 3", max_tokens=12, temperature=1.5).choices[0].text for _ in range(4)}
    assert len(unseeded) > 1


def test_what_is_wrong_is_named(client: openai.OpenAI) -> None:
    with refused(openai.NotFoundError, "model", "model_not_found"):
        client.completions.create(model="gpt-4", prompt="x")
    with refused(openai.BadRequestError, "temperature"):
        client.completions.create(model=NAME, prompt="x", temperature=-3)
    with refused(openai.BadRequestError, "prompt", "context_length_exceeded"):
        client.completions.create(model=NAME, prompt=[5] * 250, max_tokens=20)
    with refused(openai.BadRequestError, "prompt", "context_length_exceeded"):
        client.completions.create(model=NAME, prompt="row 3 ends. " * 200)
    with refused(openai.BadRequestError, "max_tokens", "context_length_exceeded"):
        client.completions.create(model=NAME, prompt="x", max_tokens=CONTEXT_TOKENS + 1)
    with refused(openai.BadRequestError, "messages", "context_length_exceeded"):
        client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": "row 3 ends. " * 200}])


def test_fields_of_other_servers_are_ignored(client: openai.OpenAI) -> None:
    extra = {"chat_template": "{{ 1/0 }}", "chat_template_kwargs": {"x": 1}, "cache_prompt": True, "tools": [], "keep_alive": 5}
    plain = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=5, temperature=0)
    other = client.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=5, temperature=0, user="me", extra_body=extra)
    assert other.choices == plain.choices


def test_extensions_by_their_usual_names(client: openai.OpenAI) -> None:
    def draw(**extra: Any) -> str:
        return client.completions.create(model=NAME, prompt="row", max_tokens=8, temperature=1.5, seed=1, extra_body=extra).choices[0].text

    greedy_text = client.completions.create(model=NAME, prompt="row", max_tokens=8, temperature=0).choices[0].text
    assert draw(top_k=1) == draw(min_p=1.0) == greedy_text != draw()
    assert draw(top_k=-1) == draw(top_k=0)
    assert draw(top_k=1, repetition_penalty=5.0) != greedy_text
    for wrong in ({"top_k": -2}, {"min_p": 2}, {"repetition_penalty": 0}, {"ignore_eos": "yes"}):
        with refused(openai.BadRequestError, next(iter(wrong))):
            draw(**wrong)
