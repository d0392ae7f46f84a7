"""`fledge export PLACE FOLDER --to TARGET`: a result in the form that other programs read; one function per target."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fledge.core import artifact, console, disk
from fledge.core.errors import ArtifactError, ConfigError
from fledge.publish.settings import DEFAULT_WEIGHT_TYPES, ModelTarget, WeightType
from fledge.stages.run import RUNS, smoke_name
from fledge.tokens.plain_bin import export_bin
from fledge.tokens.shards import open_token_set
from fledge.tokens.tokenizer import open_tokenizer, require_same_tokenizer


def export(place: str, folder: Path, target: ModelTarget | Literal["bin"], weight_type: WeightType | None, small: bool) -> None:
    """Write a result in the form of a target; `weight_type` None: the target's usual one. Raises ConfigError if it cannot be had."""
    if target != "bin":
        export_model(place, folder, target, weight_type or DEFAULT_WEIGHT_TYPES[target], small)
    elif weight_type is not None:
        raise ConfigError("--dtype is of weights, and a token set has none", "leave out --dtype")
    else:
        export_tokens(place, folder, small)


def export_model(reference: str, folder: Path, target: ModelTarget, weight_type: WeightType, small: bool) -> None:
    """A checkpoint as a folder of Hugging Face's form, or with a GGUF file, after it was read back and found to be the same model."""
    from fledge.publish.gguf_export import export_gguf
    from fledge.publish.huggingface import export_huggingface
    from fledge.publish.source import open_source
    from fledge.stages.checkpoint_names import open_checkpoint

    require_free(folder)
    source = open_source(open_checkpoint(smoke_name(reference) if small else reference))
    with console.progress(f"export to {target}", None, "steps"):
        reader = export_huggingface(source, folder, weight_type) if target == "hf" else export_gguf(source, folder, target, weight_type)
    size_bytes = sum(path.stat().st_size for path in folder.iterdir())
    console.say(f"{folder}: {source.artifact.path} in {weight_type}, {console.format_bytes(size_bytes)}; compared through {reader}")


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
