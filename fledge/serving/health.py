"""Whether the server lives and whether it can answer: two questions with two consequences, a restart and no more requests.

/health/live    503: an engine has ended or is stuck; whoever supervises the process should start it again
/health/ready   503: also while the server drains, or an engine has not finished a step for two seconds
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from fledge.serving.errors import json_response
from fledge.serving.state import ServerState


def health_router(state: ServerState) -> APIRouter:
    """Both routes; they need no key."""
    router = APIRouter()

    @router.get("/health/live")
    async def live() -> Response:
        return _answer(not_live(state))

    @router.get("/health/ready")
    async def ready() -> Response:
        return _answer(not_ready(state))

    return router


def not_live(state: ServerState) -> str | None:
    """Why the server cannot go on; None: it can."""
    if state.failure is not None:
        return state.failure
    if (name := state.dead_engine()) is not None:
        return f"the engine of {name} has ended"
    if (seconds := state.stalled_seconds()) > state.settings.stuck_seconds:
        return f"an engine has been at one step for {seconds:.0f} seconds"
    return None


def not_ready(state: ServerState) -> str | None:
    """Why no request should be sent now; None: it should."""
    if (reason := not_live(state)) is not None:
        return reason
    if state.draining:
        return "the server is shutting down"
    if (seconds := state.stalled_seconds()) > state.settings.stall_seconds:
        return f"an engine has been at one step for {seconds:.0f} seconds"
    return None


def _answer(reason: str | None) -> Response:
    headers = {"Cache-Control": "no-store"}
    if reason is None:
        return json_response({"status": "ok"}, headers=headers)
    return json_response({"status": "unavailable", "reason": reason}, 503, headers)
