"""A model on disk is a Hugging Face folder: weights, shape and tokenizer -> [folder] -> transformers, vLLM, peft open it as it lies.

    config.json               the shape, for the class of `transformers` that has it
    generation_config.json    where generation starts and stops
    model.safetensors         fp32 weights under their Hugging Face names; a tied head is left out
    tokenizer.json, ...       the tokenizer, copied by whoever has it

or, of a model with an adapter, peft's (`adapter_config`), which are all that was trained:

    adapter_config.json, adapter_model.safetensors, generation_config.json, tokenizer.json, ...

config.json carries the keys of transformers 5 (`rope_parameters`, `dtype`) and of transformers 4 (`rope_theta`, `torch_dtype`),
which say the same. Reading takes the folders of others too, as long as their class and options are ones `Llama` has.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from fledge.core import disk
from fledge.core.config import Tree, parse
from fledge.core.errors import CheckpointError, ConfigError
from fledge.model.adapter_config import ADAPTER_CONFIG, ADAPTER_WEIGHTS, find_base, is_adapter, read_adapter_settings, to_adapter_json
from fledge.model.adapters import adapter_weights, add_adapter, merge_adapter, own_name, peft_name
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, ModelConfig, Normalization, RopeScaling, RopeType
from fledge.model.tensors import read_tensors, write_tensors

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Architecture:
    """A class of transformers and what sets it apart."""

    model_type: str
    class_name: str
    normalization: Normalization
    query_key_norm: bool
    eps_key: str
    plain: Mapping[str, object]
    """Options of the class that `Llama` has only in this form."""


ARCHITECTURES = (
    Architecture("llama", "LlamaForCausalLM", "rms", False, "rms_norm_eps", {"attention_bias": False, "mlp_bias": False}),
    Architecture("qwen3", "Qwen3ForCausalLM", "rms", True, "rms_norm_eps", {"attention_bias": False, "use_sliding_window": False}),
    Architecture(
        "stablelm",
        "StableLmForCausalLM",
        "layer",
        False,
        "layer_norm_eps",
        {"use_qkv_bias": False, "qk_layernorm": False, "use_parallel_residual": False, "partial_rotary_factor": 1.0},
    ),
)

# Keys that mean the same there and in ModelSettings.
_SHARED_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "max_position_embeddings",
    "tie_word_embeddings",
    "initializer_range",
    "attention_dropout",
)
_REQUIRED_KEYS = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")


def save_model(
    model: Llama,
    folder: Path,
    dtype: torch.dtype | None = None,
    weights: Mapping[str, Tensor] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> dict[str, disk.FileDigest]:
    """Write a model as a Hugging Face folder and return what was written, by file name; weights in `dtype`, None: as they are.

    Of a model with an adapter that alone is written, in peft's form. `weights` stand in for the parameters of a model that holds only
    parts of them. `sampling` is written beside the special tokens: how answers are drawn, in Hugging Face's words.
    The tokenizer's files join them by `tokens.tokenizer.copy_tokenizer`. Raises MachineError if the disk is full.
    """
    weights = stored_weights(model) if weights is None else weights
    dtype = dtype or model.lm_head.weight.dtype
    generation = {**_special_tokens(model.config), **(sampling or {})}
    if model.adapter is not None:
        described = to_adapter_json(model.adapter.settings, model.adapter.base)
        return {
            ADAPTER_CONFIG: disk.write_json(folder / ADAPTER_CONFIG, described),
            GENERATION_CONFIG: disk.write_json(folder / GENERATION_CONFIG, generation),
            ADAPTER_WEIGHTS: write_tensors(folder / ADAPTER_WEIGHTS, {peft_name(name): weights[name] for name in weights}, dtype),
        }
    written = {CONFIG: disk.write_json(folder / CONFIG, to_config_json(model.config, dtype))}
    written[GENERATION_CONFIG] = disk.write_json(folder / GENERATION_CONFIG, generation)
    written[WEIGHTS] = write_tensors(folder / WEIGHTS, weights, dtype)
    return written


def load_model(folder: Path, device: torch.device | str = "cpu") -> Llama:
    """The model in a Hugging Face folder, its weights in fp32; an adapter is folded into its base.

    Raises CheckpointError, naming the file, if one is missing or damaged, if the weights do not fit the shape (the first five
    differences) or are not finite, or if the class or one of its options is not among ours.
    """
    if is_adapter(folder):
        model = load_adapted(folder)
        merge_adapter(model)
        return model.to(device)
    model = Llama(read_config(folder), seed=None)
    _fill(model, folder)
    return model.to(device)


def load_adapted(folder: Path, dropout: float = 0.0) -> Llama:
    """The model of an adapter's folder with the adapter apart, to train on with this dropout. Raises CheckpointError, as `load_model`."""
    settings, base = replace(read_adapter_settings(folder), dropout=dropout), find_base(folder)
    model = load_model(base)
    model.config = _with_special_tokens(model.config, folder)
    add_adapter(model, Adapter(settings, base), seed=None)
    _fill(model, folder)
    return model


def read_config(folder: Path) -> ModelConfig:
    """The shape of the model in a Hugging Face folder, of an adapter that of its base. Raises CheckpointError."""
    if is_adapter(folder):
        return _with_special_tokens(read_config(find_base(folder)), folder)
    return from_config_json(_read_json(folder / CONFIG), folder / CONFIG)


def stored_weights(model: Llama) -> dict[str, nn.Parameter]:
    """What a folder holds of a model, by our names: its parameters, a tied head listed once, as the embedding; or its adapter's alone."""
    return dict(model.named_parameters()) if model.adapter is None else adapter_weights(model)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder by our names, from one file or from several with an index. Raises CheckpointError."""
    if is_adapter(folder):
        return {own_name(name): tensor for name, tensor in read_tensors(folder / ADAPTER_WEIGHTS).items()}
    if not (folder / WEIGHTS).is_file():
        if (folder / WEIGHTS_INDEX).is_file():
            return _read_shards(folder)
        pickled = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth"})
        if pickled:
            remedy = f"convert it: fledge import {folder / pickled[0]} FOLDER"
            raise CheckpointError(f"{folder} holds its weights only as pickle ({pickled[0]}), which could run any code", remedy)
    return read_tensors(folder / WEIGHTS)


def to_config_json(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json."""
    settings = config.settings
    architecture = architecture_of(config)
    rope = {"rope_type": "default", "rope_theta": settings.rope_theta, **(_scaling_json(config.rope_scaling))}
    if "partial_rotary_factor" in architecture.plain:
        rope["partial_rotary_factor"] = 1.0
    shared = {name: getattr(settings, name) for name in _SHARED_KEYS}
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "vocab_size": config.vocabulary_size,
        **shared,
        "num_key_value_heads": settings.key_value_heads,
        "head_dim": settings.head_size,
        "hidden_act": settings.activation,
        architecture.eps_key: settings.rms_norm_eps,
        **architecture.plain,
        "rope_parameters": rope,
        "rope_theta": settings.rope_theta,
        "rope_scaling": _scaling_json(config.rope_scaling) or None,
        **_special_tokens(config),
        "use_cache": True,
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def architecture_of(config: ModelConfig) -> Architecture:
    """The class of transformers that computes what `Llama` does with these settings."""
    wanted = (config.settings.normalization, config.settings.query_key_norm)
    return next(known for known in ARCHITECTURES if (known.normalization, known.query_key_norm) == wanted)


def from_config_json(raw: Mapping[str, Any], origin: Path) -> ModelConfig:
    """The reverse of `to_config_json`, for files of others too. Raises CheckpointError naming the key that does not fit."""
    architecture = next((known for known in ARCHITECTURES if known.model_type == raw.get("model_type")), None)
    if architecture is None:
        ours = ", ".join(known.class_name for known in ARCHITECTURES)
        raise CheckpointError(f"{origin}: model_type {raw.get('model_type')!r} is unknown", f"use a checkpoint of {ours}")
    missing = [key for key in (*_REQUIRED_KEYS, architecture.eps_key, "hidden_act") if raw.get(key) is None]
    if missing:
        raise CheckpointError(f"{origin} lacks {', '.join(missing)}", "use a complete checkpoint")
    rope = {**(raw.get("rope_scaling") or {}), **(raw.get("rope_parameters") or {})}
    _require_plain(architecture, {**raw, **rope}, origin)
    values = {key: raw[key] for key in _SHARED_KEYS if raw.get(key) is not None}
    values |= {
        "tie_word_embeddings": raw.get("tie_word_embeddings", False),
        "rope_theta": rope.get("rope_theta", raw.get("rope_theta", 10_000.0)),
        "rms_norm_eps": raw[architecture.eps_key],
        "activation": raw["hidden_act"],
        "normalization": architecture.normalization,
        "query_key_norm": architecture.query_key_norm,
    }
    config: dict[str, Any] = {
        "settings": values,
        "vocabulary_size": raw["vocab_size"],
        "begin_token_id": raw.get("bos_token_id"),
        "end_token_ids": list(_end_token_ids(raw)),
        "padding_token_id": raw.get("pad_token_id"),
        "rope_scaling": _scaling_values(rope, values["max_position_embeddings"]),
    }
    try:
        return parse(ModelConfig, Tree(config, {}))
    except ConfigError as error:
        raise CheckpointError(f"{origin}: {error.problem}", "use a checkpoint whose options Fledge has") from error


def _require_plain(architecture: Architecture, given: Mapping[str, Any], origin: Path) -> None:
    """Raises CheckpointError if an option has a form that `Llama` does not compute."""
    default_rotary_factor = 0.25 if architecture.model_type == "stablelm" else 1.0
    found = {
        **{key: given.get(key, False) for key in architecture.plain},
        "rope_type": _rope_type(given),
        "partial_rotary_factor": given.get("partial_rotary_factor", default_rotary_factor),
    }
    wanted: dict[str, object] = {**architecture.plain, "rope_type": "default", "partial_rotary_factor": 1.0}
    if found["rope_type"] in get_args(RopeType):
        del wanted["rope_type"]
    for key, value in wanted.items():
        if found[key] != value:
            raise CheckpointError(f"{origin}: {key} is {found[key]!r}, Fledge computes only {value!r}", "use a checkpoint without it")


def _rope_type(rope: Mapping[str, Any]) -> Any:
    return rope.get("rope_type", rope.get("type", "default"))


def _scaling_json(scaling: RopeScaling | None) -> dict[str, Any]:
    if scaling is None:
        return {}
    return {"rope_type": "linear", "factor": scaling.factor} if scaling.rope_type == "linear" else asdict(scaling)


def _scaling_values(rope: Mapping[str, Any], context_tokens: Any) -> dict[str, Any] | None:
    """What `RopeScaling` is parsed from; an original length that is not given is the model's, as in transformers."""
    if _rope_type(rope) == "default":
        return None
    given = {name: rope[name] for name in (field.name for field in fields(RopeScaling)) if rope.get(name) is not None}
    return {"original_max_position_embeddings": context_tokens, **given, "rope_type": _rope_type(rope)}


def _special_tokens(config: ModelConfig) -> dict[str, int | list[int] | None]:
    ends = list(config.end_token_ids)
    return {
        "bos_token_id": config.begin_token_id,
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": config.padding_token_id,
    }


def _with_special_tokens(config: ModelConfig, folder: Path) -> ModelConfig:
    """The config of a base with the end that its adapter's folder names: a base may end with a text where the adapter ends with a turn."""
    if not (folder / GENERATION_CONFIG).is_file():
        return config
    return replace(config, end_token_ids=_end_token_ids(_read_json(folder / GENERATION_CONFIG)))


def _end_token_ids(raw: Mapping[str, Any]) -> tuple[int, ...]:
    ends = raw.get("eos_token_id")
    return tuple(ends) if isinstance(ends, list) else () if ends is None else (ends,)


def _fill(model: Llama, folder: Path) -> None:
    stored, expected = read_weights(folder), stored_weights(model)
    head = stored.get("lm_head.weight")
    if head is not None and "lm_head.weight" not in expected and torch.equal(head, stored.get("model.embed_tokens.weight", head)):
        del stored["lm_head.weight"]  # Some writers store a tied head twice.
    _require_fit(folder, expected, stored)
    _require_finite(folder, stored)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(stored[name])


def _read_shards(folder: Path) -> dict[str, Tensor]:
    index = _read_json(folder / WEIGHTS_INDEX).get("weight_map")
    names = set(index.values()) if isinstance(index, dict) else set()
    if not names or not all(isinstance(name, str) and Path(name).name == name for name in names):
        raise CheckpointError(f"{folder / WEIGHTS_INDEX} names no files of this folder", "use a complete checkpoint")
    return {key: tensor for name in sorted(names) for key, tensor in read_tensors(folder / name).items()}


def _require_fit(folder: Path, expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
    differences = list(_differences(expected, stored))
    if differences:
        more = f" and {len(differences) - 5} more" if len(differences) > 5 else ""
        problem = f"the weights in {folder} do not fit its {CONFIG}: {'; '.join(differences[:5])}{more}"
        raise CheckpointError(problem, f"use the {CONFIG} that was written with these weights")


def _require_finite(folder: Path, stored: Mapping[str, Tensor]) -> None:
    for name, weight in stored.items():
        # A sum tells in a 25th of the time (50 million values: 0.02 against 0.45 s), unless finite values overflow it.
        if not torch.isfinite(weight.sum()) and not torch.isfinite(weight).all():
            raise CheckpointError(
                f"{name} in {folder} holds values that are not finite", "use an earlier checkpoint, or another copy of it"
            )


def _differences(expected: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> Iterator[str]:
    for name, parameter in expected.items():
        if name not in stored:
            yield f"{name} is missing"
        elif stored[name].shape != parameter.shape:
            yield f"{name} is {tuple(stored[name].shape)} instead of {tuple(parameter.shape)}"
    yield from (f"{name} is not in the model" for name in stored if name not in expected)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing", "name a complete checkpoint, or run the stage that makes it again")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}", "use another copy of it, or an earlier checkpoint") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object", "use another copy of it, or an earlier checkpoint")
    return value
