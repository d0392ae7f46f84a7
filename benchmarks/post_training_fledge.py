"""Fledge's contestants of post-training: a Trainer put together as the stages do it, on token sets, with nothing observed or saved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fledge.core.process import keep_freed_memory
from fledge.model.folder import load_model
from fledge.model.precision import set_fp32_products, use_fast_fp32
from fledge.tokens.shards import open_token_set
from fledge.training.batches import BatchLoader, open_rows
from fledge.training.checkpoint import Progress
from fledge.training.objectives import make_objective
from fledge.training.optimizer import make_optimizer
from fledge.training.parallel import Machine, World
from fledge.training.phases import make_plan
from fledge.training.score import score_preferences
from fledge.training.settings import NextTokenSettings, PreferenceSettings, ScheduleSettings, TrainingSettings
from fledge.training.trainer import Trainer


def make_trainer(given: SimpleNamespace) -> Trainer:
    """A Trainer over the rows of a token set, from the weights of a folder."""
    keep_freed_memory()
    device = torch.device("cpu")
    fast_fp32 = use_fast_fp32(device)
    set_fp32_products("fp32", fast_fp32)
    machine, world = Machine("fp32", fast_fp32, torch.get_num_threads()), World(0, 1, device)
    settings = TrainingSettings(
        steps=given.steps,
        batch_rows=given.batch,
        objective=PreferenceSettings(**given.preference) if given.stage == "dpo" else NextTokenSettings(),
        learning_rate=given.learning_rate,
        schedule=ScheduleSettings(kind="constant"),
    )
    model, token_set = load_model(Path(given.model)), open_token_set(Path(given.token_set))
    scores = None
    if given.stage == "dpo":
        scores = score_preferences(model, open_rows([token_set], "train", None), given.batch, machine, device)
    reader = open_rows([token_set], "train", None, scores=scores)
    plan = make_plan(reader.sources, settings, 0)
    return Trainer(
        settings=settings,
        model=model.train(),
        objective=make_objective(settings.objective),
        optimizer=make_optimizer(model, settings),
        batches=BatchLoader(plan, reader, None, 0, 1, ahead=False),
        world=world,
        machine=machine,
        observers=[],
        writer=SimpleNamespace(notice=lambda: None, failures=0),  # type: ignore[arg-type]
        stop=SimpleNamespace(requested=None),
        progress=Progress(),
    )


def losses(given: SimpleNamespace) -> list[dict[str, float]]:
    """What each step measures."""
    trainer = make_trainer(given)
    return [{name: float(value) for name, value in trainer.step().measures.items()} for _ in range(given.steps)]


def contestant(given: SimpleNamespace, turns: Any) -> Iterator[None]:
    """Fine-tuning on packed conversations, on a step's mean of tokens that are no padding."""
    trainer = make_trainer(given)
    token_set = open_token_set(Path(given.token_set))
    [shard] = token_set.shards("train")
    given.rows, given.tokens = 1, given.batch * int(shard.lengths.sum()) / (len(shard.tokens) / given.row_tokens)
    for _ in turns(given, sum(parameter.numel() for parameter in trainer.model.parameters())):
        trainer.step()
    yield
