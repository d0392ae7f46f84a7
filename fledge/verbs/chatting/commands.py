"""What begins with a slash: the words a person may say to the program instead of the model.

A command gets the session and the rest of its line; it says something, changes something, or has the models answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from fledge.core import console, disk
from fledge.core.config import override_value
from fledge.core.errors import ConfigError, DataError
from fledge.verbs.chatting.benchmark import FETCHED_TO, measure
from fledge.verbs.chatting.conversation import as_line
from fledge.verbs.chatting.session import Session
from fledge.verbs.chatting.speakers import adjusted

_SHORT_NAMES = {"max_tokens": "maximum_new_tokens"}
"""What the options of the command line call settings otherwise."""


@dataclass(frozen=True)
class Command:
    """A word after a slash."""

    arguments: str
    help: str
    run: Callable[[Session, str], None]


def run_command(session: Session, line: str) -> None:
    """Do what a line such as `/set temperature=0.5` says. Raises ConfigError for an unknown word or a wrong argument."""
    word, _, rest = line.removeprefix("/").partition(" ")
    command = COMMANDS.get(word)
    if command is None:
        raise ConfigError(f"there is no /{word}", "/help lists what there is; a text that begins with / is said with //")
    command.run(session, rest.strip())


def _help(session: Session, rest: str) -> None:
    console.table(
        "commands", ["say", "to"], [[f"/{word} {command.arguments}".rstrip(), command.help] for word, command in COMMANDS.items()]
    )
    console.say('A line that ends in \\ goes on in the next; """ begins a text of several lines, and """ ends it.')
    console.say("Ctrl-C stops an answer, Ctrl-D leaves.")


def _new(session: Session, rest: str) -> None:
    for participant in session.participants:
        participant.conversation.forget()
    session.told_of_forgetting = False
    console.info("a new conversation")


def _undo(session: Session, rest: str) -> None:
    questions = [participant.conversation.withdraw() for participant in session.participants]
    console.info("nothing was said yet" if questions[0] is None else f"taken back: {_shortened(questions[0])}")


def _regenerate(session: Session, rest: str) -> None:
    session.ask_again()


def _system(session: Session, rest: str) -> None:
    for participant in session.participants:
        participant.conversation.system = rest or None
    console.info(f"the instruction is now: {_shortened(rest)}" if rest else "there is no instruction now")


def _set(session: Session, rest: str) -> None:
    given = {}
    for assignment in rest.replace(",", " ").split():
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"{assignment!r} is not NAME=VALUE", "say for example /set temperature=0.5")
        name = name.replace("-", "_")
        given[_SHORT_NAMES.get(name, name)] = override_value(value)
    for participant in session.participants:
        participant.settings = adjusted(participant.settings, given)
    for participant in session.participants:
        label = f"{participant.name}: " if len(session.participants) > 1 else ""
        console.say(label + ", ".join(f"{name}={_plain(value)}" for name, value in asdict(participant.settings).items()))


def _save(session: Session, rest: str) -> None:
    if not rest:
        raise ConfigError("/save needs the name of a file", "say for example /save talk.jsonl")
    path = Path(rest).expanduser()
    if path.exists():
        raise DataError(f"{path} is already there", "name a file that is not")
    talks = [(one.name, one.conversation.messages) for one in session.participants if one.conversation.said]
    if not talks:
        raise DataError("nothing was said yet", "ask something first")
    further = [{"model": name} if len(session.participants) > 1 else {} for name, _ in talks]
    lines = [as_line(messages, **fields) for (_, messages), fields in zip(talks, further, strict=True)]
    disk.write_text(path, "".join(f"{line}\n" for line in lines))
    console.info(f"{path}: {len(talks[0][1])} messages" + (f" with each of {len(talks)} models" if len(talks) > 1 else ""))


def _benchmark(session: Session, rest: str) -> None:
    size, _, place = rest.partition(" ")
    speakers = [participant.speaker for participant in session.participants]
    measure(speakers, size or "quick", Path(place.strip()).expanduser() if place.strip() else FETCHED_TO)


def _exit(session: Session, rest: str) -> None:
    session.ended = True


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 60 else f"{line[:57]}..."


def _plain(value: object) -> str:
    return "null" if value is None else str(value)


COMMANDS: dict[str, Command] = {
    "help": Command("", "List these.", _help),
    "new": Command("", "Forget what was said.", _new),
    "undo": Command("", "Take the last question back, with its answer.", _undo),
    "regenerate": Command("", "Answer the last question anew.", _regenerate),
    "system": Command("TEXT", "Give the model an instruction; without a text there is none.", _system),
    "set": Command("NAME=VALUE ...", "Change how answers are drawn, such as temperature=0.5; without any, show it.", _set),
    "save": Command("FILE", "Write the conversation as JSON Lines, which a recipe can train on.", _save),
    "benchmark": Command("[quick|standard|comprehensive] [PLACE]", "Measure LAMBADA on 50, 100 or 200 passages.", _benchmark),
    "exit": Command("", "Leave, as Ctrl-D does.", _exit),
}
