"""What a loss of power may leave of a save: every state that the recorded order of operations allows leads to a sound checkpoint.

A model of a file system that journals directory changes (ext4 and the like): of what was not flushed, bytes of a file may be there,
half there or missing, and of the directory changes only the first few may have happened. `fsync` of a file makes its bytes durable, that
of a folder all directory changes before it. After "All File Systems Are Not Created Equal" (Pillai et al., OSDI 2014).
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from crash_assembly import operations, run_stage, stage_settings

from fledge.core import artifact
from fledge.tokens.shards import TokenSet
from fledge.training import parallel
from fledge.training.checkpoint_folders import CHECKPOINTS
from fledge.training.sound_checkpoints import newest_sound

BEFORE, SAVED = "step-000002", "step-000004"
Done = list[tuple[str, str]]
"""Operations and paths under checkpoints/, in order."""


@dataclass(frozen=True)
class State:
    """What may lie there after a crash: operations that had begun, of their directory changes those that lasted, and unflushed bytes."""

    begun: int
    lasted: int
    unflushed_share: float


def states(done: Done) -> Iterator[State]:
    for begun in range(len(done) + 1):
        flushed = max(
            (number for number in range(begun) if done[number][0] == "fsync" and "." not in Path(done[number][1]).name), default=0
        )
        for lasted in range(flushed, begun + 1):
            if lasted == begun or done[lasted][0] not in {"write", "fsync"}:
                yield from (State(begun, lasted, share) for share in (0.0, 0.5, 1.0))


def after(state: State, done: Done, contents: dict[str, bytes]) -> dict[str, bytes]:
    """The files under checkpoints/ in a state, by path."""
    files = {name: name for name in contents if name.startswith(BEFORE)}
    flushed = set(files)
    for number, (operation, path) in enumerate(done[: state.begun]):
        if operation == "fsync":
            flushed.add(final_name(path))
        if number >= state.lasted:
            continue
        if operation == "create":
            files[path] = final_name(path)
        elif operation == "rename":
            moved = {name for name in files if name == f"{path}.partial" or name.startswith(f"{path}.partial/")}
            files |= {path + name[len(path) + len(".partial") :]: files[name] for name in moved}
            files = {name: content for name, content in files.items() if name not in moved}
        elif operation in {"unlink", "rmtree"}:
            files = {name: content for name, content in files.items() if name != path and not name.startswith(f"{path}/")}
    return {
        name: contents[content] if content in flushed else contents[content][: int(state.unflushed_share * len(contents[content]))]
        for name, content in files.items()
    }


def final_name(path: str) -> str:
    """Where what is written at a path will lie in the end."""
    return path.replace(".partial", "")


@pytest.fixture
def recorded(tmp_path: Path, documents: TokenSet, monkeypatch: pytest.MonkeyPatch) -> tuple[Done, dict[str, bytes]]:
    """The operations of a save that replaces the checkpoint before, and the bytes of all files that occur."""
    monkeypatch.setattr(parallel, "use_fast_fp32", lambda device: False)
    monkeypatch.setattr(gc, "collect", lambda: 0)
    settings = stage_settings(steps=4, validate_every_steps=None)
    root = tmp_path / "recorded" / CHECKPOINTS
    done = [
        (operation, path.relative_to(root).as_posix())
        for operation, path in operations(root.parent, documents, settings, tmp_path / "log")
        if path.is_relative_to(root)
    ]
    begin = done.index(("mkdir", f"{SAVED}.partial"))
    run_stage(tmp_path / "both", documents, stage_settings(steps=4, validate_every_steps=None, keep_checkpoints=2))
    both = tmp_path / "both" / CHECKPOINTS
    contents = {path.relative_to(both).as_posix(): path.read_bytes() for path in both.rglob("*") if path.is_file()}
    # The commit of the stage flushes the files once more; here only the save counts.
    end = max(number for number, (operation, _) in enumerate(done) if operation == "rmtree") + 1
    return done[begin:end], contents


def test_every_state_after_a_loss_of_power_has_a_sound_checkpoint(tmp_path: Path, recorded: tuple[Done, dict[str, bytes]]) -> None:
    done, contents = recorded
    published = max(number for number, one in enumerate(done) if one == ("fsync", "."))
    found_steps, seen = set(), set()
    for state in states(done):
        files = after(state, done, contents)
        outcome = (state.begun > published, *sorted(files.items()))
        if outcome in seen:
            continue
        seen.add(outcome)
        folder = tmp_path / "crashed"
        for name, content in files.items():
            path = folder / CHECKPOINTS / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        found = newest_sound(folder)
        assert found is not None, state
        assert artifact.verify(found.artifact, exact=True) == []
        assert found.step == 4 or state.begun <= published, "a save that has returned is lost"
        found_steps.add(found.step)
        shutil.rmtree(folder)
    assert found_steps == {2, 4}
    assert len(seen) >= 25


def test_the_model_finds_a_write_order_that_loses(tmp_path: Path, recorded: tuple[Done, dict[str, bytes]]) -> None:
    """Without the flush of what holds the renamed folder, removal of the one before could last where the new one does not."""
    done, contents = recorded
    careless = [one for one in done if one[0] != "fsync"]
    lost = 0
    for state in states(careless):
        files = after(state, careless, contents)
        whole = [
            step
            for step in (BEFORE, SAVED)
            if all(files.get(name) == content for name, content in contents.items() if name.startswith(step))
        ]
        lost += not whole
    assert lost > 0
