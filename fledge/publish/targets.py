"""What a target cannot express: (shape, tokenizer, target) -> [targets] -> reasons to refuse, before anything is written.

A Hugging Face folder expresses all that `Llama` computes. GGUF has no graph of its own: llama.cpp has one for each architecture's name,
and a tokenizer for each name of a model and of a split pattern. What those do was read in llama.cpp's `src/llama-vocab.cpp` and
`src/models/`; where ours does anything else, a file would load and answer wrongly, so it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.model.settings import ModelConfig
from fledge.publish.settings import Q8_0_BLOCK_VALUES, ModelTarget, WeightType
from fledge.tokens.byte_level import SPLIT_PATTERN, SUPERWORD_PATTERN, split_pipeline
from fledge.tokens.definition import Definition
from fledge.tokens.pieces import SPACE_MARK

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BYTE_LEVEL: Mapping[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
QWEN_PATTERN = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@dataclass(frozen=True)
class PreTokenizer:
    """A way to cut text that llama.cpp knows."""

    pipeline: Any
    """As `tokenizer.json` has it."""
    ignore_merges: bool
    """Whether a piece that is an entry as a whole is taken as it is, as Llama 3 does, whatever the merges would make of it."""
    name: str
    """The value of `tokenizer.ggml.pre`."""


PRE_TOKENIZERS = (
    # llama-bpe means both this pattern and ignore_merges; dbrx has the pattern alone.
    PreTokenizer(split_pipeline(SPLIT_PATTERN), False, "dbrx"),
    PreTokenizer(split_pipeline(SPLIT_PATTERN), True, "llama-bpe"),
    PreTokenizer(split_pipeline(QWEN_PATTERN), False, "qwen2"),
    PreTokenizer(_BYTE_LEVEL, False, "gpt-2"),
    PreTokenizer({"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _BYTE_LEVEL]}, False, "smollm"),
)


def refusals(config: ModelConfig, tokenizer: Definition, target: ModelTarget, weight_type: WeightType) -> list[str]:
    """Why a model cannot be exported so, each reason naming what it is about; empty if it can."""
    if target == "hf":
        return ["q8_0 is a type of GGUF: a Hugging Face folder has f32, f16 and bf16"] if weight_type == "q8_0" else []
    return [*_model_refusals(config, weight_type), *_tokenizer_refusals(tokenizer)]


def pre_tokenizer_name(content: Mapping[str, Any]) -> str | None:
    """What llama.cpp calls the way in which a byte-level vocabulary cuts text; None if it has no name for it."""
    given, ignores = _decisive(content["pre_tokenizer"]), bool(content["model"].get("ignore_merges"))
    return next((known.name for known in PRE_TOKENIZERS if _decisive(known.pipeline) == given and known.ignore_merges == ignores), None)


def sentencepiece_scores(definition: Definition) -> list[float]:
    """The score of each entry of a BPE vocabulary with byte fallback: the earlier it is merged, the higher.

    llama.cpp, like SentencePiece, merges the neighbours whose entry has the highest score, and knows no list of merges.
    """
    model = definition.content["model"]
    scores = [0.0] * len(definition.pieces)
    order = list(dict.fromkeys(left + right for left, right in model["merges"]))
    for rank, entry in enumerate(order):
        scores[model["vocab"][entry]] = -float(rank + 1)
    lowest = -float(len(order) + 1)
    merged = set(order)
    for entry, token in model["vocab"].items():
        # What is no merge must never be made of its parts; single characters and bytes are none either way.
        if entry not in merged:
            scores[token] = lowest
    return scores


def _model_refusals(config: ModelConfig, weight_type: WeightType) -> Iterator[str]:
    settings, scaling = config.settings, config.rope_scaling
    if settings.activation != "silu":
        name = {"gelu": "GeGLU", "relu": "ReGLU"}[settings.activation]
        yield f"activation {settings.activation} ({name}): llama.cpp computes only SiLU in these architectures"
    if scaling is not None and scaling.rope_type == "llama3" and (settings.query_key_norm or settings.normalization == "layer"):
        yield "rotary scaling llama3: llama.cpp has it for the architecture llama only"
    rows = {"hidden_size": settings.hidden_size, "intermediate_size": settings.intermediate_size}
    rows["num_attention_heads x head_dim"] = settings.num_attention_heads * settings.head_size
    for name, values in rows.items() if weight_type == "q8_0" else ():
        if values % Q8_0_BLOCK_VALUES:
            yield f"{name} {values}: q8_0 needs rows of a multiple of {Q8_0_BLOCK_VALUES} values"


def _tokenizer_refusals(tokenizer: Definition) -> Iterator[str]:
    content = tokenizer.content
    if tokenizer.spelling.byte_level:
        yield from _byte_level_refusals(content)
    elif content["model"]["type"] == "Unigram":
        yield "tokenizer Unigram with byte fallback: llama.cpp's writes an unknown token where this one writes bytes"
    elif content["pre_tokenizer"] is not None:
        yield "tokenizer BPE with byte fallback that cuts text first: llama.cpp's (SentencePiece) cuts nothing"
    else:
        yield from _sentencepiece_refusals(tokenizer)


def _byte_level_refusals(content: Mapping[str, Any]) -> Iterator[str]:
    if content["model"]["type"] != "BPE":
        yield f"tokenizer {content['model']['type']} over bytes: llama.cpp has none"
    elif content["pre_tokenizer"] == split_pipeline(SUPERWORD_PATTERN):
        yield "tokenizer superbpe: llama.cpp has no name for its split pattern, which leaves chains of words whole"
    elif pre_tokenizer_name(content) is None:
        yield f"tokenizer with the pre_tokenizer {_shortened(content['pre_tokenizer'])}: llama.cpp has no name for it"


def _sentencepiece_refusals(tokenizer: Definition) -> Iterator[str]:
    space, vocabulary = tokenizer.spelling.space, tokenizer.content["model"]["vocab"]
    if space != SPACE_MARK and any(SPACE_MARK in entry for entry in vocabulary):
        yield f"tokenizer with entries for the character {SPACE_MARK!r}: in GGUF it stands for the space"
    order = [left + right for left, right in tokenizer.content["model"]["merges"]]
    runs = sum(before != after for before, after in zip([None, *order], order, strict=False))
    if runs != len(set(order)):
        yield "tokenizer whose merges are not in the order of their results: GGUF has one score for each entry"


def _decisive(pre_tokenizer: Any) -> Any:
    """What decides where text is cut: offsets, and the fields with their defaults, do not."""
    if not isinstance(pre_tokenizer, Mapping):
        return pre_tokenizer
    kind = pre_tokenizer.get("type")
    if kind == "Sequence":
        steps: Sequence[Any] = pre_tokenizer["pretokenizers"]
        return [_decisive(step) for step in steps] if len(steps) != 1 else _decisive(steps[0])
    left_out = {"trim_offsets"} if kind == "ByteLevel" else set()
    decisive = {key: value for key, value in pre_tokenizer.items() if key not in left_out}
    return {"use_regex": True, "add_prefix_space": True, **decisive} if kind == "ByteLevel" else decisive


def _shortened(value: Any, characters: int = 300) -> str:
    text = str(value)
    return text if len(text) <= characters else f"{text[: characters - 3]}..."
