"""How likely is this text after that one? Pairs of texts -> token ids -> [one forward pass for all that share a context] -> likelihoods.

Texts become ids as in lm-evaluation-harness, so that figures agree to the last printed digit: white space at the end of a context
belongs to what follows; both are encoded as one text, and what exceeds the context's own ids is scored; a text without a context comes
after the token that begins a document; a context that is too long loses its beginning.

Choices share their context. It is then read once, and the choices lie behind it side by side, each seeing the context and itself:

    context   ' a' 'cat'   ' the' 'red' 'dog'        positions go on from the context in each branch

The last token of a choice predicts nothing, so choices of one token (" yes", " no") add no token at all.

B rows, T tokens per row, D width, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fledge.core.errors import DataError
from fledge.evaluation.scoring import BATCH_TOKENS, Likelihood, batches_by_length, score_tokens
from fledge.model.llama import Llama
from fledge.model.precision import Precision, autocast
from fledge.tokens.foreign import TextTokenizer

MAXIMUM_BRANCHED_TOKENS = 256
"""Behind one context. The longest four endings of HellaSwag have about 250."""


@dataclass(frozen=True)
class Continuation:
    """Token ids that are scored, and those before them; neither may be empty."""

    context: Sequence[int]
    continued: Sequence[int]


def encode_pairs(tokenizer: TextTokenizer, pairs: Sequence[tuple[str, str]]) -> list[Continuation]:
    """The ids of (context, continuation) pairs of texts. Raises DataError for an empty continuation."""
    moved = [_with_space_moved(context, continued) for context, continued in pairs]
    texts = list(dict.fromkeys(text for context, continued in moved for text in (context, context + continued)))
    ids = dict(zip(texts, tokenizer.encode_batch(texts), strict=True))
    return [_continuation(tokenizer, ids, context, continued) for context, continued in moved]


def encode_texts(tokenizer: TextTokenizer, texts: Sequence[str]) -> list[list[int]]:
    """The ids of whole texts, with those that the tokenizer puts in front of each."""
    return [[*tokenizer.opening, *ids] for ids in tokenizer.encode_batch(texts)]


def context_tokens_of(model: Llama) -> int:
    """The longest context of a model, in tokens."""
    return model.config.settings.max_position_embeddings


def continuation_likelihoods(
    model: Llama,
    continuations: Sequence[Continuation],
    batch_tokens: int = BATCH_TOKENS,
    precision: Precision = "fp32",
    judge_greedy: bool = True,
) -> list[Likelihood]:
    """One Likelihood per continuation, in their order; at most `batch_tokens` tokens, padding included, in one pass.

    Without `judge_greedy`, `is_greedy` is False throughout, which saves a look at all logits. Raises DataError for a continuation
    that is longer than the model's context.
    """
    cut = cut_to_context(continuations, context_tokens_of(model))
    rows = _rows(cut)
    log_probabilities, is_greedy = np.zeros(len(cut)), np.full(len(cut), judge_greedy)
    for branched in (False, True):
        chosen_rows = [row for row in rows if row.is_branched == branched]
        for batch in batches_by_length([len(row.ids) for row in chosen_rows], batch_tokens):
            _score([chosen_rows[index] for index in batch], cut, model, precision, log_probabilities, is_greedy, judge_greedy)
    return [Likelihood(float(value), bool(greedy)) for value, greedy in zip(log_probabilities, is_greedy, strict=True)]


def cut_to_context(continuations: Sequence[Continuation], longest: int) -> list[Continuation]:
    """At most `longest` tokens of each are read, the last token not among them. Raises DataError for a longer continuation."""
    return [_cut(one, longest) for one in continuations]


@dataclass(frozen=True)
class _Row:
    """A context, and behind it all but the last token of each of its continuations."""

    ids: Sequence[int]
    context_tokens: int
    members: Sequence[int]
    """Which continuations."""
    starts: Sequence[int]
    """Where in `ids` each begins."""

    @property
    def is_branched(self) -> bool:
        """Whether a continuation must not see the one in front of it."""
        return any(start > self.context_tokens for start in self.starts)


def _with_space_moved(context: str, continued: str) -> tuple[str, str]:
    stripped = context.rstrip()
    return stripped, context[len(stripped) :] + continued


def _continuation(tokenizer: TextTokenizer, ids: dict[str, list[int]], context: str, continued: str) -> Continuation:
    if not continued:
        raise DataError(f"an empty text is to be scored after {context[-80:]!r}", "give every choice and every last word a text")
    whole, before = ids[context + continued], ids[context]
    if not before:
        # Nothing is before it, so not what the tokenizer puts in front of a text either.
        start = tokenizer.document_start[0]
        return Continuation([start], whole) if whole[0] != start or len(whole) == 1 else Continuation(whole[:1], whole[1:])
    after = whole[len(before) :]
    if not after:
        # The texts were joined in one token, which no scorer can divide.
        [after] = tokenizer.encode_batch([continued])
    return Continuation([*tokenizer.opening, *before], after)


def _cut(one: Continuation, longest: int) -> Continuation:
    if len(one.continued) > longest:
        raise DataError(
            f"a text of {len(one.continued):,} tokens is to be scored at once, but the context of the model has {longest:,}",
            "cut it, leave it out, or measure its perplexity, which goes through long texts in windows",
        )
    return Continuation(one.context[-(longest + 1 - len(one.continued)) :], one.continued)


def _rows(continuations: Sequence[Continuation]) -> list[_Row]:
    """One row for those with the same context if that is at least as long as each of them, else one row each."""
    groups: dict[tuple[int, ...] | int, list[int]] = {}
    for index, one in enumerate(continuations):
        shares = len(one.context) >= len(one.continued)
        groups.setdefault(tuple(one.context) if shares else index, []).append(index)
    return [row for members in groups.values() for row in _rows_of_group(continuations, members)]


def _rows_of_group(continuations: Sequence[Continuation], members: Sequence[int]) -> Iterator[_Row]:
    """Rows of at most `MAXIMUM_BRANCHED_TOKENS` behind the context, or of one continuation: attention grows with the square."""
    context = list(continuations[members[0]].context)
    ids, taken, starts = list(context), list[int](), list[int]()
    for member in members:
        branch = continuations[member].continued[:-1]
        if taken and len(ids) + len(branch) > len(context) + MAXIMUM_BRANCHED_TOKENS:
            yield _Row(ids, len(context), taken, starts)
            ids, taken, starts = list(context), [], []
        taken.append(member)
        starts.append(len(ids))
        ids += branch
    yield _Row(ids, len(context), taken, starts)


@torch.inference_mode()
def _score(
    batch: Sequence[_Row],
    continuations: Sequence[Continuation],
    model: Llama,
    precision: Precision,
    log_probabilities: NDArray[np.float64],
    is_greedy: NDArray[np.bool_],
    judge_greedy: bool,
) -> None:
    device = model.lm_head.weight.device
    longest = max(len(row.ids) for row in batch)
    tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
    rows: list[int] = []
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    for index, row in enumerate(batch):
        tokens[index, : len(row.ids)] = torch.as_tensor(row.ids)
        for member, start in zip(row.members, row.starts, strict=True):
            continued = continuations[member].continued
            rows += [index] * len(continued)
            # The context's last token predicts the first one.
            places += [row.context_tokens - 1, *range(start, start + len(continued) - 1)]
            targets += continued
            owners += [member] * len(continued)
    positions, mask = _branches(batch, longest) if batch[0].is_branched else (torch.arange(longest)[None], None)
    with autocast(precision, device):
        hidden = model.model(tokens.to(device), positions.to(device), None if mask is None else mask.to(device))  # (B, T, D)
        wanted = torch.tensor(targets, device=device)
        found, most_likely = score_tokens(model, hidden[rows, places], wanted, judge_greedy)  # (N,)
    np.add.at(log_probabilities, owners, found.double().cpu().numpy())
    if most_likely is not None:
        np.logical_and.at(is_greedy, owners, most_likely.cpu().numpy())


def _branches(batch: Sequence[_Row], longest: int) -> tuple[Tensor, Tensor]:
    """Positions (B, T), and (B, 1, T, T) which token (second to last) sees which (last): itself, its branch before it, its context."""
    positions, branch = torch.zeros(len(batch), longest, dtype=torch.int64), torch.zeros(len(batch), longest, dtype=torch.int64)
    for index, row in enumerate(batch):
        positions[index, : row.context_tokens] = torch.arange(row.context_tokens)
        ends = [*row.starts[1:], len(row.ids)]
        for number, (start, end) in enumerate(zip(row.starts, ends, strict=True), 1):
            positions[index, start:end] = torch.arange(row.context_tokens, row.context_tokens + end - start)
            branch[index, start:end] = number
    place = torch.arange(longest)
    seen = (branch[:, None, :] == branch[:, :, None]) | (branch[:, None, :] == 0)  # (B, T, T)
    return positions, (seen & (place[None, :] <= place[:, None]))[:, None]
