"""A checkpoint as the Hugging Face folder one publishes: weights in the type one wants, tokenizer, model card, and nothing of training.

    config.json, generation_config.json, model.safetensors     the model; an adapter is folded into its base
    tokenizer.json, tokenizer_config.json, ...                 the tokenizer, with its chat template
    README.md                                                  the model card

It is written beside its name and appears when `checks` finds that it is the model it was made from.
"""

from __future__ import annotations

from pathlib import Path

from fledge.core import disk
from fledge.model.folder import GENERATION_CONFIG, save_model
from fledge.publish.card import model_card
from fledge.publish.checks import check_folder
from fledge.publish.generation import generation_json
from fledge.publish.settings import MODEL_CARD, WeightType
from fledge.publish.source import DTYPES, Source, require_expressible
from fledge.tokens.folder import copy_folder


def export_huggingface(source: Source, folder: Path, weight_type: WeightType) -> str:
    """Fill a new folder; returns what it was compared with. Raises ConfigError for a type it cannot have, CheckpointError if it differs."""
    require_expressible(source, "hf", weight_type)
    with disk.staging(folder) as partial:
        write_folder(source, partial, weight_type, folder.name)
        return check_folder(source, partial, DTYPES[weight_type])


def write_folder(source: Source, folder: Path, weight_type: WeightType, name: str) -> None:
    """Write all files; `name` is what the card calls the model."""
    config, tokenizer = source.model.config, source.tokenizer
    save_model(source.model, folder, DTYPES[weight_type])
    disk.write_json(folder / GENERATION_CONFIG, generation_json(config, source.generation))
    copy_folder(tokenizer.folder, tokenizer.definition, folder, source.end_token, config.settings.max_position_embeddings)
    disk.write_text(folder / MODEL_CARD, model_card(source, name, "hf", weight_type))
