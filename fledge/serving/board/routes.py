"""The board's routes, all below `/board`. Plain functions: Starlette runs them in threads, so reading files holds up no answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticSerializationError, to_json
from starlette.responses import Response

from fledge.core.errors import FledgeError
from fledge.core.metrics import METRICS
from fledge.serving.board import details
from fledge.serving.board.comparison import MOST_RUNS, compare
from fledge.serving.board.curves import read_curves
from fledge.serving.board.folders import RunFolder, Runs
from fledge.serving.board.launching import AskedRun, Launcher
from fledge.serving.board.status import listed_status, status_of
from fledge.serving.errors import ApiError

T = TypeVar("T")

_MOST_LEVELS = 100
"""Of lists in lists that are shown of a value that is not ours."""


class AskedBody(BaseModel):
    """The body of a request to plan or start a run."""

    model_config = ConfigDict(extra="forbid", strict=True)

    recipe: Annotated[str, Field(max_length=200)]
    changes: Annotated[dict[Annotated[str, Field(max_length=200)], Annotated[str, Field(max_length=20_000)]], Field(max_length=500)] = {}
    name: Annotated[str | None, Field(max_length=100)] = None
    smoke: bool = False
    last_stage: Annotated[str | None, Field(max_length=20)] = None

    def asked(self) -> AskedRun:
        return AskedRun(self.recipe, dict(self.changes), self.name or None, self.smoke, self.last_stage or None)


class RunBody(BaseModel):
    """The body of a request about a run that was started from here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    run: Annotated[str, Field(max_length=200)]


def board_router(folder: Path, stages: Sequence[str], launcher: Launcher | None = None) -> APIRouter:
    """Routes over the runs in `folder`; `stages` are the names of all stages in their order. Without a launcher nothing can be started."""
    runs = Runs(folder, tuple(stages))
    router = APIRouter(prefix="/board")
    _add_looking(router, runs, can_start=launcher is not None)
    if launcher is not None:
        _add_starting(router, launcher)
    return router


def _add_looking(router: APIRouter, runs: Runs, can_start: bool) -> None:
    @router.get("/runs")
    def list_runs() -> Response:
        return _json({"folder": str(runs.folder), "can_start": can_start, "runs": [asdict(listed_status(run)) for run in runs.all()]})

    @router.get("/runs/{name}")
    def show_run(name: str) -> Response:
        run = runs.named(name)
        trained = [details.stage_facts(run, stage) for stage in run.trained()]
        return _json({**asdict(status_of(run)), "training": trained, "other": _other_stages(run)})

    @router.get("/runs/{name}/status")
    def show_status(name: str) -> Response:
        return _json(asdict(status_of(runs.named(name))))

    @router.get("/runs/{name}/stages/{stage}/curves")
    def show_curves(name: str, stage: str, cursor: Annotated[str | None, Query(max_length=50)] = None) -> Response:
        run, known = runs.stage(name, stage)
        curves = read_curves(run.file(known, METRICS), cursor)
        series = {metric: thinned.points() for metric, thinned in curves.series.items()}
        return _json({**{key: value for key, value in vars(curves).items() if key != "series"}, "series": series})

    @router.get("/runs/{name}/stages/{stage}/facts")
    def show_stage(name: str, stage: str) -> Response:
        return _json(details.stage_facts(*runs.stage(name, stage)))

    @router.get("/runs/{name}/stages/{stage}/samples")
    def show_samples(name: str, stage: str) -> Response:
        return _json({"samples": details.samples(*runs.stage(name, stage))})

    @router.get("/runs/{name}/evaluations")
    def show_evaluations(name: str) -> Response:
        return _json(details.evaluations(runs.named(name)))

    @router.get("/runs/{name}/lineage")
    def show_lineage(name: str) -> Response:
        return _json(details.lineage(runs.named(name)))

    @router.get("/runs/{name}/cards")
    def show_cards(name: str) -> Response:
        return _json({"cards": details.cards(runs.named(name))})

    @router.get("/runs/{name}/config")
    def show_config(name: str) -> Response:
        return _json({"rows": details.config(runs.named(name))})

    @router.get("/compare")
    def show_comparison(run: Annotated[list[str], Query(min_length=2, max_length=MOST_RUNS)]) -> Response:
        return _json(compare([runs.named(name) for name in dict.fromkeys(run)]))


def _other_stages(run: RunFolder) -> list[dict[str, Any]]:
    """What a stage that does not train came to, in a line."""
    rows = []
    for place, made in run.artifacts().items():
        if place not in run.trained():
            stats = made.manifest.stats
            rows.append({"place": place, "outcome": str(stats.get("outcome", "")), "seconds": stats.get("seconds")})
    return rows


def _add_starting(router: APIRouter, launcher: Launcher) -> None:
    @router.get("/recipes")
    def list_recipes() -> Response:
        return _json({"recipes": _told(launcher.recipes)})

    @router.post("/form")
    def show_form(body: AskedBody) -> Response:
        return _json(_told(lambda: launcher.form(body.asked())))

    @router.post("/plan")
    def show_plan(body: AskedBody) -> Response:
        return _json(_told(lambda: launcher.plan(body.asked())))

    @router.post("/start")
    def start(body: AskedBody) -> Response:
        return _json(_told(lambda: launcher.start(body.asked())))

    @router.get("/started")
    def list_started() -> Response:
        return _json({"started": _told(launcher.started)})

    @router.post("/stop")
    def stop(body: RunBody) -> Response:
        _told(lambda: launcher.stop(body.run))
        return _json({})


def _told(call: Callable[[], T]) -> T:
    """What a launcher answers; its errors are the user's to mend, so they are told whole. Raises ApiError (400)."""
    try:
        return call()
    except FledgeError as error:
        raise ApiError(400, error.problem, None, "refused", remedy=error.remedy) from error


def _json(content: dict[str, Any]) -> Response:
    """The answer; what is not finite is null. Names and files of others may hold what cannot be written as it is."""
    try:
        written = to_json(content, inf_nan_mode="null")
    except PydanticSerializationError:
        written = to_json(_writable(content), inf_nan_mode="null")
    return Response(written, media_type="application/json")


def _writable(value: Any, levels: int = _MOST_LEVELS) -> Any:
    """With a ? for each half of a character (a lone surrogate), and cut where it is too deep."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if levels == 0:
        return "..."
    if isinstance(value, dict):
        return {_writable(name): _writable(one, levels - 1) for name, one in value.items()}
    return [_writable(one, levels - 1) for one in value] if isinstance(value, (list, tuple)) else value
