from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from fledge.core import disk
from fledge.core.errors import CheckpointError
from fledge.model.folder import load_model, read_config, save_model, to_config_json
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig

MakeModel = Callable[..., Llama]

SHAPES = {
    "llama": {},
    "llama, grouped queries, untied": {"num_key_value_heads": 2, "tie_word_embeddings": False},
    "llama, wide heads, gelu": {"head_dim": 16, "activation": "gelu", "rope_theta": 500.0},
    "llama, one key head, relu": {"num_key_value_heads": 1, "activation": "relu"},
    "qwen3, grouped queries": {"query_key_norm": True, "num_key_value_heads": 2},
    "qwen3, untied, gelu": {"query_key_norm": True, "tie_word_embeddings": False, "activation": "gelu", "head_dim": 16},
    "stablelm": {"normalization": "layer"},
    "stablelm, grouped queries, untied, relu": {
        "normalization": "layer",
        "num_key_value_heads": 2,
        "tie_word_embeddings": False,
        "activation": "relu",
    },
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def model(request: pytest.FixtureRequest, make_model: MakeModel) -> Llama:
    return make_model(**request.param)


@pytest.fixture
def saved(make_model: MakeModel, tmp_path: Path) -> Path:
    save_model(make_model(), tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in {**config, **changes}.items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    edit(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors")


def resolved(config: ModelConfig) -> ModelConfig:
    return replace(config, settings=config.settings.resolved)


def largest_relative_difference(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_transformers_computes_the_same_logits(model: Llama, tokens: Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save_model(model, tmp_path)
    theirs, info = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert type(theirs).__name__ == json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    assert theirs.config._attn_implementation == "sdpa" and theirs.dtype == torch.float32
    assert theirs.config.eos_token_id == [122, 120]
    with torch.no_grad():
        assert largest_relative_difference(model(tokens), theirs(tokens).logits) <= 1e-5


def test_a_folder_of_transformers_loads(model: Llama, tokens: Tensor, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    save_model(model, tmp_path / "ours")
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "ours"))
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size="20KB")
    assert (tmp_path / "theirs" / "model.safetensors.index.json").is_file()
    ours = load_model(tmp_path / "theirs")
    assert ours.config == resolved(model.config)
    with torch.no_grad():
        assert largest_relative_difference(ours(tokens), theirs(tokens).logits) <= 1e-5


def test_greedy_text_is_that_of_transformers(make_model: MakeModel, tokens: Tensor, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model()
    model.config = replace(model.config, end_token_ids=(), padding_token_id=None)
    save_model(model, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    given = tokens[:1, :5]
    expected = theirs.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=20, do_sample=False)
    text = given
    with torch.no_grad():
        for _ in range(20):
            text = torch.cat((text, model(text)[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(text, expected)


def test_save_and_load_are_bitwise(model: Llama, tmp_path: Path) -> None:
    written = save_model(model, tmp_path / "first")
    loaded = load_model(tmp_path / "first")
    assert loaded.config == resolved(model.config)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == model.config.settings.tie_word_embeddings
    assert save_model(loaded, tmp_path / "second") == written


@pytest.mark.usefixtures("usual_umask")
def test_what_is_returned_is_what_lies_there(make_model: MakeModel, tmp_path: Path) -> None:
    written = save_model(make_model(), tmp_path / "saved")
    assert sorted(written) == ["config.json", "generation_config.json", "model.safetensors"]
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == sorted(written)
    for name, digest in written.items():
        path = tmp_path / "saved" / name
        assert disk.digest_file(path) == digest
        assert path.stat().st_mode & 0o777 == 0o644, name


def test_weights_can_be_stored_in_bf16_and_load_as_fp32(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model()
    save_model(model, tmp_path, dtype=torch.bfloat16)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = load_model(tmp_path)
    assert loaded.lm_head.weight.dtype == torch.float32
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight.bfloat16().float())


def test_config_speaks_to_transformers_4_and_5(make_model: MakeModel) -> None:
    written = to_config_json(make_model(rope_theta=500.0).config, torch.float32)
    assert written["rope_parameters"] == {"rope_type": "default", "rope_theta": 500.0}
    assert written["rope_theta"] == 500.0
    assert written["dtype"] == written["torch_dtype"] == "float32"
    assert (written["bos_token_id"], written["eos_token_id"], written["pad_token_id"]) == (120, [122, 120], 123)


SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 4.0},
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=["linear", "llama3"])
@pytest.mark.parametrize("version", [4, 5])
def test_stretched_wavelengths_are_those_of_transformers(
    scaling: dict[str, Any], version: int, make_model: MakeModel, tokens: Tensor, tmp_path: Path
) -> None:
    """Both ways to write them are read, and what is written opens there with the same logits, which are not those without."""
    from transformers import AutoModelForCausalLM

    save_model(plain := make_model(), tmp_path / "given")
    if version == 5:
        edit_config(tmp_path / "given", rope_parameters={"rope_theta": 10_000.0, **scaling}, rope_scaling="absent")
    else:
        edit_config(tmp_path / "given", rope_parameters="absent", rope_scaling={**scaling, "type": scaling["rope_type"]})
    ours = load_model(tmp_path / "given")
    save_model(ours, tmp_path / "written")
    assert read_config(tmp_path / "written") == ours.config
    with torch.no_grad():
        logits = ours(tokens)
        for folder in ("given", "written"):
            theirs = AutoModelForCausalLM.from_pretrained(tmp_path / folder, attn_implementation="sdpa")
            assert largest_relative_difference(logits, theirs(tokens).logits) <= 1e-5
        assert largest_relative_difference(logits, plain(tokens)) > 1e-3


def test_config_of_transformers_4_is_read(saved: Path) -> None:
    before = read_config(saved)
    edit_config(saved, rope_parameters="absent", dtype="absent", rope_scaling=None, rope_theta=123.0, head_dim="absent")
    after = read_config(saved)
    assert after.settings.rope_theta == 123.0
    assert after.settings.head_size == before.settings.head_size


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is unknown"),
        ({"model_type": "absent"}, "model_type None is unknown"),
        ({"hidden_size": "absent"}, "lacks hidden_size"),
        ({"rms_norm_eps": "absent"}, "lacks rms_norm_eps"),
        ({"hidden_size": "32"}, "hidden_size"),
        ({"hidden_size": 33}, "hidden_size 33 is not divisible"),
        ({"vocab_size": "many"}, "vocabulary_size"),
        ({"bos_token_id": 1.5}, "begin_token_id"),
        ({"hidden_act": "gelu_pytorch_tanh"}, "gelu_pytorch_tanh"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "rope_type is 'yarn'"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}, "rope_parameters": "absent"}, "no rotary scaling"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        ({"eos_token_id": 4096}, "4096 lies outside"),
    ],
)
def test_a_config_that_is_not_ours_is_refused(changes: dict[str, Any], named: str, saved: Path) -> None:
    edit_config(saved, **changes)
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    assert named in caught.value.problem and "config.json" in caught.value.problem
    assert caught.value.remedy


def test_stablelm_without_a_rotary_factor_means_a_quarter(make_model: MakeModel, tmp_path: Path) -> None:
    save_model(make_model(normalization="layer"), tmp_path)
    edit_config(tmp_path, partial_rotary_factor="absent", rope_parameters="absent")
    with pytest.raises(CheckpointError, match=r"partial_rotary_factor is 0\.25"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(name: str, saved: Path) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_model(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\x00\xff\x00\xff\x00\xff\x00\xff\x00"])
def test_a_corrupt_file_is_named(name: str, content: bytes, saved: Path) -> None:
    (saved / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    assert str(saved / name) in caught.value.problem


def test_weights_cut_short_are_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="no complete safetensors file"):
        load_model(saved)


def test_weights_of_another_shape_are_listed_five_at_most(saved: Path) -> None:
    edit_config(saved, intermediate_size=64)
    with pytest.raises(CheckpointError) as caught:
        load_model(saved)
    assert "model.layers.0.mlp.gate_proj.weight is (48, 32) instead of (64, 32)" in caught.value.problem
    assert caught.value.problem.count("instead of") == 5 and "and 1 more" in caught.value.problem


def test_missing_and_unknown_weights_are_named(saved: Path) -> None:
    def rename(weights: dict[str, Tensor]) -> None:
        weights["norm.weight"] = weights.pop("model.norm.weight")

    edit_weights(saved, rename)
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is missing; norm\.weight is not in the model"):
        load_model(saved)


@pytest.mark.parametrize("equal", [True, False])
def test_a_tied_head_stored_twice_must_be_the_embedding(equal: bool, saved: Path) -> None:
    def add(weights: dict[str, Tensor]) -> None:
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + (0 if equal else 1)

    edit_weights(saved, add)
    if equal:
        load_model(saved)
    else:
        with pytest.raises(CheckpointError, match=r"lm_head\.weight is not in the model"):
            load_model(saved)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "weights.pth"])
def test_pickled_weights_are_never_opened(name: str, saved: Path) -> None:
    shutil.move(saved / "model.safetensors", saved / name)
    with pytest.raises(CheckpointError, match="only as pickle") as caught:
        load_model(saved)
    assert "convert" in caught.value.remedy


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": {"a": "../a.safetensors"}}, {"weight_map": {"a": 1}}])
def test_an_index_may_only_name_files_of_its_folder(index: dict[str, Any], saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names no files of this folder"):
        load_model(saved)


def test_a_shard_that_is_missing_is_named(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": "part-1.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"part-1\.safetensors is missing"):
        load_model(saved)
