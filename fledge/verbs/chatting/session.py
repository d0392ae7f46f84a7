"""A conversation with one model or several: all of them answer, and each goes on from its own answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fledge.core import console
from fledge.inference.settings import GenerationSettings
from fledge.verbs.chatting.answering import Answer, Interruption, Question, answer
from fledge.verbs.chatting.conversation import Conversation, prompt_ids
from fledge.verbs.chatting.display import Display, open_display
from fledge.verbs.chatting.speakers import Speaker, adjusted

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

    def ask(self, text: str) -> None:
        for participant in self.participants:
            participant.conversation.ask(text)

    def reply(self) -> None:
        """Every model answers the last question at once. What is interrupted stays as far as it came."""
        try:
            questions = [self._question(participant) for participant in self.participants]
            with Interruption() as interruption, open_display([one.name for one in self.participants]) as display:
                answers = answer(questions, display.show, interruption)
        except BaseException:
            for participant in self.participants:
                participant.conversation.withdraw()
            raise
        self._answers += 1
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


def _tell_ends(participants: Sequence[Participant], answers: Sequence[Answer], display: Display) -> None:
    """Why answers ended, where it is not that they were complete."""
    for participant, given in zip(participants, answers, strict=True):
        who = f"{participant.name}: " if len(participants) > 1 else ""
        if not given.text.strip():
            display.note(f"{who}no answer; /regenerate tries again")
        elif given.finish == "cancelled":
            display.note(f"{who}stopped after {given.tokens} tokens")
        elif given.finish == "length":
            display.note(f"{who}cut off after {given.tokens} tokens; /set max_tokens=NUMBER allows more")
