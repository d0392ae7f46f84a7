"""Stage 9: everything the run left behind, gathered into one page, with the last model's answer to the recipe's question."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fledge.core import artifact
from fledge.core.artifact import Artifact
from fledge.core.console import format_bytes
from fledge.core.errors import ArtifactError
from fledge.stages import REPORT, STAGES, TRAINING_STAGES, has_stage
from fledge.stages.run import Run, make


def run(run: Run) -> None:
    made = dict(_artifacts(run))
    if "evaluate" not in made:
        raise ArtifactError(f"{run.folder} has no evaluation to report", f"make it first: fledge evaluate {run.command}")
    last = next((stage for stage in reversed(TRAINING_STAGES) if stage in made), None) if run.recipe.question is not None else None
    question = {"question": run.recipe.question, "maximum_new_tokens": run.recipe.generation.maximum_new_tokens} if last else {}

    def fill(folder: Path, stats: dict[str, Any]) -> str:
        from fledge.stages.making.report import make_report

        stats.update(make_report(run, made, last, folder))
        return f"{REPORT}, {format_bytes(stats['size_bytes'])}"

    make(run, "report", artifact.request("report", question, made), fill)


def _artifacts(run: Run) -> Iterator[tuple[str, Artifact]]:
    """Every finished artifact of the run before this stage, by its place: "corpus/documents", "pretrain", ..."""
    for stage in STAGES[:-1]:
        for path in [run.folder / stage / artifact.MANIFEST, *sorted((run.folder / stage).glob(f"*/{artifact.MANIFEST}"))]:
            if path.is_file() and has_stage(stage, run):
                yield path.parent.relative_to(run.folder).as_posix(), artifact.open_artifact(path.parent)
