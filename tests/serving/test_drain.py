"""A server that is asked to end: not ready at once, nothing new, what is under way to its end; threat 25 of docs/serving.md."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import APIRouter

from fledge.model.folder import save_model
from fledge.serving import run
from fledge.serving.application import create_application
from fledge.serving.keys import ApiKeys
from fledge.serving.run import Service
from fledge.serving.settings import ServerSettings
from fledge.serving.state import state_of
from fledge.tokens.tokenizer import copy_tokenizer
from tests.command_line import Fledge, expect_error
from tests.serving.running import CONTEXT_TOKENS, Running, error_of, new_client, running, serving, tiny_model, tiny_tokenizer
from tests.waiting import WAIT_SECONDS, until

LONG: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "temperature": 1.0}


def stream(url: str, answers: list[str], **fields: Any) -> threading.Thread:
    """A stream that is read in a thread, to its end."""

    def read() -> None:
        body = {"model": "tiny", "prompt": "row 3", "stream": True, **LONG, **fields}
        with new_client(url) as client:
            answers.append(client.post("/v1/completions", json=body).text)

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def is_whole(answer: str) -> bool:
    """Whether it ended with its last token and the mark of the end."""
    *_, last, done, rest = answer.split("\n\n")
    return done == "data: [DONE]" and rest == "" and json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("count", [10, pytest.param(100, marks=pytest.mark.slow)])
def test_25_streams_end_whole_and_nothing_new_begins(count: int) -> None:
    for number in range(count):
        with running() as server:
            server.engine.step_seconds = 0.001
            answers: list[str] = []
            threads = [stream(server.url, answers) for _ in range(3)]
            until(lambda server=server: server.thread.load.running == 3)  # type: ignore[misc]
            time.sleep(0.005 * (number % 10))
            server.engine.may_step.clear()  # else the answers might end before what is refused beside them was looked at
            server.service.stop()
            until(lambda server=server: server.state.draining)  # type: ignore[misc]
            refuses(server)
            server.engine.may_step.set()
            for thread in threads:
                thread.join()
            assert len(answers) == 3 and all(is_whole(answer) for answer in answers)
        assert not server.ended


def refuses(server: Running) -> None:
    """Not ready, alive, and nothing new: over a connection of its own, since the listener is still open."""
    with new_client(server.url) as client:
        ready = client.get("/health/ready")
        assert ready.status_code == 503 and "shutting down" in ready.text
        assert client.get("/health/live").status_code == 200
        refused = client.post("/v1/completions", json={"model": "tiny", "prompt": "x"})
        assert error_of(refused) == (503, None, "shutting_down") and refused.headers["Retry-After"] == "5"


def test_25_what_takes_too_long_is_told_so() -> None:
    with running(ServerSettings(drain_seconds=0.3)) as server:
        server.engine.step_seconds = 0.05
        answers: list[str] = []
        thread = stream(server.url, answers)
        until(lambda: server.thread.load.running == 1)
        server.service.stop()
        thread.join()
        *_, last, done, _ = answers[0].split("\n\n")
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "shutting_down" and done == "data: [DONE]"
    assert not server.ended


class Stuck:
    """A route whose answer only the end of the process ends, which is noted instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.ended, self.codes = threading.Event(), threading.Event(), list[int]()
        self.router = APIRouter()
        self.router.add_api_route("/stuck", self._answer)
        monkeypatch.setattr(os, "_exit", self._end)

    def _answer(self) -> None:
        self.asked.set()
        assert self.ended.wait(WAIT_SECONDS)

    def _end(self, code: int) -> None:
        self.codes.append(code)
        self.ended.set()

    def ask(self, address: str) -> None:
        """Returns when the answer is under way."""

        def read() -> None:
            with contextlib.suppress(httpx2.TransportError), new_client(address) as client:
                client.get("/stuck")

        threading.Thread(target=read).start()
        assert self.asked.wait(WAIT_SECONDS)


def test_25_a_thread_that_never_ends_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that reads what nobody writes; the end of the process is what frees it, here and there."""
    stuck = Stuck(monkeypatch)
    monkeypatch.setattr(run, "_LAST_WORDS_SECONDS", 0.2)
    settings = ServerSettings(port=0, drain_seconds=0.2)
    with serving(create_application(settings, routers=[stuck.router], keys=ApiKeys()), settings) as (service, _):
        stuck.ask(service.address)
        service.stop()
        assert stuck.ended.wait(WAIT_SECONDS)
    assert stuck.codes == [0]


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGHUP), (signal.SIGHUP, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)]
)
def test_25_a_second_signal_ends_a_process_at_once(first: signal.Signals, second: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is under way; in the thread of the test, since signals reach no other."""
    stuck = Stuck(monkeypatch)
    settings = ServerSettings(port=0, drain_seconds=600)
    application = create_application(settings, routers=[stuck.router], keys=ApiKeys())
    service = Service(application, settings)

    def send() -> None:
        try:
            stuck.ask(service.address)
            os.kill(os.getpid(), first)
            until(lambda: state_of(application).draining)
            os.kill(os.getpid(), second)
            assert stuck.ended.wait(WAIT_SECONDS / 4)
        finally:
            stuck.ended.set()
            service.stop()

    others = {number: signal.signal(number, lambda *_: None) for number in (first, second)}  # a signal that is not taken ends nothing
    try:
        service.run(lambda _: threading.Thread(target=send).start())
    finally:
        for number, other in others.items():
            signal.signal(number, other)
    assert stuck.codes == [128 + second]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    folder.mkdir()
    save_model(tiny_model(), folder)
    copy_tokenizer(tiny_tokenizer(), True, folder, maximum_tokens=CONTEXT_TOKENS)
    return folder


@contextlib.contextmanager
def served(checkpoint: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """`fledge serve` as a process of its own; its address, and what it said until it was ready."""
    command = [sys.executable, "-m", "fledge", "serve", str(checkpoint), "--port", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            said = process.stdout.readline()
            while "Ctrl-C" not in said:
                line = process.stdout.readline()
                assert line, process.communicate()[1]
                said += line
            found = re.search(r"http://127\.0\.0\.1:\d+", said)
            assert found is not None
            yield process, found[0], said
        finally:
            process.kill()


def test_25_a_process_ends_well_after_sigterm(checkpoint: Path, fledge: Fledge) -> None:
    with contextlib.ExitStack() as opened, served(checkpoint) as (process, url, said):
        assert "serving tiny at" in said and "curl" in said and "/v1/chat/completions" in said
        client = opened.enter_context(new_client(url))
        assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"
        assert client.get("/").status_code == 200  # the page
        port = url.rpartition(":")[2]
        expect_error(fledge("serve", str(checkpoint), "--port", port), 5, f"port {port} of 127.0.0.1 is in use", "--port")
        answers: list[str] = []
        threads = [stream(url, answers, max_tokens=250) for _ in range(4)]
        until(lambda: 'fledge_choices_running{model="tiny"} 4.0' in client.get("/metrics").text)
        process.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join()
        assert process.wait(WAIT_SECONDS) == 0
        assert all(is_whole(answer) or '"code":"shutting_down"' in answer for answer in answers)
        assert process.stderr is not None
        assert "SIGTERM" in (noted := process.stderr.read()) and "Traceback" not in noted


def test_what_cannot_be_served_is_told_in_two_lines(checkpoint: Path, fledge: Fledge) -> None:
    expect_error(fledge("serve", "nothing"), 4, "nothing")
    expect_error(fledge("serve", str(checkpoint), "--host", "0.0.0.0"), 2, "0.0.0.0", "FLEDGE_API_KEY")
    expect_error(fledge("serve", str(checkpoint), str(checkpoint)), 2, "tiny", "--model-name")
    expect_error(fledge("serve", str(checkpoint), "--model-name", "a", "--model-name", "b"), 2, "2 names")
    (checkpoint / "model.safetensors").rename(checkpoint / "away")
    try:
        expect_error(fledge("serve", str(checkpoint)), 4)
    finally:
        (checkpoint / "away").rename(checkpoint / "model.safetensors")


def test_39_a_hostile_checkpoint_is_refused_before_it_is_served(checkpoint: Path, fledge: Fledge, tmp_path: Path) -> None:
    """Weights that are a pickle, and a tokenizer that was changed; what else a folder may hold: tests/model and tests/tokens."""
    for name, content in (("model.safetensors", b"\x80\x04cos\nsystem\n(S'touch gone'\ntR."), ("tokenizer.json", b"{}")):
        folder = tmp_path / name.partition(".")[0]
        folder.mkdir()
        for path in checkpoint.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / name).write_bytes(content)
        outcome = fledge("serve", str(folder), "--port", "0")
        assert outcome.exit_code in (3, 4) and "serving" not in outcome.said
    assert not (tmp_path / "gone").exists()
