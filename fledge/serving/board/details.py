"""What a run is made of and what came out, for its page: phases, mixture, samples, evaluations, what came from what, data cards, config.

Everything is read off the files of the run by the functions that the report uses; a part that is missing or damaged is empty here, because
a page that looks on must not end where a run is in the middle of writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fledge.core import artifact
from fledge.core.artifact import Artifact, Input
from fledge.core.errors import FledgeError
from fledge.core.metrics import METRICS, SOURCE_TOKENS
from fledge.core.run_record import RUN_RECORD, read_record
from fledge.core.samples import SAMPLES, read_samples
from fledge.corpus.build import STATS
from fledge.evaluation.run_data import PLAN, RESULTS, corpus_card, dotted, phase_use
from fledge.evaluation.score_words import format_score, format_value, score_title
from fledge.evaluation.statistics import score_from_plain
from fledge.serving.board.curves import MOST_CURVES, last_record
from fledge.serving.board.folders import RunFolder, is_folder

MOST_SAMPLES = 400
"""The last ones of a stage."""
MOST_TEXT_CHARACTERS = 4_000
"""Of a sample or an answer."""

# What a file that was damaged or written by others can make of reading it.
_UNREADABLE = (FledgeError, OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError, IndexError, RecursionError)


def stage_facts(run: RunFolder, stage: str) -> dict[str, Any]:
    """Phases with the steps at which they begin and end, what was asked for, and the figures of a finished stage."""
    started = _started(run, stage)
    manifest = run.json(stage, artifact.MANIFEST)
    return {
        "name": stage,
        "is_finished": run.is_finished(stage),
        "phases": list(_phases(_plan(run, stage))),
        "shares": _last_shares(run, stage),
        "stats": _plain_stats(manifest.get("stats") if isinstance(manifest, dict) else None),
        "settings": [[name, value] for name, value in dotted(started.settings)] if started else [],
    }


def _plan(run: RunFolder, stage: str) -> Any:
    """The identity of a stage's plan; of a stage of a version that did not leave it, from its newest checkpoint."""
    plan = run.json(stage, PLAN)
    if plan is not None or not is_folder(run.path / stage / "checkpoints"):
        return plan
    names = sorted(entry.name for entry in (run.path / stage / "checkpoints").iterdir())
    state = run.json(stage, "checkpoints", names[-1], "resume", "state.json") if names else None
    return state.get("plan") if isinstance(state, dict) else None


def _phases(plan: Any) -> Iterator[dict[str, Any]]:
    try:
        step = int(plan["start"]["step"])
        for plain in plan["phases"]:
            phase = phase_use(plain)
            yield {**asdict(phase), "tokens": phase.tokens, "first_step": step, "last_step": step + phase.steps}
            step += phase.steps
    except _UNREADABLE:
        return


def _last_shares(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """What each source has given so far: (name, tokens, share)."""
    last = last_record(run.file(stage, METRICS), "train/loss") or {}
    tokens = {name.removeprefix(SOURCE_TOKENS): value for name, value in last.items() if name.startswith(SOURCE_TOKENS)}
    whole = sum(tokens.values()) or 1
    return [{"name": name, "tokens": count, "share": count / whole} for name, count in list(tokens.items())[:MOST_CURVES]]


def _plain_stats(stats: Any) -> dict[str, Any]:
    return {name: value for name, value in stats.items() if isinstance(value, (str, int, float))} if isinstance(stats, Mapping) else {}


def samples(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    """What a stage's model wrote while it trained, the newest first."""
    found = read_samples(run.path / stage) if run.file(stage, SAMPLES) is not None else []
    return [{"step": one.step, "prompt": _shortened(one.prompt), "text": _shortened(one.text)} for one in found[: -MOST_SAMPLES - 1 : -1]]


def evaluations(run: RunFolder) -> dict[str, Any]:
    """The results table: a row for each score, a cell for each checkpoint with interval and what may be said against guessing."""
    results = run.json("evaluate", RESULTS)
    try:
        measured = [(str(one["name"]), [score_from_plain(score) for score in one["scores"]]) for one in results["evaluations"]]
        answers = [
            {"checkpoint": str(one["name"]), "question": _shortened(given["question"]), "text": _shortened(given["text"])}
            for one in results["evaluations"]
            for given in one.get("answers", ())[:6]
        ]
    except _UNREADABLE:
        return {"checkpoints": [], "rows": [], "answers": []}
    names = list(dict.fromkeys(score.name for _, scores in measured for score in scores))
    rows = []
    for name in names:
        found = [next((score for score in scores if score.name == name), None) for _, scores in measured]
        known = next(score for score in found if score is not None)
        cells = [None if one is None else {**asdict(one), "shown": format_score(one), "verdict": one.verdict} for one in found]
        guessing = None if known.baseline is None else format_value(known.baseline, known.unit)
        rows.append({"name": name, "title": score_title(name), "n": known.n, "guessing": guessing, "note": known.note, "cells": cells})
    return {"checkpoints": [name for name, _ in measured], "rows": rows, "answers": answers}


def cards(run: RunFolder) -> list[dict[str, Any]]:
    """The data card of each corpus of the run, in short."""
    found = []
    for place, made in run.artifacts().items():
        if made.manifest.kind == "corpus" and run.file(place, STATS) is not None:
            try:
                found.append(asdict(corpus_card(place, made)))
            except _UNREADABLE:
                continue
    return found


def config(run: RunFolder) -> list[dict[str, Any]]:
    """Every value of the recipe and where it was set; of a run without a record, what its stages were asked for."""
    record = read_record(run.path) if run.file(RUN_RECORD) is not None else None
    if record is not None:
        return [{"name": name, "value": value, "origin": origin} for name, value, origin in record.config]
    rows = []
    for stage in run.begun():
        started = _started(run, stage)
        rows += [
            {"name": f"{stage}.{name}", "value": value, "origin": "not recorded"}
            for name, value in dotted(started.settings if started else {})
        ]
    return rows


def lineage(run: RunFolder) -> dict[str, Any]:
    """What was made from what: nodes, and edges from what was read to what was made of it; checkpoints stand for their stage."""
    graph = _Graph(run)
    for place, made in run.artifacts().items():
        graph.add(place, made.manifest.kind, made.id, made.manifest.inputs)
    for stage in run.trained():
        started = _started(run, stage)
        if started is not None and stage not in graph.nodes:
            graph.add(stage, started.kind, "", started.inputs)
    return {"nodes": list(graph.nodes.values()), "edges": graph.edges()}


class _Graph:
    """Artifacts by their place in the run, or by id where they lie elsewhere."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.nodes: dict[str, dict[str, Any]] = {}
        self._edges: list[tuple[str, str, str]] = []

    def add(self, place: str, kind: str, identity: str, inputs: Mapping[str, Input]) -> None:
        self.nodes[place] = {"place": place, "kind": kind, "id": identity, "is_own": True, "is_there": True, "is_finished": bool(identity)}
        for role, given in inputs.items():
            source = self._place(given)
            if source not in self.nodes:
                self.nodes[source] = self._other(source, given)
            self._edges.append((source, place, role))

    def edges(self) -> list[dict[str, str]]:
        """One for each pair, with the roles in which one read the other."""
        roles: dict[tuple[str, str], list[str]] = {}
        for source, target, role in self._edges:
            roles.setdefault((source, target), []).append(role)
        return [{"from": source, "to": target, "roles": ", ".join(found)} for (source, target), found in roles.items() if source != target]

    def _place(self, given: Input) -> str:
        """Where an input lies in the run, a checkpoint under its stage's name; one of elsewhere by its id."""
        parts = Path(os.path.relpath(given.path, self._run.path)).parts
        if parts and parts[0] in self._run.stages:
            return parts[0] if len(parts) == 1 or parts[1] == "checkpoints" else "/".join(parts[:2])
        return f"{given.kind} {given.id[:12]}"

    def _other(self, source: str, given: Input) -> dict[str, Any]:
        is_own = "/" in source or source in self._run.stages
        return {"place": source, "kind": given.kind, "id": given.id, "is_own": is_own, "is_there": False, "is_finished": True}


def _started(run: RunFolder, stage: str) -> artifact.Request | None:
    """What a stage was asked for: of one that trains from its beginning, of others once they are finished."""
    if run.file(stage, artifact.STARTED) is not None:
        try:
            return artifact.started_as(run.path / stage)
        except FledgeError:
            return None
    found: Artifact | None = run.artifacts().get(stage)
    return artifact.Request(found.manifest.kind, found.manifest.settings, found.manifest.inputs) if found else None


def _shortened(text: object) -> str:
    whole = str(text)
    return whole if len(whole) <= MOST_TEXT_CHARACTERS else f"{whole[:MOST_TEXT_CHARACTERS]} ... ({len(whole):,} characters)"
