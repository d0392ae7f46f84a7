"""The price of whole texts: texts -> token ids -> [windows] -> nats per text, every token scored once.

A text longer than the context is read in windows. `stride_tokens` says how many new tokens each window after the first scores:

    stride = context    windows do not overlap (lm-evaluation-harness); a token has between 1 and `context` tokens before it
    stride < context    each window reads anew what is before its tokens, so each has at least context - stride + 1; slower, and better

The last window always reads a whole context. The first token of a text comes after the token that begins a document.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fledge.evaluation.continuations import Continuation, context_tokens_of, continuation_likelihoods, encode_texts
from fledge.evaluation.scoring import BATCH_TOKENS
from fledge.model.llama import Llama
from fledge.model.precision import Precision
from fledge.tokens.foreign import TextTokenizer


@dataclass(frozen=True)
class TextPrice:
    """What a text costs a model."""

    nats: float
    """Negative log-likelihood of all its tokens."""
    tokens: int


@dataclass(frozen=True)
class Windows:
    """How long texts are read."""

    context_tokens: int
    stride_tokens: int

    def __str__(self) -> str:
        overlap = "without overlap" if self.stride_tokens == self.context_tokens else f"that move on by {self.stride_tokens} tokens"
        return f"windows of {self.context_tokens} tokens {overlap}"


def windows_of(model: Llama, context_tokens: int | None = None, stride_tokens: int | None = None) -> Windows:
    """As asked for, at most the model's context; unset: all of it, without overlap. Raises ValueError for less than one token."""
    if min(value for value in (context_tokens, stride_tokens, 1) if value is not None) < 1:
        raise ValueError(f"windows of {context_tokens} tokens that move on by {stride_tokens} read nothing")
    longest = context_tokens_of(model) if context_tokens is None else min(context_tokens, context_tokens_of(model))
    return Windows(longest, longest if stride_tokens is None else min(stride_tokens, longest))


def text_prices(
    model: Llama,
    tokenizer: TextTokenizer,
    texts: Sequence[str],
    windows: Windows,
    batch_tokens: int = BATCH_TOKENS,
    precision: Precision = "fp32",
    scores_opening: bool = True,
) -> list[TextPrice]:
    """One price per text, in their order; an empty text costs nothing.

    What a tokenizer of others puts in front of every text is scored as part of it, which is what lm-evaluation-harness does; without
    `scores_opening` a text comes after it, so that models pay for the text alone.
    """
    encoded = encode_texts(tokenizer, texts) if scores_opening else tokenizer.encode_batch(texts)
    start = tokenizer.document_start[0] if scores_opening or not tokenizer.opening else tokenizer.opening[-1]
    owned = [(owner, window) for owner, ids in enumerate(encoded) for window in rolling_windows(ids, start, windows)]
    found = continuation_likelihoods(model, [window for _, window in owned], batch_tokens, precision, judge_greedy=False)
    nats = [0.0] * len(texts)
    for (owner, _), likelihood in zip(owned, found, strict=True):
        nats[owner] -= likelihood.log_probability
    return [TextPrice(price, len(ids)) for price, ids in zip(nats, encoded, strict=True)]


def rolling_windows(ids: Sequence[int], start: int, windows: Windows) -> Iterator[Continuation]:
    """The windows in which the ids of a text that begins after the token `start` are scored, each id in one of them."""
    whole = [start, *ids]
    first, scored = 0, windows.context_tokens
    while first < len(ids):
        end = min(first + scored, len(ids))
        # A window reads `context_tokens` tokens, the last one that it scores not among them.
        yield Continuation(whole[max(0, end - windows.context_tokens) : first + 1], whole[first + 1 : end + 1])
        first, scored = end, windows.stride_tokens
