"""A pass on a CPU by compiled kernels: the model of `model.llama` once more, for tokens of any requests in one flat list.

    x = embedding(tokens)
    each layer:   x = x + output(attention(rotate(query_key_value(normalize(x)))))
                  x = x + down(gate(gate_up(normalize(x))))
    logits = head(normalize(x)) of the wanted tokens

A chunk of a prompt and a single token are the same here: rows with a slot and a position. What a row becomes depends on no other, so
answers are the same to the bit whatever else is answered, however prompts are cut and however many threads there are. What is divided
among threads (`crew`) are products and the attention of many rows, not requests: with 8 threads a request each, weights were read 8 times
and Python's part of the work, which only one thread does at a time, was done 8 times: 27 ms for 16 requests where one thread takes as
long. Weights are packed once (`quantize`), activations are fp32. `TorchForward` is the reference, and computes what this cannot.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fledge.inference import kernels
from fledge.inference.crew import crew
from fledge.inference.forward import Chunk
from fledge.inference.kernels import Floats
from fledge.inference.quantize import PackedMatrix, WeightFormat, pack
from fledge.inference.vector_block import INPUTS
from fledge.model.llama import Llama, RMSNorm

PIECE_PRODUCTS = 1 << 18
"""Multiplications that are worth giving to another thread, at least: 10 to 100 microseconds."""
_GATE_PRODUCTS = 16
"""As many take as long as an exponential."""

_ACTIVATIONS = {"silu": kernels.SILU, "gelu": kernels.GELU, "relu": kernels.RELU}


@dataclass(frozen=True)
class _Norm:
    weight: Floats
    bias: Floats
    eps: float
    centers: bool

    def __call__(self, rows: Floats) -> Floats:
        result = np.empty_like(rows)
        kernels.normalize(rows, self.weight, self.bias, self.eps, self.centers, result)
        return result


@dataclass(frozen=True)
class _Layer:
    attention_norm: _Norm
    query_key_value: PackedMatrix
    query_norm: _Norm | None
    key_norm: _Norm | None
    output: PackedMatrix
    feed_forward_norm: _Norm
    gate_up: PackedMatrix
    down: PackedMatrix


@dataclass(frozen=True)
class Misfit:
    """What of a model the kernels cannot compute."""

    problem: str
    """How they compute, and what is otherwise."""
    remedy: str


class PackedModel:
    """The weights of a model for the kernels, all of them copied: changes of the model after this are not seen."""

    def __init__(self, model: Llama, form: WeightFormat) -> None:
        decoder: Any = model.model
        self.settings = model.config.settings
        self.embedding = _copied(decoder.embed_tokens.weight)
        self.cosine, self.sine = _copied(decoder.cosine), _copied(decoder.sine)
        self.layers = [_packed_layer(layer, form) for layer in decoder.layers]
        self.norm = _norm(decoder.norm)
        self.head = pack(model.lm_head.weight, form)

    @staticmethod
    def fits(model: Llama) -> bool:
        """Whether the kernels can compute a model."""
        return PackedModel.misfit(model) is None

    @staticmethod
    def misfit(model: Llama) -> Misfit | None:
        """Why they cannot: they are for the CPU, know no adapters, and add in whole blocks."""
        settings, weight = model.config.settings, model.lm_head.weight
        widths = {
            "hidden_size": settings.hidden_size,
            "intermediate_size": settings.intermediate_size,
            "num_attention_heads times the size of a head": settings.num_attention_heads * settings.head_size,
        }
        wrong = next((name for name, width in widths.items() if width % INPUTS), None)
        if weight.device.type != "cpu":
            return Misfit(f"on a CPU only, and the model is on {weight.device.type}", "choose bf16, or --device cpu")
        if model.adapter is not None:
            return Misfit("of whole models, and this one has an adapter apart", "merge it (fledge merge), or choose bf16")
        if weight.dtype != torch.float32:
            return Misfit(f"from weights in fp32, and the model's are {weight.dtype}", "give the model in fp32, or choose auto")
        if wrong is not None:
            return Misfit(f"in widths that are multiples of {INPUTS}, and {wrong} is {widths[wrong]}", "choose bf16 or fp32")
        return None


class KernelForward:
    """Slots of keys and values, fp32, for a packed model."""

    def __init__(self, model: PackedModel, slots: int, context_tokens: int) -> None:
        settings = self.model_settings = model.settings
        self.model, self._threads = model, 1
        shape = (settings.num_hidden_layers, slots, settings.key_value_heads)
        self.keys = _zeros((*shape, settings.head_size, context_tokens))
        self.values = _zeros((*shape, context_tokens, settings.head_size))

    def run(self, chunks: Sequence[Chunk]) -> list[Tensor]:
        """See `Forward`, with as many threads as torch has."""
        self._threads = torch.get_num_threads()
        sizes = [len(chunk.ids) for chunk in chunks]
        counts = [chunk.wanted_tokens for chunk in chunks]
        tokens = np.array([token for chunk in chunks for token in chunk.ids], np.int64)
        slots = np.repeat([chunk.slot for chunk in chunks], sizes)
        positions = np.concatenate([np.arange(chunk.start, chunk.end) for chunk in chunks])
        wanted = np.concatenate([np.arange(end - count, end) for end, count in zip(np.cumsum(sizes), counts, strict=True)])
        logits = torch.from_numpy(self._logits(tokens, slots, positions, wanted))
        return list(logits.split(counts))  # type: ignore[no-untyped-call]

    def release(self, slot: int) -> None:
        """See `Forward`: a pass looks at no slot but those of its chunks."""

    def _logits(
        self, tokens: NDArray[np.int64], slots: NDArray[np.int64], positions: NDArray[np.int64], wanted: NDArray[np.int64]
    ) -> Floats:
        """tokens, slots, positions (R), wanted (N) -> (N, V)."""
        model = self.model
        hidden = model.embedding[tokens]
        for index, layer in enumerate(model.layers):
            mixed = self._attention(index, layer, layer.attention_norm(hidden), slots, positions)
            hidden += _product(mixed, layer.output, self._threads)
            both = _product(layer.feed_forward_norm(hidden), layer.gate_up, self._threads)
            gated = np.empty((len(tokens), self.model_settings.intermediate_size), np.float32)
            self._gate(both, gated)
            hidden += _product(gated, layer.down, self._threads)
        return _product(model.norm(hidden[wanted]), model.head, self._threads)

    def _attention(self, index: int, layer: _Layer, rows: Floats, slots: NDArray[np.int64], positions: NDArray[np.int64]) -> Floats:
        """rows (R, D) -> (R, H E); their keys and values join those of their slots."""
        settings, keys, values = self.model_settings, self.keys[index], self.values[index]
        heads, shared, size = settings.num_attention_heads, settings.key_value_heads, settings.head_size
        mixed = _product(rows, layer.query_key_value, self._threads)
        ends = [heads * size, (heads + shared) * size, (heads + 2 * shared) * size]
        query, key, value = (
            np.ascontiguousarray(mixed[:, start:end]).reshape(len(rows), -1, size) for start, end in zip([0, *ends], ends, strict=False)
        )
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = (
                norm(part.reshape(-1, size)).reshape(part.shape) for norm, part in ((layer.query_norm, query), (layer.key_norm, key))
            )
        for part in (query, key):
            kernels.rotate(part, positions, self.model.cosine, self.model.sine)
        kernels.store(key, value, slots, positions, keys, values)
        result = np.empty_like(query)

        def compute(first: int, last: int) -> None:
            kernels.attend(query, slots, positions, keys, values, first, last, result)

        _divide(len(rows), int(positions.mean() + 1) * 2 * heads * size, self._threads, compute)
        return result.reshape(len(rows), -1)

    def _gate(self, both: Floats, gated: Floats) -> None:
        activation = _ACTIVATIONS[self.model_settings.activation]

        def compute(first: int, last: int) -> None:
            kernels.gate(both[first:last], activation, gated[first:last])

        _divide(len(gated), gated.shape[1] * _GATE_PRODUCTS, self._threads, compute)


def _zeros(shape: tuple[int, ...]) -> Floats:
    """Memory that is taken from the system where it is first written to, in small pages: a slot costs about what it has held.

    numpy asks for pages of 2 MB, with which 16 requests of 5 tokens took all of 1,024 MiB where these take 130.
    """
    return np.frombuffer(mmap.mmap(-1, 4 * math.prod(shape)), np.float32).reshape(shape)


def _product(rows: Floats, matrix: PackedMatrix, threads: int = 1) -> Floats:
    """rows (R, I) -> (R, O)."""
    result = np.empty((len(rows), len(matrix.scales)), np.float32)

    def compute(first: int, last: int) -> None:
        if len(rows) == 1 and matrix.values.dtype == np.int8:
            kernels.product_of_one(rows[0], matrix.values, matrix.scales, first, last, result[0])
        else:
            kernels.product(rows, matrix.values, matrix.scales, first, last, result)

    _divide(len(matrix.values), len(rows) * matrix.values.shape[1], threads, compute)
    return result[:, : matrix.outputs]


def _divide(parts: int, products: int, threads: int, compute: Callable[[int, int], None]) -> None:
    """Parts of so many multiplications each, from a first to before a last, in pieces that are worth giving to another thread."""
    size = max(1, PIECE_PRODUCTS // max(1, products))
    if threads == 1 or 2 * size > parts:
        compute(0, parts)
    else:
        crew(threads).divide(-(-parts // size), lambda piece: compute(piece * size, min((piece + 1) * size, parts)))


def _packed_layer(layer: Any, form: WeightFormat) -> _Layer:
    attention, feed_forward = layer.self_attn, layer.mlp
    has_head_norms = isinstance(attention.q_norm, RMSNorm)
    return _Layer(
        _norm(layer.input_layernorm),
        pack(torch.cat([part.weight for part in (attention.q_proj, attention.k_proj, attention.v_proj)]), form),
        _norm(attention.q_norm) if has_head_norms else None,
        _norm(attention.k_norm) if has_head_norms else None,
        pack(attention.o_proj.weight, form),
        _norm(layer.post_attention_layernorm),
        pack(torch.cat([feed_forward.gate_proj.weight, feed_forward.up_proj.weight]), form),
        pack(feed_forward.down_proj.weight, form),
    )


def _norm(module: Any) -> _Norm:
    """An RMSNorm or a LayerNorm."""
    weight = _copied(module.weight)
    bias = _copied(module.bias) if isinstance(module, nn.LayerNorm) else np.zeros_like(weight)
    return _Norm(weight, bias, module.eps, isinstance(module, nn.LayerNorm))


def _copied(values: Tensor) -> Floats:
    """numpy's own view of a tensor is that of its memory, which a model that goes on learning writes to."""
    return values.detach().float().numpy().copy()
