"""What served models are called, what cannot be served, and what is said of a server that runs."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from fledge.core.errors import ConfigError, MachineError
from fledge.inference.settings import EngineSettings
from fledge.serving.application import create_application
from fledge.serving.keys import ApiKeys
from fledge.serving.run import Service
from fledge.serving.settings import ServerSettings
from fledge.verbs import serving
from fledge.verbs.serving import model_names
from tests.command_line import Fledge, expect_error


@pytest.mark.parametrize(
    ("reference", "name"),
    [
        ("demo", "demo"),
        ("demo@best", "demo@best"),
        ("runs/demo/sft@500", "demo/sft@500"),
        ("/srv/models/small", "small"),
        ("exported/", "exported"),
    ],
)
def test_a_model_is_called_what_it_was_named_by(reference: str, name: str) -> None:
    assert model_names([reference], []) == [name]


def test_given_names_replace_them_and_none_may_be_twice() -> None:
    assert model_names(["demo", "demo@best"], ["one", "two"]) == ["one", "two"]
    for references, names in ((["demo"], ["one", "two"]), (["demo", "runs/demo"], []), (["a", "b"], ["one", "one"])):
        with pytest.raises(ConfigError, match="model-name"):
            model_names(references, names)


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_what_the_server_cannot_be_is_told_in_two_lines(fledge: Fledge, seconds: str) -> None:
    expect_error(fledge("serve", "demo", f"--drain-seconds={seconds}"), 2, "drain_seconds")
    expect_error(fledge("serve", "demo", "--cors-origin", "example.org"), 2, "cors_origins", "https://example.org")


def test_a_port_in_use_is_known_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*given: Any) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(serving, "_open", load)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(MachineError, match="is in use"):
        serving.serve(["demo"], [], False, ServerSettings(port=taken.getsockname()[1]), EngineSettings(), "cpu")


def test_a_server_on_all_addresses_is_named_by_one_that_it_answers_to() -> None:
    settings = ServerSettings(host="0.0.0.0", port=0, insecure=True)
    service = Service(create_application(settings, keys=ApiKeys()), settings)
    assert service.address.startswith("http://127.0.0.1:")
    service._socket.close()


class _Engine:
    """Counts what runs; the second one does not start."""

    running = 0

    def __init__(self, starts: bool) -> None:
        self._starts = starts

    def start(self) -> None:
        if not self._starts:
            raise RuntimeError("no thread")
        _Engine.running += 1

    def stop(self, seconds: float) -> None:
        _Engine.running -= 1


def test_an_engine_that_does_not_start_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def __init__(self, name: str) -> None:
            self.engine = _Engine(starts=name == "one")

    monkeypatch.setattr(serving, "_open", lambda reference, name, *rest: Model(name))
    with pytest.raises(RuntimeError, match="no thread"), serving.served_models(["one", "two"], [], EngineSettings()):
        pass
    assert _Engine.running == 0
