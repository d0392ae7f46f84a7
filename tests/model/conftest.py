from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and threads of several test processes wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MakeModel = Callable[..., Llama]


@pytest.fixture
def make_model() -> MakeModel:
    """A model small enough for milliseconds, with weights large enough that every part matters; keywords change its settings."""

    def make(seed: int = 0, vocabulary_size: int = 128, **changes: Any) -> Llama:
        shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "initializer_range": 0.2, **changes}
        config = ModelConfig(ModelSettings(**shape), vocabulary_size, begin_token_id=120, end_token_ids=(122, 120), padding_token_id=123)
        model = Llama(config, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:  # Norms that start at one would hide that they are used.
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        return model

    return make


@pytest.fixture
def tokens() -> torch.Tensor:
    """(3, 24) token ids."""
    return torch.randint(0, 128, (3, 24), generator=torch.Generator().manual_seed(7))
