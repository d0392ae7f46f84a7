"""`fledge generate` and `fledge chat`: a checkpoint and a person's words become an answer, shown as it is drawn."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from fledge.core import console
from fledge.core.config import Tree, parse
from fledge.core.errors import DataError
from fledge.corpus.document import Message, Role
from fledge.inference.engine import Completion, Engine
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import load_model
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import smoke_name
from fledge.tokens.chat import AnswerStream, render
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer


@dataclass(frozen=True)
class Speaker:
    """A checkpoint ready to speak."""

    folder: Path
    engine: Engine
    tokenizer: Tokenizer

    def speak(self, prompt: Sequence[int], settings: GenerationSettings, answers: bool) -> Completion:
        """Continue a prompt, or answer it, and write the text to stdout while it is drawn, whole characters only."""
        stream = AnswerStream(self.tokenizer) if answers else self.tokenizer.stream(continued=True)

        def show(_: int, token: int) -> None:
            console.write(stream.push(token))

        [completion] = self.engine.generate([prompt], settings, on_token=show)
        console.write(stream.finish() + "\n")
        return completion


def open_model(reference: str, small: bool) -> Speaker:
    """The checkpoint that a reference names, with its tokenizer; `small`: of the run that `--smoke` made.

    Raises CheckpointError or DataError.
    """
    folder = find_checkpoint(smoke_name(reference) if small else reference)
    tokenizer = open_tokenizer(folder)
    model = load_model(folder).eval()
    # A model of others may end a turn by a token that is none of our formats'.
    ends = {*tokenizer.end_ids(answers=True), *model.config.end_token_ids}
    return Speaker(folder, Engine(model, tokenizer.vocabulary_size, ends), tokenizer)


def generation_settings(temperature: float, top_k: int, top_p: float, max_tokens: int, seed: int | None) -> GenerationSettings:
    """Settings from the command line; a value out of range is a ConfigError."""
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "maximum_new_tokens": max_tokens, "seed": seed}
    return parse(GenerationSettings, Tree(values, {}))


def generate(speaker: Speaker, prompts: Sequence[str], chat_format: bool, settings: GenerationSettings) -> None:
    """Continue each prompt in turn, or answer it as a question."""
    for prompt in prompts:
        if chat_format:
            ids = render(speaker.tokenizer, [Message("user", prompt)], answer_follows=True).ids
        else:
            ids = [*speaker.tokenizer.document_start, *speaker.tokenizer.encode(prompt)]
            console.write(prompt)
        speaker.speak(ids, settings, answers=chat_format)


def chat(speaker: Speaker, system: str | None, settings: GenerationSettings) -> None:
    """Talk until the end of input; `/new` forgets what was said. Older turns are forgotten when the context is full."""
    console.info(f"{speaker.folder}: say something; /new begins anew, Ctrl-D ends")
    opening = [Message("system", system)] if system else []
    messages = list(opening)
    while (line := _read_line()) is not None:
        if line == "/new":
            messages = list(opening)
        elif line:
            messages.append(Message("user", line))
            messages = _fitting(speaker, opening, messages)
            completion = speaker.speak(render(speaker.tokenizer, messages, answer_follows=True).ids, settings, answers=True)
            messages.append(Message(get_args(Role)[2], speaker.tokenizer.decode(completion.ids).strip()))


def _read_line() -> str | None:
    if sys.stdin.isatty():
        console.write("> ")
    line = sys.stdin.readline()
    return line.strip() if line else None


def _fitting(speaker: Speaker, opening: list[Message], messages: list[Message]) -> list[Message]:
    """The latest turns that leave at least a quarter of the context for the answer."""
    room_tokens = speaker.engine.context_tokens * 3 // 4
    turns = messages[len(opening) :]
    while len(render(speaker.tokenizer, [*opening, *turns], answer_follows=True).ids) > room_tokens:
        if len(turns) == 1:
            raise DataError(f"this is longer than the model's context of {speaker.engine.context_tokens} tokens allows", "say less at once")
        turns = turns[2:]
    return [*opening, *turns]
