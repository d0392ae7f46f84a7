"""Which tokenizer a stage speaks in that starts from a checkpoint: that of the tokens, if it is the checkpoint's but for the template.

Every checkpoint of ours carries its tokenizer, and a stage whose tokens are of another is refused later. A folder of others has a
`tokenizer.json` that Fledge reads only through `tokenizer: {kind: import}`; the token sets know that tokenizer, and it knows the hash of
the file that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fledge.core import artifact, disk
from fledge.core.artifact import Artifact
from fledge.core.errors import DataError
from fledge.tokens.definition import read_json
from fledge.tokens.folder import META_FILE, TOKENIZER_FILE
from fledge.tokens.importing import MODEL_FILE
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer


def open_parent_tokenizer(parent: Artifact | None, tokens: Mapping[str, Artifact]) -> Tokenizer:
    """The tokenizer of a stage that trains `parent` on token sets. Raises DataError if a model of others has another than they have."""
    own = Path(next(iter(tokens.values())).manifest.inputs["tokenizer"].path)
    if parent is None:
        return open_tokenizer(own)
    if (parent.path / META_FILE).is_file():
        theirs_now, ours = open_tokenizer(parent.path), open_tokenizer(own)
        # The same ids may be written by another template from now on: that of the tokens is the one to go on with.
        return ours if ours.sha256 == theirs_now.sha256 else theirs_now
    theirs = [disk.digest_file(parent.path / name).sha256 for name in (TOKENIZER_FILE, MODEL_FILE) if (parent.path / name).is_file()]
    imported = artifact.open_artifact(own).stats.get("imported_sha256") if (own / artifact.MANIFEST).is_file() else None
    if imported is None or imported not in theirs:
        raise DataError(
            f"{parent.path} has a tokenizer of its own, and the tokens are of the one in {own}",
            f"import it and pack again: tokenizer: {{kind: import, path: {parent.path}}}, with turn_tokens: true if it has none for turns",
        )
    return open_tokenizer(own)


def new_tokens(parent: Path, tokenizer: Tokenizer, rows: int) -> list[str]:
    """Control tokens that a model of others has not learned: those above its `rows` of the vocabulary, and those its tokenizer lacks."""
    path = parent / TOKENIZER_FILE
    known = _names(path) if path.is_file() and not (parent / META_FILE).is_file() else set(tokenizer.specials)
    return [name for name, number in tokenizer.specials.items() if number >= rows or name not in known]


def _names(path: Path) -> set[str]:
    """All entries of a `tokenizer.json`."""
    content = read_json(path)
    vocabulary = content["model"]["vocab"]
    names = vocabulary if isinstance(vocabulary, dict) else (entry[0] for entry in vocabulary)
    return {*names, *(token["content"] for token in content.get("added_tokens", ()))}
