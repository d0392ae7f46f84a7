"""The model: token ids -> [embedding, L layers, head] -> logits or loss.

    x = embedding(tokens)
    each layer:   x = x + attention(normalize(x))
                  x = x + feed_forward(normalize(x))
    logits = head(normalize(x))

A decoder-only transformer in the form of Llama (arXiv:2302.13971): RMSNorm before each sub-layer (arXiv:1910.07467), rotary
positions (arXiv:2104.09864), a gated feed-forward layer (arXiv:2002.05202), grouped-query attention (arXiv:2305.13245).
Module names, weight layouts and the half-split rotary layout are those of `transformers`, so `state_dict()` is its checkpoint.

Shapes: B rows, T tokens per row, D width, F feed-forward width, H query heads, K key and value heads, E head size,
L layers, S cache slots, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.attention import KeyValueCache, LayerCache, Mask, attention, documents_mask
from fledge.model.checkpointing import ActivationCheckpointing, recomputed
from fledge.model.head import TokenLoss, TokenNll, gemm_dtype, token_losses, weighted_loss
from fledge.model.settings import Adapter, ModelConfig, ModelSettings

ModuleType = TypeVar("ModuleType", bound=nn.Module)

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}


class Llama(nn.Module):
    """A language model with a head for next-token prediction; its weights are a function of (config, seed).

    With `seed` None they are left unset, for a loader to fill.
    """

    def __init__(self, config: ModelConfig, seed: int | None = 0) -> None:
        super().__init__()
        self.config = config
        self.adapter: Adapter | None = None
        """What is trained in place of the weights, see `adapters`."""
        self.model = Decoder(config)
        self.lm_head = linear(config.settings.hidden_size, config.vocabulary_size)
        if config.settings.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        if seed is not None:
            self.initialize(seed)

    def forward(
        self,
        tokens: Tensor,
        documents: Tensor | None = None,
        targets: Tensor | None = None,
        token_weight: Tensor | None = None,
        z_weight: float = 0.0,
    ) -> Tensor | TokenLoss | TokenNll:
        """tokens, documents, targets, token_weight (B, T) -> by what is given:

        nothing more              logits (B, T, V)
        targets                   TokenNll: nll, log_z (B, T), differentiable per token
        targets, token_weight     TokenLoss: loss_sum = sum of token_weight (nll + z_weight log_z^2), the only differentiable one

        `documents` holds, for each token, the index in its row at which its document starts; None: each row is one document.
        A target of IGNORE counts nothing. See `head` for the formulas and for why the logits are never held.
        """
        index = torch.arange(tokens.shape[1], device=tokens.device)[None]
        if documents is None:
            positions, mask = index, None
        else:
            has_dropout = self.training and self.config.settings.attention_dropout > 0
            positions, mask = index - documents, documents_mask(documents, gemm_dtype(self.lm_head.weight), has_dropout)
        hidden: Tensor = self.model(tokens, positions, mask)
        if targets is None:
            logits: Tensor = self.lm_head(hidden)
            return logits
        rows, flat_targets = hidden.flatten(0, 1), targets.flatten()  # (B, T, D) -> (N, D), (B, T) -> (N)
        if token_weight is None:
            nll, log_z = token_losses(rows, self.lm_head.weight, flat_targets)
            return TokenNll(nll.view_as(targets), log_z.view_as(targets))
        loss_sum, nll, log_z = weighted_loss(rows, self.lm_head.weight, flat_targets, token_weight.flatten(), z_weight)
        return TokenLoss(loss_sum, nll.view_as(targets), log_z.view_as(targets))

    def extend(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache, wanted: Tensor | None = None) -> Tensor:
        """tokens, positions and wanted (B, T) -> logits (N, V) of what follows the N wanted tokens, row by row; None: the last of each row.

        Continues B independent texts whose earlier tokens lie in `cache`, and stores these. Rows may be at different positions;
        a prompt shorter than T is padded on the right with any token at positions behind its own and below the cache's slots: what
        lies there is overwritten before anything looks at it.
        """
        hidden: Tensor = self.model(tokens, positions, cache.mask(positions), cache)
        logits: Tensor = self.lm_head(hidden[:, -1] if wanted is None else hidden[wanted])
        return logits

    @torch.no_grad()
    def initialize(self, seed: int) -> None:
        """Draw all weights anew: normal(0, initializer_range), norms one, biases zero.

        The two projections into the residual stream are smaller by sqrt(2 L), unless the settings say otherwise, so that the stream's
        variance does not grow with depth (GPT-2). Drawn on the CPU from a generator of its own, in the order of the modules: alike on
        every rank and device.
        """
        settings, generator = self.config.settings, torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                continue
            deviation = settings.initializer_range
            if settings.scale_residual_initialization and name.endswith(("o_proj.weight", "down_proj.weight")):
                deviation /= (2 * settings.num_hidden_layers) ** 0.5
            parameter.copy_(torch.empty(parameter.shape).normal_(0.0, deviation, generator=generator))


class Decoder(nn.Module):
    """Everything below the head."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.settings = config.settings
        self.embed_tokens = unset(nn.Embedding, config.vocabulary_size, config.settings.hidden_size)
        self.layers = nn.ModuleList(Layer(config.settings) for _ in range(config.settings.num_hidden_layers))
        self.norm = normalization(config.settings)
        self.activation_checkpointing: ActivationCheckpointing = "none"
        self.has_dropout = config.settings.attention_dropout > 0
        """Whether layers draw random numbers in training."""
        table = rotation_table(config)
        self.register_buffer("cosine", table.cosine, persistent=False)
        self.register_buffer("sine", table.sine, persistent=False)

    def forward(self, tokens: Tensor, positions: Tensor, mask: Mask, cache: KeyValueCache | None = None) -> Tensor:
        """tokens (B, T), positions (B or 1, T), mask of T x T or, with a cache, T x S -> hidden states (B, T, D)."""
        rotation = Rotation(self.cosine[positions][:, None], self.sine[positions][:, None])  # (B or 1, 1, T, E / 2)
        hidden: Tensor = self.embed_tokens(tokens)
        for index, layer in enumerate(self.layers):
            through = partial(layer, rotation=rotation, mask=mask, cache=None if cache is None else cache.layer(index, positions))
            if torch.is_grad_enabled():
                hidden = recomputed(through, hidden, self.activation_checkpointing, self.has_dropout)
            else:
                hidden = through(hidden)
        normalized: Tensor = self.norm(hidden)
        return normalized


class Layer(nn.Module):
    """Tokens exchange information (attention), then each thinks for itself (feed-forward); both add to the residual stream."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.self_attn = SelfAttention(settings)
        self.mlp = FeedForward(settings)
        self.input_layernorm = normalization(settings)
        self.post_attention_layernorm = normalization(settings)

    def forward(self, hidden: Tensor, rotation: Rotation, mask: Mask, cache: LayerCache | None) -> Tensor:
        """hidden (B, T, D) -> (B, T, D)."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), rotation, mask, cache)
        output: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return output


class SelfAttention(nn.Module):
    """Multi-head or grouped-query attention with rotary positions."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        width, self.head_size, self.dropout = settings.hidden_size, settings.head_size, settings.attention_dropout
        self.q_proj = linear(width, settings.num_attention_heads * self.head_size)
        self.k_proj = linear(width, settings.key_value_heads * self.head_size)
        self.v_proj = linear(width, settings.key_value_heads * self.head_size)
        self.o_proj = linear(settings.num_attention_heads * self.head_size, width)
        self.q_norm = RMSNorm(self.head_size, settings.rms_norm_eps) if settings.query_key_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_size, settings.rms_norm_eps) if settings.query_key_norm else nn.Identity()

    def forward(self, hidden: Tensor, rotation: Rotation, mask: Mask, cache: LayerCache | None) -> Tensor:
        """hidden (B, T, D) -> (B, T, D)."""
        query = rotate(self.q_norm(self.heads(self.q_proj(hidden))), rotation)
        key = rotate(self.k_norm(self.heads(self.k_proj(hidden))), rotation)
        value = self.heads(self.v_proj(hidden))
        if cache is not None:
            key, value = cache.store(key, value)
        mixed = attention(query, key, value, mask, self.dropout if self.training else 0.0)
        output: Tensor = self.o_proj(mixed.transpose(1, 2).flatten(2))  # (B, H, T, E) -> (B, T, H E)
        return output

    def heads(self, projected: Tensor) -> Tensor:
        """(B, T, heads x E) -> (B, heads, T, E)."""
        return projected.view(*projected.shape[:2], -1, self.head_size).transpose(1, 2)


class FeedForward(nn.Module):
    """down(activation(gate(x)) * up(x)), token by token."""

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        self.gate_proj = linear(settings.hidden_size, settings.intermediate_size)
        self.up_proj = linear(settings.hidden_size, settings.intermediate_size)
        self.down_proj = linear(settings.intermediate_size, settings.hidden_size)
        self.activation = ACTIVATIONS[settings.activation]

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, T, D) -> (B, T, D), by way of (B, T, F)."""
        output: Tensor = self.down_proj(self.activation(self.gate_proj(hidden)) * self.up_proj(hidden))
        return output


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight, over the last axis."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # The weight in x's dtype: under autocast the heads of q_norm are bf16, and mixed dtypes have no fused kernel.
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class Rotation(NamedTuple):
    """Cosine and sine by which each position turns each pair of head components, (B or 1, 1, T, E / 2) each."""

    cosine: Tensor
    sine: Tensor


def rotation_table(config: ModelConfig) -> Rotation:
    """The angles position * frequency of every position of the context, as cosine and sine, (context, E / 2), fp32.

    A table, because a compiler would compute the angles anew for every head of every layer: a quarter of a step on an H100.
    """
    angles = torch.arange(config.settings.max_position_embeddings)[:, None] * rotation_frequencies(config)
    return Rotation(angles.cos(), angles.sin())


def rotation_frequencies(config: ModelConfig) -> Tensor:
    """theta^(-2 i / E) for i < E / 2, in radians per token, (E / 2), fp32; slower where the checkpoint has a `RopeScaling`."""
    settings, scaling = config.settings, config.rope_scaling
    exponents = torch.arange(0, settings.head_size, 2, dtype=torch.float32) / settings.head_size
    plain = 1.0 / settings.rope_theta**exponents
    if scaling is None:
        return plain
    if scaling.rope_type == "linear":
        return plain / scaling.factor
    turns = scaling.original_max_position_embeddings * plain / (2 * math.pi)  # full ones in the original context
    kept = ((turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0.0, 1.0)
    return (1 - kept) * plain / scaling.factor + kept * plain


def rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """x (B, heads, T, E) -> the same with components i and i + E / 2 turned as a pair (half-split layout)."""
    cosine, sine = rotation.cosine.to(x.dtype), rotation.sine.to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)


def normalization(settings: ModelSettings) -> nn.Module:
    """The normalization over the residual stream that the settings choose."""
    if settings.normalization == "layer":
        return nn.LayerNorm(settings.hidden_size, settings.rms_norm_eps)
    return RMSNorm(settings.hidden_size, settings.rms_norm_eps)


def linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer without bias; its weight is (outputs, inputs)."""
    return unset(nn.Linear, inputs, outputs, bias=False)


def unset(kind: type[ModuleType], *sizes: int, **options: bool) -> ModuleType:
    """A module whose weights are not drawn: `Llama.initialize` does it for all, and torch's global generator stays untouched.

    `torch.nn.utils.skip_init` draws on the meta device, which loads torch's compiler: two seconds of every start on a slow core.
    """
    module: ModuleType = type(kind.__name__, (kind,), {"reset_parameters": lambda _: None})(*sizes, **options)
    module.__class__ = kind
    return module
