"""Benchmarks while a stage trains: the rows that `evaluate.benchmarks` names, read before the first step, asked of the live model.

The questions are those that the evaluation asks when as many are drawn, in the precision that the stage trains with. What one process can
answer alone is shared out, and every process then knows all answers. Where a process holds a part of every parameter all of them take
part in each forward pass, so there each is asked everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from fledge.core.errors import ConfigError
from fledge.evaluation.benchmarks.places import find_benchmark
from fledge.evaluation.benchmarks.run import Questions, answer, read_questions, require_room
from fledge.evaluation.benchmarks.settings import GenerateExact
from fledge.evaluation.reader import Reader
from fledge.evaluation.rolling import TextPrice
from fledge.evaluation.scoring import Likelihood
from fledge.evaluation.settings import EvaluateSettings
from fledge.model.llama import Llama
from fledge.model.precision import sum_dtype
from fledge.stages.task import Task
from fledge.tokens.foreign import TextTokenizer
from fledge.training.observers import BenchmarkFigure
from fledge.training.parallel import Machine, World

Ask = Callable[[Llama], list[BenchmarkFigure]]


@dataclass(frozen=True, kw_only=True)
class SharingReader(Reader):
    """Asks the model this process's part of what is to be likely or to have a price, and learns the answers of all."""

    world: World

    def likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[Likelihood]:
        own = super().likelihoods(pairs[self._own(len(pairs))])
        found = self._of_all(len(pairs), ((one.log_probability, one.is_greedy) for one in own))
        return [Likelihood(log_probability, bool(is_greedy)) for log_probability, is_greedy in found]

    def prices(self, texts: Sequence[str], scores_opening: bool = True) -> list[TextPrice]:
        own = super().prices(texts[self._own(len(texts))], scores_opening)
        return [TextPrice(nats, int(tokens)) for nats, tokens in self._of_all(len(texts), ((one.nats, one.tokens) for one in own))]

    def _own(self, count: int) -> slice:
        """Neighbours, because choices of one question share their context."""
        rank, size = self.world.rank, self.world.size
        return slice(rank * count // size, (rank + 1) * count // size)

    def _of_all(self, count: int, own: Iterable[tuple[float, float]]) -> list[list[float]]:
        values = torch.zeros(count, 2, dtype=sum_dtype(self.world.device))
        values[self._own(count)] = torch.tensor(list(own), dtype=values.dtype).view(-1, 2)
        pairs: list[list[float]] = self.world.sum(values.to(self.world.device)).tolist()
        return pairs


def open_benchmarks(task: Task, model: Llama, machine: Machine, world: World) -> Ask:
    """What asks a model the questions of the stage's benchmarks, which are read now.

    Raises DataError or ConfigError for rows that are not there, or cannot be asked of this model.
    """
    evaluate = task.run.recipe.section("evaluate")
    assert isinstance(evaluate, EvaluateSettings)
    placed = [find_benchmark(name, evaluate.benchmarks[name]) for name in task.settings.benchmarks]
    questions = [read_questions(one, task.settings.benchmark_samples, evaluate.seed) for one in placed]
    written = [one.name for one in placed if isinstance(one.benchmark.task, GenerateExact)]
    if written and world.sharded:
        raise ConfigError(
            f"{task.stage}.benchmarks: the model writes its answers to {', '.join(written)}, for which one process would need all of it",
            f"leave it out of {task.stage}.benchmarks, or set {task.stage}.parallel=ddp",
        )
    return asking(questions, task.tokenizer, evaluate, machine, world, model)


def asking(
    questions: Sequence[Questions], tokenizer: TextTokenizer, evaluate: EvaluateSettings, machine: Machine, world: World, model: Llama
) -> Ask:
    """What asks a model the questions. Raises DataError if this one, which is of its shape, has no room for one of them."""
    alone = replace(world, rank=0, size=1) if world.sharded else world.alone_if_elastic

    def reader(model: Llama) -> SharingReader:
        options = evaluate.batch_tokens, machine.precision, evaluate.window_tokens, evaluate.stride_tokens
        return SharingReader(model, tokenizer, *options, world=alone)

    def ask(model: Llama) -> list[BenchmarkFigure]:
        scores = [score for one in questions for score in answer(reader(model), one).scores]
        return [BenchmarkFigure(score.name, score.value, score.low, score.high, score.baseline, score.n) for score in scores]

    for one in questions:
        require_room(reader(model), one)
    return ask
