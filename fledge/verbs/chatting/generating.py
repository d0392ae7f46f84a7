"""`fledge generate`: prompts in, texts out, all in one batch; a single one is shown while it is drawn.

With `--to` or `--json` there is a line of JSON for each text, in the order of the prompts: what was given, then
(in place of fields of the same names)

    completion          the text, without prompt, end and stop text
    finish              stop: the model, or a stop text, ended it; length: the limit or the context did
    completion_tokens   how many tokens were drawn
    sample              which of --n texts for this prompt, from 0
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.core import console, disk
from fledge.core.errors import ConfigError, DataError
from fledge.inference.seeds import of_sample
from fledge.inference.settings import GenerationSettings
from fledge.verbs.chatting.answering import Answer, Question, answer
from fledge.verbs.chatting.prompts import Prompt, encode_prompts, given_prompts, read_prompts
from fledge.verbs.chatting.speakers import Speaker


@dataclass(frozen=True)
class Output:
    """Where texts go."""

    file: Path | None = None
    """None: to the terminal."""
    as_json: bool = False


def prompts_of(texts: Sequence[str], file: Path | None, as_questions: bool) -> list[Prompt]:
    """What the command line gives, as texts or in a file. Raises ConfigError for neither or both, DataError for a wrong file."""
    if bool(texts) == (file is not None):
        raise ConfigError("prompts come from --prompt or from --from FILE", "give one of them")
    return given_prompts(texts, as_questions) if file is None else read_prompts(file, as_questions)


def require_free(file: Path | None) -> None:
    """Raises DataError if a file is already there: texts that took hours are not written over."""
    if file is not None and file.exists():
        raise DataError(f"{file} is already there", "move it away, or name another file with --to")


def generate(
    speaker: Speaker, prompts: Sequence[Prompt], settings: GenerationSettings, samples: int, stop: Sequence[str], output: Output
) -> None:
    """Continue or answer every prompt `samples` times. Raises DataError, before anything is drawn, for a prompt that is too long."""
    encoded = encode_prompts(speaker.tokenizer, prompts, speaker.engine.context_tokens)
    longest_tokens = max(map(len, encoded)) + settings.maximum_new_tokens
    speaker = speaker.for_batch(len(encoded) * samples, min(longest_tokens, speaker.engine.context_tokens))
    asked = [(prompt, sample) for prompt in prompts for sample in range(samples)]
    questions = [
        Question(speaker, encoded[place // samples], of_sample(settings, sample), tuple(stop), prompt.in_chat)
        for place, (prompt, sample) in enumerate(asked)
    ]
    if len(questions) == 1 and output == Output():
        console.write(prompts[0].text or "")
        answer(questions, lambda _, text: console.write(text))
        console.write("\n")
        return
    answers = _answer_all(questions)
    if output == Output():
        for (prompt, _), given in zip(asked, answers, strict=True):
            console.say((prompt.text or "") + given.text)
        return
    # On a terminal control characters are spelt out, which JSON does itself if it keeps to ASCII.
    lines = [_line(prompt, sample, given, output.file is None) for (prompt, sample), given in zip(asked, answers, strict=True)]
    if output.file is None:
        for line in lines:
            console.say(line)
    else:
        disk.write_text(output.file, "".join(f"{line}\n" for line in lines))
        console.info(f"{output.file}: {len(lines):,} texts")


def _answer_all(questions: Sequence[Question]) -> list[Answer]:
    with console.progress("generate", len(questions), "texts") as progress:
        return answer(questions, ended=lambda _: progress.advance())


def _line(prompt: Prompt, sample: int, given: Answer, ascii_only: bool) -> str:
    told = {"completion": given.text, "finish": given.finish, "completion_tokens": given.tokens, "sample": sample}
    return json.dumps({**prompt.record, **told}, ensure_ascii=ascii_only)
