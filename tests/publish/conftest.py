"""Tiny checkpoints of every architecture with real tokenizers, as a run leaves them; and a hub to send them to."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
import torch

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.corpus.sources import attempts, transport
from fledge.model.folder import save_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings, RopeScaling
from fledge.publish import checks
from fledge.publish.source import Source, open_source
from fledge.tokens import importing
from fledge.tokens.settings import TemplateName, TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, copy_tokenizer, open_tokenizer
from fledge.tokens.trainers import train_tokenizer

from .hub_stub import TOKEN, HubStub, serve

SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}
TOKENIZER_SIZE, MODEL_SIZE = 512, 576
"""The model has rows that no id of the tokenizer reaches."""

MakeCheckpoint = Callable[..., Artifact]
MakeSource = Callable[..., Source]


@pytest.fixture(autouse=True)
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred generated texts tell what thousands do, of tokenizers that are compared in every test here."""
    monkeypatch.setattr(checks, "COMPARED_TEXTS", 100)
    monkeypatch.setattr(importing, "COMPARED_TEXTS", 100)


@pytest.fixture(scope="session")
def make_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Tokenizer]:
    """A trained tokenizer of a kind, made once for each."""
    made: dict[tuple[str, str], Tokenizer] = {}

    def make(kind: Any = "byte_bpe", template: TemplateName = "chatml") -> Tokenizer:
        if (kind, template) not in made:
            texts = [topics[name] for name in sorted(topics)[:12]]
            folder = tmp_path_factory.mktemp(f"{kind}-{template}")
            train_tokenizer(TokenizerSettings(kind=kind, vocabulary_size=TOKENIZER_SIZE, template=template), texts, folder)
            made[kind, template] = open_tokenizer(folder)
        return made[kind, template]

    return make


def make_model(tokenizer: Tokenizer, scaling: RopeScaling | None = None, **changes: Any) -> Llama:
    """A model for a tokenizer, with weights large enough that every part matters."""
    ends = tokenizer.end_ids(answers=True)
    settings = ModelSettings(**{**SHAPE, **changes})
    config = ModelConfig(settings, MODEL_SIZE, tokenizer.document_start[0], ends, tokenizer.padding, scaling)
    model = Llama(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # Norms that start at one would hide that they are used.
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.fixture
def make_checkpoint(tmp_path: Path, make_tokenizer: Callable[..., Tokenizer]) -> MakeCheckpoint:
    """A checkpoint folder with a manifest, and the part that only training needs."""

    def make(kind: str = "byte_bpe", template: TemplateName = "chatml", scaling: RopeScaling | None = None, **changes: Any) -> Artifact:
        tokenizer = make_tokenizer(kind, template)
        folder = tmp_path / "run" / "sft" / "checkpoints" / "step-000001"
        with artifact.build(folder, artifact.request("checkpoint", {"stage": "sft", "step": 1, "settings": {}})) as (partial, _):
            save_model(make_model(tokenizer, scaling, **changes), partial)
            copy_tokenizer(tokenizer, True, partial, SHAPE["max_position_embeddings"])
            (partial / "resume").mkdir()
            (partial / "resume" / "state.json").write_text("{}")
        return artifact.open_artifact(folder)

    return make


@pytest.fixture
def make_source(make_checkpoint: MakeCheckpoint) -> MakeSource:
    def make(*arguments: Any, **options: Any) -> Source:
        return open_source(make_checkpoint(*arguments, **options))

    return make


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubStub]:
    """A stub that the hub's own library takes for the hub, and little patience with it, ours and the library's."""
    import huggingface_hub
    import huggingface_hub.constants
    import huggingface_hub.utils._http

    with serve() as stub:
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", stub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{stub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-login"))
        monkeypatch.setattr(attempts, "PATIENCE", attempts.Patience(attempts=3, first_wait_seconds=0.001, silence_seconds=5))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(huggingface_hub.utils._http, "time", types.SimpleNamespace(sleep=lambda seconds: None))
        transport._client.cache_clear()
        yield stub
        transport.client().close()
        transport._client.cache_clear()
        huggingface_hub.close_session()
