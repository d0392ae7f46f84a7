"""`fledge board`: the Runs page over a folder of runs, until it is stopped; runs can be started from it on this machine only."""

from __future__ import annotations

import secrets
from pathlib import Path

from fledge.core import console
from fledge.serving.application import create_application
from fledge.serving.board.routes import board_router
from fledge.serving.keys import VARIABLE, ApiKeys
from fledge.serving.pages import pages_router
from fledge.serving.run import serve
from fledge.serving.settings import LOOPBACK, ServerSettings
from fledge.stages import STAGES
from fledge.verbs.launcher import RunLauncher


def board(folder: Path, settings: ServerSettings) -> None:
    """Serve the page. Raises MachineError if the port is in use.

    Without a key in the environment one is made for this process, and stands behind the # of the address that is printed: a browser
    does not send that part, so it is in no log.
    """
    given = ApiKeys.from_environment()
    key = "" if given else secrets.token_urlsafe(24)
    launcher = RunLauncher(folder) if settings.host in LOOPBACK else None
    application = create_application(
        settings,
        routers=[board_router(folder, STAGES, launcher)],
        public_routers=[pages_router(["runs"])],
        keys=given or ApiKeys([key]),
    )

    def say(address: str) -> None:
        console.say(f"board of {folder}: {address}/runs{f'#key={key}' if key else ''}")
        if given:
            console.say(f"it asks for the key in {VARIABLE}")
        if launcher is None:
            console.say(f"runs cannot be started from here: other machines reach {settings.host}")

    serve(application, settings, say)
    if launcher is not None:
        if launcher.running:
            console.say(f"still at work: {', '.join(launcher.running)}; stop them with kill, which saves first")
        launcher.close()
