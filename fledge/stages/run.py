"""What every stage gets: the recipe, the run's folder, and where the artifacts of other stages lie.

    runs/NAME/corpus/{documents,conversations,preferences}   runs/NAME/pretrain/checkpoints/step-000500
    runs/NAME/tokenizer                                      runs/NAME/sft, score, dpo
    runs/NAME/pack/{documents,conversations,preferences}     runs/NAME/evaluate, report

Corpora and token sets are one artifact per content, so adding conversations never touches what pretraining was made from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledge.core import artifact, console, disk
from fledge.core.artifact import Artifact, Request
from fledge.core.errors import ArtifactError
from fledge.core.run_record import ConfigRow

if TYPE_CHECKING:
    from fledge.recipe import Recipe

RUNS = Path("runs")


@dataclass(frozen=True)
class Run:
    """One recipe and the folder it fills."""

    recipe: Recipe
    folder: Path
    command: str
    """The recipe (and options) as the user gave them but for secrets, for messages that name the next command."""
    resume: Path | None = None
    """The checkpoint that the training stage continues from, where it is not the newest."""
    compared: tuple[str, ...] = ()
    """Runs that the report is to stand beside."""
    arguments: tuple[str, ...] = field(default=(), repr=False)
    """The same with secrets, for processes that are launched: never shown or written."""
    config: tuple[ConfigRow, ...] = field(default=(), repr=False)
    """Every value of the recipe and where it was set."""

    def corpora(self, given: Sequence[str], content: str) -> dict[str, Artifact]:
        """The corpora of one content, by role: those given by path, or this run's own (none if it has none)."""
        paths = [Path(path) for path in given] or [self.folder / "corpus" / content]
        if not given and not (paths[0] / artifact.MANIFEST).is_file():
            return {}
        opened = [artifact.open_artifact(path, "corpus") for path in paths]
        chosen = [found for found in opened if found.manifest.settings["content"] == content]
        return {f"corpus.{index}": found for index, found in enumerate(chosen)}

    def tokenizer(self) -> Artifact:
        """The tokenizer this run packs with. Raises ArtifactError naming the command that trains one."""
        given = self.recipe.pack.tokenizer if self.recipe.pack else None
        if given and (Path(given) / "tokenizer.json").is_file() and not (Path(given) / artifact.MANIFEST).is_file():
            return artifact.foreign(Path(given), "tokenizer")
        return self.open(Path(given) if given else self.folder / "tokenizer", "tokenizer", "tokenizer")

    def token_sets(self, given: Sequence[str], content: str) -> dict[str, Artifact]:
        """The token sets a training stage reads, by role: those given by path, or this run's own."""
        paths = [Path(path) for path in given] or [self.folder / "pack" / content]
        return {f"tokens.{index}": self.open(path, "tokens", "pack") for index, path in enumerate(paths)}

    def state(self, place: str, wanted: Request) -> artifact.State:
        """What lies at a place of this run. Raises ArtifactError naming the command that makes it anew, if it was made differently."""
        stage = place.partition("/")[0]
        return artifact.state(
            self.folder / place, wanted, f"make it and what follows anew: fledge run {self.command} --from {stage} --force"
        )

    def own(self, place: str, kind: str) -> Artifact | None:
        """A finished artifact of this run, or None."""
        folder = self.folder / place
        return artifact.open_artifact(folder, kind) if (folder / artifact.MANIFEST).is_file() else None

    def open(self, folder: Path, kind: str, stage: str) -> Artifact:
        """Open an input of a stage. Raises ArtifactError naming the command that makes it."""
        if not (folder / artifact.MANIFEST).is_file():
            state = "started but not finished" if (folder / artifact.STARTED).is_file() else "not there yet"
            raise ArtifactError(f"{folder} is {state}: no {kind} to work with", f"make it first: fledge {stage} {self.command}")
        return artifact.open_artifact(folder, kind)


def run_folder(name: str) -> Path:
    """Where a run lies: `runs/NAME`; anything with a path separator is used as it is."""
    return Path(name) if "/" in name or name in {".", ".."} else RUNS / name


def smoke_name(name: str) -> str:
    """What the run that `--smoke` makes of NAME is called; NAME may be followed by @WHICH."""
    place, at, which = name.rpartition("@")
    return f"{place}-smoke{at}{which}" if at else f"{name}-smoke"


def make(run: Run, place: str, wanted: Request, fill: Callable[[Path, dict[str, Any]], str]) -> Artifact:
    """Make a short artifact unless it is finished: `fill(folder, stats)` writes files and figures and says in a line what came out."""
    folder = run.folder / place
    if run.state(place, wanted) == "finished":
        console.info(f"{place}: already done")
        return artifact.open_artifact(folder)
    started = time.monotonic()
    with artifact.build(folder, wanted) as (partial, stats):
        stats["outcome"] = fill(partial, stats)
        stats["seconds"] = round(time.monotonic() - started, 3)
    console.say(f"{place}: {stats['outcome']}; {console.format_seconds(stats['seconds'])}")
    return artifact.open_artifact(folder)


def set_aside(run: Run, stages: Sequence[str]) -> None:
    """Move the results of these stages to STAGE~KEY8, so that they are made anew and nothing is lost."""
    for stage in stages:
        folder = run.folder / stage
        if not folder.exists():
            continue
        target = free_name(folder.with_name(f"{stage}~{_short_key(folder)}"))
        disk.move(folder, target)
        console.say(f"{folder} moved aside to {target}")


def _short_key(folder: Path) -> str:
    for name in (artifact.MANIFEST, artifact.STARTED):
        for path in [folder / name, *sorted(folder.glob(f"*/{name}"))]:
            if path.is_file():
                return artifact.read_key(path)[:8]
    return "unfinished"


def free_name(path: Path) -> Path:
    """The path, or the first of its numbered variants that is not taken."""
    candidates = [path, *(path.with_name(f"{path.name}.{number}") for number in range(2, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())
