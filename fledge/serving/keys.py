"""Who may ask: API keys, known by their SHA-256 only, so that no log, error or dump of a variable can show one."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Iterable

from fledge.core.errors import ConfigError

VARIABLE = "FLEDGE_API_KEY"
"""The environment variable that holds the keys, separated by commas."""

_SCHEME = "bearer"


class ApiKeys:
    """The keys a server accepts; none: it asks nobody for one."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        self._digests = tuple(_digest(key) for key in keys)

    @classmethod
    def from_environment(cls) -> ApiKeys:
        """Those in FLEDGE_API_KEY. Raises ConfigError for one that no client could send in a header."""
        given = os.environ.get(VARIABLE, "")
        if not (given.isascii() and given.isprintable()):
            raise ConfigError(f"a key in {VARIABLE} holds a character that no header can carry", "use letters, digits and signs of ASCII")
        return cls(key for part in given.split(",") if (key := part.strip()))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holder(self, authorization: str | None) -> str | None:
        """A name for the holder of the key in an Authorization header; None: it has no key of ours.

        All keys are compared, each in constant time, so the time tells nothing about any of them.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip(" "))
        matches = [hmac.compare_digest(given, digest) for digest in self._digests]
        return f"key {matches.index(True)}" if scheme.lower() == _SCHEME and any(matches) else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
