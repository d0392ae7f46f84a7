"""A pass on a GPU: prompts by the model as it is, tokens that were drawn by CUDA graphs, recorded once per number of rows and keys.

A token of a small model is some hundred kernels of a few microseconds, which Python starts more slowly than the GPU runs them. A graph
starts them all at once, but with the same shapes at the same addresses. So row i of a graph is slot i, inputs and logits lie in
buffers that stay, and there is a graph for each

    rows    1, 2, 4, ... slots              up to the highest slot in use: slots between get a token where nothing is yet
    keys    128, 256, 512, ... context      a step reads so many keys and values of every row, at most twice the longest text in use

each recorded when it is first wanted (CUDA Graphs as in `torch.cuda.graph`, the buckets as in vLLM). Weights are kept in the precision of
the products, activations too, as in transformers' bf16; logits are fp32.

B rows of a graph, S keys, V vocabulary.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fledge.core import console
from fledge.inference.forward import Chunk, TorchForward, single_and_longer
from fledge.model.devices import without_waiting
from fledge.model.llama import Llama

SHORTEST_KEYS = 128
"""Below this, keys are a small part of what a step reads: of 110M parameters in bf16 and one row 5 of 220 MB."""
WARM_UP_PASSES = 2
"""Before a recording, so that libraries have chosen their kernels and taken their memory."""

Recorded = Callable[[], None]
Record = Callable[[Recorded], Recorded]
"""Makes of a computation on buffers that stay one that does the same, faster."""


class GraphForward:
    """Slots of a model on a GPU. The weights are copied if they are not of `dtype`, and what they become after that is not seen."""

    def __init__(self, model: Llama, dtype: torch.dtype, slots: int, context_tokens: int, record: Record | None = None) -> None:
        """Raises MachineError if the slots do not fit. `record` None: CUDA graphs."""
        self.model = with_weights_in(model, dtype)
        self._prompts = TorchForward(self.model, "fp32", slots, context_tokens)
        self._record = record or CudaGraphs(self._prompts.device)
        self._slots, device = self._prompts.slots, self._prompts.device
        self._inputs = torch.zeros(slots, 2, dtype=torch.int64, device=device)
        """The token and the position of each row."""
        self._logits = torch.zeros(slots, self.model.config.vocabulary_size, device=device)
        self._recorded: dict[tuple[int, int], Recorded] = {}

    @torch.inference_mode()
    def run(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """See `Forward`."""
        single, longer = single_and_longer(chunks)
        found = dict(zip(longer, self._prompts.run(longer), strict=True))
        if single:
            logits = self._step(single)
            found |= {chunk: logits[chunk.slot : chunk.slot + chunk.wanted_tokens] for chunk in single}
        return [found[chunk] for chunk in chunks]

    def release(self, slot: int) -> None:
        """See `Forward`."""
        self._slots.release(slot)

    def _step(self, chunks: Sequence[Chunk]) -> Tensor:
        """One token of each chunk -> logits (B, V), those of each at its slot."""
        rows = bucket(1 + max(chunk.slot for chunk in chunks), 1, self._slots.cache.rows)
        read = self._slots.rows(chunks, range(rows))
        keys = bucket(1 + max(chunk.start for chunk in read), SHORTEST_KEYS, self._slots.cache.slots)
        # No prompt reaches the last position, so what belongs to nobody may lie there.
        inputs = torch.tensor([[chunk.ids[0] if chunk.ids else 0, min(chunk.start, keys - 1)] for chunk in read])
        self._inputs[:rows].copy_(without_waiting(inputs, self._inputs.device))
        if (rows, keys) not in self._recorded:
            self._recorded[rows, keys] = self._recording(rows, keys)
        self._recorded[rows, keys]()
        return self._logits[:rows].clone()  # the next pass writes over them

    def _recording(self, rows: int, keys: int) -> Recorded:
        """One token of each of the first rows, over so many keys; by plain calls if it cannot be recorded."""
        tokens, positions = self._inputs[:rows, :1], self._inputs[:rows, 1:]
        cache, logits = self._slots.cache.part(range(rows), keys), self._logits[:rows]

        def compute() -> None:
            logits.copy_(self.model.extend(tokens, positions, cache))

        try:
            return self._record(compute)
        except torch.OutOfMemoryError as error:  # a smaller one may have room
            what = f"steps of {rows} rows over {keys} keys, which are slow"
            console.warn(f"no memory is left to record {what}; fewer slots or a shorter context leave more: {error}")
            return compute
        except RuntimeError as error:  # whatever a kernel or the driver says
            console.warn(f"CUDA graphs do not work here, so answers are slow: {error}")
            self._record = _as_it_is
            return compute


class CudaGraphs:
    """Records what it is given as CUDA graphs, all in one pool of memory: none is replayed beside another, and results are in buffers."""

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Recorded) -> Recorded:
        """Computes it some times before, which must do no harm. Raises RuntimeError."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        try:
            # Recordings synchronise the device, which another one that goes on at that time would not survive.
            with _ONE_RECORDING, torch.cuda.stream(self._stream):
                self._stream.wait_stream(current)
                for _ in range(WARM_UP_PASSES):
                    compute()
                # Of this thread alone: others may load a model or compute with one.
                with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                    compute()
        finally:
            current.wait_stream(self._stream)  # if it failed too: the buffers are written to again
        return graph.replay


_ONE_RECORDING = threading.Lock()


def _as_it_is(compute: Recorded) -> Recorded:
    return compute


def bucket(wanted: int, smallest: int, largest: int) -> int:
    """`smallest`, doubled until it is as much as is wanted, but at most `largest`."""
    size = smallest
    while size < wanted:
        size *= 2
    return min(size, largest)


def with_weights_in(model: Llama, dtype: torch.dtype) -> Llama:
    """The model itself if its weights are of that type, else a copy with these; the tables of the rotary embedding go along."""
    return model if model.lm_head.weight.dtype == dtype else copy.deepcopy(model).to(dtype)
