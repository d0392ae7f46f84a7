"""What library users call: make, load, generate, with the types and lengths of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.core.errors import CheckpointError, ConfigError
from fledge.inference.kernel_forward import PackedModel
from fledge.inference.language_model import LanguageModel, create_model, load
from fledge.model.folder import save_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelSettings
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.trainers import train_tokenizer


@pytest.fixture(scope="module")
def model(tiny_model: Llama, tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_model(tiny_model, folder)
    return load(folder)


def test_a_loaded_model_computes_what_was_saved(model: LanguageModel, tiny_model: Llama) -> None:
    tokens = torch.arange(30)[None]
    assert model(tokens).equal(tiny_model(tokens))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_a_list_gives_a_list(model: LanguageModel) -> None:
    prompt = [5, 6, 7]
    continued = model.generate(prompt, max_length=20, temperature=0.8, seed=0)
    assert isinstance(continued, list)
    assert continued[:3] == prompt
    assert 3 < len(continued) <= 20
    assert prompt == [5, 6, 7]


def test_a_row_gives_a_row_and_a_matrix_a_matrix(model: LanguageModel) -> None:
    row = model.generate(torch.tensor([5, 6, 8], dtype=torch.int32), max_length=12, temperature=0)
    assert row.dtype == torch.int32
    assert row.tolist() == model.generate([5, 6, 8], max_length=12, temperature=0)
    matrix = model.generate(torch.tensor([[5, 6, 8], [9, 10, 12]]), max_length=12, temperature=0)
    assert matrix.shape[0] == 2
    assert matrix[0, : len(row)].tolist() == row.tolist()


def test_shorter_rows_are_filled_with_padding(model: LanguageModel) -> None:
    prompts = torch.randint(80, 499, (30, 2), generator=torch.Generator().manual_seed(0))
    matrix = model.generate(prompts, max_length=40, temperature=0)
    ends = torch.tensor(model.config.end_token_ids)
    lengths = []
    for row in matrix:
        ended = torch.isin(row, ends).nonzero()
        if len(ended) and ended[0] >= 2:
            assert set(row[int(ended[0]) + 1 :].tolist()) <= {model.config.padding_token_id}
            lengths.append(int(ended[0]))
    assert len(set(lengths)) > 3


@pytest.mark.parametrize("max_length", [3, 2, 0])
def test_a_prompt_that_leaves_no_room_is_refused(model: LanguageModel, max_length: int) -> None:
    with pytest.raises(ValueError, match=f"the prompt has 3 tokens and max_length is {max_length}"):
        model.generate([5, 6, 7], max_length=max_length)


def test_create_from_a_mapping_or_settings(tiny_settings: ModelSettings) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    from_mapping = create_model({**shape, "max_position_embeddings": 96, "initializer_range": 0.2, "vocabulary_size": 300})
    from_settings = create_model(tiny_settings, vocabulary_size=300)
    assert from_mapping.config == from_settings.config
    assert from_mapping.config.vocabulary_size == 384
    assert from_mapping.vocabulary_size == 300
    assert from_mapping.lm_head.weight.equal(from_settings.lm_head.weight)
    assert max(from_mapping.generate([1, 2], max_length=90, temperature=30.0, top_k=0, top_p=1.0, seed=0)) < 300


def test_seeds_make_different_models(tiny_settings: ModelSettings) -> None:
    first, second = (create_model(tiny_settings, vocabulary_size=128, seed=seed) for seed in (0, 1))
    assert not first.lm_head.weight.equal(second.lm_head.weight)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"hiden_size": 64, "vocabulary_size": 300}, "hiden_size"),
        ({"hidden_size": "64", "vocabulary_size": 300}, "hidden_size"),
        ({"hidden_size": 64}, "vocabulary_size"),
        ({"hidden_size": 64, "vocabulary_size": 0}, "vocabulary_size"),
    ],
)
def test_a_wrong_configuration_is_named(config: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        create_model(config)


def test_loading_what_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        load(tmp_path / "absent")


def test_a_checkpoint_knows_the_size_of_its_tokenizer(tiny_model: Llama, tmp_path: Path) -> None:
    stats = train_tokenizer(TokenizerSettings(vocabulary_size=270), ["some text to learn from, some text again"], tmp_path)
    save_model(tiny_model, tmp_path)
    assert load(str(tmp_path)).vocabulary_size == stats["vocabulary_size"] < tiny_model.config.vocabulary_size


def test_weights_are_packed_once_and_again_when_they_change(model: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[PackedModel] = []
    made = PackedModel.__init__

    def counted(self: PackedModel, *given: Any) -> None:
        packed.append(self)
        made(self, *given)

    monkeypatch.setattr(PackedModel, "__init__", counted)
    model.generate([5, 6, 7], max_length=6, temperature=0)
    weight = model.lm_head.weight
    with torch.no_grad():
        weight.add_(0.0)
    before = model.generate([5, 6, 7], max_length=6, temperature=0)
    assert model.generate([5, 6, 7], max_length=6, temperature=0) == before
    count = len(packed)
    with torch.no_grad():
        weight.neg_()
    try:
        assert model.generate([5, 6, 7], max_length=6, temperature=0) != before
    finally:
        with torch.no_grad():
            weight.neg_()
    assert len(packed) == count + 1
    assert model.generate([5, 6, 7], max_length=6, temperature=0) == before
