"""Where the server listens and what it allows: the one home of its limits. API keys come from the environment (see `keys`)."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from fledge.core.config import operation, settings
from fledge.core.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that mean all of a machine's, each with one by which the machine itself reaches them."""


@settings
class ServerSettings:
    """How the server meets the network."""

    host: str = operation("127.0.0.1")
    """The address to listen on; another than this machine's own needs an API key."""
    port: int = operation(8000)
    """The port to listen on; 0 takes a free one."""
    insecure: bool = operation(False)
    """Listen on other addresses without an API key."""
    allowed_hosts: tuple[str, ...] = operation(())
    """Names in the Host header that are served besides the address and localhost; "*" serves all."""
    cors_origins: tuple[str, ...] = operation(())
    """Origins, like https://example.org, whose pages may ask besides the server's own."""
    log_prompts: bool = operation(False)
    """Write prompts and answers into the log."""
    allow_control_ids: bool = operation(False)
    """Take control tokens in prompts of token ids, besides those that open a document."""

    queued_choices: int = operation(64)
    """Choices that may wait for a slot; more are refused with 429. One client gets at most half of them."""
    choices_per_request: int = operation(32)
    """Prompts times `n` of one request."""
    connections: int = operation(256)
    """Connections at once; more are refused with 503."""
    body_bytes: int = operation(2 << 20)
    """Largest body of a request."""
    header_bytes: int = operation(16 << 10)
    """Names and values of all headers together."""
    target_bytes: int = operation(8 << 10)
    """Longest path with its query."""
    unread_bytes: int = operation(64 << 10)
    """Of an answer, what may wait for a client that reads slowly; with more it is cancelled."""

    read_seconds: float = operation(10.0)
    """Time for the headers of a request, and again for its body."""
    idle_seconds: float = operation(30.0)
    """A connection without a request is closed after this time."""
    request_seconds: float = operation(300.0)
    """Time for a whole answer."""
    drain_seconds: float = operation(30.0)
    """After SIGTERM, time for the answers that are under way."""
    stall_seconds: float = operation(2.0)
    """An engine that has not finished a step for this time makes the server not ready."""
    stuck_seconds: float = operation(120.0)
    """An engine that has not finished a step for this time ends the server."""

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.host:
            raise ValueError("host must be an address; 0.0.0.0 stands for all of this machine's")
        for name in self.allowed_hosts:
            if "/" in name:
                raise ValueError(f"allowed_hosts must hold names without a scheme and a path, not {name!r}")
        for origin in self.cors_origins:
            if origin not in ("*", "null") and not _is_origin(origin):
                raise ValueError(f"cors_origins must hold origins like https://example.org, not {origin!r}")
        if not 0 <= self.port < 1 << 16:
            raise ValueError(f"port must be between 0 and 65535, not {self.port}")
        if 2 * self.choices_per_request > self.queued_choices:
            raise ValueError(f"choices_per_request must be at most half of queued_choices, not {self.choices_per_request}")


_POSITIVE = (
    "queued_choices", "choices_per_request", "connections", "body_bytes", "header_bytes", "target_bytes", "unread_bytes",
    "read_seconds", "idle_seconds", "request_seconds", "drain_seconds", "stall_seconds", "stuck_seconds",
)  # fmt: skip

CHOICES_PER_PROMPT = 8
"""Largest `n`."""
STOP_STRINGS = 4
STOP_STRING_CHARACTERS = 64
TOP_LOGPROBS = 20
"""Most alternatives told with each token."""
MAXIMUM_TEMPERATURE = 2.0
"""As OpenAI has it."""


def _is_origin(text: str) -> bool:
    """Whether a browser could send it as the Origin of a page: a scheme, a name, perhaps a port, and nothing more."""
    try:
        parts = urlsplit(text.rstrip("/"))
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc) and not (parts.path or parts.query or parts.fragment)


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens there."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOOPBACK


def require_safe_address(given: ServerSettings, has_keys: bool) -> None:
    """Refuse to listen where other machines reach a server that asks nobody for a key. Raises ConfigError."""
    if not is_loopback(given.host) and not has_keys and not given.insecure:
        raise ConfigError(
            f"{given.host} can be reached from other machines, and there is no API key",
            "set FLEDGE_API_KEY=SECRET, listen on 127.0.0.1, or give --insecure",
        )
