"""An exported folder is the model it was made from, as transformers opens it; one that is not does not appear."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.core import artifact
from fledge.core.errors import CheckpointError, ConfigError
from fledge.model.adapters import add_adapter
from fledge.model.folder import load_model, save_model
from fledge.model.settings import Adapter, LoraSettings, RopeScaling
from fledge.publish import checks
from fledge.publish import huggingface as writer
from fledge.publish.huggingface import export_huggingface
from fledge.publish.source import Source, open_source
from fledge.tokens.tokenizer import open_tokenizer

from .conftest import MODEL_SIZE, TOKENIZER_SIZE

MakeSource = Callable[..., Source]

OPTIONS: dict[str, tuple[Any, ...]] = {
    "normalization": ("rms", "layer"),
    "activation": ("silu", "gelu", "relu"),
    "num_key_value_heads": (4, 2),
    "query_key_norm": (False, True),
    "tie_word_embeddings": (True, False),
}
COMBINATIONS = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
SHAPES = [shape for shape in COMBINATIONS if not (shape["normalization"] == "layer" and shape["query_key_norm"])]
"""Every combination that `ModelSettings` takes."""


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(str(value) for value in shape.values()))
def test_transformers_opens_every_architecture_with_the_same_logits(shape: dict[str, Any], make_source: MakeSource, tmp_path: Path) -> None:
    """Keys complete, weights to the bit, fp32 logits to 1e-5, ids, conversations and greedy text: all that `check_folder` compares."""
    source = make_source(**shape)
    assert export_huggingface(source, tmp_path / "out", "f32").startswith("transformers ")


def test_there_are_36_architectures() -> None:
    assert len(SHAPES) == 36


@pytest.mark.parametrize(("kind", "template"), [("sentencepiece_bpe", "plain"), ("unigram", "alpaca"), ("byte_bpe", "chatml_newline")])
def test_tokenizers_and_templates_are_those_of_training(kind: str, template: Any, make_source: MakeSource, tmp_path: Path) -> None:
    assert export_huggingface(make_source(kind, template), tmp_path / "out", "bf16").startswith("transformers ")


@pytest.mark.parametrize("weight_type", ["f16", "bf16"])
def test_a_cast_is_that_of_the_type(weight_type: Any, make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source(scaling=RopeScaling("llama3", 8.0, original_max_position_embeddings=64))
    export_huggingface(source, tmp_path / "out", weight_type)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == {"f16": "float16", "bf16": "bfloat16"}[weight_type]
    cast = load_model(tmp_path / "out").lm_head.weight - source.model.lm_head.weight
    bound = source.model.lm_head.weight.abs().max() * {"f16": 2.0**-11, "bf16": 2.0**-8}[weight_type]
    assert 0 < cast.abs().max() <= bound


def test_the_folder_holds_what_others_need_and_nothing_of_training(make_source: MakeSource, tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        export_huggingface(make_source(), tmp_path / "out", "f32")
    finally:
        os.umask(before)
    files = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*")}
    assert set(files) == {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer_meta.json",
    }
    assert set(files.values()) == {0o644}
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    tokenizer = open_tokenizer(tmp_path / "out")
    assert generation["eos_token_id"] == list(tokenizer.end_ids(answers=True))
    assert (generation["do_sample"], generation["temperature"], generation["top_k"], generation["top_p"]) == (True, 0.8, 50, 0.95)
    again = open_source(artifact.foreign(tmp_path / "out", "huggingface"))
    assert export_huggingface(again, tmp_path / "again", "f32")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (tmp_path / "out" / "model.safetensors").read_bytes()


def test_an_adapter_is_folded_into_its_base(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    adapter = Adapter(LoraSettings(rank=2), source.artifact.path)
    adapted = load_model(source.artifact.path)
    add_adapter(adapted, adapter, seed=0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    save_model(adapted, tmp_path / "adapter")
    for path in source.artifact.path.glob("*token*"):
        (tmp_path / "adapter" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "adapter" / "chat_template.jinja").write_bytes((source.artifact.path / "chat_template.jinja").read_bytes())
    export_huggingface(open_source(artifact.foreign(tmp_path / "adapter", "huggingface")), tmp_path / "out", "f32")
    rows = checks.probe_rows(MODEL_SIZE, 64)
    with torch.no_grad():
        expected, plain, found = adapted.eval()(rows), source.model(rows), load_model(tmp_path / "out").eval()(rows)
    assert isinstance(expected, Tensor) and isinstance(plain, Tensor) and isinstance(found, Tensor)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - plain).abs().max() > 1e-3 * expected.abs().max()


def spoil_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))


def spoil_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = config["rope_theta"] = 100.0
    (folder / "config.json").write_text(json.dumps(config))


def spoil_ids(folder: Path) -> None:
    """The merges in another order."""
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].reverse()
    (folder / "tokenizer.json").write_text(json.dumps(content))


def spoil_template(folder: Path) -> None:
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        text = (folder / name).read_text()
        (folder / name).write_text(text.replace("<|im_end|>'", "<|im_end|> '"))


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (spoil_weights, "read back from the file"),
        (spoil_ids, "the ids of"),
        (spoil_template, "chat template"),
    ],
)
def test_a_folder_that_differs_does_not_appear(
    spoil: Callable[[Path], None], named: str, make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, write = make_source(), writer.write_folder

    def write_spoiled(source: Source, folder: Path, *rest: Any) -> None:
        write(source, folder, *rest)
        spoil(folder)

    monkeypatch.setattr(writer, "write_folder", write_spoiled)
    with pytest.raises(CheckpointError, match=named):
        export_huggingface(source, tmp_path / "out", "f32")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("out")]


def test_logits_and_greedy_text_of_another_model_are_noticed(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    export_huggingface(source, tmp_path / "out", "f32")
    spoil_shape(tmp_path / "out")
    theirs, rows = checks.load_theirs(tmp_path / "out"), checks.probe_rows(MODEL_SIZE, 64)
    with pytest.raises(CheckpointError, match="its logits by"):
        checks.check_logits(source.model, theirs, rows)
    with pytest.raises(CheckpointError, match="greedy"):
        checks.check_greedy(source.model, theirs, rows[:1, :8], TOKENIZER_SIZE)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match=r"missing keys in transformers, model\.layers\.2"):
        checks.load_theirs(tmp_path / "out")


def test_without_transformers_our_own_reader_looks_and_the_last_line_says_so(
    make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, found = make_source(), importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else found(name, *rest))
    assert export_huggingface(source, tmp_path / "out", "bf16") == "Fledge's own reader (transformers is not installed)"
    write = writer.write_folder
    for spoil, named in ((spoil_weights, "read back from the file"), (spoil_shape, "its logits by")):

        def write_spoiled(source: Source, folder: Path, *rest: Any, spoil: Callable[[Path], None] = spoil) -> None:
            write(source, folder, *rest)
            spoil(folder)

        monkeypatch.setattr(writer, "write_folder", write_spoiled)
        with pytest.raises(CheckpointError, match=named):
            export_huggingface(source, tmp_path / "other", "bf16")
        assert not (tmp_path / "other").exists()


def test_weights_that_f16_cannot_hold_are_refused(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    with torch.no_grad():
        source.model.lm_head.weight[3, 5] = 7e4
    with pytest.raises(ConfigError, match=r"embed_tokens.weight .* above 65,504") as caught:
        export_huggingface(source, tmp_path / "out", "f16")
    assert "bf16" in caught.value.remedy
    assert export_huggingface(source, tmp_path / "out", "bf16")
