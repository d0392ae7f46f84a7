"""`fledge show`, `verify` and `config`: what a result is and was made from, whether every byte is still as it was, what a recipe says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fledge.core import artifact, console
from fledge.core.artifact import Artifact
from fledge.core.errors import ArtifactError
from fledge.core.wording import counted
from fledge.recipe import find_recipe, load_recipe
from fledge.smoke import config_rows
from fledge.stages import STAGES
from fledge.stages.checkpoint_names import find_checkpoint
from fledge.stages.run import RUNS, smoke_name
from fledge.tokens.shards import damaged_blocks


def show(place: str, small: bool) -> None:
    """Print kind, id, figures and whole lineage of an artifact; of a run, every artifact with what it was made from directly."""
    shown = list(_artifacts(place, small))
    for found in shown:
        if found.manifest.kind == "comparison":
            from fledge.verbs.comparison import show_comparison

            show_comparison(found)
        console.say(f"{found.path}  {found.manifest.kind} {found.id[:12]}")
        figures = [
            f"{name.replace('_', ' ')} {_plain(value)}" for name, value in found.stats.items() if isinstance(value, (str, int, float))
        ]
        console.say(f"    {', '.join(figures)}")
        for depth, role, given, there in artifact.lineage(found):
            if depth == 1 or len(shown) == 1:
                note = "" if there else "  (not there any more)"
                console.say(f"  {'  ' * depth}<- {role}: {given.kind} {given.id[:12]} {given.path}{note}")


def verify(place: str, small: bool) -> None:
    """Hash every file again, here and along the lineage. Raises ArtifactError if anything differs."""
    checked: dict[str, Artifact] = {}
    absent: set[str] = set()
    for found in _artifacts(place, small, sizes=False):
        checked[found.id] = found
        for _, role, given, there in artifact.lineage(found):
            if there is None:
                absent.add(f"{role} {given.kind} {given.id[:12]} at {given.path}")
            else:
                checked[there.id] = there
    problems: list[str] = []
    size_bytes = sum(digest.size_bytes for found in checked.values() for digest in found.manifest.files.values())
    with console.progress("verify", size_bytes, "bytes") as progress:
        for found in checked.values():
            problems += _problems(found)
            progress.advance(sum(digest.size_bytes for digest in found.manifest.files.values()), note=str(found.path))
    for line in sorted(absent):
        console.warn(f"not there any more, not checked: {line}")
    if problems:
        raise ArtifactError("; ".join(problems), "restore these files, or make the stage anew with --force")
    console.say(f"{counted(len(checked), 'artifacts')}, {console.format_bytes(size_bytes)}: every byte is as it was written")


def _problems(found: Artifact) -> list[str]:
    """What is wrong with an artifact; of a checkpoint also strange files, of a token set also where in its files."""
    problems = artifact.verify(found, exact=found.manifest.kind == "checkpoint")
    return problems + list(damaged_blocks(found.path)) if problems and found.manifest.kind == "tokens" else problems


def _artifacts(place: str, small: bool, sizes: bool = True) -> Iterator[Artifact]:
    place = smoke_name(place) if small else place
    folder = Path(place) if Path(place).is_dir() else RUNS / place
    if "@" in place or not folder.is_dir():
        yield artifact.open_artifact(find_checkpoint(place), sizes=sizes)
        return
    if (folder / artifact.MANIFEST).is_file():
        yield artifact.open_artifact(folder, sizes=sizes)
        return
    finished = [path.parent for stage in STAGES for path in _manifests(folder / stage)]
    if not finished:
        raise ArtifactError(f"{folder} holds nothing finished", "name an artifact, a run or a checkpoint")
    for path in finished:
        yield artifact.open_artifact(path, sizes=sizes)


def _manifests(stage: Path) -> list[Path]:
    """Of a stage, its parts and its checkpoints; what lies in quarantine is known to be damaged."""
    patterns = ("*", "checkpoints/step-*", ".")
    return [path for pattern in patterns for path in sorted(stage.glob(f"{pattern}/{artifact.MANIFEST}"))]


def _plain(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def show_config(recipe: str, overrides: list[str], small: bool) -> None:
    """Print every value of a recipe and where it comes from. Raises ConfigError."""
    parsed, tree = load_recipe(find_recipe(recipe), overrides)
    rows = [(dotted, repr(value), origin) for dotted, value, origin in config_rows(parsed, tree, small)]
    console.table(recipe, ["value", "is", "from"], rows)
