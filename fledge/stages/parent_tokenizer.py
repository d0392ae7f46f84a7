"""Which tokenizer a stage speaks in that starts from a checkpoint: the checkpoint's own, or, of a model that others made, its import.

Every checkpoint of ours carries its tokenizer. A folder of others has a `tokenizer.json` that Fledge reads only through `tokenizer: {kind:
import}`; the token sets know that tokenizer, and it knows the hash of the file that it came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fledge.core import artifact, disk
from fledge.core.artifact import Artifact
from fledge.core.errors import DataError
from fledge.tokens.folder import META_FILE, TOKENIZER_FILE
from fledge.tokens.importing import MODEL_FILE
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer


def open_parent_tokenizer(parent: Artifact | None, tokens: Mapping[str, Artifact]) -> Tokenizer:
    """The tokenizer of a stage that trains `parent` on token sets. Raises DataError if a model of others has another than they have."""
    own = Path(next(iter(tokens.values())).manifest.inputs["tokenizer"].path)
    if parent is None:
        return open_tokenizer(own)
    if (parent.path / META_FILE).is_file():
        return open_tokenizer(parent.path)
    theirs = [disk.digest_file(parent.path / name).sha256 for name in (TOKENIZER_FILE, MODEL_FILE) if (parent.path / name).is_file()]
    imported = artifact.open_artifact(own).stats.get("imported_sha256") if (own / artifact.MANIFEST).is_file() else None
    if imported is None or imported not in theirs:
        raise DataError(
            f"{parent.path} has a tokenizer of its own, and the tokens are of the one in {own}",
            f"import it and pack again: tokenizer: {{kind: import, path: {parent.path}}}, with turn_tokens: true if it has none for turns",
        )
    return open_tokenizer(own)
