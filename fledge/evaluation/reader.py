"""A model as an evaluation uses it: its three questions, with the tokenizer and the way of computing that go with it.

likelihoods    how likely is this text after that one?
prices         what does this text cost?
continued      what does the model write after this text?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fledge.evaluation.continuations import context_tokens_of, continuation_likelihoods, cut_to_context, encode_pairs, encode_texts
from fledge.evaluation.rolling import TextPrice, Windows, text_prices, windows_of
from fledge.evaluation.scoring import BATCH_TOKENS, Likelihood
from fledge.inference.engine import Engine
from fledge.inference.settings import GenerationSettings
from fledge.model.llama import Llama
from fledge.model.precision import Precision
from fledge.tokens.foreign import TextTokenizer


@dataclass(frozen=True)
class Reader:
    """A model with its tokenizer."""

    model: Llama
    tokenizer: TextTokenizer
    batch_tokens: int = BATCH_TOKENS
    precision: Precision = "fp32"
    context_tokens: int | None = None
    """Of the windows in which prices are measured; None: the model's longest context."""
    stride_tokens: int | None = None
    """By how many tokens they move on; None: they do not overlap."""

    @property
    def windows(self) -> Windows:
        """How prices are measured. Raises ValueError for windows without a token."""
        return windows_of(self.model, self.context_tokens, self.stride_tokens)

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        """One per (context, continuation), in their order. Raises DataError, see `continuations`."""
        return continuation_likelihoods(self.model, encode_pairs(self.tokenizer, pairs), self.batch_tokens, self.precision)

    def require_room(self, pairs: Sequence[tuple[str, str]]) -> None:
        """Raise the DataError that `likelihoods` would for a continuation that is longer than the model's context."""
        cut_to_context(encode_pairs(self.tokenizer, pairs), context_tokens_of(self.model))

    def prices(self, texts: Sequence[str], scores_opening: bool = True) -> list[TextPrice]:
        """One per text, in their order; see `text_prices`."""
        return text_prices(self.model, self.tokenizer, texts, self.windows, self.batch_tokens, self.precision, scores_opening)

    def continued(self, prompts: Sequence[str], settings: GenerationSettings, stop: Sequence[str]) -> list[str]:
        """What is written after each prompt, up to the first of the stops; of a prompt that leaves no room its end is read.

        At most half of the context is written.
        """
        maximum_tokens = min(settings.maximum_new_tokens, context_tokens_of(self.model) // 2)
        room_tokens = context_tokens_of(self.model) - maximum_tokens
        encoded = [ids or [self.tokenizer.document_start[0]] for ids in encode_texts(self.tokenizer, prompts)]
        engine = Engine(self.model, self.tokenizer.vocabulary_size, self.model.config.end_token_ids, self.precision)
        completions = engine.generate([ids[-room_tokens:] for ids in encoded], replace(settings, maximum_new_tokens=maximum_tokens))
        return [_before(self.tokenizer.decode(completion.ids), stop) for completion in completions]


def _before(text: str, stop: Sequence[str]) -> str:
    return text[: min((text.index(end) for end in stop if end and end in text), default=len(text))]
