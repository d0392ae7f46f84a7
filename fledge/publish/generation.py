"""`generation_config.json`: how a model is sampled from and what ends it, read and written in Hugging Face's words.

The limit of an answer alone has a word of ours, `maximum_new_tokens`: Hugging Face's `max_new_tokens` would be no default for vLLM but a
limit on whatever is asked of it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fledge.core.config import Tree, parse
from fledge.core.errors import CheckpointError, ConfigError
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import GENERATION_CONFIG
from fledge.model.settings import ModelConfig
from fledge.tokens.tokenizer import Tokenizer

_SHARED_KEYS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_NEUTRAL = {"min_p": 0, "repetition_penalty": 1}
_OF_DRAWS = ("temperature", "top_k", "top_p", "min_p")
"""They change nothing where the most likely token is taken; a penalty does, for it decides which one that is."""
_LIMIT_KEY, _THEIR_LIMIT_KEY = "maximum_new_tokens", "max_new_tokens"


def read_generation(folder: Path) -> GenerationSettings:
    """How the model in a folder wants to be sampled from; what it does not say is our default. Raises CheckpointError."""
    raw = read_generation_json(folder)
    given = {key: raw[key] for key in _SHARED_KEYS if raw.get(key) is not None}
    limit = raw.get(_LIMIT_KEY, raw.get(_THEIR_LIMIT_KEY))
    if limit is not None:
        given[_LIMIT_KEY] = limit
    if raw.get("do_sample") is False:
        given["temperature"] = 0.0
    try:
        return parse(GenerationSettings, Tree(given, {}))
    except ConfigError as error:
        raise CheckpointError(f"{folder / GENERATION_CONFIG}: {error.problem}", "correct it, or remove that key") from error


def read_generation_json(folder: Path) -> dict[str, Any]:
    """The content of the file; empty if there is none. Raises CheckpointError."""
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return {}
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}", "use another copy of it") from error
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} holds no JSON object", "use another copy of it")
    return raw


def generation_json(config: ModelConfig, generation: GenerationSettings) -> dict[str, Any]:
    """The content of the file."""
    ends = list(config.end_token_ids)
    return {
        "bos_token_id": config.begin_token_id,
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
        "pad_token_id": config.padding_token_id,
        **sampling_json(generation),
    }


def sampling_json(generation: GenerationSettings) -> dict[str, Any]:
    """How tokens are drawn, without the special ones; what changes nothing is left out."""
    draws = generation.temperature > 0
    keys = [key for key in _SHARED_KEYS if draws or key not in _OF_DRAWS]
    told = {key: getattr(generation, key) for key in keys if getattr(generation, key) != _NEUTRAL.get(key)}
    return {"do_sample": draws, **told, _LIMIT_KEY: generation.maximum_new_tokens}


def end_token(config: ModelConfig, tokenizer: Tokenizer) -> int:
    """The id that ends what a model says: the first of its own that the tokenizer has a name for."""
    known = (token for token in config.end_token_ids if token in tokenizer.specials.values())
    return next(known, tokenizer.end_of_text)
