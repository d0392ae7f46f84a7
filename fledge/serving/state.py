"""What one running server knows: its models, who waits for them, whether it drains or has failed."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence

from fastapi import FastAPI

from fledge.core import console
from fledge.serving.admission import Admission
from fledge.serving.errors import ApiError, internal, unavailable
from fledge.serving.keys import ApiKeys
from fledge.serving.metrics import Metrics
from fledge.serving.served import ServedModel
from fledge.serving.settings import ServerSettings


class ServerState:
    """Used from the event loop only."""

    def __init__(self, settings: ServerSettings, models: Sequence[ServedModel], keys: ApiKeys) -> None:
        self.settings = settings
        self.keys = keys
        self.models = {model.name: model for model in models}
        self.metrics = Metrics()
        self.admissions = {name: Admission(model.engine.load.slots, settings.queued_choices) for name, model in self.models.items()}
        self.draining = False
        """No new answers are begun; those under way are brought to their end."""
        self.failure: str | None = None
        """Why the server cannot go on; set once."""
        self.open_answers: set[Callable[[ApiError], None]] = set()
        """For each answer under way, what ends it with an error."""
        self.open_requests = 0
        for name, admission in self.admissions.items():
            self.metrics.watch_model(
                name,
                running=lambda admission=admission: admission.begun,  # type: ignore[misc]
                waiting=lambda admission=admission: admission.waiting,  # type: ignore[misc]
                slots=self.models[name].engine.load.slots,
            )

    def stalled_seconds(self) -> float:
        """How long the slowest engine has been at its step; 0 while all are idle."""
        return max((model.engine.seconds_since_step for model in self.models.values()), default=0.0)

    def dead_engine(self) -> str | None:
        """The name of a model whose engine has ended."""
        return next((name for name, model in self.models.items() if not model.engine.is_alive), None)

    def require_running(self) -> None:
        """Raises ApiError 503 if no new answer can be begun."""
        if self.failure is not None or self.dead_engine() is not None:
            self.metrics.refusals.labels("failed").inc()
            raise unavailable("The model has stopped working; the server is about to end.", "engine_failed", seconds=30)
        if self.draining:
            self.metrics.refusals.labels("draining").inc()
            raise unavailable("The server is shutting down.", "shutting_down", seconds=5)

    def failed(self, request_id: str) -> ApiError:
        """500, for the exception that is being handled: counted, and told to the log, not to the client."""
        self.metrics.errors.inc()
        console.warn(f"request {request_id} failed: {traceback.format_exc()}")
        return internal(request_id)

    def end_answers(self, error: ApiError) -> None:
        """End everything that is under way with an error that each client is told."""
        for end in tuple(self.open_answers):
            end(error)


def state_of(application: FastAPI) -> ServerState:
    """The state of an application made by `create_application`."""
    state = application.state.fledge
    assert isinstance(state, ServerState)
    return state
