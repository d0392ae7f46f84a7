"""Stage 9: everything the run left behind, gathered into one page, with the last model's answer to the recipe's question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fledge.core import artifact, console
from fledge.core.artifact import Artifact
from fledge.core.console import format_bytes
from fledge.core.errors import ArtifactError
from fledge.stages import REPORT, STAGES, TRAINING_STAGES, has_stage
from fledge.stages.run import Run, make, run_folder, set_aside

COMPARED = "compared."
"""What roles of the artifacts of other runs begin with."""


def run(run: Run) -> None:
    made = dict(_artifacts(run))
    if "evaluate" not in made:
        raise ArtifactError(f"{run.folder} has no evaluation to report", f"make it first: fledge evaluate {run.command}")
    last = next((stage for stage in reversed(TRAINING_STAGES) if stage in made), None) if run.recipe.question is not None else None
    question = {"question": run.recipe.question, "maximum_new_tokens": run.recipe.generation.maximum_new_tokens} if last else {}

    others = {name: _finished(run_folder(name)) for name in run.compared}
    compared = {f"{COMPARED}{name}/{place}": found for name, by_place in others.items() for place, found in by_place.items()}
    wanted = artifact.request("report", question, {**made, **compared})
    if _differs_in_comparison(run, wanted):
        if not run.compared:
            console.info("report: already done, beside other runs")
            return
        set_aside(run, ("report",))

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        from fledge.stages.making.report import make_report

        stats.update(make_report(run, made, last, others, folder))
        return f"{REPORT}, {format_bytes(stats['size_bytes'])}"

    make(run, "report", wanted, fill)


def _differs_in_comparison(run: Run, wanted: artifact.Request) -> bool:
    """Whether the report that is there is this one, but beside other runs: it is made anew without being forced to."""
    found = run.own("report", "report")
    if found is None or found.manifest.key == wanted.key:
        return False
    before, now = (_own_inputs(inputs) for inputs in (found.manifest.inputs, wanted.inputs))
    return before == now and found.manifest.settings == wanted.settings


def _own_inputs(inputs: Mapping[str, artifact.Input]) -> dict[str, str]:
    return {role: given.id for role, given in inputs.items() if not role.startswith(COMPARED)}


def _finished(folder: Path) -> dict[str, Artifact]:
    """What another run has trained and measured, by its place. Raises ArtifactError if it is nothing."""
    places = [stage for stage in (*TRAINING_STAGES, "evaluate") if (folder / stage / artifact.MANIFEST).is_file()]
    if not places:
        raise ArtifactError(f"{folder} has nothing finished to compare with", "name a run that has trained: --compare RUN")
    return {place: artifact.open_artifact(folder / place) for place in places}


def _artifacts(run: Run) -> Iterator[tuple[str, Artifact]]:
    """Every finished artifact of the run before this stage, by its place: "corpus/documents", "pretrain", ..."""
    for stage in STAGES[:-1]:
        for path in [run.folder / stage / artifact.MANIFEST, *sorted((run.folder / stage).glob(f"*/{artifact.MANIFEST}"))]:
            if path.is_file() and has_stage(stage, run):
                yield path.parent.relative_to(run.folder).as_posix(), artifact.open_artifact(path.parent)
