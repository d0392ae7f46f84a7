"""Runs side by side: in which settings they differ, and what each stage came to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fledge.serving.board.details import config, stage_facts
from fledge.serving.board.folders import RunFolder

MOST_RUNS = 6
"""As many as colours can be told apart."""


def compare(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Settings that are not the same in all runs, and figures of the stages that trained; None where a run has none."""
    settings = [{row["name"]: row["value"] for row in config(run)} for run in runs]
    names = dict.fromkeys(name for known in settings for name in known)
    differing = [
        {"name": name, "values": [known.get(name) for known in settings]}
        for name in names
        if any(known.get(name) != settings[0].get(name) or (name in known) != (name in settings[0]) for known in settings)
    ]
    trained = {stage: None for run in runs for stage in run.trained()}
    stages = [
        {
            "name": stage,
            "has": [stage in run.trained() for run in runs],
            "stats": [stage_facts(run, stage)["stats"] if stage in run.trained() else {} for run in runs],
        }
        for stage in trained
    ]
    return {"runs": [run.name for run in runs], "differing": differing, "stages": stages}
