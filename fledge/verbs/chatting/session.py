"""A conversation with one model or several: a person's words in, answers out, until the end of input.

Each model has a conversation of its own, since each goes on from its own answers. A question that fails (too long, a wrong command)
costs itself, never the conversation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fledge.core import console
from fledge.core.errors import FledgeError
from fledge.inference.settings import GenerationSettings
from fledge.verbs.chatting.answering import Answer, Interruption, Question, answer
from fledge.verbs.chatting.commands import COMMANDS, run_command
from fledge.verbs.chatting.conversation import Conversation, prompt_ids
from fledge.verbs.chatting.display import Display, open_display
from fledge.verbs.chatting.speakers import Speaker, adjusted
from fledge.verbs.chatting.terminal import line_reader, read_text

SEEDS = 1 << 63


@dataclass
class Participant:
    """A model in the conversation, and what it remembers of it."""

    name: str
    speaker: Speaker
    settings: GenerationSettings
    conversation: Conversation


class Session:
    """What the commands may change."""

    def __init__(self, speakers: Sequence[Speaker], system: str | None, given: Mapping[str, Any], stop: Sequence[str] = ()) -> None:
        """`given` replaces what the checkpoints say of generation. Raises ConfigError for a value out of range."""
        self.participants = [
            Participant(speaker.name, speaker, adjusted(speaker.generation, given), Conversation(system)) for speaker in speakers
        ]
        self.stop = tuple(stop)
        self.ended = False
        self.told_of_forgetting = False
        self._answers = 0

    def take(self, text: str) -> None:
        """A command, or words for the models. Raises FledgeError; then nothing is remembered of it."""
        if text.startswith("/") and not text.startswith("//"):
            if run_command(self, text):
                self.reply()
        elif text:
            self.ask(text.removeprefix("/") if text.startswith("//") else text)
            self.reply()

    def ask(self, text: str) -> None:
        for participant in self.participants:
            participant.conversation.ask(text)

    def reply(self) -> None:
        """Every model answers the last question at once. What is interrupted stays as far as it came."""
        answered = False
        try:
            questions = [self._question(participant) for participant in self.participants]
            with Interruption() as interruption, open_display([one.name for one in self.participants]) as display:
                answers = answer(questions, display.show, interruption)
            self._answers += 1
            answered = True
        finally:
            if not answered:
                for participant in self.participants:
                    participant.conversation.withdraw()
        for participant, given in zip(self.participants, answers, strict=True):
            participant.conversation.answer(given.text)
        _tell_ends(self.participants, answers, display)

    def _question(self, participant: Participant) -> Question:
        speaker = participant.speaker
        ids, left_out = prompt_ids(participant.conversation, speaker.tokenizer, speaker.engine.context_tokens)
        if left_out and not self.told_of_forgetting:
            self.told_of_forgetting = True
            console.info(f"the context of {speaker.engine.context_tokens:,} tokens is full: from here on the oldest turns are forgotten")
        settings = participant.settings
        if settings.seed is not None:
            # The same question asked again is another draw, and the whole conversation is still repeatable.
            settings = replace(settings, seed=(settings.seed + self._answers) % SEEDS)
        return Question(speaker, ids, settings, self.stop)


def chat(speakers: Sequence[Speaker], system: str | None, given: Mapping[str, Any], stop: Sequence[str] = ()) -> None:
    """Talk until the end of input. Raises ConfigError for a value out of range."""
    session = Session(speakers, system, given, stop)
    console.info(f"{', '.join(str(speaker.folder) for speaker in speakers)}: say something; /help lists commands, Ctrl-D leaves")
    read_line = line_reader([f"/{word}" for word in COMMANDS])
    while not session.ended:
        try:
            text = read_text(read_line)
            if text is None:
                return
            session.take(text)
        except KeyboardInterrupt:
            console.write("\n")
            console.info("Ctrl-D leaves")
        except FledgeError as error:
            console.error(error.problem, error.remedy)


def _tell_ends(participants: Sequence[Participant], answers: Sequence[Answer], display: Display) -> None:
    """Why answers ended, where it is not that they were complete."""
    for participant, given in zip(participants, answers, strict=True):
        who = f"{participant.name}: " if len(participants) > 1 else ""
        if given.finish == "cancelled":
            display.note(f"{who}stopped after {given.tokens} tokens")
        elif not given.text.strip():
            display.note(f"{who}no answer; the question is forgotten")
        elif given.finish == "length":
            display.note(f"{who}cut off after {given.tokens} tokens; /set max_tokens=NUMBER allows more")
