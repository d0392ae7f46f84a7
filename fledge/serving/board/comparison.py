"""Runs side by side: in which settings they differ, and what each stage came to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fledge.serving.board.details import config, stage_facts
from fledge.serving.board.folders import RunFolder

MOST_RUNS = 6
"""As many as colours can be told apart."""
ABSENT, PRESENT = "not there", "there"


def compare(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """Settings that are not the same in all runs, and figures of the stages that trained."""
    trained = {stage: None for run in runs for stage in run.trained()}
    stages = [
        {
            "name": stage,
            "has": [stage in run.trained() for run in runs],
            "stats": [stage_facts(run, stage)["stats"] if stage in run.trained() else {} for run in runs],
        }
        for stage in trained
    ]
    settings = [{row["name"]: row["value"] for row in config(run)} for run in runs]
    return {"runs": [run.name for run in runs], "differing": list(_differing(settings)), "stages": stages}


def _differing(settings: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """One line for a section that not all have, and else one for each value."""
    sections = [{_section(name) for name in known} for known in settings]
    for section in dict.fromkeys(_section(name) for known in settings for name in known):
        has = [section in found for found in sections]
        if not all(has):
            yield {"name": section, "values": [PRESENT if one else ABSENT for one in has]}
            continue
        for name in dict.fromkeys(name for known in settings for name in known if _section(name) == section):
            values = [known.get(name, ABSENT) for known in settings]
            if any(value != values[0] for value in values):
                yield {"name": name, "values": values}


def _section(name: str) -> str:
    return name.partition(".")[0]
