"""A tiny model whose weights are large enough that no two logits are nearly equal."""

from __future__ import annotations

import random

import pytest
import torch

from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings

VOCABULARY_SIZE = 500
END_TOKENS = tuple(range(3, 80, 4))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_settings() -> ModelSettings:
    return ModelSettings(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=96,
        initializer_range=0.2,
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_settings: ModelSettings) -> Llama:
    config = ModelConfig(tiny_settings, 512, begin_token_id=0, end_token_ids=END_TOKENS, padding_token_id=499)
    return Llama(config, seed=1).requires_grad_(False)


@pytest.fixture(scope="session")
def ragged_prompts() -> list[list[int]]:
    chosen = random.Random(0)
    return [[chosen.randrange(VOCABULARY_SIZE) for _ in range(chosen.randint(1, 20))] for _ in range(24)]
