"""Bodies of requests: read up to a limit and a time, and parsed more strictly than JSON asks for.

Refused besides what is no JSON: NaN and Infinity, lone surrogates, keys given twice (which programs on the way might read
differently), nesting and numbers that only an attack needs.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
from starlette.requests import Request
from starlette.types import Receive

from fledge.serving.errors import ApiError, bad_request
from fledge.serving.settings import ServerSettings

MOST_VALUES = 1 << 17
"""Of a body, counted before it is parsed as its commas and opening brackets, those in texts as well: 2 MiB of `{"a":1},` take 0.4 s."""


class ClientLeft(Exception):
    """The client closed the connection before its request was answered; nobody is there to be told."""


async def read_body(receive: Receive, settings: ServerSettings) -> bytes:
    """The whole body, however its length was declared. Raises ApiError 413 or 408, and ClientLeft."""
    content = bytearray()
    try:
        async with asyncio.timeout(settings.read_seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientLeft
                content += message.get("body", b"")
                if len(content) > settings.body_bytes:
                    raise body_too_large(settings)
                if not message.get("more_body", False):
                    return bytes(content)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {settings.read_seconds:g} seconds.", None, "request_timeout") from None


def body_too_large(settings: ServerSettings) -> ApiError:
    """413."""
    return ApiError(413, f"The body is larger than {settings.body_bytes} bytes.", None, "body_too_large")


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object of a body, parsed in a thread, since the largest takes a tenth of a second. Raises ApiError 400 and 413."""
    return await asyncio.to_thread(parse_object, await request.body())


def parse_object(content: bytes) -> dict[str, Any]:
    """The JSON object of a body. Raises ApiError 400 and 413."""
    if sum(map(content.count, (b",", b"[", b"{"))) > MOST_VALUES:
        raise ApiError(413, f"The body holds more than {MOST_VALUES:,} values (commas and opening brackets).", None, "body_too_large")
    try:
        orjson.loads(content)  # the strict one: UTF-8, surrogates, NaN, at most 1,024 levels
        value = json.loads(content, object_pairs_hook=_without_duplicates)  # the one that sees keys twice, and integers of any size
    except (ValueError, RecursionError) as error:
        if isinstance(error, _DuplicateKey):
            raise bad_request(f"The key {error.key[:64]!r} is given twice.", error.key[:64], "invalid_json") from None
        raise bad_request("The body is not valid JSON.", None, "invalid_json") from None
    if not isinstance(value, dict):
        raise bad_request("The body must be a JSON object.", None, "invalid_json")
    return value


class _DuplicateKey(ValueError):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _DuplicateKey(key)
        found[key] = value
    return found
