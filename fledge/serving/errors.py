"""What a client is told when its request cannot be served: OpenAI's form, `{"error": {message, type, param, code}}`.

A message names the parameter and what it may be, never a path, a traceback or a prompt. What clients send is shown shortened.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response

_SHOWN_CHARACTERS = 60
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxlong = _SHORT.maxother = _SHOWN_CHARACTERS


class ApiError(Exception):
    """A request that ends with an HTTP status of 400 or above."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        remedy: str | None = None,
    ) -> None:
        """`remedy`: what to do, where the message is one of ours for users; a field of its own beside OpenAI's."""
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})
        self.remedy = remedy

    @property
    def body(self) -> dict[str, Any]:
        """As it is sent."""
        kind = "server_error" if self.status >= 500 else "rate_limit_error" if self.status == 429 else "invalid_request_error"
        remedy = {} if self.remedy is None else {"remedy": self.remedy}
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code, **remedy}}

    def response(self) -> Response:
        """The whole answer to a request that ended so."""
        return json_response(self.body, self.status, self.headers)


def json_response(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(orjson.dumps(content), status, headers, media_type="application/json")


def bad_request(message: str, param: str | None, code: str | None = None) -> ApiError:
    """400: the request itself must change."""
    return ApiError(400, message, param, code)


def too_long(found: str, context_tokens: int, param: str) -> ApiError:
    """400: prompt and answer do not fit into the model's context; `found` says how much there is."""
    return bad_request(
        f"This model's maximum context length is {context_tokens} tokens; this request has {found}. Shorten it.",
        param,
        "context_length_exceeded",
    )


def unavailable(message: str, code: str, seconds: int = 1) -> ApiError:
    """503: not now, because of the server."""
    return ApiError(503, message, None, code, {"Retry-After": str(seconds)})


def internal(request_id: str) -> ApiError:
    """500: our own bug; the log has it under the id of the request."""
    return ApiError(500, f"The server failed to answer this request; its log has more under {request_id}.", None, "internal_error")


def shown(value: object) -> str:
    """A value of a client's as it may stand in a message."""
    text = _SHORT.repr(value)  # not all of it: a list may be as long as the body
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."
