"""`adapter_config.json`, peft's description of an adapter, and where its base is: known without torch.

    adapter_config.json         kind of adapter, rank, targets, and the path of its base, which peft looks up
    adapter_model.safetensors   its tensors
    manifest.json               of ours: the base's path relative to this folder, and its id, a hash

A run that was moved finds the base by the manifest. A base that is not what the adapter was trained on gives an answer that looks right
and is not, so its id is compared.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from fledge.core import artifact
from fledge.core.config import Tree, parse
from fledge.core.errors import CheckpointError, ConfigError
from fledge.model.settings import LoraSettings, Projection

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base"
"""The role of the base among the inputs in a manifest."""

_NAMES = {"rank": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rank_stabilized": "use_rslora", "weight_decomposed": "use_dora"}
"""Ours and peft's."""
_PLAIN: Mapping[str, object] = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False}
_ABSENT = (
    "modules_to_save", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters",
    "trainable_token_indices", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "corda_config", "eva_config",
    "loftq_config", "kasa_config", "monteclora_config", "lora_bias", "arrow_config",
)  # fmt: skip
"""Options of peft that `LoraLinear` does not have."""


def is_adapter(folder: Path) -> bool:
    """Whether a checkpoint folder holds an adapter instead of a whole model."""
    return (folder / ADAPTER_CONFIG).is_file()


def to_adapter_json(settings: LoraSettings, base: Path) -> dict[str, Any]:
    """The content of `adapter_config.json`; the path is absolute, because peft takes it as seen from where a program runs."""
    return {
        **_PLAIN,
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base.absolute()),
        **{theirs: getattr(settings, ours) for ours, theirs in _NAMES.items()},
        "target_modules": list(settings.targets),
        "modules_to_save": None,
        "init_lora_weights": True,
        "inference_mode": True,
    }


def read_adapter_settings(folder: Path) -> LoraSettings:
    """The settings of an adapter, of peft's too. Raises CheckpointError naming the option that does not fit."""
    origin, raw = folder / ADAPTER_CONFIG, _read(folder)
    for key, wanted in _PLAIN.items():
        if raw.get(key, wanted) != wanted:
            raise CheckpointError(f"{origin}: {key} is {raw[key]!r}, Fledge computes only {wanted!r}", "merge it with peft first")
    odd = next((key for key in _ABSENT if raw.get(key)), None)
    if odd is not None:
        raise CheckpointError(f"{origin} has {odd}, which Fledge does not compute", "merge it with peft first")
    known, targets = get_args(Projection), raw.get("target_modules")
    if isinstance(targets, list):
        # In our order, since peft writes a set; what is unknown is left for the parser to name.
        targets = [name for name in known if name in targets] + [name for name in targets if name not in known]
    values = {ours: raw[theirs] for ours, theirs in _NAMES.items() if raw.get(theirs) is not None}
    try:
        return parse(LoraSettings, Tree({**values, "targets": targets}, {}))
    except ConfigError as error:
        raise CheckpointError(
            f"{origin}: {error.problem}", "merge it with peft first, or use an adapter of the layers' matrices"
        ) from error


def find_base(folder: Path) -> Path:
    """The checkpoint folder of an adapter's base. Raises CheckpointError if it is not there, or is another than was trained on."""
    named = _read(folder).get("base_model_name_or_path")
    given = artifact.open_artifact(folder).manifest.inputs.get(BASE) if (folder / artifact.MANIFEST).is_file() else None
    places = [Path(path) for path in (given.path if given else None, named) if path]
    base = next((place for place in places if place.is_dir() and place.resolve() != folder.resolve()), None)
    if base is None:
        raise CheckpointError(
            f"the base of the adapter in {folder} is not there: {' nor '.join(map(str, places)) or 'none is named'}",
            f"bring it back; of an adapter of others, base_model_name_or_path in {folder / ADAPTER_CONFIG} names its place",
        )
    if given is not None and open_base(base).id != given.id:
        raise CheckpointError(
            f"{base} is not the base that the adapter in {folder} was trained on: its id is not {given.id[:12]}",
            "bring that one back, or train the adapter again",
        )
    return base


def open_base(base: Path) -> artifact.Artifact:
    """A base as an input; a folder that others wrote is known by the hashes of its files."""
    if (base / artifact.MANIFEST).is_file():
        return artifact.open_artifact(base)
    return artifact.foreign(base, "huggingface")


def _read(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}", "use another copy of it, or an earlier checkpoint") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object", "use another copy of it, or an earlier checkpoint")
    return value
