"""`fledge serve`: checkpoints behind one address, until a signal ends it."""

from __future__ import annotations

import contextlib
import json
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from fledge.core import console
from fledge.core.errors import ConfigError
from fledge.inference.engine import Engine
from fledge.inference.requests import Request, error_of
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.inference.worker import EngineThread
from fledge.model.settings import DeviceName
from fledge.serving.application import create_application
from fledge.serving.keys import ApiKeys
from fledge.serving.pages import pages_router
from fledge.serving.run import Service, bind
from fledge.serving.served import ServedModel
from fledge.serving.settings import ServerSettings, require_safe_address
from fledge.stages.run import RUNS, smoke_name
from fledge.tokens.tokenizer import Tokenizer
from fledge.verbs.chatting.speakers import open_speaker

_STOP_SECONDS = 5.0


def serve(
    references: Sequence[str], names: Sequence[str], small: bool, settings: ServerSettings, engine: EngineSettings, device: DeviceName
) -> None:
    """Serve the checkpoints that these references name, under `names` or names of their own.

    Raises ConfigError, CheckpointError or DataError before it listens, and MachineError when it cannot listen or go on.
    """
    require_safe_address(settings, bool(ApiKeys.from_environment()))  # before models are loaded
    named = [smoke_name(one) if small else one for one in references]
    with bind(settings) as bound, served_models(named, names, engine, device) as models:
        application = create_application(settings, models, public_routers=[pages_router(["chat"])])
        service = Service(application, settings, bound)
        service.run(lambda address: _greet(address, models, settings))


@contextlib.contextmanager
def served_models(
    references: Sequence[str], names: Sequence[str], engine: EngineSettings, device: DeviceName = "auto"
) -> Iterator[list[ServedModel]]:
    """Their models, loaded, each with an engine that runs while the block lasts."""
    models = [_open(reference, name, engine, device) for reference, name in zip(references, model_names(references, names), strict=True)]
    with contextlib.ExitStack() as running:
        for model in models:
            model.engine.start()
            running.callback(model.engine.stop, _STOP_SECONDS)
        yield models


def model_names(references: Sequence[str], given: Sequence[str]) -> list[str]:
    """What clients call the models: what is given, or else a reference without `runs/`, of another folder its last part.

    Raises ConfigError if two would share a name.
    """
    if given and len(given) != len(references):
        raise ConfigError(f"{len(references)} checkpoints cannot have {len(given)} names", "give --model-name once for each")
    names = list(given) or [_own_name(reference) for reference in references]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two checkpoints would be called {twice}", "give each a --model-name of its own")
    return names


def _own_name(reference: str) -> str:
    path = Path(reference)
    if path.is_absolute():
        return path.name
    return path.relative_to(RUNS).as_posix() if path.is_relative_to(RUNS) else path.as_posix()


def _open(reference: str, name: str, settings: EngineSettings, device: DeviceName) -> ServedModel:
    speaker = open_speaker(reference, settings, device)
    config = speaker.folder / "config.json"
    created = int(config.stat().st_mtime) if config.is_file() else int(time.time())
    engine = speaker.engine
    _warm_up(engine, speaker.tokenizer, reference)
    return ServedModel(name, EngineThread(engine), speaker.tokenizer, engine.context_tokens, speaker.generation, created)


def _warm_up(engine: Engine, tokenizer: Tokenizer, reference: str) -> None:
    """Two tokens before anyone asks: what is compiled is compiled now, and what cannot be computed is refused now.

    Raises NumericsError or MachineError.
    """
    prompt = (tokenizer.document_start * 3)[: engine.context_tokens - 1]  # several tokens and one are computed by different loops
    engine.submit(Request(prompt, GenerationSettings(temperature=0, maximum_new_tokens=2)))
    while engine.has_work:
        for drawn in engine.step():
            if drawn.failure is not None:
                raise error_of(drawn.failure, f"{reference} cannot be computed")


def _greet(address: str, models: Sequence[ServedModel], settings: ServerSettings) -> None:
    keys = bool(ApiKeys.from_environment())
    if settings.insecure and not keys:
        console.warn(f"--insecure: whoever reaches {settings.host} may use it; names other than this machine's need --allowed-host")
    key = ' -H "Authorization: Bearer $FLEDGE_API_KEY"' if keys else ""
    example = json.dumps({"model": models[0].name, "messages": [{"role": "user", "content": "Hello"}]})
    console.say(f"serving {', '.join(model.name for model in models)} at {address}/v1 (pages: {address})")
    console.say(f"try: curl {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {shlex.quote(example)}")
    console.say("Ctrl-C ends it when the answers under way have ended; twice, at once")
