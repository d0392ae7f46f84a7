"""Which checkpoint of a stage to continue from, which to keep, which to set aside; without torch, since no weight is read as a number.

    runs/NAME/STAGE/checkpoints/    complete ones, and what a killed save has left: NAME.partial
    runs/NAME/STAGE/quarantine/     found damaged, kept for a look
    runs/NAME/STAGE/set_aside/      later than the one that --resume named; damaged ones that a run has gone back behind

A checkpoint counts if every byte is as its manifest says, no file is strange, and it belongs to this stage. Nothing is ever deleted
for being damaged or late, and nothing sound is deleted before enough newer ones have been read back.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from fledge.core import artifact, console, disk
from fledge.core.artifact import Artifact, Input, Request
from fledge.core.errors import ArtifactError, CheckpointError, FormatError, MachineError
from fledge.training.checkpoint_folders import CHECKPOINTS, Checkpoint, checkpoint_folder, list_checkpoints, step_folders

QUARANTINE = "quarantine"
SET_ASIDE = "set_aside"
KEPT_WHILE_RUNNING = 2
"""Sound checkpoints that there are at least until a run has ended, so that one found damaged leaves another."""


def newest_sound(stage_folder: Path) -> Checkpoint | None:
    """The checkpoint to continue from, every byte of it checked; None if none was ever finished.

    Leftovers of interrupted saves and removals are swept away; damaged checkpoints go to `quarantine/` with a warning. Raises
    CheckpointError if nothing but damaged ones is left.
    """
    sweep(stage_folder)
    for step, path in reversed(step_folders(stage_folder)):
        problems = problems_of(path)
        if not problems:
            return Checkpoint(step, path, artifact.open_artifact(path, "checkpoint"))
        _quarantine(stage_folder, step, path, problems[0])
    damaged = sorted(path.name for path in (stage_folder / QUARANTINE).glob("step-*"))
    if damaged:
        raise CheckpointError(
            f"{stage_folder} has no sound checkpoint, only damaged ones in {QUARANTINE}/ ({', '.join(damaged)})",
            "bring one back from a copy, or start this stage over with --force",
        )
    return None


def problems_of(path: Path) -> list[str]:
    """What is wrong with a checkpoint, after reading all of it.

    Raises MachineError if that is not possible, but not for damage, and FormatError if another version of Fledge wrote it.
    """
    try:
        stage = artifact.started_as(path.parents[1])
        found = artifact.open_artifact(path, "checkpoint")
        return artifact.verify(found, exact=True) + _strangeness(found, stage)
    except FormatError:
        raise
    except ArtifactError as error:
        return [error.problem]
    except OSError as error:
        if error.errno == errno.EIO:
            return [f"{error.filename or path} cannot be read: {error.strerror}"]
        raise MachineError(
            f"cannot read {error.filename or path}: {error.strerror}", "mend its permissions, or close other programs"
        ) from error


def retain(
    stage_folder: Path,
    keep: int,
    is_permanent: Callable[[int], bool] | None = None,
    known_sound: set[str] | None = None,
    way_back: int | None = None,
) -> None:
    """Remove all checkpoints but the `keep` newest sound ones, the best sound one, and those whose step is permanent.

    `known_sound` holds the ids of those that need not be read again, and is added to. Damaged ones that are met go to `quarantine/`.
    `way_back`: in a row of bad steps, the steps done before it; the newest checkpoint of no more stays, because the run may go back to it.
    """
    known = known_sound if known_sound is not None else set()
    found = list_checkpoints(stage_folder)
    newest = {one.step for one in itertools.islice(_sound(stage_folder, reversed(found), known), keep)}
    validated = sorted((one for one in found if one.validation_loss is not None), key=lambda one: (one.validation_loss, one.step))
    best = {one.step for one in itertools.islice(_sound(stage_folder, validated, known), 1)}
    healthy = [one for one in reversed(found) if way_back is not None and one.step <= way_back]
    before = {one.step for one in itertools.islice(_sound(stage_folder, healthy, known), 1)}
    for one in found:
        if one.step not in newest | best | before and not (is_permanent is not None and is_permanent(one.step)):
            disk.remove(one.path)


def sweep(stage_folder: Path) -> None:
    """A killed save leaves NAME.partial; a killed removal leaves a folder without its manifest, which goes first."""
    for path in sorted((stage_folder / CHECKPOINTS).glob(f"step-*{disk.PARTIAL_SUFFIX}")):
        disk.remove(path)
    for _, path in step_folders(stage_folder):
        if not (path / artifact.MANIFEST).is_file():
            disk.remove(path)


def checkpoint_at(path: Path) -> Path:
    """The checkpoint that a path means: itself, or the newest of the stage whose folder it is.

    Raises CheckpointError saying what is there instead.
    """
    if not path.exists():
        raise CheckpointError(f"there is no {path}", "name a checkpoint, such as runs/NAME/pretrain/checkpoints/step-000500")
    if not path.is_dir():
        raise CheckpointError(f"{path} is a file, not the folder of a checkpoint", "name the folder that holds it")
    if (path / artifact.MANIFEST).is_file() and artifact.open_artifact(path).manifest.kind == "checkpoint":
        return path
    stage_folder = path.parent if path.name == CHECKPOINTS else path
    found = list_checkpoints(stage_folder)
    if found:
        return found[-1].path
    there = sorted(entry.name for entry in path.iterdir()) + sorted(entry.name for entry in (path / CHECKPOINTS).glob("*"))
    notes = [f"{name} (a save that did not end)" if name.endswith(disk.PARTIAL_SUFFIX) else name for name in there]
    shown = ", ".join(notes[:8]) + (f" and {len(notes) - 8} more" if len(notes) > 8 else "")
    raise CheckpointError(f"no complete checkpoint in {path}; found: {shown or 'nothing'}", "name a checkpoint, or start without --resume")


def rewind(stage_folder: Path, chosen: Path) -> Checkpoint:
    """Make a checkpoint the newest of its stage, so that training continues from it; what is later moves to `set_aside/`.

    Raises CheckpointError if it is none of this stage, or damaged; then nothing is moved.
    """
    found = next((one for one in step_folders(stage_folder) if one[1].resolve() == chosen.resolve()), None)
    if found is None:
        own = ", ".join(path.name for _, path in step_folders(stage_folder)) or "none"
        raise CheckpointError(
            f"{chosen} is no checkpoint of {stage_folder}, which has: {own}",
            "name one of these; to start another run from these weights, set start_from",
        )
    step, path = found
    problems = problems_of(path)
    if problems:
        raise CheckpointError(f"{path} is damaged: {'; '.join(problems)}", "name another checkpoint, or leave out --resume")
    sweep(stage_folder)
    # The result first: without it the stage is one that has started, whatever happens next.
    later = [stage_folder / artifact.MANIFEST, *(path for other, path in step_folders(stage_folder) if other > step)]
    for path_aside in (one for one in later if one.exists()):
        _move_aside(stage_folder, path_aside)
    return Checkpoint(step, path, artifact.open_artifact(path, "checkpoint"))


def _sound(stage_folder: Path, found: Iterable[Checkpoint], known: set[str]) -> Iterator[Checkpoint]:
    """Those whose every byte is right; the damaged ones go to `quarantine/`."""
    for one in found:
        if one.artifact.id not in known and one.path.exists():
            problems = problems_of(one.path)
            if problems:
                _quarantine(stage_folder, one.step, one.path, problems[0])
                continue
            known.add(one.artifact.id)
        if one.path.exists():
            yield one


def _strangeness(found: Artifact, stage: Request | None) -> list[str]:
    """Whether a checkpoint that is whole in itself lies under the name of another step, or in the stage of another run."""
    manifest, stage_folder, step = found.manifest, found.path.parents[1], found.stats.get("step")
    is_named_so = isinstance(step, int) and found.path.name == checkpoint_folder(stage_folder, step).name
    wrong = [] if is_named_so else ["step"]
    if stage is not None and manifest.settings.get("settings") != stage.settings:
        wrong.append("settings")
    if stage is not None and _ids(manifest.inputs) != _ids(stage.inputs):
        wrong.append("inputs")
    return [f"{found.path} belongs elsewhere: its {' and '.join(wrong)} are not those of {stage_folder}"] if wrong else []


def _ids(inputs: Mapping[str, Input]) -> dict[str, str]:
    return {role: given.id for role, given in inputs.items()}


def _quarantine(stage_folder: Path, step: int, path: Path, problem: str) -> None:
    target = _free_place(stage_folder / QUARANTINE / path.name)
    disk.make_folder(target.parent)
    disk.move(path, target)
    console.warn(f"the checkpoint of step {step} is damaged and now lies in {target}: {problem}")


def _move_aside(stage_folder: Path, path: Path) -> None:
    target = _free_place(stage_folder / SET_ASIDE / path.name)
    disk.make_folder(target.parent)
    disk.move(path, target)
    console.say(f"{path} moved aside to {target}")


def _free_place(path: Path) -> Path:
    number, candidate = 2, path
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate


def remove_after(stage_folder: Path, step: int) -> None:
    """Remove the checkpoints of more than so many steps, newest first: broken off anywhere, what is left is a run to continue.

    If none is left the run begins anew, and on purpose: then damaged ones, which forbid that, are set aside first.
    """
    there = step_folders(stage_folder)
    if all(found > step for found, _ in there):
        for path in sorted((stage_folder / QUARANTINE).glob("step-*")):
            _move_aside(stage_folder, path)
    for found, path in reversed(there):
        if found > step:
            disk.remove(path)
