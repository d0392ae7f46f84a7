"""What GGUF cannot express is refused by name, and what it can is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fledge.model.settings import ModelConfig, ModelSettings, RopeScaling
from fledge.publish.targets import QWEN_PATTERN, pre_tokenizer_name, refusals
from fledge.tokens.byte_level import SPLIT_PATTERN, SUPERWORD_PATTERN, split_pipeline
from fledge.tokens.definition import Definition
from fledge.tokens.importing import import_tokenizer
from fledge.tokens.settings import TokenizerSettings
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer

from .conftest import MODEL_SIZE, TOKENIZER_SIZE

MakeTokenizer = Callable[..., Tokenizer]
LLAMA3 = RopeScaling("llama3", 8.0)


def config(scaling: RopeScaling | None = None, **changes: Any) -> ModelConfig:
    return ModelConfig(ModelSettings(**changes), MODEL_SIZE, rope_scaling=scaling)


@pytest.mark.parametrize(
    ("shape", "named"),
    [
        (config(), None),
        (config(query_key_norm=True), None),
        (config(normalization="layer"), None),
        (config(RopeScaling("linear", 2.0), normalization="layer"), None),
        (config(LLAMA3), None),
        (config(LLAMA3, query_key_norm=True), "llama3"),
        (config(LLAMA3, normalization="layer"), "llama3"),
        (config(activation="gelu"), "GeGLU"),
        (config(activation="relu"), "ReGLU"),
    ],
)
def test_shapes(shape: ModelConfig, named: str | None, make_tokenizer: MakeTokenizer) -> None:
    definition = make_tokenizer().definition
    assert refusals(shape, definition, "hf", "bf16") == []
    for target in ("gguf", "ollama"):
        found = refusals(shape, definition, target, "f16")  # type: ignore[arg-type]
        assert found == [] if named is None else [named in reason for reason in found] == [True]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({}, []),
        ({"hidden_size": 336, "head_dim": 64}, ["hidden_size 336"]),
        ({"intermediate_size": 700}, ["intermediate_size 700"]),
        ({"head_dim": 12}, ["num_attention_heads x head_dim 48"]),
    ],
)
def test_rows_of_q8_0(changes: dict[str, Any], named: list[str], make_tokenizer: MakeTokenizer) -> None:
    definition = make_tokenizer().definition
    found = refusals(config(**changes), definition, "gguf", "q8_0")
    assert [reason.partition(":")[0] for reason in found if "needs rows" in reason] == named
    assert refusals(config(**changes), definition, "gguf", "f16") == []
    assert refusals(config(), definition, "hf", "q8_0") == ["q8_0 is a type of GGUF: a Hugging Face folder has f32, f16 and bf16"]


@pytest.mark.parametrize(
    ("kind", "named"),
    [("byte_bpe", None), ("sentencepiece_bpe", None), ("unigram", "Unigram with byte fallback")],
)
def test_tokenizers(kind: str, named: str | None, make_tokenizer: MakeTokenizer) -> None:
    found = refusals(config(), make_tokenizer(kind).definition, "gguf", "f16")
    assert found == [] if named is None else named in found[0]
    assert refusals(config(), make_tokenizer(kind).definition, "hf", "f16") == []


def with_content(definition: Definition, **parts: Any) -> Definition:
    return replace(definition, content={**definition.content, **parts})


def test_a_pattern_has_the_name_that_means_it_and_whether_merges_count(make_tokenizer: MakeTokenizer) -> None:
    """llama.cpp's llama-bpe ignores the merges of what is an entry as a whole; ours does so only if it was imported from such a file."""
    content = dict(make_tokenizer().definition.content)
    ignoring = {**content["model"], "ignore_merges": True}
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert pre_tokenizer_name(content) == "dbrx"
    assert pre_tokenizer_name({**content, "model": ignoring}) == "llama-bpe"
    assert pre_tokenizer_name({**content, "pre_tokenizer": split_pipeline(QWEN_PATTERN)}) == "qwen2"
    assert pre_tokenizer_name({**content, "pre_tokenizer": plain}) == "gpt-2"
    assert pre_tokenizer_name({**content, "pre_tokenizer": {**plain, "trim_offsets": False}}) == "gpt-2"
    assert pre_tokenizer_name({**content, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, plain]}}) == "smollm"
    assert pre_tokenizer_name({**content, "pre_tokenizer": plain, "model": ignoring}) is None
    superwords = with_content(make_tokenizer().definition, pre_tokenizer=split_pipeline(SUPERWORD_PATTERN))
    [reason] = refusals(config(), superwords, "gguf", "f16")
    assert reason.startswith("tokenizer superbpe")
    other = split_pipeline(SPLIT_PATTERN.replace("{1,3}", "{1,2}"))
    [reason] = refusals(config(), with_content(make_tokenizer().definition, pre_tokenizer=other), "gguf", "f16")
    assert "no name for it" in reason and "{1,2}" in reason


def test_sentencepiece_that_scores_cannot_say_is_refused(make_tokenizer: MakeTokenizer) -> None:
    definition = make_tokenizer("sentencepiece_bpe").definition
    model = definition.content["model"]
    merges = model["merges"]
    twice = next(place for place, (left, right) in enumerate(merges) if place and "".join(merges[place - 1]) == left + right)
    apart = [*merges[:twice], *merges[twice + 1 :], merges[twice]]
    found = refusals(config(), with_content(definition, model={**model, "merges": apart}), "gguf", "f16")
    assert "order of their results" in found[0]
    found = refusals(config(), with_content(definition, pre_tokenizer={"type": "Digits"}), "gguf", "f16")
    assert "cuts text first" in found[0]
    found = refusals(
        config(), with_content(definition, model={**model, "vocab": {**model["vocab"], "\u2581": TOKENIZER_SIZE}}), "gguf", "f16"
    )
    assert "entries for the character" in found[0]


def test_published_pre_tokenizers_are_recognised(make_tokenizer: MakeTokenizer, tmp_path: Path) -> None:
    """In the form of the files of Qwen and Llama 3, through the import."""
    content = json.loads((make_tokenizer().folder / "tokenizer.json").read_text())
    for pattern, ignores, name in ((QWEN_PATTERN, False, "qwen2"), (SPLIT_PATTERN, True, "llama-bpe")):
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
        content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, last]}
        content["model"]["ignore_merges"] = ignores
        (tmp_path / "tokenizer.json").write_text(json.dumps(content))
        made = tmp_path / name
        made.mkdir()
        import_tokenizer(TokenizerSettings(kind="import", path=str(tmp_path / "tokenizer.json")), made)
        assert pre_tokenizer_name(open_tokenizer(made).definition.content) == name


ROWS: dict[str, dict[str, Any]] = {
    "RMSNorm, SwiGLU (Llama)": {},
    "`query_key_norm` (Qwen3)": {"query_key_norm": True},
    "`normalization: layer` (StableLM)": {"normalization": "layer"},
    "grouped queries, any head_dim": {"num_key_value_heads": 2, "head_dim": 32},
    "tied or untied head": {"tie_word_embeddings": False},
    "`activation: gelu`, GeGLU": {"activation": "gelu"},
    "`activation: relu`, ReGLU": {"activation": "relu"},
    "rotary scaling linear (imported models)": {"scaling": RopeScaling("linear", 2.0)},
    "rotary scaling llama3 (imported models)": {"scaling": LLAMA3},
    "rotary scaling llama3 with `query_key_norm`": {"scaling": LLAMA3, "query_key_norm": True},
    "tokenizer `byte_bpe`": {"kind": "byte_bpe"},
    "tokenizer `sentencepiece_bpe`": {"kind": "sentencepiece_bpe"},
    "tokenizer `superbpe`": {"pre_tokenizer": split_pipeline(SUPERWORD_PATTERN)},
    "tokenizer `unigram`": {"kind": "unigram"},
    "`--dtype q8_0`": {"weight_type": "q8_0"},
    "`--dtype q8_0`, width not a multiple of 32": {"weight_type": "q8_0", "hidden_size": 336, "head_dim": 64},
}


def test_the_table_in_the_documentation_is_what_the_code_does(make_tokenizer: MakeTokenizer) -> None:
    lines = (Path(__file__).parents[2] / "docs" / "export.md").read_text().split("## What each target can express")[1].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    told = {row[0]: row[1:] for row in cells if len(row) == 3 and row[1] in ("yes", "no")}
    assert told.keys() == ROWS.keys()
    for name, options in ROWS.items():
        given = dict(options)
        definition = make_tokenizer(given.pop("kind", "byte_bpe")).definition
        weight_type = given.pop("weight_type", "f16")
        if "pre_tokenizer" in given:
            definition = with_content(definition, pre_tokenizer=given.pop("pre_tokenizer"))
        shape = config(given.pop("scaling", None), **given)
        found = ["no" if refusals(shape, definition, target, weight_type) else "yes" for target in ("hf", "gguf")]  # type: ignore[arg-type]
        assert found == told[name], name
        assert refusals(shape, definition, "ollama", weight_type) == refusals(shape, definition, "gguf", weight_type)
