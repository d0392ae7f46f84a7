"""`fledge generate`: prompts in, texts out, all in one batch; a single one is shown while it is drawn.

With `--to` or `--json` there is a line of JSON for each text, in the order of the prompts: what was given, then
(in place of fields of the same names)

    completion          the text, without prompt, end and stop text
    finish              stop: the model, or a stop text, ended it; length: the limit or the context did
    completion_tokens   how many tokens were drawn
    sample              which of --n texts for this prompt, from 0

The file of `--to` appears whole, at the end. Until then each text that has ended is a line of FILE.unfinished, in the order in which they
ended, so that what took hours outlives whatever stops it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
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
    """Raises DataError if a file, or one that was not finished, is already there: texts that took hours are not written over."""
    for there in () if file is None else (file, _unfinished(file)):
        if there.exists():
            raise DataError(f"{there} is already there", "move it away, or name another file with --to")


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

    def line(place: int, given: Answer) -> str:
        # On a terminal control characters are spelt out, which JSON does itself if it keeps to ASCII.
        return _line(*asked[place], given, ascii_only=output.file is None)

    if output.file is not None:
        _write(output.file, questions, line)
        return
    answers = _answer_all(questions)
    if output == Output():
        for (prompt, _), given in zip(asked, answers, strict=True):
            console.say((prompt.text or "") + given.text)
        return
    for place, given in enumerate(answers):
        console.say(line(place, given))


def _write(file: Path, questions: Sequence[Question], line: Callable[[int, Answer], str]) -> None:
    """The file with the lines of all answers; if that fails, or is stopped, those that have ended stay beside it."""
    with _kept(_unfinished(file)) as keep:
        answers = _answer_all(questions, lambda place, given: keep(line(place, given)))
        disk.write_text(file, "".join(f"{line(place, given)}\n" for place, given in enumerate(answers)))
    console.info(f"{file}: {len(answers):,} texts")


@contextlib.contextmanager
def _kept(unfinished: Path) -> Iterator[Callable[[str], None]]:
    """Takes lines while the block lasts; the file goes when the block ends well, and is told of when it does not."""
    try:
        yield lambda line: disk.append_line(unfinished, line)
    except BaseException:  # Ctrl-C too; raised again
        if unfinished.exists():
            console.warn(f"the texts that have ended are kept in {unfinished}; move it away before you ask again")
        raise
    disk.remove(unfinished)


def _unfinished(file: Path) -> Path:
    return file.with_name(f"{file.name}.unfinished")


def _answer_all(questions: Sequence[Question], ended: Callable[[int, Answer], None] | None = None) -> list[Answer]:
    with console.progress("generate", len(questions), "texts") as progress:

        def note(place: int, given: Answer) -> None:
            if ended is not None:
                ended(place, given)
            progress.advance()

        return answer(questions, ended=note)


def _line(prompt: Prompt, sample: int, given: Answer, ascii_only: bool) -> str:
    told = {"completion": given.text, "finish": given.finish, "completion_tokens": given.tokens, "sample": sample}
    return json.dumps({**prompt.record, **told}, ensure_ascii=ascii_only)
