"""What the server counts, for Prometheus: every label has a fixed set of values, whatever clients send.

A registry of its own per server, so that two servers in one process do not add up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

OTHER = "other"
ENDPOINTS = frozenset({"/v1/models", "/v1/completions", "/v1/chat/completions", "/health/live", "/health/ready", "/metrics"})
Refusal = Literal["queue_full", "draining", "failed", "connections"]

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: Any = {"registry": self.registry, "namespace": "fledge"}
        self.requests = Counter("requests", "Requests answered, by endpoint and status.", ["endpoint", "status"], **made)
        self.request_seconds = Histogram("request_seconds", "Time to the end of an answer.", ["endpoint"], buckets=_SECONDS, **made)
        self.first_token_seconds = Histogram("first_token_seconds", "Time to the first token.", ["model"], buckets=_SECONDS, **made)
        self.choices = Counter("choices", "Choices accepted, to be answered at once or to wait for a slot.", ["model"], **made)
        self.finished = Counter("choices_finished", "Choices ended, by reason.", ["model", "finish"], **made)
        self.tokens = Counter("tokens", "Tokens of prompts and answers.", ["model", "kind"], **made)
        self.refusals = Counter("refusals", "Requests refused because of load or shutdown.", ["reason"], **made)
        self.errors = Counter("internal_errors", "Requests that failed by our own fault.", **made)
        self.open_requests = Gauge("open_requests", "Requests being answered.", **made)
        self.running = Gauge("choices_running", "Choices in a slot.", ["model"], **made)
        self.waiting = Gauge("choices_waiting", "Choices that wait for a slot.", ["model"], **made)
        self.slots = Gauge("slots", "Choices that can be computed at once.", ["model"], **made)

    def watch_model(self, model: str, running: Callable[[], float], waiting: Callable[[], float], slots: int) -> None:
        """Tell these numbers of a model whenever the metrics are read."""
        self.running.labels(model).set_function(running)
        self.waiting.labels(model).set_function(waiting)
        self.slots.labels(model).set(slots)

    def render(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)


def endpoint_label(path: str) -> str:
    """The endpoint of a path, out of a fixed set."""
    if path.startswith("/v1/models/"):
        return "/v1/models"
    return path if path in ENDPOINTS else OTHER
