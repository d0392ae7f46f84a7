"""State dicts of other pipelines by our names: tensors -> [layouts] -> tensors and a config.json, as a Hugging Face folder has them.

    Hugging Face   model.layers.N.self_attn.q_proj.weight, with or without `model.`: as it is
    Meta           layers.N.attention.wq.weight, tok_embeddings.weight (Llama's own code, llama2.c): the two components of a rotated
                   pair are neighbours there and half a head apart here, so the rows of q and k change places
    nanoGPT        transformer.h.N.attn.c_attn.weight: refused, `Llama` computes neither its feed-forward layer nor its positions

What DataParallel, DDP and `torch.compile` put in front of names is dropped, and so are tables that follow from the shape. Sizes are read
off the tensors; how many heads there are is not in them, so that has to be given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fledge.core import console
from fledge.core.errors import CheckpointError

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
_TABLES = re.compile(r"(?:^|\.)(?:rope\.freqs|freqs_cis|freqs_cos|freqs_sin|rotary_emb\.inv_freq|attn_mask|mask)$")
_GPT = re.compile(r"(?:^|\.)(?:c_attn|c_fc|wpe)\.")
_META = {
    "tok_embeddings": "model.embed_tokens",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "norm": "model.norm",
    "output": "lm_head",
}
# What others call the values of config.json that tensors do not tell.
_NAMES = {
    "num_attention_heads": ("n_heads", "n_head", "num_heads"),
    "max_position_embeddings": ("max_seq_len", "max_sequence_length", "context_length", "block_size", "seq_len"),
    "rms_norm_eps": ("norm_eps", "layer_norm_eps", "eps"),
    "rope_theta": ("rope_base",),
}
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10_000.0, "hidden_act": "silu"}
"""Llama's, where a config says nothing."""
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def to_huggingface(weights: Mapping[str, Tensor], given: Mapping[str, Any], place: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by Hugging Face's names, and their config.json; `given`: a config in anybody's words.

    Raises CheckpointError for a layout that is unknown or cannot be computed, and if the number of heads is not given.
    """
    plain = {_WRAPPERS.sub("", name): weight for name, weight in weights.items()}
    plain = {name: weight for name, weight in plain.items() if not _TABLES.search(name)}
    if any(_GPT.search(name) for name in plain):
        raise CheckpointError(
            f"{place} holds a GPT-2 or nanoGPT: LayerNorm, a feed-forward layer without a gate, learned positions",
            "Fledge computes models like Llama; train one anew on the same tokens",
        )
    is_meta = "tok_embeddings.weight" in plain
    if is_meta:
        named = {_from_meta(name): weight for name, weight in plain.items()}
    else:
        named = {name if name.startswith(("model.", "lm_head.")) else f"model.{name}": weight for name, weight in plain.items()}
    if _EMBEDDING not in named:
        some = ", ".join(sorted(plain)[:5])
        raise CheckpointError(f"{place} holds weights by unknown names: {some}", "rename them to Hugging Face's or Meta's of Llama")
    config = _config_json(named, given, place)
    if is_meta:
        for name in named:
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                named[name] = half_split(named[name], config["head_dim"])
    return named, config


def interleaved(weight: Tensor, head_size: int) -> Tensor:
    """(heads x E, D), the components of a rotated pair E / 2 apart -> the same with the two as neighbours, as in Meta's Llama."""
    return weight.view(-1, 2, head_size // 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def half_split(weight: Tensor, head_size: int) -> Tensor:
    """The reverse of `interleaved`."""
    return weight.view(-1, head_size // 2, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _from_meta(name: str) -> str:
    found = re.fullmatch(r"(layers\.\d+\.)?(.+)\.(weight|bias)", name)
    if found is None or found[2] not in _META:
        return name
    return f"{'model.' + found[1] if found[1] else ''}{_META[found[2]]}.{found[3]}"


def _config_json(weights: Mapping[str, Tensor], given: Mapping[str, Any], place: str) -> dict[str, Any]:
    known = {
        name: next((given[theirs] for theirs in (name, *others) if given.get(theirs) is not None), None) for name, others in _NAMES.items()
    }
    heads = known["num_attention_heads"]
    if not isinstance(heads, int) or heads < 1:
        raise CheckpointError(
            f"{place} does not say how many heads the model has, and its tensors do not either",
            'give a config: --config FILE.json with {"num_attention_heads": N}, and whatever else differs from Llama',
        )
    kind = "stablelm" if "model.norm.bias" in weights else "qwen3" if any(name.endswith("q_norm.weight") for name in weights) else "llama"
    try:
        width = weights[_EMBEDDING].shape[1]
        query, key = (weights[f"model.layers.0.self_attn.{name}_proj.weight"].shape[0] for name in "qk")
        sizes = {
            "vocab_size": weights[_EMBEDDING].shape[0],
            "hidden_size": width,
            "num_hidden_layers": 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("model.layers.")),
            "intermediate_size": weights["model.layers.0.mlp.gate_proj.weight"].shape[0],
            "head_dim": query // heads,
            "num_key_value_heads": key // (query // heads),
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{place} is no whole Llama: {error} is missing", "use a complete checkpoint") from error
    tied = _HEAD not in weights or torch.equal(weights[_HEAD], weights[_EMBEDDING])
    stated = {**given, **{name: value for name, value in known.items() if value is not None}}
    assumed = {name: value for name, value in _DEFAULTS.items() if stated.get(name) is None}
    if assumed:
        said = ", ".join(f"{name} {value}" for name, value in assumed.items())
        console.warn(f"{place} does not say, so Llama's is assumed: {said}; if it was trained otherwise, give --config FILE.json")
    # What the tensors tell holds, whatever a config says.
    config: dict[str, Any] = {**stated, **assumed, **sizes, "model_type": kind, "tie_word_embeddings": tied}
    if kind == "stablelm":
        config = {"partial_rotary_factor": 1.0, "use_parallel_residual": False, **config, "layer_norm_eps": config["rms_norm_eps"]}
    return config
