"""With which adapter a training stage begins: a fresh one, or that of the checkpoint it starts from."""

from __future__ import annotations

from pathlib import Path

from fledge.core.config import differences, plain
from fledge.core.errors import ConfigError
from fledge.model.adapter_config import is_adapter, read_adapter_settings
from fledge.model.adapters import add_adapter
from fledge.model.folder import load_adapted, load_model
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, LoraSettings


def open_with_adapter(parent: Path, lora: LoraSettings, seed: int) -> Llama:
    """The weights of a checkpoint, frozen, with a fresh adapter; of one that is an adapter, its base with that adapter to train on.

    Raises ConfigError if the adapter that is there has another form than asked for.
    """
    if not is_adapter(parent):
        model = load_model(parent)
        add_adapter(model, Adapter(lora, parent), seed)
        return model
    there, wanted = (plain(settings) for settings in (read_adapter_settings(parent), lora))
    changed = [f"{name}: {old} -> {new}" for name, old, new in differences(there, wanted) if name != "dropout"]
    if changed:
        raise ConfigError(
            f"the adapter in {parent} has another form than the recipe's lora ({'; '.join(changed)})",
            f"give both the same, or fold it in and start from that: fledge merge {parent} FOLDER",
        )
    return load_adapted(parent, lora.dropout)
