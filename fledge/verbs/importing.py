"""`fledge import SOURCE FOLDER`: a model of others as a checkpoint that every verb and stage takes."""

from __future__ import annotations

from pathlib import Path

from fledge.core import console
from fledge.publish.importing import import_model, opened
from fledge.tokens.settings import TemplateName
from fledge.verbs.export import require_free


def bring_in(given: str, folder: Path, template: TemplateName | None, revision: str, config: Path | None, tokenizer: Path | None) -> None:
    """Take over what a user names. Raises ConfigError, CheckpointError, DataError or MachineError; then nothing has appeared."""
    require_free(folder)
    with opened(given, revision, config, tokenizer) as original:
        reader = import_model(original, folder, template)
    compared = f"compared through {reader}" if reader is not None else "not compared: transformers is not installed"
    if original.is_converted:
        compared = f"converted, the conversion not compared with another program; what came of it {compared}"
    console.say(f"{folder}: {given}, {compared}; use it as start_from: {folder}, or talk with it: fledge chat {folder}")
