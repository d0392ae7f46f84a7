"""`fledge export PLACE FOLDER --to TARGET`: a result in the form that other programs read; one function per target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from fledge.core import artifact, console, disk
from fledge.core.errors import ArtifactError, ConfigError
from fledge.stages.run import RUNS, smoke_name
from fledge.tokens.plain_bin import export_bin
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import open_tokenizer, require_same_tokenizer

Export = Callable[[str, Path, bool], None]


def export_tokens(place: str, folder: Path, small: bool) -> None:
    """A token set of documents as plain files of ids; `place` is its folder, or a run that packed documents.

    Raises ArtifactError if there is none, DataError if it is damaged or holds something else.
    """
    path = _token_folder(smoke_name(place) if small else place)
    found = artifact.open_artifact(path, "tokens")
    token_set, tokenizer = open_token_set(path), open_tokenizer(found.manifest.inputs["tokenizer"].path)
    require_same_tokenizer(token_set.tokenizer_sha256, tokenizer.sha256, str(path))
    require_free(folder)
    with disk.staging(folder) as partial:
        counts = export_bin(token_set, tokenizer, partial)
    written = ", ".join(f"{count:,} {split} tokens" for split, count in counts.items())
    console.say(f"{folder}: {written} of {token_set.meta.token_type.name}")


EXPORTS: Mapping[str, Export] = {"bin": export_tokens}
"""By the name that `--to` takes."""


def _token_folder(place: str) -> Path:
    folder = Path(place) if Path(place).is_dir() else RUNS / place
    for candidate in (folder, folder / "pack" / "documents", folder / "documents"):
        if (candidate / artifact.MANIFEST).is_file():
            return candidate
    raise ArtifactError(f"{folder} holds no token set", "name the folder of one, like runs/NAME/pack/documents, or a run that packed one")


def require_free(folder: Path) -> None:
    """Raises ConfigError unless a folder is not there yet, or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is already there", "name a folder that is not there yet")
