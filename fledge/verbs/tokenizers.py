"""`fledge tokenizer` beside its main work: comparing tokenizers, and encoding and decoding with one of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from fledge.core import console, disk
from fledge.core.errors import ArtifactError, CheckpointError, ConfigError, DataError
from fledge.stages.run import RUNS, smoke_name
from fledge.tokens.comparison import measure
from fledge.tokens.comparison_page import COLUMNS, SOURCE_CAPTION, comparison_page, longest_rows, source_rows, table_rows
from fledge.tokens.folder import TOKENIZER_FILE
from fledge.tokens.inspection import require_known
from fledge.tokens.packing import in_batches
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer
from fledge.verbs.comparison_text import given_text, held_out_text, python_text

T = TypeVar("T")


@dataclass(frozen=True)
class Use:
    """What `fledge tokenizer` is asked for beside training, as the options say it."""

    compare: bool = False
    encode: str | None = None
    decode: str | None = None
    encode_file: Path | None = None
    decode_file: Path | None = None
    text: tuple[str, ...] = ()
    json: Path | None = None
    picture: Path | None = None
    output: Path | None = None

    @property
    def asked(self) -> str | None:
        """The option that names what is to be done; None: a tokenizer is to be trained. Raises ConfigError for contradictions."""
        named = [_option(name) for name in _ACTIONS if getattr(self, name) not in (None, False)]
        if len(named) > 1:
            raise ConfigError(f"{' and '.join(named)} cannot be had at once", "give one of them")
        action = named[0] if named else None
        for name, actions in _BELONGS_TO.items():
            if getattr(self, name) not in (None, ()) and action not in actions:
                raise ConfigError(f"{_option(name)} means nothing without {' or '.join(actions)}", "give both, or neither")
        if action in _BELONGS_TO["output"] and self.output is None:
            raise ConfigError(f"{action} needs to know where to write", "add --output FILE.jsonl")
        return action


_ACTIONS = ("compare", "encode", "decode", "encode_file", "decode_file")
_BELONGS_TO = {
    "text": ("--compare",),
    "json": ("--compare",),
    "picture": ("--compare",),
    "output": ("--encode-file", "--decode-file"),
}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def use_tokenizers(use: Use, places: Sequence[str], small: bool) -> None:
    """Do what `use` asks for with the tokenizers at these places. Raises ConfigError if there are too few or too many of them."""
    if use.asked == "--compare":
        compare(places, use.text, use.json, use.picture, small)
        return
    if len(places) != 1:
        raise ConfigError(f"{use.asked} works with one tokenizer, not {len(places)}", "name a tokenizer's folder, a run or a checkpoint")
    if use.encode is not None:
        encode(places[0], use.encode, small)
    elif use.decode is not None:
        decode(places[0], use.decode, small)
    elif use.encode_file is not None and use.output is not None:
        encode_file(places[0], use.encode_file, use.output, small)
    elif use.decode_file is not None and use.output is not None:
        decode_file(places[0], use.decode_file, use.output, small)


def compare(places: Sequence[str], text_paths: Sequence[str], json_file: Path | None, picture: Path | None, small: bool) -> None:
    """Print the figures of tokenizers on one text, the first being what the others are measured against.

    Raises ConfigError, DataError or ArtifactError for a place without a tokenizer, or text that cannot be read.
    """
    if len(places) < 2:
        raise ConfigError("one tokenizer has nothing to be compared with", "name two or more: fledge tokenizer --compare A B")
    folders = [tokenizer_folder(place, small) for place in places]
    tokenizers = [open_tokenizer(folder) for folder in folders]
    text = given_text(text_paths) if text_paths else held_out_text(folders) or python_text()
    figures = []
    for name, tokenizer in zip(places, tokenizers, strict=True):
        console.info(f"{name}: encoding {text.description}")
        tokenizer.choose_engine([passage for given in text.sources.values() for passage in given])
        figures.append(measure(name, tokenizer, text.sources))
    console.table(f"tokenizers on {text.description}", COLUMNS, table_rows(figures))
    if len(text.sources) > 1:
        console.table(SOURCE_CAPTION, ["source", *places], source_rows(figures))
    console.table("longest tokens", ["", *places], longest_rows(figures))
    if json_file is not None:
        told = {"text": text.description, "tokenizers": [one.as_json(figures[0]) for one in figures]}
        disk.write_json(json_file, told)
        console.say(f"figures: {json_file.resolve()}")
    if picture is not None:
        disk.write_text(picture, comparison_page(figures, text.description))
        console.say(f"picture: {picture.resolve()}")


def encode(place: str, text: str, small: bool) -> None:
    """Print the ids of a text as one line of JSON. Raises DataError for text that is not valid Unicode."""
    console.say(json.dumps(open_tokenizer(tokenizer_folder(place, small)).encode(text)))


def decode(place: str, ids: str, small: bool) -> None:
    """Print the text of ids, `1,2,3` or `[1, 2, 3]`; control tokens by their names.

    Raises ConfigError for what is no list of ids, DataError for an id outside the vocabulary.
    """
    tokenizer = open_tokenizer(tokenizer_folder(place, small))
    try:
        tokens = [int(token) for token in ids.strip().removeprefix("[").removesuffix("]").split(",") if token.strip()]
    except ValueError as error:
        raise ConfigError(f"{ids!r} is no list of ids", "write whole numbers with commas between them: --decode 1,2,3") from error
    require_known(tokens, tokenizer)
    console.say(tokenizer.decode(tokens, keep_special=True))


def encode_file(place: str, source: Path, output: Path, small: bool) -> None:
    """A text a line in, a JSON list of ids a line out. Of a `.jsonl` each line is a string, or an object with a `text`.

    Raises DataError naming the line that is not UTF-8, or holds no text.
    """
    tokenizer = open_tokenizer(tokenizer_folder(place, small))
    read = _json_text if source.name.lower().endswith(".jsonl") else _plain_text

    def lines() -> Iterator[bytes]:
        for texts in in_batches(_parsed(source, read)):
            encoded = tokenizer.encode_arrays(texts)
            yield from (json.dumps(encoded[place].tolist()).encode() + b"\n" for place in range(len(encoded)))

    _write_lines(source, output, lines())


def decode_file(place: str, source: Path, output: Path, small: bool) -> None:
    """A JSON list of ids a line in, a JSON string a line out. Raises DataError naming the line that is none, or has an unknown id."""
    tokenizer = open_tokenizer(tokenizer_folder(place, small))
    texts = (tokenizer.decode(ids, keep_special=True) for ids in _parsed(source, lambda line: _json_ids(line, tokenizer)))
    _write_lines(source, output, (json.dumps(text, ensure_ascii=False).encode("utf-8") + b"\n" for text in texts))


def tokenizer_folder(place: str, small: bool) -> Path:
    """The folder with the tokenizer of a place: itself, a run's, or a checkpoint's. Raises ArtifactError if there is none."""
    place = smoke_name(place) if small else place
    folder = Path(place) if Path(place).is_dir() else RUNS / place
    for candidate in (folder, folder / "tokenizer"):
        if (candidate / TOKENIZER_FILE).is_file():
            return candidate
    # Here, because checkpoints bring torch.
    from fledge.stages.checkpoint_names import find_checkpoint

    try:
        found = find_checkpoint(place)
    except CheckpointError as error:
        raise ArtifactError(f"{place} holds no tokenizer ({error.problem})", "name a tokenizer's folder, a run or a checkpoint") from error
    return found


def _parsed(source: Path, parse: Callable[[bytes], T]) -> Iterator[T]:
    """Every line of a file. Raises DataError naming the line that `parse` refuses with a ValueError."""
    try:
        with source.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield parse(line.removesuffix(b"\n").removesuffix(b"\r"))
                except UnicodeDecodeError as error:
                    raise DataError(f"{source}, line {number}: not UTF-8 (byte {error.start})", "convert the file to UTF-8") from error
                except ValueError as error:
                    raise DataError(f"{source}, line {number}: {error}", "mend the line") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}", "name a file that can be read") from error


def _plain_text(line: bytes) -> str:
    return line.decode("utf-8")


def _json_text(line: bytes) -> str:
    value = json.loads(line.decode("utf-8"))
    text = value.get("text") if isinstance(value, dict) else value
    if not isinstance(text, str):
        raise ValueError("neither a JSON string nor an object with a string as `text`")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("not valid Unicode: half of a UTF-16 pair")
    return text


def _json_ids(line: bytes, tokenizer: Tokenizer) -> list[int]:
    ids = json.loads(line.decode("utf-8"))
    if not isinstance(ids, list) or any(type(token) is not int for token in ids):
        raise ValueError("no JSON list of whole numbers")
    try:
        require_known(ids, tokenizer)
    except DataError as error:
        raise ValueError(error.problem) from error
    return ids


def _write_lines(source: Path, output: Path, lines: Iterable[bytes]) -> None:
    if not source.is_file():
        raise DataError(f"there is no file {source}", "name a file with a text, or a list of ids, on each line")
    if output.exists() and output.samefile(source):
        raise ConfigError(f"--output {output} is the file that is read", "write to another file")
    written = disk.write_bytes(output, lines)
    console.say(f"{output}: {console.format_bytes(written.size_bytes)}")
