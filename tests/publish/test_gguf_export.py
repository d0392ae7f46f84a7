"""A GGUF file holds the model to the precision of its type, and the tokenizer as llama.cpp understands it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fledge.core.errors import CheckpointError, ConfigError, MachineError
from fledge.core.installing import install_hint
from fledge.corpus.document import Message
from fledge.model.folder import load_model, save_model
from fledge.model.llama import rotation_frequencies
from fledge.model.settings import RopeScaling
from fledge.publish import checks, gguf_export, gguf_file
from fledge.publish.gguf_export import Merging, check_values, export_gguf
from fledge.publish.gguf_file import ROPE_FREQUENCIES, gguf_tensors, own_weights, read_gguf
from fledge.publish.source import Source
from fledge.tokens.chat import render
from fledge.tokens.probes import generated_texts
from fledge.tokens.templates import TEMPLATES

from .conftest import MODEL_SIZE, TOKENIZER_SIZE

MakeSource = Callable[..., Source]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "head_dim": 32},
    "llama, untied": {"tie_word_embeddings": False},
    "qwen3": {"query_key_norm": True, "num_key_value_heads": 1, "head_dim": 32},
    "stablelm": {"normalization": "layer", "num_key_value_heads": 2},
    "stablelm, untied": {"normalization": "layer", "tie_word_embeddings": False},
}


@pytest.mark.parametrize("weight_type", ["f32", "f16", "bf16", "q8_0"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_is_read_back_is_the_model(name: str, weight_type: Any, make_source: MakeSource, tmp_path: Path) -> None:
    """Fields, values to the type's precision, and the logits that transformers computes from the file: all that `check_gguf` compares."""
    source = make_source(**ARCHITECTURES[name])
    assert "transformers" in export_gguf(source, tmp_path / "out", "gguf", weight_type)
    read = read_gguf(tmp_path / "out" / "model.gguf")
    assert read.fields["general.architecture"] == name.partition(",")[0]
    assert ("output.weight" in read.tensors) == (name != "llama" and name != "qwen3")
    weights = dict(own_weights(source.model, read.tensors))
    for key, weight in source.model.named_parameters():
        bound = 0.0 if weight.ndim == 1 else {"f32": 0.0, "f16": 2.0**-11, "bf16": 2.0**-8, "q8_0": 1 / 240}[weight_type]
        assert (weights[key] - weight).abs().max() <= bound * weight.abs().max(), key
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", "model.gguf"]


def test_the_tokenizer_is_what_llama_cpp_needs(make_source: MakeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = make_source()
    export_gguf(source, tmp_path / "out", "ollama", "f16")
    assert "it/s" not in capsys.readouterr().err
    fields, tokenizer = read_gguf(tmp_path / "out" / "model.gguf").fields, source.tokenizer
    entries, types = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"]) == ("gpt2", "dbrx")
    assert len(entries) == len(set(entries)) == MODEL_SIZE
    assert entries[TOKENIZER_SIZE:] == [f"[PAD{token}]" for token in range(TOKENIZER_SIZE, MODEL_SIZE)]
    assert types == [1] * (TOKENIZER_SIZE - 4) + [3] * 4 + [5] * (MODEL_SIZE - TOKENIZER_SIZE)
    ids = [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("bos", "eos", "eot", "padding")]
    assert ids == [tokenizer.document_start[0], tokenizer.turn_end, tokenizer.turn_end, tokenizer.padding]
    assert not fields["tokenizer.ggml.add_bos_token"] and not fields["tokenizer.ggml.add_eos_token"]
    assert [merge.split(" ") for merge in fields["tokenizer.ggml.merges"]] == tokenizer.definition.content["model"]["merges"]
    assert (tmp_path / "out" / "Modelfile").is_file()


def test_a_sentencepiece_vocabulary_encodes_by_scores(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source("sentencepiece_bpe", "plain")
    export_gguf(source, tmp_path / "out", "gguf", "f16")
    fields = read_gguf(tmp_path / "out" / "model.gguf").fields
    assert (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.unknown_token_id"]) == ("llama", source.tokenizer.specials["<unk>"])
    assert not fields["tokenizer.ggml.add_space_prefix"]
    kinds = fields["tokenizer.ggml.token_type"]
    assert kinds.count(6) == 256 and kinds[source.tokenizer.specials["<unk>"]] == 2
    texts = [text for text in generated_texts(300, seed=5) if "\u2581" not in text]
    assert Merging(fields).encode_batch(texts) == source.tokenizer.encode_batch(texts)
    monkeypatch.setattr(checks, "_texts", lambda: ["a\u2581b", "a b"])
    assert gguf_export.check_gguf(source, tmp_path / "out", "f16", "out")
    wrong = {**fields, "tokenizer.ggml.scores": fields["tokenizer.ggml.scores"][::-1]}
    assert Merging(wrong).encode_batch(texts) != source.tokenizer.encode_batch(texts)


def test_slowed_frequencies_are_written_as_llama_cpp_divides_by_them(make_source: MakeSource, tmp_path: Path) -> None:
    scaling = RopeScaling("llama3", 8.0, original_max_position_embeddings=64)
    source = make_source(scaling=scaling)
    assert "no rotary scaling" in export_gguf(source, tmp_path / "out", "gguf", "q8_0")
    read = read_gguf(tmp_path / "out" / "model.gguf")
    plain = rotation_frequencies(replace(source.model.config, rope_scaling=None))
    divided = plain.numpy() / read.tensors[ROPE_FREQUENCIES]
    assert read.types[ROPE_FREQUENCIES] == "F32"
    np.testing.assert_allclose(divided, rotation_frequencies(source.model.config).numpy(), rtol=1e-6)


def test_linear_scaling_is_a_field(make_source: MakeSource, tmp_path: Path) -> None:
    export_gguf(make_source(scaling=RopeScaling("linear", 4.0)), tmp_path / "linear", "gguf", "f32")
    read = read_gguf(tmp_path / "linear" / "model.gguf")
    assert (read.fields["llama.rope.scaling.type"], read.fields["llama.rope.scaling.factor"]) == ("linear", 4.0)
    assert ROPE_FREQUENCIES not in read.tensors


def test_what_cannot_be_expressed_is_refused_before_anything_is_written(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source("unigram", activation="gelu", intermediate_size=100)
    with pytest.raises(ConfigError, match=r"to gguf: activation gelu \(GeGLU\).*; intermediate_size 100.*; tokenizer Unigram") as caught:
        export_gguf(source, tmp_path / "out", "gguf", "q8_0")
    assert "--to hf" in caught.value.remedy
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("weight_type", ["f32", "f16", "bf16", "q8_0"])
def test_values_beyond_the_precision_of_a_type_are_noticed(weight_type: Any, make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    export_gguf(source, tmp_path / "out", "gguf", weight_type)
    read, expected = read_gguf(tmp_path / "out" / "model.gguf"), gguf_tensors(source.model)
    check_values(read, expected, weight_type)
    name = "blk.1.ffn_up.weight"
    largest = np.abs(expected[name][3, :32]).max()
    moved = read.tensors[name].copy()
    moved[3, 5] += largest * {"f32": 2.0**-20, "f16": 2.0**-10, "bf16": 2.0**-7, "q8_0": 1.1 / 127}[weight_type]
    with pytest.raises(CheckpointError, match=name):
        check_values(replace(read, tensors={**read.tensors, name: moved}), expected, weight_type)
    with pytest.raises(CheckpointError, match="its tensors"):
        check_values(replace(read, tensors={key: read.tensors[key] for key in read.tensors if key != name}), expected, weight_type)
    with pytest.raises(CheckpointError, match="is F64"):
        check_values(replace(read, types={**read.types, name: "F64"}), expected, weight_type)


def test_a_file_that_differs_does_not_appear(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, write = make_source(), gguf_file.write_gguf

    def forgets_to_interleave(*arguments: Any) -> None:
        with monkeypatch.context() as context:
            context.setattr(gguf_file, "interleaved", lambda weight, head_size: weight)
            write(*arguments)

    monkeypatch.setattr(gguf_export, "write_gguf", forgets_to_interleave)
    with pytest.raises(CheckpointError, match=r"blk\.0\.attn_q\.weight, read back"):
        export_gguf(source, tmp_path / "out", "gguf", "f16")
    monkeypatch.setattr(gguf_export, "write_gguf", lambda source, path, kind, name: write(source, path, kind, "another name"))
    with pytest.raises(CheckpointError, match=r"the field general\.name"):
        export_gguf(source, tmp_path / "out", "gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_rows_of_q_in_the_wrong_order_give_other_logits(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mistake that writer and reader share is found by transformers."""
    monkeypatch.setattr(gguf_file, "interleaved", lambda weight, head_size: weight)
    monkeypatch.setattr(gguf_file, "half_split", lambda weight, head_size: weight)
    with pytest.raises(CheckpointError, match="logits"):
        export_gguf(make_source(), tmp_path / "out", "gguf", "f32")


@pytest.mark.parametrize(
    ("part", "mistake"),
    [
        ("pre_tokenizer_name", lambda given: "gpt-2"),
        ("pre_tokenizer_name", lambda given: "unheard of"),
        ("_merges", lambda given: given["model"]["merges"][1:]),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_make_otherwise_is_found(
    part: str, mistake: Any, make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mistake that writer and expected fields share."""
    monkeypatch.setattr(gguf_file, part, mistake)
    with pytest.raises(CheckpointError, match=r"the ids of|split pattern"):
        export_gguf(make_source(), tmp_path / "out", "gguf", "f16")
    assert not (tmp_path / "out").exists()


def test_a_template_that_renders_otherwise_is_found(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_source()
    without = type(source.tokenizer.template).jinja_without_mask.fget  # type: ignore[union-attr]
    monkeypatch.setattr(
        type(source.tokenizer.template), "jinja_without_mask", property(lambda self: without(self).replace("trim", "upper"))
    )
    with pytest.raises(CheckpointError, match="rendered by its chat template"):
        export_gguf(source, tmp_path / "out", "gguf", "f16")


def test_another_continuation_is_found(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_export, "check_logits", lambda *arguments: None)
    monkeypatch.setattr(gguf_file, "interleaved", lambda weight, head_size: weight)
    monkeypatch.setattr(gguf_file, "half_split", lambda weight, head_size: weight)
    with pytest.raises(CheckpointError, match="greedy"):
        export_gguf(make_source(), tmp_path / "out", "gguf", "f32")


def test_without_the_package_it_is_named(make_source: MakeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(MachineError, match="gguf is not installed") as caught:
        export_gguf(make_source(), tmp_path / "out", "gguf", "f16")
    assert install_hint("gguf") in caught.value.remedy and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_template_without_a_mask_renders_the_same(name: Any) -> None:
    """llama.cpp's Jinja need not know `generation`."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{"role": "user", "content": " a\n"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    plain = TEMPLATES[name].jinja_without_mask
    assert "generation -%}" not in plain
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    for asked in (True, False):
        given = {"messages": messages, "add_generation_prompt": asked, **names}
        expected, _ = render_jinja_template(
            conversations=[messages], chat_template=TEMPLATES[name].jinja, add_generation_prompt=asked, **names
        )
        assert jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(plain).render(given) == expected[0]


@pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_llama_cpp_computes_and_encodes_the_same(name: str, kind: str, make_source: MakeSource, tmp_path: Path) -> None:
    import llama_cpp  # type: ignore[import-not-found, unused-ignore]

    source = make_source(kind, **ARCHITECTURES[name])
    export_gguf(source, tmp_path / "out", "gguf", "f32")
    theirs = llama_cpp.Llama(str(tmp_path / "out" / "model.gguf"), n_ctx=64, logits_all=True, verbose=False)
    for text in generated_texts(200, seed=3):
        if text and "\u2581" not in text and "\x00" not in text:
            assert theirs.tokenize(text.encode(), add_bos=False, special=False) == source.tokenizer.encode(text), repr(text)
    ids = render(source.tokenizer, [Message("user", "What is a list?")], answer_follows=True).ids
    theirs.eval(ids)
    with torch.no_grad():
        ours = source.model(torch.tensor([ids]))
    assert isinstance(ours, torch.Tensor)
    assert np.abs(theirs.scores[: len(ids)] - ours[0].numpy()).max() <= 1e-3 * float(ours.abs().max())


def test_a_model_of_q8_0_speaks_almost_like_its_source(make_source: MakeSource, tmp_path: Path) -> None:
    source = make_source()
    export_gguf(source, tmp_path / "out", "gguf", "q8_0")
    ours = load_model(source.artifact.path)
    ours.load_state_dict(dict(own_weights(ours, read_gguf(tmp_path / "out" / "model.gguf").tensors)), strict=False)
    save_model(ours, tmp_path / "folder")
    rows = torch.randint(0, MODEL_SIZE, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = source.model(rows), ours.eval()(rows)
    assert isinstance(expected, torch.Tensor) and isinstance(found, torch.Tensor)
    assert 0 < (found - expected).abs().max() < 0.1 * expected.abs().max()
