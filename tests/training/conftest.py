"""What all tests of training share: small token sets, written once, and a small state to save."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# The assembly is a program too, so it is a file beside the tests, found as a program of this folder would find it.
sys.path.append(str(Path(__file__).parent))

from crash_assembly import ALONE, SMALL, Save
from training_assembly import make_scores, training_settings, write_token_set

from fledge.core import disk
from fledge.corpus.document import Content
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.training.batches import open_rows
from fledge.training.checkpoint import Progress
from fledge.training.optimizer import Optimizer, make_optimizer
from fledge.training.parallel import World
from fledge.training.phases import make_plan
from fledge.training.plan import Plan
from fledge.training.saving import CheckpointWriter


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Toy matrices are slower on two threads, much slower when the other core is busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """Two sources of continuous documents, about 1,500 and 400 tokens."""
    return write_token_set(tmp_path_factory.mktemp("documents"), "documents", {"manual": 75, "letters": 20})


@pytest.fixture(scope="session")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """Forty rows of one or two conversations."""
    return write_token_set(tmp_path_factory.mktemp("conversations"), "conversations", {"questions": 40})


@pytest.fixture(scope="session")
def preferences(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    """Thirty rows of one pair each."""
    return write_token_set(tmp_path_factory.mktemp("preferences"), "preferences", {"pairs": 30})


@pytest.fixture(scope="session")
def scores(preferences: TokenSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The preferences under the initial model of seed 0."""
    return make_scores(tmp_path_factory.mktemp("scores") / "score", preferences, training_settings(sequence_length=None))


@pytest.fixture
def token_set_of(documents: TokenSet, conversations: TokenSet, preferences: TokenSet) -> Callable[[Content], TokenSet]:
    """The token set of a content."""
    sets = {"documents": documents, "conversations": conversations, "preferences": preferences}
    return lambda content: open_token_set(sets[content].folder)


@pytest.fixture
def no_fail_point(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No flushing, and whatever fail-point a test has set is gone after it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    yield
    disk.fail_point = None


@pytest.fixture(scope="session")
def plan(documents: TokenSet) -> Plan:
    return make_plan(open_rows([documents], "train", 16).sources, training_settings(), 1)


@pytest.fixture(scope="session")
def state() -> tuple[Llama, Optimizer]:
    model = Llama(SMALL, 0)
    optimizer = make_optimizer(model, training_settings())
    model(torch.arange(8)[None]).square().mean().backward()
    optimizer.step(1.0)
    return model, optimizer


@pytest.fixture
def save(plan: Plan, state: tuple[Llama, Optimizer]) -> Save:
    """Saves the state as that of a step."""

    def of_step(writer: CheckpointWriter, step: int, loss: float | None = None, occasion: str = "cadence", world: World = ALONE) -> object:
        progress = Progress(step, 5.0, (5.0,), () if loss is None else ((step, loss),))
        return writer.save(*state, plan, progress, world, occasion)  # type: ignore[arg-type]

    return of_step
