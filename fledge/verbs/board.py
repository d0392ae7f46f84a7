"""`fledge board`: the Runs page over a folder of runs, until it is stopped; runs can be started from it on this machine only."""

from __future__ import annotations

import secrets
from pathlib import Path

from fledge.core import console
from fledge.core.errors import ConfigError
from fledge.serving.application import create_application
from fledge.serving.board.routes import board_router
from fledge.serving.keys import VARIABLE, ApiKeys
from fledge.serving.pages import pages_router
from fledge.serving.run import serve
from fledge.serving.settings import ServerSettings, is_loopback
from fledge.stages import STAGES
from fledge.verbs.board_runs import RunLauncher


def board(folder: Path, settings: ServerSettings) -> None:
    """Serve the page. Raises ConfigError for a file in place of a folder, MachineError if the port is in use.

    Without a key in the environment one is made for this process, and stands behind the # of the address that is printed: a browser
    does not send that part, so it is in no log.
    """
    if folder.is_file():
        raise ConfigError(f"{folder} is a file", "name the folder in which runs lie; without a name it is runs")
    given = ApiKeys.from_environment()
    key = "" if given else secrets.token_urlsafe(24)
    launcher = RunLauncher(folder) if is_loopback(settings.host) else None
    application = create_application(
        settings,
        routers=[board_router(folder, STAGES, launcher)],
        public_routers=[pages_router(["runs"])],
        keys=given or ApiKeys([key]),
    )

    def say(address: str) -> None:
        console.say(f"board of {folder}: {address}/runs{f'#key={key}' if key else ''}")
        if not folder.is_dir():
            console.say(f"there is no {folder} yet; it is looked for again and again")
        if given:
            console.say(f"it asks for the key in {VARIABLE}")
        if launcher is None:
            console.say(f"runs cannot be started from here: other machines reach {settings.host}")

    def close() -> None:
        if launcher is not None:
            for run, process_id in launcher.running.items():
                console.say(f"{run} is still at work; to have it save and end: kill -- -{process_id}")
            launcher.close()

    serve(application, settings, say, close)
