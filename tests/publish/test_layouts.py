"""State dicts of other pipelines become ours by names, and nothing is guessed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.core.errors import CheckpointError
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig, ModelSettings
from fledge.publish.layouts import half_split, interleaved, to_huggingface

META_NAMES = {
    "model.embed_tokens": "tok_embeddings", "model.norm": "norm", "lm_head": "output", "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk", "self_attn.v_proj": "attention.wv", "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1", "mlp.down_proj": "feed_forward.w2", "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm", "post_attention_layernorm": "ffn_norm", "model.layers": "layers",
}  # fmt: skip


def a_model(**changes: Any) -> Llama:
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    shape |= {"intermediate_size": 48, "tie_word_embeddings": False, "initializer_range": 0.2, "max_position_embeddings": 64}
    return Llama(ModelConfig(ModelSettings(**{**shape, **changes}), 96), seed=1)


def meta_weights(model: Llama) -> dict[str, Tensor]:
    weights = {}
    for name, weight in model.state_dict().items():
        permuted = interleaved(weight, 8) if name.endswith(("q_proj.weight", "k_proj.weight")) else weight
        for ours, theirs in META_NAMES.items():
            name = name.replace(ours, theirs)
        weights[name] = permuted
    return weights


def meta_attention_scores(hidden: Tensor, wq: Tensor, wk: Tensor) -> Tensor:
    """As Meta's code has it: neighbours are the two parts of a complex number, which is turned by its position."""
    positions = torch.arange(hidden.shape[0])
    turns = torch.polar(torch.ones(len(positions), 4), positions[:, None] / 10_000 ** (torch.arange(0, 8, 2) / 8))

    def turned(weight: Tensor) -> Tensor:
        heads = (hidden @ weight.T).view(len(hidden), -1, 4, 2)
        return torch.view_as_real(torch.view_as_complex(heads) * turns[:, None]).flatten(2)

    return torch.einsum("thd,shd->hts", turned(wq), turned(wk).repeat_interleave(2, 1))


def test_metas_layout_computes_what_metas_code_computes() -> None:
    model = a_model()
    given = meta_weights(model)
    weights, config = to_huggingface({**given, "rope.freqs": torch.ones(4)}, {"n_heads": 4, "norm_eps": 1e-5, "max_seq_len": 64}, "x.pt")
    assert weights.keys() == model.state_dict().keys()
    assert all(torch.equal(weights[name], weight) for name, weight in model.state_dict().items())
    expected = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_key_value_heads": 2, "head_dim": 8}
    expected |= {"vocab_size": 96, "num_attention_heads": 4, "max_position_embeddings": 64, "model_type": "llama"}
    assert expected.items() <= config.items() and config["tie_word_embeddings"] is False
    hidden = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    layer: Any = model.model.layers[0]
    theirs = meta_attention_scores(hidden, given["layers.0.attention.wq.weight"], given["layers.0.attention.wk.weight"])
    from fledge.model.llama import Rotation, rotate

    rotation = Rotation(model.model.cosine[None, None, :6], model.model.sine[None, None, :6])
    with torch.no_grad():
        query = rotate(layer.self_attn.heads(layer.self_attn.q_proj(hidden[None])), rotation)
        key = rotate(layer.self_attn.heads(layer.self_attn.k_proj(hidden[None])), rotation).repeat_interleave(2, 1)
    torch.testing.assert_close(query[0] @ key[0].transpose(1, 2), theirs, rtol=1e-4, atol=1e-4)


def test_rows_go_there_and_back() -> None:
    weight = torch.randn(16, 3)
    assert torch.equal(half_split(interleaved(weight, 8), 8), weight) and not torch.equal(interleaved(weight, 8), weight)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_are_unwrapped_and_the_word_model_may_be_left_out(prefix: str) -> None:
    model = a_model(query_key_norm=True)
    expected = model.state_dict()
    for removed in ("", "model."):
        given = {prefix + name.removeprefix(removed): weight for name, weight in expected.items()}
        weights, config = to_huggingface(given, {"num_attention_heads": 4, "max_position_embeddings": 64}, "x.pt")
        assert weights.keys() == expected.keys() and config["model_type"] == "qwen3"


def test_what_a_model_is_follows_from_its_tensors() -> None:
    stable = to_huggingface(a_model(normalization="layer").state_dict(), {"n_head": 4}, "x.pt")[1]
    assert (stable["model_type"], stable["partial_rotary_factor"], stable["layer_norm_eps"]) == ("stablelm", 1.0, 1e-5)
    tied = a_model(tie_word_embeddings=True).state_dict()
    assert to_huggingface(tied, {"n_head": 4}, "x.pt")[1]["tie_word_embeddings"] is True


def test_what_is_assumed_is_told_and_tensors_are_believed_before_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    weights, given = a_model().state_dict(), {"n_head": 4, "norm_eps": 1e-6, "hidden_act": None}
    config = to_huggingface(weights, {**given, "model_type": "gpt2", "tie_word_embeddings": True}, "x.pt")[1]
    assert (config["model_type"], config["tie_word_embeddings"]) == ("llama", False)
    told = " ".join(capsys.readouterr().err.split())
    assert "max_position_embeddings 2048, rope_theta 10000.0, hidden_act silu" in told and "rms_norm_eps" not in told
    complete = {**given, "block_size": 64, "rope_base": 5e5, "hidden_act": "gelu"}
    config = to_huggingface(weights, complete, "x.pt")[1]
    assert (config["rms_norm_eps"], config["rope_theta"], config["hidden_act"]) == (1e-6, 5e5, "gelu")
    assert "assumed" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("weights", "config", "named"),
    [
        ({"transformer.h.0.attn.c_attn.weight": torch.ones(6, 2), "transformer.wte.weight": torch.ones(4, 2)}, {"n_head": 1}, "nanoGPT"),
        ({"_orig_mod.transformer.wpe.weight": torch.ones(4, 2)}, {"n_head": 1}, "learned positions"),
        ({"encoder.weight": torch.ones(2, 2), "b": torch.ones(1)}, {"n_head": 1}, "unknown names: b, encoder.weight"),
        ({"tok_embeddings.weight": torch.ones(4, 2)}, {"n_heads": 1}, "no whole Llama: .*q_proj"),
        ({"tok_embeddings.weight": torch.ones(4, 2)}, {}, "how many heads"),
        ({"tok_embeddings.weight": torch.ones(4, 2)}, {"n_heads": "four"}, "how many heads"),
    ],
)
def test_what_cannot_be_told_or_computed_is_refused(weights: dict[str, Tensor], config: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        to_huggingface(weights, config, "x.pt")
