"""Fledge's own contestant: a Trainer put together as the stages do it, on random rows."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch

from fledge.model.float8 import use_float8
from fledge.model.llama import Llama
from fledge.model.precision import set_fp32_products, use_fast_fp32
from fledge.model.settings import ModelConfig, ModelSettings
from fledge.training.batches import Batch
from fledge.training.checkpoint import Progress
from fledge.training.objectives import make_objective
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import Machine, World
from fledge.training.phases import make_plan
from fledge.training.plan import Source
from fledge.training.preparation import compile_in_place
from fledge.training.settings import ScheduleSettings, TrainingSettings
from fledge.training.trainer import Trainer

MEAN_DOCUMENT_TOKENS = 256


def make_trainer(given: SimpleNamespace, vocabulary: int, learning_rate: float) -> Trainer:
    """A Trainer whose next step is the real one; nothing is observed or saved."""
    device = torch.device(given.device)
    fast_fp32 = use_fast_fp32(device)
    set_fp32_products(given.precision, fast_fp32)
    shape = ModelSettings(**given.model) if given.model else _shape(given)
    settings = TrainingSettings(
        steps=1_000_000,
        batch_rows=given.rows,
        sequence_length=given.tokens,
        learning_rate=learning_rate,
        schedule=ScheduleSettings(kind="constant"),
        isolate_documents=given.documents,
    )
    model = Llama(ModelConfig(shape, vocabulary), 0).to(device)
    if given.precision == "fp8":
        use_float8(model)
    if given.compile:
        compile_in_place(model)
    world = World(0, 1, device)
    plan = make_plan([Source("random", 1 << 30, "")], settings, 0)
    return Trainer(
        settings=settings,
        model=model,
        objective=make_objective(settings.objective),
        optimizer=make_optimizer(model, settings),
        batches=RandomRows(plan, given, vocabulary),  # type: ignore[arg-type]
        world=world,
        machine=Machine(given.precision, fast_fp32, torch.get_num_threads(), compiled=given.compile),
        observers=[],
        writer=SimpleNamespace(notice=lambda: None, failures=0),  # type: ignore[arg-type]
        stop=SimpleNamespace(requested=None),
        progress=Progress(),
    )


def _shape(given: SimpleNamespace) -> ModelSettings:
    return ModelSettings(
        hidden_size=given.width,
        num_hidden_layers=given.layers,
        num_attention_heads=given.heads,
        num_key_value_heads=given.key_value_heads,
        intermediate_size=given.feed_forward,
        max_position_embeddings=given.tokens,
        tie_word_embeddings=given.tied,
    )


class RandomRows:
    """Stands in for a `BatchLoader`: random tokens, made on the device."""

    def __init__(self, plan: Any, given: SimpleNamespace, vocabulary: int) -> None:
        self.plan, self._given, self._vocabulary = plan, given, vocabulary

    def micro_batches(self, step: int) -> Sequence[Batch]:
        """One micro-batch of fresh rows."""
        shape, device = (self._given.rows, self._given.tokens), self._given.device
        tokens = torch.randint(0, self._vocabulary, shape, device=device)
        targets = torch.roll(tokens, -1, dims=1)
        documents = self._documents(shape, device) if self._given.documents else None
        return [Batch(tokens, targets, torch.ones(shape, device=device), documents)]

    @staticmethod
    def _documents(shape: tuple[int, int], device: str) -> torch.Tensor:
        starts = torch.rand(shape, device=device) < 1 / MEAN_DOCUMENT_TOKENS
        return torch.where(starts, torch.arange(shape[1], device=device), 0).cummax(dim=1).values.int()
