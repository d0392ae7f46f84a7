"""Which names and origins the server answers to, so that no page of another site can drive it through a visitor's browser.

A page that lets its own name point at 127.0.0.1 (DNS rebinding) still sends that name as Host; a page of another origin sends its
Origin. Both are compared with short lists. Behind a proxy that keeps the Host header, the same origin stays the same.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from fledge.serving.settings import LOOPBACK, WILDCARDS, ServerSettings


def served_hosts(settings: ServerSettings, has_keys: bool) -> frozenset[str] | None:
    """Names that a Host header may have, in lower case; None: all.

    All, if the server listens on every address and asks for a key: it cannot know its names, and the key decides there.
    """
    if "*" in settings.allowed_hosts:
        return None
    if settings.host in WILDCARDS and not settings.allowed_hosts and has_keys:
        return None
    own = {settings.host} if settings.host not in WILDCARDS else {socket.gethostname()}
    return frozenset(map(host_name, (*LOOPBACK, *own, *settings.allowed_hosts)))


def host_name(authority: str) -> str:
    """The name in a Host header, without port and brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    if authority.count(":") > 1:
        return authority.lower()  # an address of IPv6 as an option gives it
    return authority.partition(":")[0].lower()


def is_own_origin(origin: str, authority: str) -> bool:
    """Whether a page of `origin` came from the server that was asked as `authority`; the scheme may be a proxy's."""
    try:
        return bool(authority) and urlsplit(origin).netloc.lower() == authority.lower()
    except ValueError:
        return False


def is_allowed_origin(origin: str, allowed: Sequence[str]) -> bool:
    """Whether `--cors-origin` names it; a `*` there names all."""
    return "*" in allowed or origin.rstrip("/").lower() in {name.rstrip("/").lower() for name in allowed}
