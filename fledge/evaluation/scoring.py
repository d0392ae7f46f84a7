"""The two questions every score here is made of: how likely are these tokens after those, and how many bits does this text cost?

Both are teacher-forced: one forward pass over the true text. Sequences are sorted by length and padded on the right, which
causal attention never looks at, so neither the padding nor the batch changes a result beyond rounding. The head is applied only
where a token is scored. Definitions follow lm-evaluation-harness (loglikelihood) and nanochat (bits per byte).

B rows, T tokens per row, D width, N scored tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fledge.corpus.document import Split
from fledge.evaluation.statistics import Score, ratio_score
from fledge.model.head import IGNORE
from fledge.model.llama import Llama
from fledge.model.precision import Precision, autocast
from fledge.tokens.shards import TokenSet
from fledge.tokens.tokenizer import Tokenizer
from fledge.tokens.unpacking import TokenStream, token_stream

BATCH_TOKENS = 2_048
"""Tokens in one forward pass. Scoring 300 conversations took 1.26 s on one core; with 16,384 tokens 1.94 s, half of it for padding."""
HEAD_CHUNK_TOKENS = 2_048
"""Scored tokens whose logits are made at one time."""
HEAD_BLOCK_ENTRIES = 1_024
"""Entries of the vocabulary whose logits exist at one time on a CPU, so that they stay in its cache: 2,048 tokens of a width of 256 took
0.59 s with 32,768 entries, of which bare products are 0.53 s; with all logits in memory 0.73 s. A GPU makes all at once: 256 MiB."""


@dataclass(frozen=True)
class ScoredSequence:
    """A text and which of its tokens are scored, each given all tokens before it."""

    ids: Sequence[int]
    scored: Sequence[bool]
    """The first token has nothing before it and cannot be scored."""


@dataclass(frozen=True)
class Likelihood:
    """How likely the scored tokens of a sequence are together."""

    log_probability: float
    """Sum over the scored tokens, in nats."""
    is_greedy: bool
    """Whether each scored token is the most likely one, so that greedy generation would have written them."""


def continuation(context: Sequence[int], continued: Sequence[int]) -> ScoredSequence:
    """The sequence in which `continued` is scored after `context`."""
    return ScoredSequence([*context, *continued], [False] * len(context) + [True] * len(continued))


@torch.inference_mode()
def loglikelihoods(
    model: Llama, sequences: Sequence[ScoredSequence], batch_tokens: int = BATCH_TOKENS, precision: Precision = "fp32"
) -> list[Likelihood]:
    """One Likelihood per sequence, in their order; at most `batch_tokens` tokens, padding included, in one pass."""
    log_probabilities = np.zeros(len(sequences))
    is_greedy = np.ones(len(sequences), dtype=np.bool_)
    device = model.lm_head.weight.device
    for chosen in batches_by_length([len(sequence.ids) for sequence in sequences], batch_tokens):
        tokens, scored = _pad([sequences[index] for index in chosen])
        inputs, targets = tokens[:, :-1].to(device), tokens[:, 1:].to(device)
        rows, places = scored[:, 1:].nonzero(as_tuple=True)
        with autocast(precision, device):
            hidden = model.model(inputs, torch.arange(inputs.shape[1], device=device)[None], None)  # (B, T, D)
            found, most_likely = score_tokens(model, hidden[rows, places], targets[rows, places])
        owners = np.asarray(chosen)[rows.numpy()]
        np.add.at(log_probabilities, owners, found.double().cpu().numpy())
        assert most_likely is not None
        np.logical_and.at(is_greedy, owners, most_likely.cpu().numpy())
    return [Likelihood(float(value), bool(greedy)) for value, greedy in zip(log_probabilities, is_greedy, strict=True)]


def bits_per_byte(
    model: Llama,
    token_set: TokenSet,
    window_tokens: int,
    *,
    isolate_documents: bool,
    maximum_text_bytes: int | None = None,
    split: Split = "validation",
    batch_tokens: int = BATCH_TOKENS,
    precision: Precision = "fp32",
) -> Score:
    """Bits the model needs per byte of UTF-8 text, over the leading documents of each source (`leading_documents`).

    The token stream is cut into windows of `window_tokens` tokens that do not overlap, so each token is scored once, with what
    stands before it in its window (and, with `isolate_documents`, in its document). A document pays for its own end of text.
    The interval takes documents as the sampling unit. Raises ValueError if the split has no documents.
    """
    bits: list[float] = []
    text_bytes: list[float] = []
    for shard, documents in leading_documents(token_set, split, maximum_text_bytes):
        nats = _document_nats(model, shard, documents, window_tokens, isolate_documents, batch_tokens, precision)
        bits += [float(value) for value in nats / math.log(2)]
        text_bytes += [float(value) for value in shard.text_bytes[:documents]]
    isolation = "each document by itself" if isolate_documents else "across document borders"
    note = f"context of at most {window_tokens} tokens in windows without overlap, {isolation}"
    return ratio_score("bits_per_byte", bits, text_bytes, "bits_per_byte", note)


def leading_documents(token_set: TokenSet, split: Split, maximum_text_bytes: int | None = None) -> list[tuple[TokenStream, int]]:
    """For each source its number of leading documents that together hold the source's share of the byte budget (at least one)."""
    shards = [token_stream(shard) for shard in token_set.shards(split)]
    total_bytes = sum(int(shard.text_bytes.sum()) for shard in shards)
    share = 1.0 if maximum_text_bytes is None or total_bytes == 0 else min(1.0, maximum_text_bytes / total_bytes)
    chosen = []
    for shard in shards:
        budget_bytes = share * int(shard.text_bytes.sum())
        chosen.append((shard, max(1, int((shard.text_bytes.cumsum() <= budget_bytes + 0.5).sum()))))
    return chosen


def leading_texts(token_set: TokenSet, tokenizer: Tokenizer, split: Split, maximum_text_bytes: int | None = None) -> list[str]:
    """The very text that `bits_per_byte` measures, for compressors to read: the tokens of `leading_documents`, decoded."""
    return [
        tokenizer.decode(shard.tokens[start : start + length].tolist())
        for shard, documents in leading_documents(token_set, split, maximum_text_bytes)
        for start, length in zip(shard.starts[:documents].tolist(), shard.lengths[:documents].tolist(), strict=True)
    ]


@torch.inference_mode()
def _document_nats(
    model: Llama, shard: TokenStream, documents: int, window_tokens: int, isolate: bool, batch_tokens: int, precision: Precision
) -> NDArray[np.float64]:
    """Negative log-likelihood of each of the first `documents` documents, in nats."""
    end = int(shard.starts[documents]) if documents < len(shard.starts) else len(shard.tokens)
    # the end-of-text token that opens the first document also ends the last one, as in training
    stream = torch.from_numpy(np.append(shard.tokens[:end], shard.tokens[0]).astype(np.int64))
    starts = torch.from_numpy(shard.starts[:documents].copy())
    owners = torch.searchsorted(starts, torch.arange(end), right=True) - 1
    nats = torch.zeros(documents, dtype=torch.float64)
    device = model.lm_head.weight.device
    rows_tokens = max(1, batch_tokens // window_tokens) * window_tokens
    for first in range(0, end, rows_tokens):
        last = min(first + rows_tokens, end)
        within = torch.arange(first, last)
        tokens = _fold(stream[first:last], window_tokens, 0).to(device)
        targets = _fold(stream[first + 1 : last + 1], window_tokens, IGNORE).to(device)
        # index in its window at which the token's document starts; 0 if it started in an earlier window
        relative = (starts[owners[first:last]] - within + within % window_tokens).clamp(min=0)
        begins = _fold(relative, window_tokens, 0).to(device) if isolate else None
        with autocast(precision, device):
            nll = model(tokens, begins, targets).nll
        nats.index_add_(0, owners[first:last], nll.flatten()[: last - first].double().cpu())
    return nats.numpy()


def score_tokens(model: Llama, hidden: Tensor, targets: Tensor, judge_greedy: bool = True) -> tuple[Tensor, Tensor | None]:
    """hidden (N, D) and targets (N,) -> log-probability (N,) of each target, and (N,) whether it is the most likely token.

    Without `judge_greedy` nothing is second.
    """
    found, most_likely = [], []
    for first in range(0, len(targets), HEAD_CHUNK_TOKENS):
        wanted = targets[first : first + HEAD_CHUNK_TOKENS]
        log_probability, place = _score_chunk(model.lm_head.weight, hidden[first : first + HEAD_CHUNK_TOKENS], wanted, judge_greedy)
        found.append(log_probability)
        most_likely += [place == wanted] if place is not None else []
    return torch.cat(found), torch.cat(most_likely) if judge_greedy else None


def _score_chunk(weight: Tensor, hidden: Tensor, targets: Tensor, judge_greedy: bool) -> tuple[Tensor, Tensor | None]:
    """The log-probability of each target, and the first of the most likely tokens. The head's product is made in blocks of the vocabulary,
    and what each gives is used up before the next: of exp(logit), relative to the largest logit so far, only the sum is kept.
    """
    width = HEAD_BLOCK_ENTRIES if hidden.device.type == "cpu" else len(weight)
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    chosen = largest = torch.full(targets.shape, -math.inf, dtype=dtype, device=hidden.device)
    total, most_likely = torch.zeros_like(largest), torch.zeros_like(targets)
    for start in range(0, len(weight), width):
        logits = (hidden @ weight[start : start + width].T).to(dtype)  # (N, W)
        place = targets - start
        inside = (place >= 0) & (place < logits.shape[1])
        chosen = torch.where(inside, logits.gather(-1, place.clamp(0, logits.shape[1] - 1)[:, None])[:, 0], chosen)
        if judge_greedy:
            of_block, at = logits.max(dim=-1)
            most_likely = torch.where(of_block > largest, at + start, most_likely)
        else:
            of_block = logits.amax(dim=-1)
        before, largest = largest, torch.maximum(largest, of_block)
        # In place: fresh memory for every step took as long as the product.
        total = total * (before - largest).exp() + logits.sub_(largest[:, None]).exp_().sum(dim=-1)
    return chosen - (total.log() + largest), most_likely if judge_greedy else None


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length whose padded size is at most `batch_tokens`, or one index that is longer alone."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _pad(sequences: Sequence[ScoredSequence]) -> tuple[Tensor, Tensor]:
    """Token ids (B, T) and whether each is scored (B, T), padded on the right."""
    longest = max(len(sequence.ids) for sequence in sequences)
    tokens = torch.zeros(len(sequences), longest, dtype=torch.int64)
    scored = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        tokens[row, : len(sequence.ids)] = torch.as_tensor(sequence.ids)
        scored[row, : len(sequence.ids)] = torch.as_tensor(sequence.scored)
    return tokens, scored


def _fold(values: Tensor, width: int, filler: int) -> Tensor:
    """(N,) -> (ceil(N / width), width), the rest of the last row filled."""
    rows = -(-len(values) // width)
    return torch.nn.functional.pad(values, (0, rows * width - len(values)), value=filler).view(rows, width)
