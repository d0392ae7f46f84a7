"""Prompts become completions: one batch, a static KV cache, one forward pass per step for all rows that still speak.

Token ids in, token ids out; text and chat templates stay outside. Prompts may be of different lengths: they are padded on the
right, and each row goes on at its own position, so no row sees another's padding. Rows that have ended are dropped from the
batch when at least half of it has. A row's draws depend on its own random stream only (see `sampling`), so a prompt gets the
same completion alone and in a batch, up to the last bits of a matrix product of another shape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fledge.core.errors import DataError
from fledge.inference.sampling import next_tokens, row_generators
from fledge.inference.settings import GenerationSettings
from fledge.model.attention import KeyValueCache
from fledge.model.llama import Llama
from fledge.model.precision import Precision, autocast

MAXIMUM_BATCH_ROWS = 128
"""More prompts than this are completed one batch after another: the cache grows with rows."""

OnToken = Callable[[int, int], None]
"""Called with (index of the prompt, token id) as each token is drawn; not for the token that ends a completion."""


@dataclass(frozen=True)
class Completion:
    """What a prompt was continued with."""

    ids: list[int]
    """Without the prompt and without the end token."""
    end_token: int | None
    """The stop id that ended it; None if it was cut off by the token limit or by the end of the context."""

    @property
    def stopped(self) -> bool:
        """Whether it ended by itself."""
        return self.end_token is not None


class Engine:
    """Completes prompts with one model; holds no state between calls."""

    def __init__(self, model: Llama, vocabulary_size: int, stop_ids: Collection[int], precision: Precision = "fp32") -> None:
        """Ids from `vocabulary_size` (the tokenizer's) on are never drawn; any of `stop_ids` ends a completion."""
        self.model = model
        self.vocabulary_size = vocabulary_size
        self.stop_ids = frozenset(stop_ids)
        self.precision = precision

    @property
    def context_tokens(self) -> int:
        """Prompt and completion together never exceed this."""
        return self.model.config.settings.max_position_embeddings

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, on_token: OnToken | None = None) -> list[Completion]:
        """One completion per prompt, in their order. Raises DataError for a prompt that is empty or fills the context."""
        for prompt in prompts:
            if not 0 < len(prompt) < self.context_tokens:
                raise DataError(
                    f"a prompt has {len(prompt)} tokens, the context of the model has {self.context_tokens}",
                    "give a prompt of at least one token that leaves room for an answer",
                )
        generators = row_generators(settings.seed, len(prompts))
        completions: list[Completion] = []
        for first in range(0, len(prompts), MAXIMUM_BATCH_ROWS):
            batch = range(first, min(first + MAXIMUM_BATCH_ROWS, len(prompts)))
            rows = [_Row(index, list(prompts[index]), generators[index]) for index in batch]
            self._complete(rows, settings, on_token)
            completions += [Completion(row.completion, row.end_token) for row in rows]
        return completions

    @torch.inference_mode()
    def _complete(self, rows: list[_Row], settings: GenerationSettings, on_token: OnToken | None) -> None:
        """Fills the rows' completions, one token each per step, until every row has ended."""
        device = self.model.lm_head.weight.device
        longest_tokens = max(len(row.prompt) for row in rows)
        slots = min(self.context_tokens, longest_tokens + settings.maximum_new_tokens)
        cache = KeyValueCache(self.model.config.settings, len(rows), slots, self.model.lm_head.weight.dtype, device)
        logits = self._read_prompts(rows, longest_tokens, cache)
        while True:
            drawn = next_tokens(logits, settings, [row.generator for row in rows], self.vocabulary_size).tolist()
            for row, token in zip(rows, drawn, strict=True):
                self._take(row, token, settings.maximum_new_tokens, on_token)
            speaking = [place for place, row in enumerate(rows) if not row.ended]
            if not speaking:
                return
            if 2 * len(speaking) <= len(rows):
                rows = [rows[place] for place in speaking]
                _keep_rows(cache, torch.tensor(speaking, device=device))
            tokens = torch.tensor([[row.last_token] for row in rows], device=device)
            positions = torch.tensor([[row.length_tokens - 1] for row in rows], device=device)
            with autocast(self.precision, device):
                logits = self.model.extend(tokens, positions, cache)

    def _read_prompts(self, rows: Sequence[_Row], longest_tokens: int, cache: KeyValueCache) -> Tensor:
        """All prompts in one pass -> logits (B, V) of the token after each prompt."""
        device = cache.keys.device
        padded = [[*row.prompt, *[0] * (longest_tokens - len(row.prompt))] for row in rows]
        positions = torch.arange(longest_tokens, device=device).expand(len(rows), -1)
        last = torch.tensor([len(row.prompt) - 1 for row in rows], device=device)
        with autocast(self.precision, device):
            return self.model.extend(torch.tensor(padded, device=device), positions, cache, last)

    def _take(self, row: _Row, token: int, maximum_new_tokens: int, on_token: OnToken | None) -> None:
        if row.ended:
            return
        if token in self.stop_ids:
            row.end_token, row.ended = token, True
            return
        row.completion.append(token)
        row.ended = len(row.completion) == maximum_new_tokens or row.length_tokens == self.context_tokens
        if on_token is not None:
            on_token(row.index, token)


@dataclass
class _Row:
    """One prompt while it is being completed. A row that has ended stays in the batch, repeating its last position, until it is dropped."""

    index: int
    prompt: list[int]
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.completion: list[int] = []
        self.end_token: int | None = None
        self.ended = False

    @property
    def length_tokens(self) -> int:
        return len(self.prompt) + len(self.completion)

    @property
    def last_token(self) -> int:
        return self.completion[-1] if self.completion else self.prompt[-1]


def _keep_rows(cache: KeyValueCache, rows: Tensor) -> None:
    cache.keys = cache.keys.index_select(1, rows)
    cache.values = cache.values.index_select(1, rows)
