"""`fledge chat`: a person's words in, answers out, until the end of input.

What fails (a question that is too long, a wrong command) costs itself, never the conversation; Ctrl-C costs an answer or a line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fledge.core import console
from fledge.core.errors import FledgeError
from fledge.verbs.chatting.commands import COMMANDS, run_command
from fledge.verbs.chatting.session import Session
from fledge.verbs.chatting.speakers import Speaker
from fledge.verbs.chatting.terminal import line_reader, read_text


def chat(speakers: Sequence[Speaker], system: str | None, given: Mapping[str, Any], stop: Sequence[str] = ()) -> None:
    """Talk until the end of input; `given` replaces what the checkpoints say of generation. Raises ConfigError for a value out of range."""
    session = Session(speakers, system, given, stop)
    console.info(f"{', '.join(str(speaker.folder) for speaker in speakers)}: say something; /help lists commands, Ctrl-D leaves")
    read_line = line_reader([f"/{word}" for word in COMMANDS])
    while not session.ended:
        try:
            text = read_text(read_line)
            if text is None:
                return
            _take(session, text)
        except KeyboardInterrupt:
            console.write("\n")
            console.info("Ctrl-D leaves")
        except FledgeError as error:
            console.error(error.problem, error.remedy)


def _take(session: Session, text: str) -> None:
    """A command, or words for the models."""
    if text.startswith("/") and not text.startswith("//"):
        run_command(session, text)
    elif text:
        session.ask(text.removeprefix("/") if text.startswith("//") else text)
