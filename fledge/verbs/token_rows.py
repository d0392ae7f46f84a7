"""`fledge inspect`: rows of a token set as the model sees them, id by id, with documents, loss mask and padding."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

from fledge.core import artifact, console
from fledge.core.errors import ArtifactError, ConfigError
from fledge.corpus.document import Split
from fledge.stages import CONTENT_OF
from fledge.stages.run import RUNS, smoke_name
from fledge.tokens.inspection import STREAM_ROW_TOKENS, Piece, Stretch, find_document, find_row
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer, require_same_tokenizer

_BACKGROUNDS = ("#1b2126 on #cfe3f5", "#1b2126 on #f7e2bd")
_UNLEARNED = ("#8a949d on #262d33", "#8a949d on #343d45")
_CONTROL = "bold #ffffff on #97467f"
_FOLDED_FROM = 4
"""So many equal control tokens in a row, as padding is, are written once with their number."""
_NOT_LEARNED, _LEARNED = "[-]", "[+]"


RECIPE_SUFFIXES = (".yaml", ".yml", ".json")


def inspect(place: str, stage: str | None, split: Split, row: int | None, document: str | None, small: bool) -> None:
    """Print a row, or all of a document, of each token set at `place`, or of the one that a stage trains on: its folder, a run, a recipe.

    Raises ArtifactError if there is none, ConfigError if they have no such row or document, DataError if they are damaged.
    """
    if row is not None and document is not None:
        raise ConfigError("--row and --document cannot be had at once", "give one of them")
    if Path(place).suffix in RECIPE_SUFFIXES:
        place = Path(place).stem
    folders = _token_folders(smoke_name(place) if small else place, stage)
    shown, problem = 0, None
    for folder in folders:
        found = artifact.open_artifact(folder, "tokens")
        token_set, tokenizer = open_token_set(folder), open_tokenizer(found.manifest.inputs["tokenizer"].path)
        require_same_tokenizer(token_set.tokenizer_sha256, tokenizer.sha256, str(folder))
        try:
            stretches = _find(token_set, split, row or 0, document)
        except ConfigError as error:
            problem = error
            continue
        for stretch in stretches:
            _print(token_set, stretch, tokenizer, split, None if document is not None else row or 0)
            shown += 1
    if problem is not None and not shown:
        raise problem


def _find(token_set: TokenSet, split: Split, row: int, document: str | None) -> list[Stretch]:
    shards = token_set.shards(split)
    if not shards:
        raise ConfigError(f"{token_set.folder} holds nothing of the split {split}", "look at the other --split")
    return [find_row(shards, token_set.row_tokens, row)] if document is None else find_document(shards, document)


def _print(token_set: TokenSet, stretch: Stretch, tokenizer: Tokenizer, split: Split, row: int | None) -> None:
    pieces = stretch.pieces(tokenizer)
    for line in _header(token_set, stretch, pieces, split, row):
        console.say(line)
    names = _names(stretch)
    masked = token_set.row_tokens is not None
    colour = console.has_colour()
    for number, part in enumerate(_documents(pieces)):
        if part[0].starts_document:
            console.say(f"-- {next(names)}")
        elif number == 0:
            console.say(f"-- {next(names)} (goes on from before)")
        console.say_styled(list(_coloured(part)) if colour else [(_plain(part, masked), "")])


def _header(token_set: TokenSet, stretch: Stretch, pieces: Sequence[Piece], split: Split, row: int | None) -> Iterator[str]:
    where = f"row {row:,}" if row is not None else "document"
    learned = sum(piece.supervised for piece in pieces)
    yield f"{token_set.folder}  {split} {token_set.content}, {where} of source {stretch.shard.source}"
    span, documents = f"tokens {stretch.start:,} to {stretch.end:,}", len(stretch.documents)
    yield f"    {span}, {learned:,} of {len(pieces):,} in the loss, documents: {documents}"
    if token_set.row_tokens is None:
        if row is not None:
            yield f"    a continuous stream, cut here every {STREAM_ROW_TOKENS} tokens"
    elif not console.has_colour():
        yield f"    {_LEARNED} in the loss, {_NOT_LEARNED} not"
    yield f"    ids {' '.join(str(piece.id) for piece in pieces[:8])}{' ...' if len(pieces) > 8 else ''}"


def _names(stretch: Stretch) -> Iterator[str]:
    """What each document here is called; an answer or a part of a document with which one it is."""
    shard = stretch.shard
    for number in stretch.documents:
        name = str(shard.document_ids[int(number)].as_py())
        if shard.content == "preferences":
            yield f"{name}, {'rejected' if number % 2 else 'chosen'}"
        else:
            part = int(shard.parts[number])
            yield f"{name}, part {part}" if part else name


def _documents(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """The pieces, cut in front of each that starts a document."""
    part: list[Piece] = []
    for piece in pieces:
        if piece.starts_document and part:
            yield part
            part = []
        part.append(piece)
    if part:
        yield part


def _folded(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, str]]:
    """Each piece with what is written for it."""
    for (_, is_control), group in itertools.groupby(pieces, key=lambda piece: (piece.id, piece.is_control)):
        equal = list(group)
        if is_control and len(equal) >= _FOLDED_FROM:
            yield equal[0], f"{equal[0].text} x {len(equal)}"
        else:
            yield from ((piece, _with_line_ends(piece.text)) for piece in equal)


def _with_line_ends(text: str) -> str:
    return text.replace("\t", "\\t").replace("\n", "\\n\n")


def _plain(pieces: Sequence[Piece], masked: bool) -> str:
    """Pieces between bars; where the loss begins or ends, a mark."""
    written = []
    before: bool | None = None
    for piece, text in _folded(pieces):
        mark = (_LEARNED if piece.supervised else _NOT_LEARNED) if masked and piece.supervised != before else ""
        before = piece.supervised
        written.append(f"{mark}|{text}")
    return "".join(written) + "|"


def _coloured(pieces: Sequence[Piece]) -> Iterator[tuple[str, str]]:
    """Backgrounds alternate, so that borders show; what the loss leaves out is dim."""
    for number, (piece, text) in enumerate(_folded(pieces)):
        shades = _BACKGROUNDS if piece.supervised else _UNLEARNED
        yield text, f"{_CONTROL}{'' if piece.supervised else ' dim'}" if piece.is_control else shades[number % 2]


def _token_folders(place: str, stage: str | None) -> list[Path]:
    folder = Path(place) if Path(place).is_dir() else RUNS / place
    candidates = [folder, *sorted((folder / "pack").glob("*")), *sorted(folder.glob("*"))]
    found = [path for path in candidates if (path / artifact.MANIFEST).is_file() and (path / "tokens.json").is_file()]
    if stage is not None:
        found = [path for path in found if open_token_set(path).content == CONTENT_OF[stage]]
    if not found:
        of_stage = "" if stage is None else f" that {stage} trains on"
        raise ArtifactError(
            f"{folder} holds no token set{of_stage}", "name the folder of one, like runs/NAME/pack/documents, or a run that packed"
        )
    return found
