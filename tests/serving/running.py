"""A whole server for tests: a tiny random model, its engine's thread, uvicorn and a socket, in a thread of the test's process."""

from __future__ import annotations

import atexit
import contextlib
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import torch

from fledge.inference.engine import Engine
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.inference.worker import EngineThread
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings
from fledge.serving.application import create_application
from fledge.serving.keys import ApiKeys
from fledge.serving.run import Service
from fledge.serving.served import ServedModel
from fledge.serving.settings import ServerSettings
from fledge.serving.state import ServerState, state_of
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer
from tests.waiting import WAIT_SECONDS

NAME = "tiny"
CONTEXT_TOKENS = 256
SLOTS = 4
PREFILL_TOKENS = 64
_WORDS = ("row", "table", "holds", "words", "and", "ends", "here", "next", "one", "says", "hello", "grün", "number", "column", "page")
TEXTS = [
    f"row {index} of the {_WORDS[index % 15]} {_WORDS[index // 15 % 15]} holds {index * 7} words, says hello.\n" for index in range(300)
]


@cache
def tiny_tokenizer() -> Tokenizer:
    """ChatML, about 500 tokens; its folder stays while the tests run."""
    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder)
    train_tokenizer(TokenizerSettings(vocabulary_size=512), TEXTS, folder)
    return open_tokenizer(folder)


@cache
def tiny_model() -> Llama:
    """Random weights, large enough that no two logits are nearly equal."""
    settings = ModelSettings(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=CONTEXT_TOKENS,
        initializer_range=0.2,
    )
    tokenizer = tiny_tokenizer()
    # Not padded: the weights of padding, which are never drawn, would be as random as the others.
    config = ModelConfig(settings, tokenizer.vocabulary_size, end_token_ids=tokenizer.end_ids(answers=True))
    return Llama(config, seed=1).requires_grad_(False).eval()


class SlowEngine(Engine):
    """Takes at least so long for each step, and waits for leave, so that a test can act between two."""

    step_seconds = 0.0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.steps = 0
        self.may_step = threading.Event()
        self.may_step.set()

    def step(self) -> Any:
        """One pass, not too soon."""
        time.sleep(self.step_seconds)
        self.may_step.wait()
        self.steps += 1
        return super().step()


@dataclass
class Running:
    """A server that runs."""

    url: str
    state: ServerState
    engine: SlowEngine
    thread: EngineThread
    service: Service
    client: httpx2.Client
    ended: list[BaseException]
    """What the server has ended with, if not well."""
    key: str
    """One of its API keys."""

    def post(self, path: str, /, **fields: Any) -> httpx2.Response:
        """A request in JSON; the model is the tiny one unless it is given."""
        return self.client.post(path, json={"model": NAME, **fields})

    def complete(self, **fields: Any) -> httpx2.Response:
        """A completion, greedy unless the temperature is given."""
        return self.post("/v1/completions", **{"prompt": "row 3", "temperature": 0, **fields})

    def chat(self, **fields: Any) -> httpx2.Response:
        """An answer to a conversation."""
        return self.post("/v1/chat/completions", **{"messages": [{"role": "user", "content": "hello"}], "temperature": 0, **fields})

    def golden(self) -> str:
        """The text of one fixed request, alone."""
        answer = self.complete(max_tokens=12, prompt="row 7 of the table")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["choices"][0]["text"])

    def connect(self) -> socket.socket:
        """A raw connection."""
        host, port = self.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=WAIT_SECONDS)

    def counters(self) -> dict[str, float]:
        """The metrics as `name{labels}` -> value."""
        answer = self.client.get("/metrics", headers={"Authorization": f"Bearer {self.key}"} if self.key else {})
        lines = answer.text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    def busy_choices(self) -> int:
        """Choices that hold a slot or wait for one, as the server and the engine have it."""
        load = self.thread.load
        return self.state.admissions[NAME].begun + self.state.admissions[NAME].waiting + load.running + load.waiting


@contextlib.contextmanager
def running(
    settings: ServerSettings | None = None,
    keys: tuple[str, ...] = (),
    engine_settings: EngineSettings | None = None,
    generation: GenerationSettings | None = None,
) -> Iterator[Running]:
    """A server while the block lasts; its connections, tasks and threads are gone afterwards."""
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    engine_settings = engine_settings or EngineSettings(slots=SLOTS, prefill_tokens=PREFILL_TOKENS)
    engine = SlowEngine(tiny_model(), tokenizer.vocabulary_size, tokenizer.end_ids(answers=True), settings=engine_settings)
    thread = EngineThread(engine)
    thread.start()
    model = ServedModel(NAME, thread, tokenizer, engine.context_tokens, generation or GenerationSettings(), 1_700_000_000)
    settings = replace(settings or ServerSettings(), port=0)
    application = create_application(settings, [model], keys=ApiKeys(keys))
    try:
        with serving(application, settings) as (service, ended), new_client(service.address) as client:
            try:
                yield Running(service.address, state_of(application), engine, thread, service, client, ended, next(iter(keys), ""))
            finally:
                engine.may_step.set()  # a test that has failed leaves answers that would never end
    finally:
        thread.stop(WAIT_SECONDS)


@contextlib.contextmanager
def listening(application: Any) -> Iterator[str]:
    """The address at which an application answers while the block lasts."""
    with serving(application, ServerSettings(port=0)) as (service, ended):
        yield service.address
    assert not ended


@contextlib.contextmanager
def serving(application: Any, settings: ServerSettings) -> Iterator[tuple[Service, list[BaseException]]]:
    """An application by its own `Service`; the list gets what that has ended with, if not well."""
    service = Service(application, settings)
    ready = threading.Event()
    ended: list[BaseException] = []

    def serve() -> None:
        try:
            service.run(lambda _: ready.set())
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=serve)
    thread.start()
    assert ready.wait(WAIT_SECONDS), "the server did not start"
    try:
        yield service, ended
    finally:
        service.stop()
        thread.join(WAIT_SECONDS)
        assert not thread.is_alive(), "the server did not end"


def new_client(url: str) -> httpx2.Client:
    """Without the certificates that it would load, nobody needs them here."""
    return httpx2.Client(base_url=url, timeout=WAIT_SECONDS, verify=False)


def read_all(connection: socket.socket) -> bytes:
    """What comes until the other side closes, or cuts, the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while more := connection.recv(65_536):
            received += more
    return received


def error_of(response: httpx2.Response) -> tuple[int, str | None, str | None]:
    """(status, param, code) of an answer that must be an error in OpenAI's form."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["message"], response.text
    return response.status_code, error["param"], error["code"]
