"""Questions become answers, all at once: engines step in turn, ids become text as they are drawn, and a person may interrupt.

Each engine batches what it was asked, so one question to three models costs a step of each per token, and a hundred questions to one
model share its forward passes.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import Any

from fledge.inference.engine import Engine
from fledge.inference.requests import Drawn, Finish, Request, error_of
from fledge.inference.settings import GenerationSettings
from fledge.inference.texts import StopStream
from fledge.tokens.chat import AnswerStream
from fledge.verbs.chatting.speakers import Speaker

Show = Callable[[int, str], None]
"""Called with (place of the question, text that has come out)."""


@dataclass(frozen=True)
class Question:
    """What a model is to go on from."""

    speaker: Speaker
    prompt: Sequence[int]
    settings: GenerationSettings
    stop: tuple[str, ...] = ()
    """Texts at which the answer ends; they are not part of it."""
    in_chat: bool = True
    """Answered as a turn of a conversation, or a text that is continued."""


@dataclass(frozen=True)
class Answer:
    """What came of a question."""

    text: str
    tokens: int
    finish: Finish


class Interruption:
    """While it is entered, the first Ctrl-C only sets `asked`; the second one is what Ctrl-C always is."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            self._former: Any = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def answer(
    questions: Sequence[Question],
    show: Show | None = None,
    interruption: Interruption | None = None,
    ended: Callable[[int, Answer], None] | None = None,
) -> list[Answer]:
    """One answer per question, in their order; those that are interrupted end with what they have.

    `ended` is called with the place of a question that has its answer, and the answer.

    Raises DataError for a prompt that does not fit, NumericsError if a model's logits are no numbers, MachineError if the machine
    is not up to it.
    """
    engines = {id(question.speaker.engine): question.speaker.engine for question in questions}
    unfinished: dict[int, dict[int, _Growing]] = {key: {} for key in engines}
    done: dict[int, Answer] = {}
    growing = [_Growing(place, question, show) for place, question in enumerate(questions)]
    try:
        for one in growing:
            engine = one.question.speaker.engine
            unfinished[id(engine)][engine.submit(Request(tuple(one.question.prompt), one.question.settings))] = one
        while any(unfinished.values()) and not (interruption is not None and interruption.asked):
            for key, engine in engines.items():
                for one in _step(engine, unfinished[key]) if unfinished[key] else ():
                    done[one.place] = one.answer()
                    if ended is not None:
                        ended(one.place, done[one.place])
    finally:
        for key, engine in engines.items():
            for ticket in unfinished[key]:
                engine.cancel(ticket)
    return [done.get(one.place) or one.answer() for one in growing]


def _step(engine: Engine, unfinished: dict[int, _Growing]) -> Iterator[_Growing]:
    """Draw a token for each; yields those that have ended."""
    for drawn in engine.step():
        # What was cancelled may still be told of.
        if (one := unfinished.get(drawn.ticket)) is not None:
            one.take(drawn)
            if one.finish is not None:
                engine.cancel(drawn.ticket)
                del unfinished[drawn.ticket]
                yield one


class _Growing:
    """An answer while it is drawn."""

    def __init__(self, place: int, question: Question, show: Show | None) -> None:
        tokenizer = question.speaker.tokenizer
        self.question = question
        self.place, self._show = place, show
        self._stream = AnswerStream(tokenizer) if question.in_chat else tokenizer.stream(continued=True)
        self._stops = StopStream(question.stop)
        self._parts: list[str] = []
        self._tokens = 0
        self.finish: Finish | None = None

    def take(self, drawn: Drawn) -> None:
        """Raises NumericsError or MachineError if the request failed."""
        if drawn.failure is not None:
            raise error_of(drawn.failure, "the model could not answer")
        if drawn.token is not None:
            self._tokens += 1
            self._put(self._stops.push(self._stream.push(drawn.token)))
        self.finish = "stop" if self._stops.stopped else drawn.finish

    def answer(self) -> Answer:
        """To be asked for once: what is held back comes out now, but for a stop text."""
        self._put(self._stops.push(self._stream.finish()) + self._stops.finish())
        stopped = self._stops.stopped
        return Answer("".join(self._parts), self._tokens, "stop" if stopped else self.finish or "cancelled")

    def _put(self, text: str) -> None:
        if text:
            self._parts.append(text)
            if self._show is not None:
                self._show(self.place, text)
