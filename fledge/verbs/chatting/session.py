"""A conversation with one model or several: all of them answer, and each goes on from its own answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.core import console
from fledge.core.errors import DataError
from fledge.inference.seeds import of_sample
from fledge.inference.settings import GenerationSettings
from fledge.verbs.chatting.answering import Answer, Interruption, Question, answer
from fledge.verbs.chatting.conversation import Conversation, prompt_ids
from fledge.verbs.chatting.display import open_display
from fledge.verbs.chatting.speakers import Speaker, adjusted


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
        """Every model answers at once. What is interrupted stays as far as it came; what fails leaves all as it was."""
        with self._restored_on_failure():
            for participant in self.participants:
                participant.conversation.ask(text)
            questions = [self._question(participant) for participant in self.participants]
            with Interruption() as interruption, open_display([one.name for one in self.participants]) as display:
                answers = answer(questions, display.show, interruption)
        self._answers += 1
        for participant, question, given in zip(self.participants, questions, answers, strict=True):
            participant.conversation.answer(given.text)
            if note := _end_note(question, given):
                display.note(f"{participant.name}: {note}" if len(self.participants) > 1 else note)

    def ask_again(self) -> None:
        """The last question is answered anew. Raises DataError if there is none."""
        with self._restored_on_failure():
            questions = [participant.conversation.withdraw() for participant in self.participants]
            if questions[0] is None:
                raise DataError("there is no answer to give again", "ask something first")
            self.ask(questions[0])

    @contextlib.contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        former = [list(participant.conversation.exchanges) for participant in self.participants]
        try:
            yield
        except BaseException:  # Ctrl-C too; raised again below
            for participant, exchanges in zip(self.participants, former, strict=True):
                participant.conversation.exchanges = exchanges
            raise

    def _question(self, participant: Participant) -> Question:
        speaker = participant.speaker
        ids, left_out = prompt_ids(participant.conversation, speaker.tokenizer, speaker.engine.context_tokens)
        if left_out and not self.told_of_forgetting:
            self.told_of_forgetting = True
            console.info(f"the context of {speaker.engine.context_tokens:,} tokens is full: from here on the oldest turns are forgotten")
        # The same question asked again is another draw, and the whole conversation is still repeatable.
        return Question(speaker, ids, of_sample(participant.settings, self._answers), self.stop)


def _end_note(question: Question, given: Answer) -> str:
    """Why an answer ended; empty if it was complete."""
    if not given.text.strip():
        return "no answer; /regenerate tries again"
    if given.finish == "cancelled":
        return f"stopped after {given.tokens} tokens"
    if given.finish != "length":
        return ""
    context_tokens = question.speaker.engine.context_tokens
    if len(question.prompt) + given.tokens >= context_tokens:
        return f"cut off after {given.tokens} tokens: the context of {context_tokens:,} tokens is full"
    return f"cut off after {given.tokens} tokens; /set max_tokens=NUMBER allows more"
