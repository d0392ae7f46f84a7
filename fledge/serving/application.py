"""The server as one application: a gate in front, health, metrics, OpenAI's routes if there are models, and the pages it is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from fledge.serving.chat import chat_router
from fledge.serving.completions import completions_router
from fledge.serving.errors import ApiError, bad_request
from fledge.serving.gate import Gate
from fledge.serving.health import health_router
from fledge.serving.keys import ApiKeys
from fledge.serving.models import models_router
from fledge.serving.served import ServedModel
from fledge.serving.settings import ServerSettings
from fledge.serving.state import ServerState

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def create_application(
    settings: ServerSettings,
    models: Sequence[ServedModel] = (),
    routers: Sequence[APIRouter] = (),
    public_routers: Sequence[APIRouter] = (),
    keys: ApiKeys | None = None,
) -> FastAPI:
    """The application; `public_routers` (pages and their files) need no key, `routers` do.

    `keys`: those that are accepted; None: the ones in the environment.
    """
    state = ServerState(settings, models, ApiKeys.from_environment() if keys is None else keys)
    application = FastAPI(title="Fledge", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    application.state.fledge = state
    open_to_all = [health_router(state), *public_routers]
    answering = [models_router(state), completions_router(state), chat_router(state)] if models else []
    for router in (*open_to_all, _metrics_router(state), *answering, *routers):
        application.include_router(router)
    application.add_exception_handler(ApiError, _tell_api_error)
    application.add_exception_handler(HTTPException, _tell_http_error)
    application.add_exception_handler(RequestValidationError, _tell_validation_error)
    application.add_middleware(Gate, state=state, is_public=_matcher(open_to_all))
    return application


def _metrics_router(state: ServerState) -> APIRouter:
    router = APIRouter()

    @router.get("/metrics")
    async def metrics() -> Response:
        state.metrics.open_requests.set(state.open_requests - 1)  # without this one
        return Response(state.metrics.render(), media_type=METRICS_TYPE)

    return router


def _matcher(routers: Sequence[APIRouter]) -> Callable[[Scope], bool]:
    routes = [route for router in routers for route in router.routes]
    return lambda scope: any(route.matches(scope)[0] is Match.FULL for route in routes)


async def _tell_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _tell_http_error(request: Request, error: Exception) -> Response:
    """Starlette's own: no such route, no such method."""
    assert isinstance(error, HTTPException)
    message = "There is no such address here." if error.status_code == 404 else str(error.detail)
    return ApiError(error.status_code, message, None, None, error.headers).response()


async def _tell_validation_error(request: Request, error: Exception) -> Response:
    """FastAPI's own, which it would answer with 422."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return bad_request(str(first["msg"]), ".".join(map(str, first["loc"][1:])) or None).response()
