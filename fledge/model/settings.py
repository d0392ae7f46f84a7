"""The shape of the model, in Hugging Face's words: what a recipe chooses (`ModelSettings`) and what a checkpoint holds (`ModelConfig`).

Only what a class of `transformers` can express is offered, so every checkpoint opens there as it lies:
LlamaForCausalLM; with `query_key_norm` Qwen3ForCausalLM; with `normalization: layer` StableLmForCausalLM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from fledge.core.config import settings

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
"""Where a model is trained, asked or measured."""

RequestedPrecision = Literal["auto", "fp32", "tf32", "bf16", "fp16", "fp8", "fp8_or_bf16"]
"""Arithmetic of matrix products; fp8_or_bf16 is FP8 where the machine has it, else what auto takes."""

Normalization = Literal["rms", "layer"]
Activation = Literal["silu", "gelu", "relu"]

RopeType = Literal["linear", "llama3"]

Projection = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""The matrices of a layer, by Hugging Face's names."""

VOCABULARY_MULTIPLE = 128
"""The vocabulary is padded to a multiple of this: GEMM tiles stay full, also when it is split over a few devices."""


@settings
class ModelSettings:
    hidden_size: int = 256
    """Width of the residual stream."""
    num_hidden_layers: int = 4
    """Transformer layers."""
    num_attention_heads: int = 4
    """Query heads per layer; divides hidden_size."""
    num_key_value_heads: int | None = None
    """Key and value heads per layer, each shared by several query heads (grouped-query attention); null: one per query head."""
    head_dim: int | None = None
    """Width of one head, even; null: hidden_size / num_attention_heads."""
    intermediate_size: int = 704
    """Width of the gated feed-forward layer; about 8/3 of hidden_size."""
    max_position_embeddings: int = 1024
    """Longest context in tokens the model is meant for."""
    rope_theta: float = 10_000.0
    """Base of the rotary embedding's wavelengths; larger for longer contexts."""
    rms_norm_eps: float = 1e-5
    """Added to the variance in every normalization."""
    tie_word_embeddings: bool = True
    """Use the token embedding as the output head too; saves vocabulary x hidden_size parameters."""
    normalization: Normalization = "rms"
    """rms: RMSNorm (Llama, Qwen3); layer: LayerNorm with bias (StableLM)."""
    activation: Activation = "silu"
    """Of the gate in the feed-forward layer: silu (SwiGLU), gelu (GeGLU), relu (ReGLU)."""
    query_key_norm: bool = False
    """RMSNorm on every query and key head before the rotary embedding (Qwen3); keeps attention scores bounded."""
    initializer_range: float = 0.02
    """Standard deviation of the initial weights."""
    scale_residual_initialization: bool = True
    """Divide that of the two projections into the residual stream by sqrt(2 x num_hidden_layers), as GPT-2 does."""
    attention_dropout: float = 0.0
    """Share of attention probabilities that training sets to zero; above 0 the fast attention kernels, which have none, are not used."""

    def __post_init__(self) -> None:
        for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by num_attention_heads {self.num_attention_heads}")
        if self.key_value_heads < 1 or self.num_attention_heads % self.key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not divisible by num_key_value_heads {self.key_value_heads}"
            )
        if self.head_size < 2 or self.head_size % 2:
            raise ValueError(f"the head size is {self.head_size}; the rotary embedding needs an even one of at least 2")
        if self.rope_theta <= 1 or self.rms_norm_eps <= 0 or self.initializer_range < 0:
            raise ValueError("rope_theta must be above 1, rms_norm_eps above 0 and initializer_range not negative")
        if not 0 <= self.attention_dropout < 1:
            raise ValueError(f"attention_dropout is {self.attention_dropout}; it must lie in [0, 1)")
        if self.normalization == "layer" and self.query_key_norm:
            raise ValueError("normalization layer and query_key_norm exclude each other: no class of transformers has both")
        if self.normalization == "layer" and self.head_size * self.num_attention_heads != self.hidden_size:
            raise ValueError(
                f"with normalization layer, head_dim {self.head_size} x num_attention_heads {self.num_attention_heads} "
                f"must equal hidden_size {self.hidden_size}: StableLM has no other"
            )

    @property
    def key_value_heads(self) -> int:
        """`num_key_value_heads` with its default filled in."""
        return self.num_attention_heads if self.num_key_value_heads is None else self.num_key_value_heads

    @property
    def head_size(self) -> int:
        """`head_dim` with its default filled in."""
        return self.hidden_size // self.num_attention_heads if self.head_dim is None else self.head_dim

    @property
    def resolved(self) -> ModelSettings:
        """The same shape with every default filled in; equal shapes are equal in this form."""
        return replace(self, num_key_value_heads=self.key_value_heads, head_dim=self.head_size)


@settings
class LoraSettings:
    """Low-rank adaptation (LoRA, Hu et al. 2021): small matrices beside frozen ones are trained and saved, in the form of peft."""

    rank: int = 16
    """Inner width of the addition to each matrix."""
    alpha: float = 32.0
    """The addition is scaled by alpha / rank."""
    dropout: float = 0.0
    """Share of the addition's inputs that training sets to zero."""
    targets: tuple[Projection, ...] = get_args(Projection)
    """Which matrices of every layer are adapted."""
    rank_stabilized: bool = False
    """Scale by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023), so that large ranks learn as fast as small ones."""
    weight_decomposed: bool = False
    """Train the length of each row apart from its direction (DoRA, Liu et al. 2024)."""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"rank must be at least 1 and alpha above 0, not {self.rank} and {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie in [0, 1)")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets must name at least one matrix, each once, not {', '.join(self.targets) or 'none'}")

    @property
    def scale(self) -> float:
        """What the addition is multiplied by."""
        return float(self.alpha / (self.rank**0.5 if self.rank_stabilized else self.rank))


@dataclass(frozen=True)
class Adapter:
    """What was added to a model."""

    settings: LoraSettings
    base: Path
    """The checkpoint folder of the frozen weights."""


@dataclass(frozen=True)
class RopeScaling:
    """How the rotary wavelengths of a model that others made were stretched to a longer context, in Hugging Face's words.

    It is read from a checkpoint and no setting of a recipe: a model that is trained here has `rope_theta`.
    """

    rope_type: RopeType
    """linear: all of them by `factor` (position interpolation, arXiv:2306.15595); llama3: the long ones (Llama 3.1, arXiv:2407.21783)."""
    factor: float
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original_max_position_embeddings / this are stretched by `factor`."""
    high_freq_factor: float = 4.0
    """llama3: those below original_max_position_embeddings / this stay, those between are stretched in part."""
    original_max_position_embeddings: int = 8192

    def __post_init__(self) -> None:
        if self.factor < 1 or not 0 < self.low_freq_factor < self.high_freq_factor or self.original_max_position_embeddings < 1:
            raise ValueError(f"this is no rotary scaling: {self}")


@dataclass(frozen=True)
class ModelConfig:
    """Everything `config.json` says: the chosen shape, and what the tokenizer decides."""

    settings: ModelSettings
    vocabulary_size: int
    """Rows of the embedding and the head; at least the tokenizer's size, see `padded_vocabulary_size`."""
    begin_token_id: int | None = None
    """The token that opens a text."""
    end_token_ids: tuple[int, ...] = ()
    """The tokens at which generation stops; the first is the usual one. A chat model's is the end of a turn."""
    padding_token_id: int | None = None
    rope_scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        special = [self.begin_token_id, *self.end_token_ids, self.padding_token_id]
        beyond = [token for token in special if token is not None and not 0 <= token < self.vocabulary_size]
        if beyond:
            raise ValueError(f"special token id {beyond[0]} lies outside the vocabulary of {self.vocabulary_size}")


def padded_vocabulary_size(vocabulary_size: int) -> int:
    """The tokenizer's size rounded up to a multiple of VOCABULARY_MULTIPLE; the ids above it never occur in data."""
    return -(-vocabulary_size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
