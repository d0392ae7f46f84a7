"""GET /v1/models: what can be asked for. Models come and go with the server; none is loaded or dropped by a request."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from fledge.serving.errors import json_response
from fledge.serving.parameters import find_model
from fledge.serving.served import ServedModel
from fledge.serving.state import ServerState


def models_router(state: ServerState) -> APIRouter:
    """The list, and one of it by name."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": [_card(model) for model in state.models.values()]})

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        return json_response(_card(find_model(name, state)))

    return router


def _card(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created_unix_seconds,
        "owned_by": "fledge",
        "max_model_len": model.context_tokens,
    }
