"""Takes over a tokenizer that exists: it encodes exactly as its own library does, or it is refused with the first text that differs.

Read are `tokenizer.json` (Hugging Face) and `tokenizer.model` (SentencePiece), from a file, a folder or the hub. Both are data: nothing
of what lies beside them is run. A pickle is never opened, code that a configuration names (`auto_map`) is not fetched, and the chat
template is always ours. What comes out is a folder like that of a trained tokenizer.

Two differences are intended. A text that spells a control token stays a text, also where the original would see the token; so does one
that spells a token which is not special but written by the model, such as `<think>`. And a byte-level vocabulary that composes characters
first (Unicode's NFC, as in Qwen) gets the text as it is: the ids are the original's for text in that form, and every other comes back too.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tokenizers

from fledge.core import console, disk
from fledge.core.errors import DataError, MachineError
from fledge.tokens.definition import Definition, added_token, checked, guard, load_body, read_json
from fledge.tokens.folder import CONFIG_FILE, TOKENIZER_FILE
from fledge.tokens.pieces import SPACE_MARK, spelling_of
from fledge.tokens.probes import PROBES, generated_texts
from fledge.tokens.sentencepiece_models import differing_texts, imported_content, parse_model
from fledge.tokens.settings import SPECIAL_TOKENS, Preset, TokenizerSettings, reserved_names
from fledge.tokens.trainers import write_definition

MODEL_FILE = "tokenizer.model"
COMPARED_TEXTS = 5_000
"""Generated texts whose ids and decoding are compared with the original's."""
_ROUNDING_SHARE = 0.05
"""Of the compared texts, in which the two libraries may choose otherwise between equally likely splits of Unigram."""

_HUB = "hub:"
_DATASETS = "datasets/"
_COMPOSING = {"type": "NFC"}
_REMEDY = "import another tokenizer, or train one: tokenizer.kind=byte_bpe"
_MAXIMUM_MODEL_BYTES = 1 << 26


@dataclass(frozen=True)
class PresetTokenizer:
    """A published tokenizer, and what it must turn out to be."""

    repository: str
    file: str
    """The file of its own library."""
    vocabulary_size: int
    specials: Mapping[str, int]


PRESETS: dict[Preset, PresetTokenizer] = {
    "gpt2": PresetTokenizer("openai-community/gpt2", TOKENIZER_FILE, 50_257, {"<|endoftext|>": 50_256}),
    "llama": PresetTokenizer("meta-llama/Llama-2-7b-hf", MODEL_FILE, 32_000, {"<unk>": 0, "<s>": 1, "</s>": 2}),
    "codellama": PresetTokenizer("codellama/CodeLlama-7b-hf", MODEL_FILE, 32_016, {"<unk>": 0, "<s>": 1, "</s>": 2}),
}


def origin(settings: TokenizerSettings) -> dict[str, str]:
    """What decides the result besides the settings: the hash of a local file, or the name and revision of a repository.

    Raises DataError if there is no tokenizer at `settings.path`.
    """
    found = _place_on_hub(settings)
    if found is not None:
        return {"repository": found.name, "revision": settings.revision}
    path = _local_file(settings)
    return {"sha256": disk.digest_file(path).sha256}


def require_form(settings: TokenizerSettings) -> None:
    """Raises DataError if the local file is of neither form; how it encodes is found out when it is imported."""
    path = _local_file(settings)
    if path.suffix == ".model":
        parse_model(path.read_bytes(), str(path))
    else:
        _content(read_json(path, _REMEDY), str(path))


def import_tokenizer(settings: TokenizerSettings, folder: Path) -> dict[str, Any]:
    """Fill `folder` with the tokenizer that the settings name; returns its figures.

    Raises DataError if it is unsafe, loses text, or does not encode as the original does; MachineError if the hub does not answer.
    """
    found = _place_on_hub(settings)
    path = _local_file(settings) if found is None else _download(found, settings.revision)
    place = str(path) if found is None else f"{path.name} of {found.repository}@{settings.revision}"
    with console.progress(f"import {place}", None, "texts") as progress:
        definition = _import_model(path, place, settings) if path.suffix == ".model" else _import_json(path, place, settings)
        progress.advance(COMPARED_TEXTS)
    digest = disk.digest_file(path).sha256
    versions = {"tokenizers": tokenizers.__version__}
    write_definition(settings, definition, versions, folder, {"place": place, "sha256": digest})
    return {
        "kind": settings.kind,
        "vocabulary_size": len(definition.pieces),
        "canonical_sha256": definition.sha256,
        "imported_from": place,
        "imported_sha256": digest,
        "compared_texts": COMPARED_TEXTS,
    }


@dataclass(frozen=True)
class _PlaceOnHub:
    """A repository and the files to look for in it; of models these have fixed names, of data sets one is named."""

    kind: Literal["model", "dataset"]
    repository: str
    files: tuple[str, ...]

    @property
    def name(self) -> str:
        return self.repository if self.kind == "model" else f"{_DATASETS}{self.repository}/{self.files[0]}"


def _place_on_hub(settings: TokenizerSettings) -> _PlaceOnHub | None:
    if settings.preset is not None:
        return _PlaceOnHub("model", PRESETS[settings.preset].repository, (PRESETS[settings.preset].file,))
    assert settings.path is not None, "the settings name a path or a preset"
    if not settings.path.startswith(_HUB):
        return None
    given = settings.path.removeprefix(_HUB)
    if not given.startswith(_DATASETS):
        return _PlaceOnHub("model", given, (TOKENIZER_FILE, MODEL_FILE))
    owner, name, file = [*given.removeprefix(_DATASETS).split("/", 2), "", ""][:3]
    if not file.endswith((".json", ".model")):
        raise DataError(f"{settings.path} names no file of a tokenizer", f"write {_HUB}{_DATASETS}OWNER/NAME/FILE, a .json or a .model")
    return _PlaceOnHub("dataset", f"{owner}/{name}", (file,))


def _local_file(settings: TokenizerSettings) -> Path:
    """The file to read; of a folder with both, `tokenizer.json`."""
    assert settings.path is not None, "only called without a repository"
    given = Path(settings.path).expanduser()
    if given.is_dir():
        found = next((given / name for name in (TOKENIZER_FILE, MODEL_FILE) if (given / name).is_file()), None)
        models = sorted(given.glob(f"*{Path(MODEL_FILE).suffix}"))
        if found is None and len(models) == 1:
            return models[0]
        if found is None:
            pickles = [path.name for path in sorted(given.iterdir()) if path.suffix in (".pkl", ".pickle", ".pt", ".bin")]
            reason = f"; {pickles[0]} is not opened: a pickle can run code" if pickles else ""
            raise DataError(f"{given} holds neither {TOKENIZER_FILE} nor {MODEL_FILE}{reason}", _REMEDY)
        _tell_about_code(given / CONFIG_FILE)
        return found
    if given.suffix not in (".json", ".model"):
        why = (
            "a pickle can run code, so it is never opened"
            if given.suffix in (".pkl", ".pickle", ".pt", ".bin")
            else "it is of unknown form"
        )
        raise DataError(f"{given}: {why}", f"give a {TOKENIZER_FILE}, a {MODEL_FILE}, a folder with one, or {_HUB}OWNER/NAME")
    if not given.is_file():
        raise DataError(f"there is no file {given}", "correct tokenizer.path")
    return given


def _download(place: _PlaceOnHub, revision: str) -> Path:
    """The first of the files that the repository has. Nothing else is fetched."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    where = f"{place.repository}@{revision}"
    for name in place.files:
        try:
            return Path(hf_hub_download(place.repository, name, repo_type=place.kind, revision=revision, library_name="fledge"))
        except GatedRepoError as error:
            raise DataError(f"{where} asks to accept its terms", "accept them on its page, then log in: hf auth login") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise DataError(f"{where} is not on the hub, or is private", "check OWNER/NAME and tokenizer.revision") from error
        except EntryNotFoundError as error:
            # Raised without a network too, where the cache has no such file.
            if getattr(error, "response", None) is None:
                raise MachineError(f"{where} is not in the cache, and the hub does not answer", "try again with a network") from error
        except (HfHubHTTPError, OSError) as error:
            raise MachineError(f"the hub does not answer about {where} ({type(error).__name__})", "try again, or give a path") from error
    raise DataError(f"{where} does not hold {' or '.join(place.files)}", _REMEDY)


def _tell_about_code(path: Path) -> None:
    if path.is_file() and isinstance(config := read_json(path, _REMEDY), dict) and "auto_map" in config:
        console.warn(f"{path} names code of its own (auto_map); it is not run")


def _import_model(path: Path, place: str, settings: TokenizerSettings) -> Definition:
    if path.stat().st_size > _MAXIMUM_MODEL_BYTES:
        raise DataError(f"{place} is {path.stat().st_size:,} bytes long, more than a tokenizer can be", _REMEDY)
    model = parse_model(path.read_bytes(), place)
    content = imported_content(model, ())
    definition = _defined(content, settings, place)
    differing = differing_texts(model, definition, _compared_texts())
    allowed = 0 if content["model"]["type"] == "BPE" else int(_ROUNDING_SHARE * COMPARED_TEXTS)
    if len(differing) > allowed:
        raise DataError(f"{place} encodes {differing[0]!r} otherwise in SentencePiece than in `tokenizers`", _REMEDY)
    if differing:
        console.warn(f"{place}: {len(differing)} of {COMPARED_TEXTS:,} texts have other ids in SentencePiece; `tokenizers` decides here")
    _check_round_trip(definition, place)
    return definition


def _content(given: Any, place: str) -> dict[str, Any]:
    try:
        return _understood(given)
    except (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError) as error:
        reason = f"the field {error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{place} is not a tokenizer that can be used: {reason}", _REMEDY) from error


def _import_json(path: Path, place: str, settings: TokenizerSettings) -> Definition:
    given = read_json(path, _REMEDY)
    definition = _defined(_content(given, place), settings, place)
    original = _load_original(given, place)
    body = load_body(definition, place)
    compose = original.normalizer.normalize_str if given.get("normalizer") == _COMPOSING else str
    texts = [compose(text) for text in _compared_texts() if not any(name in text for name in definition.specials)]
    theirs = original.encode_batch(texts, add_special_tokens=False)
    for text, ours, expected in zip(texts, body.encode_batch(texts, add_special_tokens=False), theirs, strict=True):
        if ours.ids != expected.ids:
            raise DataError(f"{place} encodes {text!r} as {expected.ids[:20]}, and as {ours.ids[:20]} without control tokens", _REMEDY)
    _check_round_trip(definition, place)
    return definition


def _understood(given: Mapping[str, Any]) -> dict[str, Any]:
    """The parts that decide the ids, in the form that we write; what adds control tokens around a text is left out."""
    normalizer = None if given.get("normalizer") == _COMPOSING else given.get("normalizer")
    spelling = spelling_of({**given, "normalizer": normalizer})
    model = dict(given["model"])
    listed = sorted(given["added_tokens"], key=lambda token: int(token["id"]))
    pre_tokenizer = given.get("pre_tokenizer")
    if model["type"] == "Unigram":
        entries = {piece for piece, _ in model["vocab"]}
        protection = guard(token["content"] for token in listed if token["content"] in entries)
        steps = [protection] if pre_tokenizer is None else [protection, pre_tokenizer]
        pre_tokenizer = {"type": "Sequence", "pretokenizers": steps}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added_token(token["content"], int(token["id"]), bool(token.get("special"))) for token in listed],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": spelling.decoder,
        "model": model,
    }


def _defined(content: Mapping[str, Any], settings: TokenizerSettings, place: str) -> Definition:
    """The definition, with the control tokens that the recipe adds above its ids. Raises DataError if it is not the preset's."""
    found = checked(content, place, _REMEDY)
    if settings.preset is not None:
        expected = PRESETS[settings.preset]
        specials = {name: found.specials.get(name) for name in expected.specials}
        if len(found.pieces) != expected.vocabulary_size or specials != expected.specials:
            raise DataError(
                f"{place} has {len(found.pieces):,} entries with {specials}, and {settings.preset} is known "
                f"to have {expected.vocabulary_size:,} with {dict(expected.specials)}",
                "set tokenizer.revision to the commit you mean, or import it by tokenizer.path",
            )
    names = [*(SPECIAL_TOKENS[1:3] if settings.turn_tokens else ()), *reserved_names(settings.reserved_tokens)]
    names = [name for name in names if name not in found.specials]
    added = [added_token(name, len(found.pieces) + place) for place, name in enumerate(names)]
    return checked({**content, "added_tokens": [*content["added_tokens"], *added]}, place, _REMEDY)


def _load_original(given: Mapping[str, Any], place: str) -> tokenizers.Tokenizer:
    try:
        original = tokenizers.Tokenizer.from_str(json.dumps(given))
    except Exception as error:  # the library's errors have no type
        raise DataError(f"{place} is not a tokenizer that can be used: {error}", _REMEDY) from error
    original.no_truncation()
    original.no_padding()
    return original


def _compared_texts() -> Iterator[str]:
    yield from PROBES
    yield from generated_texts(COMPARED_TEXTS)


def _check_round_trip(definition: Definition, place: str) -> None:
    """What is encoded must come back; U+2581 alone may come back as the space that SentencePiece writes with it."""
    texts = list(_compared_texts())
    encoded: Sequence[tokenizers.Encoding] = load_body(definition, place).encode_batch_fast(texts, add_special_tokens=False)
    for text, one in zip(texts, encoded, strict=True):
        content = _joined(definition, one.ids)
        expected = text if definition.spelling.space == " " else text.replace(SPACE_MARK, " ")
        if content != (" " * (definition.spelling.prefix_bytes * bool(text)) + expected).encode("utf-8"):
            raise DataError(f"{place} does not give {text!r} back, but {content.decode('utf-8', 'replace')!r}", _REMEDY)


def _joined(definition: Definition, ids: Iterable[int]) -> bytes:
    return b"".join(definition.pieces[token] for token in ids)
