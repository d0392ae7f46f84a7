"""The folder of a tokenizer: four files that Fledge, transformers and vLLM read as they lie.

    tokenizer.json          the definition, the only authority
    tokenizer_config.json   for transformers: the roles of the control tokens, and the chat template
    chat_template.jinja     the template once more, where transformers 5 looks first; not if it needs tokens for turns and there are none
    tokenizer_meta.json     hashes, where it came from, and probes with their ids: what shows that something changed

A checkpoint has the same files, so it is a tokenizer folder too. The template has a hash of its own: another one would leave every
token set of documents valid. There is no code in any of them, and none is run: the template is always one of ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from fledge.core import disk
from fledge.core.errors import DataError
from fledge.tokens.definition import REMEDY, UNKNOWN, Definition, read_json
from fledge.tokens.settings import TemplateName
from fledge.tokens.templates import TEMPLATES

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
META_FILE = "tokenizer_meta.json"
FORMAT_VERSION = 2
"""1 knew byte-level BPE only, with control tokens in a fixed place."""

NO_LENGTH_LIMIT = int(1e30)
"""What transformers reads as "the tokenizer knows no longest input"."""


@dataclass(frozen=True)
class TokenizerMeta:
    """The content of `tokenizer_meta.json`: what lets a reader notice that a tokenizer, its files or its library changed."""

    canonical_sha256: str
    chat_template_sha256: str | None
    """None without a template."""
    vocabulary_size: int
    kind: str
    template: TemplateName
    special_tokens: dict[str, int]
    """Ids of the control tokens by name, for other programs to read; `tokenizer.json` decides."""
    made_with: dict[str, str] = field(default_factory=dict)
    """Versions of the libraries that trained or converted it."""
    imported_from: dict[str, str] = field(default_factory=dict)
    """Of an imported one: where the file came from, and its SHA-256."""
    format_version: int = FORMAT_VERSION
    probes: dict[str, list[int]] = field(default_factory=dict)
    """Texts with their ids when the tokenizer was made; encoded again whenever it is opened."""


def write_folder(definition: Definition, meta: TokenizerMeta, template: str | None, folder: Path) -> None:
    """Fill a folder. `template`: in Jinja; None if it cannot be had."""
    disk.write_json(folder / TOKENIZER_FILE, definition.content)
    disk.write_json(folder / CONFIG_FILE, transformers_config(definition, template, definition.roles.end_of_text))
    if template is not None:
        disk.write_text(folder / TEMPLATE_FILE, template)
    disk.write_json(folder / META_FILE, asdict(meta))


def copy_folder(source: Path, definition: Definition, target: Path, end: int, maximum_tokens: int) -> None:
    """Write the files of a tokenizer into a checkpoint folder, with the end token (an id) and the context length of its model."""
    names = [name for name in (TOKENIZER_FILE, TEMPLATE_FILE, META_FILE) if (source / name).is_file()]
    template = (source / TEMPLATE_FILE).read_text(encoding="utf-8") if TEMPLATE_FILE in names else None
    disk.write_json(target / CONFIG_FILE, transformers_config(definition, template, end, maximum_tokens))
    for name in names:
        disk.write_bytes(target / name, (source / name).read_bytes())


def transformers_config(definition: Definition, template: str | None, end: int, maximum_tokens: int = NO_LENGTH_LIMIT) -> dict[str, Any]:
    """The content of `tokenizer_config.json`, read by transformers 4 and 5; `end`: id of the token that ends what a model says.

    The input names are given because transformers 4 adds `token_type_ids` otherwise, which Llama's `generate` refuses.
    """
    roles, names = definition.roles, {token: name for name, token in definition.specials.items()}
    used = {roles.document_start[0], end, roles.padding, definition.specials.get(UNKNOWN)}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[roles.document_start[0]],
        "eos_token": names[end],
        "pad_token": names[roles.padding],
        "additional_special_tokens": [name for token, name in names.items() if token not in used | definition.visible],
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": maximum_tokens,
        "clean_up_tokenization_spaces": False,
    }
    if UNKNOWN in definition.specials:
        config["unk_token"] = UNKNOWN
    if template is not None:
        config["chat_template"] = template
    return config


def read_meta(path: Path) -> TokenizerMeta:
    """The content of `tokenizer_meta.json`. Raises DataError naming the file."""
    if not path.is_file():
        raise DataError(f"{path} is missing", REMEDY)
    raw = read_json(path)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format {version}, this Fledge reads {FORMAT_VERSION}", "use the Fledge that wrote it")
    try:
        meta = TokenizerMeta(**raw)
    except TypeError as error:
        raise DataError(f"{path} does not describe a tokenizer: {error}", REMEDY) from error
    if meta.template not in TEMPLATES:
        raise DataError(f"{path} names the template {meta.template!r}, which this Fledge does not know", "use the Fledge that wrote it")
    if not isinstance(meta.canonical_sha256, str) or not isinstance(meta.probes, dict):
        raise DataError(f"{path} does not describe a tokenizer: a field has the wrong type", REMEDY)
    return meta


def check_template(folder: Path, meta: TokenizerMeta) -> None:
    """Raise DataError unless the template is the one that was written."""
    path = folder / TEMPLATE_FILE
    found = disk.digest_file(path).sha256 if path.is_file() else None
    if found != meta.chat_template_sha256:
        raise DataError(f"{path} has changed: its sha256 is {_short(found)}, {META_FILE} says {_short(meta.chat_template_sha256)}", REMEDY)


def template_sha256(template: str | None) -> str | None:
    """The hash of a template as `tokenizer_meta.json` holds it."""
    return None if template is None else hashlib.sha256(template.encode("utf-8")).hexdigest()


def check_probes(folder: Path, probes: Mapping[str, list[int]], found: list[list[int]]) -> None:
    """Raise DataError unless the probes have the ids that they had when the tokenizer was made."""
    for (text, expected), ids in zip(probes.items(), found, strict=True):
        if ids != expected:
            raise DataError(
                f"{folder} encodes {text!r} as {ids}, but did as {expected} when it was made",
                f"install the version of `tokenizers` it was made with (this is {tokenizers.__version__}), or make it anew",
            )


def _short(digest: str | None) -> str:
    return "missing" if digest is None else str(digest)[:12]
