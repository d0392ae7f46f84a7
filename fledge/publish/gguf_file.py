"""GGUF, the file of llama.cpp: model and tokenizer -> [gguf_file] -> one file, and back as values. The only use of the package `gguf`.

What llama.cpp reads (github.com/ggml-org/ggml, docs/gguf.md; llama.cpp's `src/llama-vocab.cpp`, `src/models/`):

    architecture   llama, qwen3 (norms over query and key heads), stablelm (LayerNorm); each with its own graph
    q, k of llama  rows in the order of the original Llama, where the two components of a pair are neighbours
    tied head      left out, but stablelm's must be there
    vectors        f32 in every type, as llama.cpp's own converter writes them
    padding rows   entries [PADn] of type UNUSED
    rope_freqs     by how much each frequency of a Llama 3.1 is slowed

The beginning of a text is not added by llama.cpp (`add_bos_token` false), because `tokenizer.json` does not add it either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fledge.core.errors import MachineError
from fledge.core.installing import install_hint
from fledge.model.folder import architecture_of
from fledge.model.llama import Llama, rotation_frequencies
from fledge.publish.layouts import half_split, interleaved
from fledge.publish.settings import WeightType
from fledge.publish.source import Source
from fledge.publish.targets import pre_tokenizer_name, sentencepiece_scores
from fledge.tokens.definition import UNKNOWN, Definition
from fledge.tokens.pieces import SPACE_MARK, fallback_piece
from fledge.tokens.settings import BYTE_TOKENS

Values = NDArray[Any]

ROPE_FREQUENCIES = "rope_freqs.weight"
_OUTPUT = "output.weight"


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer as llama.cpp holds it."""

    model: str
    """gpt2: byte-level BPE by merges; llama: SentencePiece's BPE by scores."""
    pre: str | None
    entries: list[str]
    types: list[int]
    merges: list[str]
    scores: list[float]


@dataclass(frozen=True)
class Read:
    """What a file holds: the tensors as fp32, and the types and fields as they are."""

    tensors: dict[str, Values]
    types: dict[str, str]
    fields: dict[str, Any]


def require_package() -> Any:
    """The package. Raises MachineError saying how to install it."""
    try:
        import gguf
    except ImportError as error:
        raise MachineError("the package gguf is not installed", f"install it: {install_hint('gguf')}") from error
    return gguf


def write_gguf(source: Source, path: Path, weight_type: WeightType, name: str) -> None:
    """Write the file; `name` is what it calls the model. Raises MachineError without the package."""
    gguf = require_package()
    config = source.model.config
    writer = gguf.GGUFWriter(path, architecture_of(config).model_type)
    for key, value in metadata(source, weight_type, name).items():
        _add(writer, key.replace("ARCH", writer.arch), value)
    for tensor_name, values in gguf_tensors(source.model).items():
        kind = gguf.GGMLQuantizationType[_stored_type(values, weight_type)]
        writer.add_tensor(tensor_name, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path) -> Read:
    """The content of a file. Raises MachineError without the package."""
    gguf = require_package()
    reader = gguf.GGUFReader(path)
    tensors = {
        one.name: gguf.quants.dequantize(one.data, one.tensor_type).reshape([int(size) for size in reversed(one.shape)])
        for one in reader.tensors
    }
    types = {one.name: one.tensor_type.name for one in reader.tensors}
    return Read(tensors, types, {key: field.contents() for key, field in reader.fields.items()})


def metadata(source: Source, weight_type: WeightType, name: str) -> dict[str, Any]:
    """Every field by its key, ARCH standing for the architecture; the order is that of the file."""
    config, settings, tokenizer = source.model.config, source.model.config.settings, source.tokenizer
    norm = "layer_norm_epsilon" if settings.normalization == "layer" else "layer_norm_rms_epsilon"
    scaling = config.rope_scaling
    linear = {"ARCH.rope.scaling.type": "linear", "ARCH.rope.scaling.factor": float(scaling.factor)} if scaling is not None else {}
    return {
        "general.name": name,
        "general.file_type": _file_type(weight_type),
        "general.quantization_version": 2,
        "ARCH.context_length": settings.max_position_embeddings,
        "ARCH.embedding_length": settings.hidden_size,
        "ARCH.block_count": settings.num_hidden_layers,
        "ARCH.feed_forward_length": settings.intermediate_size,
        "ARCH.attention.head_count": settings.num_attention_heads,
        "ARCH.attention.head_count_kv": settings.key_value_heads,
        "ARCH.attention.key_length": settings.head_size,
        "ARCH.attention.value_length": settings.head_size,
        f"ARCH.attention.{norm}": float(settings.rms_norm_eps),
        "ARCH.rope.dimension_count": settings.head_size,
        "ARCH.rope.freq_base": float(settings.rope_theta),
        **(linear if scaling is not None and scaling.rope_type == "linear" else {}),
        **({"ARCH.use_parallel_residual": False} if settings.normalization == "layer" else {}),
        "ARCH.vocab_size": config.vocabulary_size,
        **_tokenizer_fields(source),
        **({"tokenizer.chat_template": tokenizer.template.jinja_without_mask} if tokenizer.template is not None else {}),
    }


def vocabulary_of(definition: Definition, size: int) -> Vocabulary:
    """The tokenizer with entries for all `size` rows of the model."""
    gguf = require_package()
    kinds = gguf.TokenType
    content, byte_level = definition.content, definition.spelling.byte_level
    entries = [f"[PAD{token}]" for token in range(size)]
    types = [int(kinds.UNUSED)] * size
    single_bytes = set() if byte_level else {fallback_piece(value) for value in range(BYTE_TOKENS)}
    for entry, token in content["model"]["vocab"].items():
        entries[token] = entry if byte_level else entry.replace(definition.spelling.space, SPACE_MARK)
        types[token] = int(kinds.BYTE if entry in single_bytes else kinds.NORMAL)
    for entry, token in definition.specials.items():
        entries[token] = entry
        types[token] = int(kinds.USER_DEFINED if token in definition.visible else kinds.CONTROL)
    if not byte_level and UNKNOWN in definition.specials:
        types[definition.specials[UNKNOWN]] = int(kinds.UNKNOWN)
    if byte_level:
        return Vocabulary("gpt2", pre_tokenizer_name(content), entries, types, [" ".join(merge) for merge in _merges(content)], [])
    scores = sentencepiece_scores(definition)
    return Vocabulary("llama", None, entries, types, [], [*scores, *[min(scores)] * (size - len(scores))])


def gguf_tensors(model: Llama) -> dict[str, Values]:
    """The weights in fp32 by llama.cpp's names, in the order of the layers."""
    gguf = require_package()
    config = model.config
    kind = architecture_of(config).model_type
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.settings.num_hidden_layers)
    tensors = {}
    for name, weight in model.named_parameters():
        values = interleaved(weight.detach(), config.settings.head_size) if _is_interleaved(kind, name) else weight.detach()
        tensors[str(names.get_name(name, try_suffixes=(".weight", ".bias")))] = values.float().contiguous().numpy()
    if config.settings.tie_word_embeddings and config.settings.normalization == "layer":
        tensors[_OUTPUT] = model.lm_head.weight.detach().float().numpy()
    if config.rope_scaling is not None and config.rope_scaling.rope_type == "llama3":
        plain = rotation_frequencies(type(config)(config.settings, config.vocabulary_size))
        tensors[ROPE_FREQUENCIES] = (plain / rotation_frequencies(config)).numpy()
    return tensors


def own_weights(model: Llama, tensors: Mapping[str, Values]) -> Iterator[tuple[str, torch.Tensor]]:
    """What `gguf_tensors` has made of a model of this shape, by our names again, one at a time."""
    gguf = require_package()
    config = model.config
    kind = architecture_of(config).model_type
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], config.settings.num_hidden_layers)
    for name, _ in model.named_parameters():
        values = torch.from_numpy(np.array(tensors[str(names.get_name(name, try_suffixes=(".weight", ".bias")))]))
        yield name, half_split(values, config.settings.head_size) if _is_interleaved(kind, name) else values


def _tokenizer_fields(source: Source) -> dict[str, Any]:
    tokenizer, config = source.tokenizer, source.model.config
    vocabulary = vocabulary_of(tokenizer.definition, config.vocabulary_size)
    unknown = tokenizer.specials.get(UNKNOWN)
    fields: dict[str, Any] = {
        "tokenizer.ggml.model": vocabulary.model,
        "tokenizer.ggml.pre": vocabulary.pre or "default",
        "tokenizer.ggml.tokens": vocabulary.entries,
        "tokenizer.ggml.token_type": vocabulary.types,
        "tokenizer.ggml.merges": vocabulary.merges,
        "tokenizer.ggml.scores": vocabulary.scores,
        "tokenizer.ggml.bos_token_id": tokenizer.document_start[0],
        "tokenizer.ggml.eos_token_id": source.end_token,
        "tokenizer.ggml.padding_token_id": tokenizer.padding,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.ggml.add_space_prefix": bool(tokenizer.prefix_bytes),
    }
    if tokenizer.turn_end is not None:
        fields["tokenizer.ggml.eot_token_id"] = tokenizer.turn_end
    if unknown is not None:
        fields["tokenizer.ggml.unknown_token_id"] = unknown
    return {key: value for key, value in fields.items() if value != []}


def _merges(content: Mapping[str, Any]) -> Sequence[Sequence[str]]:
    return [merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"]]


def _is_interleaved(kind: str, name: str) -> bool:
    return kind == "llama" and name.endswith(("q_proj.weight", "k_proj.weight"))


def _stored_type(values: Values, weight_type: WeightType) -> str:
    return "F32" if values.ndim == 1 else weight_type.upper()


def _file_type(weight_type: WeightType) -> int:
    """llama.cpp's number for "mostly of this type"."""
    gguf = require_package()
    name = "ALL_F32" if weight_type == "f32" else f"MOSTLY_{weight_type.upper()}"
    return int(gguf.LlamaFileType[name])


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
