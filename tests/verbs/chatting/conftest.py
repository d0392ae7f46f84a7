"""Runs whose models are tiny and random: they answer at once, in words that are none."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from fledge.core import artifact
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import save_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings, padded_vocabulary_size
from fledge.publish.generation import sampling_json
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, copy_tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer
from tests.command_line import Fledge, Outcome

TEXTS = [f"row {index} of the table holds {index * 7} words; the next one says hello to {index}.\n" for index in range(300)]
GENERATION = GenerationSettings(temperature=0.9, top_k=40, top_p=0.9, maximum_new_tokens=12)

MakeCheckpoint = Callable[..., Path]
Talk = Callable[..., Outcome]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TokenizerSettings(vocabulary_size=400), TEXTS, folder)
    return open_tokenizer(folder)


@pytest.fixture
def make_checkpoint(tmp_path: Path, tokenizer: Tokenizer) -> MakeCheckpoint:
    """A checkpoint of a run in the test's folder, as training leaves it."""

    def make(run: str = "demo", stage: str = "sft", step: int = 10, seed: int = 1, context_tokens: int = 256) -> Path:
        shape = ModelSettings(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=context_tokens,
            initializer_range=0.2,
        )
        ends = tokenizer.end_ids(answers=True)
        config = ModelConfig(shape, padded_vocabulary_size(tokenizer.vocabulary_size), tokenizer.document_start[0], ends, tokenizer.padding)
        folder = tmp_path / "runs" / run / stage / "checkpoints" / f"step-{step:06d}"
        wanted = artifact.request("checkpoint", {"stage": stage, "step": step, "settings": {}})
        with artifact.build(folder, wanted) as (partial, stats):
            save_model(Llama(config, seed=seed), partial, sampling=sampling_json(GENERATION))
            copy_tokenizer(tokenizer, True, partial, context_tokens)
            stats.update(step=step, validation_loss=5 - step / 100)
        return folder

    return make


@pytest.fixture
def talk(fledge: Fledge, monkeypatch: pytest.MonkeyPatch) -> Talk:
    """`fledge chat` with lines from a pipe."""

    def run(lines: str, *arguments: str) -> Outcome:
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        return fledge("chat", *arguments)

    return functools.partial(run)
