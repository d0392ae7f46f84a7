"""`fledge merge RUN@WHICH FOLDER`: an adapter and its base become one checkpoint, as any other: trained on, evaluated, exported."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from fledge.core import artifact, console, disk
from fledge.core.errors import ConfigError
from fledge.model.adapter_config import find_base, is_adapter
from fledge.model.cost import parameter_count
from fledge.model.folder import load_model, save_model
from fledge.publish.generation import read_generation, sampling_json
from fledge.stages.checkpoint_names import find_checkpoint, open_checkpoint
from fledge.stages.run import smoke_name
from fledge.verbs.export import require_free

TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt")
"""Ours and those of others."""


def merge(reference: str, folder: Path, small: bool) -> None:
    """Fold the adapter that a reference names into its base. Raises ConfigError if it is none, CheckpointError if the base is gone."""
    source = find_checkpoint(smoke_name(reference) if small else reference)
    if not is_adapter(source):
        raise ConfigError(f"{source} is no adapter, it holds whole weights", "use it as it is, or name the checkpoint of a stage with lora")
    require_free(folder)
    adapter, model = open_checkpoint(str(source)), load_model(source)
    wanted = artifact.request("checkpoint", adapter.manifest.settings, {"adapter": adapter})
    # What rewards are measured against, as they are for the adapter: folded in, it is the same model.
    origin = {role: given for role, given in adapter.manifest.inputs.items() if role in ("start_from", "scores")}
    wanted = replace(wanted, inputs={**origin, **wanted.inputs})
    with artifact.build(folder, wanted) as (partial, stats):
        save_model(model, partial, sampling=sampling_json(read_generation(source)))
        for path in _tokenizer_files(source) or _tokenizer_files(find_base(source)):
            disk.write_bytes(partial / path.name, path.read_bytes())
        stats.update(adapter.stats)
    console.say(f"{folder}: {parameter_count(model.config):,} parameters, the adapter of {source} folded in")


def _tokenizer_files(folder: Path) -> list[Path]:
    return sorted({path for pattern in TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
