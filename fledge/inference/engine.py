"""Token ids go in and token ids come out: a model, how it computes, and the requests it is busy with.

    ticket = engine.submit(Request(prompt, generation))        engine.generate(prompts, generation) -> completions
    while engine.has_work:
        for drawn in engine.step(): ...

Text and chat templates stay outside. Requests join and leave between steps (`scheduling`), each draws from a random stream of its own
(`sampling`), and none sees another's tokens, so a prompt gets the same completion alone and in company: by the kernels of a CPU, or
with `batch_invariant`, to the bit, else up to the last bits of a matrix product of another shape. An engine belongs to one thread; `worker`
shares one among several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from fledge.core import console
from fledge.core.errors import ConfigError, DataError
from fledge.inference import kernels
from fledge.inference.forward import Forward, TorchForward, product_dtype
from fledge.inference.graph_forward import GraphForward
from fledge.inference.kernel_forward import KernelForward, PackedModel
from fledge.inference.requests import Drawn, Request, error_of
from fledge.inference.sampling import row_generators
from fledge.inference.scheduling import Load, Scheduler
from fledge.inference.settings import EngineSettings, GenerationSettings
from fledge.model.llama import Llama
from fledge.model.precision import Precision, choose_precision

MAXIMUM_BATCH_ROWS = 128
"""`generate` completes so many prompts at once: the cache grows with rows."""
PREFILL_TOKENS = {"cpu": 256, "cuda": 2048}
"""Read in one step, by kind of device, unless the settings say otherwise: on a GPU 2,048 take hardly longer than 256."""
BATCH_PREFILL_TOKENS = 8192
"""`generate` has nobody to hold up by reading prompts."""

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
    """One model and its requests.

    The kernels of a CPU compute with a copy of the weights, made when it is first needed, so what the model becomes after that is not seen;
    nor is it by requests on a GPU that keeps weights in another type. All else computes with the model as it is: `generate` on a GPU, and
    what the kernels cannot compute. Slots and copies are taken at the first request.
    """

    def __init__(
        self,
        model: Llama,
        vocabulary_size: int,
        stop_ids: Collection[int],
        precision: Precision = "fp32",
        settings: EngineSettings | None = None,
    ) -> None:
        """Ids from `vocabulary_size` (the tokenizer's) on are never drawn; any of `stop_ids` ends a completion."""
        self.model = model
        self.vocabulary_size = vocabulary_size
        self.stop_ids = frozenset(stop_ids)
        self.precision = precision
        self.settings = settings or EngineSettings()

    @property
    def context_tokens(self) -> int:
        """Prompt and completion together never exceed this."""
        longest = self.model.config.settings.max_position_embeddings
        return min(longest, self.settings.context_tokens or longest)

    @property
    def has_work(self) -> bool:
        """Whether `step` would do or tell anything."""
        return self._started is not None and self._started.has_work

    @property
    def load(self) -> Load:
        """How many requests are being answered and how many wait."""
        return Load(0, 0, self.settings.slots) if self._started is None else self._started.load

    def submit(self, request: Request) -> int:
        """A ticket for a request, which the next step takes up. Raises DataError for one that cannot be answered.

        The first one takes the slots, for which it raises ConfigError or MachineError if they cannot be had as the settings want them.
        """
        self.require_possible(request)
        return self._scheduler.submit(request)

    def cancel(self, ticket: int) -> None:
        """End a request before the next pass, which tells its end; nothing happens if it has ended."""
        if self._started is not None:
            self._started.cancel(ticket)

    def step(self) -> list[Drawn]:
        """One pass of the model for all requests at once; nothing if there are none."""
        return [] if self._started is None else self._started.step()

    def require_possible(self, request: Request) -> None:
        """Raises DataError for a prompt that is empty, leaves no room for an answer or holds an id that there is not."""
        prompt = request.prompt
        if not 0 < len(prompt) < self.context_tokens:
            raise DataError(
                f"a prompt has {len(prompt)} tokens, the context of the model has {self.context_tokens}",
                "give a prompt of at least one token that leaves room for an answer",
            )
        wrong = next((token for token in prompt if not 0 <= token < self.vocabulary_size), None)
        if wrong is not None:
            problem = f"a prompt holds the token id {wrong}, the vocabulary has {self.vocabulary_size}"
            raise DataError(problem, f"give ids from 0 to {self.vocabulary_size - 1}")

    def generate(self, prompts: Sequence[Sequence[int]], settings: GenerationSettings, on_token: OnToken | None = None) -> list[Completion]:
        """One completion per prompt, in their order, beside whatever requests there are.

        Raises DataError for a prompt that is empty or fills the context, NumericsError if the model is broken, MachineError if
        the machine is not up to it.
        """
        requests = [Request(tuple(prompt), settings) for prompt in prompts]
        for request in requests:
            self.require_possible(request)
        longest_tokens = max((len(prompt) for prompt in prompts), default=0)
        context_tokens = min(self.context_tokens, longest_tokens + settings.maximum_new_tokens)
        slots = max(1, min(len(prompts), MAXIMUM_BATCH_ROWS))
        scheduler = self._schedule(self._passing_forward(slots, context_tokens), slots, context_tokens, BATCH_PREFILL_TOKENS)
        generators = row_generators(settings.seed, len(prompts))
        for request, generator in zip(requests, generators, strict=True):
            scheduler.submit(request, generator)
        ids: list[list[int]] = [[] for _ in prompts]
        ends: list[int | None] = [None for _ in prompts]
        while scheduler.has_work:
            for drawn in scheduler.step():  # tickets are the prompts' indices
                if drawn.failure is not None:
                    raise error_of(drawn.failure, "a prompt could not be completed")
                ends[drawn.ticket] = drawn.end_token
                if drawn.token is not None:
                    ids[drawn.ticket].append(drawn.token)
                    if on_token is not None:
                        on_token(drawn.ticket, drawn.token)
        return [Completion(drawn_ids, end) for drawn_ids, end in zip(ids, ends, strict=True)]

    @property
    def _started(self) -> Scheduler | None:
        """The scheduler, if there was a request."""
        return self.__dict__.get("_scheduler")  # where cached_property keeps it

    @cached_property
    def _scheduler(self) -> Scheduler:
        """Of the requests that were submitted; its slots are taken when there is one. Raises MachineError if they do not fit."""
        slots, context_tokens = self.settings.slots, self.context_tokens
        return self._schedule(self._lasting_forward(slots, context_tokens), slots, context_tokens, self._prefill_tokens)

    def _schedule(self, forward: Forward, slots: int, context_tokens: int, prefill_tokens: int) -> Scheduler:
        chunk_tokens = forward.padded_chunk_tokens if isinstance(forward, TorchForward) else None
        return Scheduler(forward, slots, context_tokens, prefill_tokens, self.vocabulary_size, self.stop_ids, chunk_tokens)

    def _lasting_forward(self, slots: int, context_tokens: int) -> Forward:
        """For requests that come and go: on a GPU they are worth graphs, and a copy of the weights in the type of the products."""
        if self.model.lm_head.weight.device.type == "cuda" and not self.settings.batch_invariant:
            return GraphForward(self.model, product_dtype(self.model, self._torch_precision), slots, context_tokens)
        return self._passing_forward(slots, context_tokens, self._prefill_tokens)

    def _passing_forward(self, slots: int, context_tokens: int, prefill_tokens: int = BATCH_PREFILL_TOKENS) -> Forward:
        """For one batch of prompts, and on a CPU for all: by the kernels if they can, else by the model as it is."""
        if PackedModel.fits(self.model):
            if not kernels.are_kept():
                console.info("compiling the loops that compute answers, which takes some ten seconds, once")
            return KernelForward(self._packed, slots, context_tokens)
        padded_chunk_tokens = min(prefill_tokens, context_tokens) if self.settings.batch_invariant else None
        return TorchForward(self.model, self._torch_precision, slots, context_tokens, padded_chunk_tokens)

    @property
    def _prefill_tokens(self) -> int:
        return self.settings.prefill_tokens or PREFILL_TOKENS.get(self.model.lm_head.weight.device.type, PREFILL_TOKENS["cpu"])

    @cached_property
    def _packed(self) -> PackedModel:
        asked = self.settings.weights
        return PackedModel(self.model, asked if asked != "auto" else "bf16" if self.precision == "bf16" else "fp32")

    @property
    def _torch_precision(self) -> Precision:
        asked = self.settings.weights
        if asked == "int8":
            misfit = PackedModel.misfit(self.model)
            assert misfit is not None, "else the kernels compute"
            raise ConfigError(f"weights are int8, which is computed {misfit.problem}", misfit.remedy)
        return self.precision if asked == "auto" else choose_precision(asked, self.model.lm_head.weight.device)
