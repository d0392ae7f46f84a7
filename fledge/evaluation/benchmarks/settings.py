"""What a benchmark asks: the four kinds of tasks, as data. `definitions` says so of the known ones, a YAML file of one's own.

    kind: multiple_choice
    file: riddles.jsonl
    context: "Riddle: {riddle}\\nAnswer:"
    choices: ["{first}", "{second}"]
    answer: "{right}"

`{field}` stands for what a row has there, `{field.inner}` for what lies deeper; `{{` and `}}` are braces. There is nothing else to learn:
what needs more is done to the rows before.
"""

from __future__ import annotations

from typing import Annotated, Literal

from fledge.core.config import ByKind, settings
from fledge.evaluation.benchmarks.templates import fields_of


@settings
class AnyKind:
    """What all kinds have."""

    file: str | None = None
    """The rows: JSON Lines, a JSON list, Parquet, or for perplexity a text; as seen from the YAML file. Known benchmarks have none."""


@settings
class MultipleChoice(AnyKind):
    """Which of some texts is the most likely one."""

    kind: Literal["multiple_choice"]
    """Told by the likelihood of each choice after the context."""
    context: str
    """What stands before each choice; may hold {choice}."""
    choices: tuple[str, ...] | str
    """The texts to choose from, or one {field} that is a list of them."""
    answer: str
    """The right one: its place counted from 0, or one of `labels`."""
    labels: str | None = None
    """One {field}: a list of what the choices are called in `answer`, such as A, B, C; or the choices themselves."""
    continued: str = " {choice}"
    """What is scored after the context."""
    per_character: bool = True
    """Report acc_norm too, which compares likelihoods per character of the choices."""

    def __post_init__(self) -> None:
        listed = (self.choices,) if isinstance(self.choices, str) else self.choices
        for template in (self.context, self.answer, self.continued, self.labels or "", *listed):
            fields_of(template)
        if isinstance(self.choices, tuple) and len(self.choices) < 2:
            raise ValueError(f"choices must be at least 2, not {len(self.choices)}")


@settings
class LastWord(AnyKind):
    """Whether the last word of a text is predicted, to the letter."""

    kind: Literal["last_word"]
    """Right if each token of the word, with the space before it, is the most likely one."""
    text: str
    """The whole text; its words are what single spaces divide."""

    def __post_init__(self) -> None:
        fields_of(self.text)


@settings
class Perplexity(AnyKind):
    """What a text costs per token, word and byte."""

    kind: Literal["perplexity"]
    """Of the whole text, in windows where it is longer than the context."""
    text: str = "{text}"
    """What is scored."""
    counted: str | None = None
    """Whose words and bytes are counted, if not those of `text`."""

    def __post_init__(self) -> None:
        for template in (self.text, self.counted or ""):
            fields_of(template)


@settings
class GenerateExact(AnyKind):
    """Whether the model writes the very answer, greedily."""

    kind: Literal["generate_exact"]
    """White space around both is not compared."""
    prompt: str
    """What the model continues."""
    answer: str
    """What it should write."""
    stop: tuple[str, ...] = ("\n",)
    """What it wrote ends before the first of these."""
    maximum_tokens: int = 64
    """And after so many tokens."""

    def __post_init__(self) -> None:
        for template in (self.prompt, self.answer):
            fields_of(template)
        if self.maximum_tokens < 1:
            raise ValueError(f"maximum_tokens must be at least 1, not {self.maximum_tokens}")


Task = MultipleChoice | LastWord | Perplexity | GenerateExact
AnyTask = Annotated[Task, ByKind()]
