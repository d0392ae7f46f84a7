"""A model of others becomes a checkpoint of ours: a Hugging Face folder, an id on the hub, or a `.pt` file -> [importing] -> `start_from`.

The result is a folder like those that training writes: weights in fp32, a frozen tokenizer that was compared with its own library, ids that
end what it says, and a manifest that names what it was made from by hash. Its logits are compared with those that transformers computes
from the original, if it is installed. Nothing that comes with a model is run.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledge.core import artifact, console, disk
from fledge.core.artifact import Request
from fledge.core.errors import ConfigError, DataError, MachineError
from fledge.corpus.sources.hub import snapshot
from fledge.corpus.sources.settings import REPOSITORY_NAME
from fledge.model.cost import parameter_count
from fledge.model.folder import CONFIG as MODEL_CONFIG
from fledge.model.folder import GENERATION_CONFIG, WEIGHTS, load_model, save_model
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig
from fledge.model.tensors import read_tensors, write_tensors
from fledge.publish.checks import check_logits, load_theirs, probe_rows, transformers_name
from fledge.publish.generation import end_token, generation_json, read_generation, read_generation_json
from fledge.publish.layouts import to_huggingface
from fledge.publish.unpickling import WEIGHTS as UNPICKLED
from fledge.publish.unpickling import unpickle
from fledge.tokens.definition import read_json
from fledge.tokens.folder import CONFIG_FILE as TOKENIZER_CONFIG
from fledge.tokens.folder import TEMPLATE_FILE, TOKENIZER_FILE, copy_folder
from fledge.tokens.importing import import_tokenizer
from fledge.tokens.settings import TemplateName, TokenizerSettings
from fledge.tokens.templates import TURN_END, TURN_START
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer

_PICKLES = (".pt", ".pth", ".bin", ".ckpt")
_FETCHED = ["*.json", "*.safetensors", "*.model", "*.jinja"]
"""Data; code, pickles and other formats of the same weights stay where they are."""


@dataclass(frozen=True)
class Original:
    """A model of others as a Hugging Face folder."""

    folder: Path
    tokenizer: Path
    """The folder or file of its tokenizer."""
    request: Request
    """What the checkpoint that is made of it is known by."""
    is_converted: bool = False
    """Whether the folder was made of tensors by other names, which no other program reads."""


def import_model(original: Original, folder: Path, template: TemplateName | None) -> str | None:
    """Fill a new folder; returns by what the logits were compared, None if by nothing, for transformers is not installed.

    `template`: how conversations are written; None: chatml if the tokenizer has its tokens, else instruct. Raises CheckpointError or
    DataError for a model or a tokenizer that cannot be taken over as it is.
    """
    model = load_model(original.folder).eval()
    with artifact.build(folder, original.request) as (partial, stats):
        chosen = template or _usual_template(original.tokenizer)
        settings = TokenizerSettings(kind="import", path=str(original.tokenizer), template=chosen)
        figures = import_tokenizer(settings, partial)
        tokenizer = open_tokenizer(partial)
        _warn_of_template(original.tokenizer, tokenizer)
        model.config = _completed(model.config, tokenizer, original.folder)
        save_model(model, partial)
        disk.write_json(partial / GENERATION_CONFIG, generation_json(model.config, read_generation(original.folder)))
        copy_folder(
            partial, tokenizer.definition, partial, end_token(model.config, tokenizer), model.config.settings.max_position_embeddings
        )
        reader = _compare(load_model(partial).eval(), original.folder)
        stats.update({"parameters": parameter_count(model.config), "tokenizer": figures, "compared_through": reader})
    return reader


@contextmanager
def opened(given: str, revision: str, config: Path | None, tokenizer: Path | None) -> Iterator[Original]:
    """What a user names: a folder, a `.pt` file, or OWNER/NAME on the hub.

    Raises ConfigError for what is none of them, CheckpointError for a file that cannot be converted, DataError or MachineError by the hub.
    """
    path = Path(given)
    if path.is_file():
        with tempfile.TemporaryDirectory(prefix="fledge-") as place:
            yield _from_pickle(path, Path(place), config, tokenizer)
        return
    if config is not None:
        raise ConfigError("--config describes the model in a .pt file, and this is none", "leave out --config")
    folder = path if path.is_dir() else fetch_model(given, revision)
    found = artifact.foreign(folder, "huggingface")
    yield Original(folder, tokenizer or folder, artifact.request("checkpoint", {"imported": "huggingface"}, {"source": found}))


def fetch_model(repository: str, revision: str) -> Path:
    """The data files of a model on the hub. Raises ConfigError for what is no OWNER/NAME, DataError or MachineError from the hub."""
    if not re.fullmatch(REPOSITORY_NAME, repository):
        raise ConfigError(
            f"there is no folder or file {repository}, and it is no name on the hub",
            "give a path, or OWNER/NAME of letters, digits, '.', '_' and '-'",
        )
    try:
        return snapshot(repository, revision, _FETCHED, "model")
    except OSError as error:
        raise MachineError(f"{repository}@{revision} cannot be fetched ({type(error).__name__})", "try again, or give a folder") from error


def _from_pickle(path: Path, place: Path, config: Path | None, tokenizer: Path | None) -> Original:
    if path.suffix not in _PICKLES:
        raise ConfigError(f"{path} is no checkpoint file", f"give a folder, or a file that ends with {', '.join(_PICKLES)}")
    beside = path.with_name(MODEL_CONFIG)
    given = _read_config(beside, optional=True) | (_read_config(config, optional=False) if config is not None else {})
    with console.progress(f"convert {path.name}", None, "steps"):
        found: dict[str, Any] = unpickle(path, place)
        weights, config_json = to_huggingface(read_tensors(place / UNPICKLED), {**found, **given}, str(path))
        folder = place / "model"
        disk.make_folder(folder)
        disk.write_json(folder / MODEL_CONFIG, config_json)
        write_tensors(folder / WEIGHTS, {name: weight.contiguous() for name, weight in weights.items()})
    source = {"imported": path.suffix, "sha256": disk.digest_file(path).sha256, "config": config_json}
    return Original(folder, tokenizer or path.parent, artifact.request("checkpoint", source), is_converted=True)


def _read_config(path: Path, optional: bool) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    found = read_json(path, "give a JSON object") if path.is_file() else None
    if not isinstance(found, dict):
        raise ConfigError(f"{path} holds no JSON object", 'give one like {"num_attention_heads": 12}')
    return found


def _completed(config: ModelConfig, tokenizer: Tokenizer, original: Path) -> ModelConfig:
    """The config with the control tokens that it does not name itself. Raises DataError if the model has no rows for the tokenizer."""
    if tokenizer.vocabulary_size > config.vocabulary_size:
        raise DataError(
            f"the tokenizer has {tokenizer.vocabulary_size:,} entries, and the model in {original} rows for {config.vocabulary_size:,}",
            "give the tokenizer of this model: --tokenizer PLACE",
        )
    ends = read_generation_json(original).get("eos_token_id")
    given = tuple(ends) if isinstance(ends, list) else (ends,) if isinstance(ends, int) else config.end_token_ids
    return replace(
        config,
        begin_token_id=tokenizer.document_start[0] if config.begin_token_id is None else config.begin_token_id,
        end_token_ids=given or (tokenizer.end_of_text,),
        padding_token_id=tokenizer.padding if config.padding_token_id is None else config.padding_token_id,
    )


def _usual_template(tokenizer: Path) -> TemplateName:
    path = tokenizer / TOKENIZER_FILE if tokenizer.is_dir() else tokenizer
    if path.suffix != ".json" or not path.is_file():
        return "instruct"
    added = read_json(path).get("added_tokens", ())
    return "chatml" if {TURN_START, TURN_END} <= {token.get("content") for token in added} else "instruct"


def _warn_of_template(original: Path, made: Tokenizer) -> None:
    """Say it if a model was taught conversations in another form than the checkpoint will write them."""
    given = _given_template(original)
    ours = {made.template.jinja.strip(), made.template.jinja_without_mask.strip()} if made.template is not None else set()
    if given is not None and given.strip() not in ours:
        console.warn(
            f"{original} has a chat template of its own, and conversations are written as {made.meta.template}: "
            "--template chooses another; its answers are worse in a form it was not taught"
        )


def _given_template(tokenizer: Path) -> str | None:
    beside, config = tokenizer / TEMPLATE_FILE, tokenizer / TOKENIZER_CONFIG
    if beside.is_file():
        return beside.read_text(encoding="utf-8")
    found = read_json(config).get("chat_template") if config.is_file() else None
    if isinstance(found, list):
        found = next((one.get("template") for one in found if isinstance(one, dict) and one.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def _compare(ours: Llama, original: Path) -> str | None:
    """Compare the logits of a model with those of the folder it was made from; returns by what that was opened, None if it cannot be.

    Raises CheckpointError.
    """
    program = transformers_name()
    if program is None:
        console.warn("the logits were not compared: transformers is not installed")
        return None
    theirs = load_theirs(original, use_safetensors=True)
    check_logits(ours, theirs, probe_rows(ours.config.vocabulary_size, ours.config.settings.max_position_embeddings))
    return program
