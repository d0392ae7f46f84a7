"""Continuous batching: requests wait -> [a slot each, one pass of all per step] -> tokens, one per request and step.

Whoever comes first gets the first free slot. A step reads at most `prefill_tokens` tokens of prompts, oldest request first, together with
the last token of every request that is being answered, so a long prompt delays no answer by more than a part of it (chunked prefill,
Agrawal et al., arXiv:2308.16369; requests joining and leaving between steps: Yu et al., "Orca", 2022). Draws depend on a request's own
random stream only.

A request that fails inside fails alone: a pass that fails is tried again with each request by itself, and a draw likewise.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from fledge.core.errors import NumericsError
from fledge.inference.forward import Chunk, Forward, Wanted
from fledge.inference.requests import Drawn, Request, TokenLogprobs, failure_of
from fledge.inference.sampling import BROKEN, next_tokens, penalise_repetition, row_generators, token_logprobs, uniform_number

Item = TypeVar("Item", bound="tuple[_Row, *tuple[Any, ...]]")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Load:
    """What a scheduler is busy with."""

    running: int
    """Requests that have a slot."""
    waiting: int
    """Requests that wait for one."""
    slots: int


@dataclass(eq=False)
class _Row:
    """A request on its way."""

    ticket: int
    request: Request
    generator: torch.Generator
    slot: int = -1
    read_tokens: int = 0
    """How many of `ids` are in the slot."""

    def __post_init__(self) -> None:
        self.ids = list(self.request.prompt)
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]

    @property
    def drawn_tokens(self) -> int:
        return len(self.ids) - len(self.request.prompt)


class Scheduler:
    """Requests in the slots of a `Forward`."""

    def __init__(
        self,
        forward: Forward,
        slots: int,
        context_tokens: int,
        prefill_tokens: int,
        vocabulary_size: int,
        stop_ids: Collection[int],
        chunk_tokens: int | None = None,
    ) -> None:
        """With `chunk_tokens`, prompts are cut there and nowhere else, whatever else is read in a step."""
        self.forward, self.slots, self.context_tokens, self.prefill_tokens = forward, slots, context_tokens, prefill_tokens
        self.vocabulary_size, self.stop_ids, self.chunk_tokens = vocabulary_size, frozenset(stop_ids), chunk_tokens
        self._free = list(range(slots))  # a heap: low slots first, which keeps those in use together
        self._waiting: dict[int, _Row] = {}  # by ticket, in order of arrival
        self._running: dict[int, _Row] = {}
        self._told: list[Drawn] = []
        self._next_ticket = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do or tell anything."""
        return bool(self._waiting or self._running or self._told)

    @property
    def load(self) -> Load:
        """Counts of now."""
        return Load(len(self._running), len(self._waiting), self.slots)

    def submit(self, request: Request, generator: torch.Generator | None = None) -> int:
        """A ticket for a request, which the next step takes up; tickets count from 0."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._waiting[ticket] = _Row(ticket, request, generator or row_generators(request.generation.seed, 1)[0])
        return ticket

    def cancel(self, ticket: int) -> None:
        """Free a request's place before the next pass; the next step tells its end. Nothing happens if it has ended."""
        row = self._running.get(ticket) or self._waiting.get(ticket)
        if row is not None:
            self._end(row, Drawn(ticket, finish="cancelled"))

    def step(self) -> list[Drawn]:
        """One pass. What has happened since the last step, and what the pass did for each request that moved on."""
        self._admit()
        speaking: list[tuple[_Row, Tensor]] = []
        for row, chunk, logits in self._together_or_alone(self._plan(), self._read):
            row.read_tokens = chunk.end
            with self._failing_alone(row):
                if chunk.wanted == "all":
                    self._note_prompt(row, chunk, logits)
                if row.read_tokens >= len(row.request.prompt):
                    speaking.append((row, logits[-1]))
        for row, logits, token in self._draw(speaking):
            with self._failing_alone(row):
                self._take(row, token, logits)
        told, self._told = self._told, []
        return told

    def _admit(self) -> None:
        while self._free and self._waiting:
            row = self._waiting.pop(next(iter(self._waiting)))
            row.slot = heapq.heappop(self._free)
            self._running[row.ticket] = row

    def _plan(self) -> list[tuple[_Row, Chunk]]:
        """What each request reads in this step: its last token, or as much of its prompt as is left to read, in order of arrival."""
        planned, left_tokens, next_comes = [], self.prefill_tokens, True
        for row in self._running.values():
            request, start = row.request, row.read_tokens
            unread = len(row.ids) - start
            in_prompt = start < len(request.prompt)
            if in_prompt:
                size = min(unread, self.chunk_tokens or left_tokens)
                next_comes = next_comes and 0 < size <= left_tokens
                if not next_comes:
                    continue
                left_tokens -= size
            else:
                size = unread
            wanted: Wanted = "all" if in_prompt and request.prompt_logprobs else "last" if size == unread else "nothing"
            planned.append((row, Chunk(row.slot, start, row.ids[start : start + size], wanted)))
        return planned

    def _read(self, planned: Sequence[tuple[_Row, Chunk]]) -> list[tuple[_Row, Chunk, Tensor]]:
        """The pass, with the logits (N, V) that each chunk wanted."""
        found = self.forward.run([chunk for _, chunk in planned])
        return [(row, chunk, logits) for (row, chunk), logits in zip(planned, found, strict=True)]

    def _note_prompt(self, row: _Row, chunk: Chunk, logits: Tensor) -> None:
        known = row.request.prompt[chunk.start + 1 : chunk.end + 1]
        if known:
            row.prompt_logprobs += token_logprobs(logits[: len(known)], known, row.request.logprobs or 0, self.vocabulary_size)

    def _draw(self, speaking: Sequence[tuple[_Row, Tensor]]) -> list[tuple[_Row, Tensor, int]]:
        """The next token of each row by its logits (V); rows that are sampled alike are drawn from at once, a GPU is waited for once."""
        alike: dict[tuple[float, ...], list[tuple[_Row, Tensor, Tensor]]] = {}
        for row, logits in speaking:
            generation = row.request.generation
            # Drawn here, once: a draw that fails and is tried again must not take the next number of a row's stream.
            number = uniform_number(generation, row.generator)
            group = alike.setdefault((generation.temperature, generation.top_k, generation.top_p, generation.min_p), [])
            group.append((row, logits, number))
        drawn = [one for group in alike.values() for one in self._together_or_alone(group, self._draw_alike)]
        tokens = torch.cat([found for _, found in drawn]).tolist() if drawn else []
        rows = [one for group, _ in drawn for one in group]
        for (row, _, _), token in zip(rows, tokens, strict=True):
            if token == BROKEN:
                remedy = "use an earlier checkpoint; this one is broken"
                self._fail(row, NumericsError("the model answers with logits that are not numbers", remedy))
        return [(row, logits, token) for (row, logits, _), token in zip(rows, tokens, strict=True) if token != BROKEN]

    def _draw_alike(self, group: Sequence[tuple[_Row, Tensor, Tensor]]) -> list[tuple[Sequence[tuple[_Row, Tensor, Tensor]], Tensor]]:
        """The group with its tokens (B,), where its logits are."""
        logits = torch.stack([_penalised(row, logits) for row, logits, _ in group])
        numbers = torch.cat([number for _, _, number in group])
        return [(group, next_tokens(logits, group[0][0].request.generation, numbers, self.vocabulary_size))]

    def _take(self, row: _Row, token: int, logits: Tensor) -> None:
        """The row goes on with a token, or ends."""
        request, generation = row.request, row.request.generation
        prompt_logprobs = tuple(row.prompt_logprobs) if request.prompt_logprobs and not row.drawn_tokens else None
        if token in self.stop_ids and not request.ignore_end:
            self._end(row, Drawn(row.ticket, prompt_logprobs=prompt_logprobs, finish="stop", end_token=token))
            return
        logprobs = None
        if request.logprobs is not None:
            [logprobs] = token_logprobs(logits[None], [token], request.logprobs, self.vocabulary_size)
        row.ids.append(token)
        drawn = Drawn(row.ticket, token, logprobs, prompt_logprobs)
        if row.drawn_tokens == generation.maximum_new_tokens or len(row.ids) == self.context_tokens:
            self._end(row, replace(drawn, finish="length"))
        else:
            self._told.append(drawn)

    def _end(self, row: _Row, told: Drawn) -> None:
        """The row's place is free, and its end will be told."""
        self._told.append(told)
        if row.ticket in self._running:
            del self._running[row.ticket]
            self.forward.release(row.slot)
            heapq.heappush(self._free, row.slot)
        else:
            del self._waiting[row.ticket]

    def _fail(self, row: _Row, error: Exception) -> None:
        self._end(row, Drawn(row.ticket, finish="failed", failure=failure_of(error)))

    def _together_or_alone(self, items: Sequence[Item], compute: Callable[[Sequence[Item]], list[Result]]) -> list[Result]:
        """What is computed of all at once; if that fails, of each by itself, without those whose row fails again."""
        if len(items) > 1:
            try:
                return compute(items)
            except Exception:  # whatever a library raises; whose fault it is shows where each is alone
                pass
        found: list[Result] = []
        for item in items:
            with self._failing_alone(item[0]):
                found += compute([item])
        return found

    @contextmanager
    def _failing_alone(self, row: _Row) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a library raises: the other requests go on
            self._fail(row, error)


def _penalised(row: _Row, logits: Tensor) -> Tensor:
    penalty = row.request.generation.repetition_penalty
    return logits if penalty == 1 else penalise_repetition(logits, row.ids, penalty)
