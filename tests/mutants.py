"""Tests of the tests: each mutant is the package with one line that matters taken away, and the tests named beside it must fail.

python tests/mutants.py [NAME...]      copies the package, changes it, runs the tests; prints a table, exits 1 if a mutant survives

A mutant that no longer applies is a failure too: the text it changes has moved, and it must move along (`test_mutants.py` tells at once).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
CRASHES, SAVING = "tests/training/test_crashes.py", "tests/training/test_saving.py"
RETENTION = "tests/training/test_retention.py"
CHECKPOINT, DISK, PROCESS = "tests/training/test_checkpoint.py", "tests/core/test_disk.py", "tests/core/test_process.py"
EXACT, TRAINER = "tests/training/test_resume_exactness.py", "tests/training/test_trainer.py"
KILLED = f"{CRASHES}::test_a_stage_killed_at_every_operation_on_the_disk_ends_as_if_undisturbed"


@dataclass(frozen=True)
class Mutant:
    """A change of one file of the package, by its text, which occurs there once; and the tests of which one must notice."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


MUTANTS = (
    Mutant(
        "a file is not flushed before it is renamed",
        "core/disk.py",
        '        _pass_fail_point("fsync", path)\n        os.fsync(file.fileno())\n    return FileDigest',
        "    return FileDigest",
        (DISK,),
    ),
    Mutant(
        "the folder is not flushed after a rename",
        "core/disk.py",
        "        _rename(partial, path)\n        _fsync_folder(path.parent)\n",
        "        _rename(partial, path)\n",
        (DISK,),
    ),
    Mutant("a staged folder is not flushed before it is published", "core/disk.py", "            _fsync_tree(partial)\n", "", (DISK,)),
    Mutant(
        "a folder is removed without its manifest going first",
        "core/disk.py",
        '            remove(path / "manifest.json")\n',
        "",
        (DISK,),
    ),
    Mutant(
        "a file is written at its final name",
        "core/disk.py",
        '    partial = path.with_name(f"{path.name}{PARTIAL_SUFFIX}")\n    with _machine_errors(path), _removed_on_failure(partial):',
        "    partial = path\n    with _machine_errors(path), _removed_on_failure(partial):",
        (DISK,),
    ),
    Mutant(
        "a manifest is written before what it names is flushed",
        "core/artifact.py",
        "    for name in files:\n        disk.flush(folder / name)\n    _write_manifest(folder, wanted, stats, dict(files))\n",
        "    _write_manifest(folder, wanted, stats, dict(files))\n    for name in files:\n        disk.flush(folder / name)\n",
        ("tests/core/test_artifact.py",),
    ),
    Mutant(
        "a checkpoint is continued from without being hashed",
        "training/sound_checkpoints.py",
        "        return artifact.verify(found, exact=True) + _strangeness(found, stage)",
        "        return _strangeness(found, stage)",
        (f"{CRASHES}::test_any_flipped_bit_of_the_newest_checkpoint_is_found", CHECKPOINT),
    ),
    Mutant(
        "a strange file in a checkpoint is overlooked",
        "training/sound_checkpoints.py",
        "artifact.verify(found, exact=True)",
        "artifact.verify(found)",
        (f"{CRASHES}::test_what_is_cut_off_gone_or_strange_is_found_and_the_one_before_is_used",),
    ),
    Mutant(
        "only damaged checkpoints mean starting over",
        "training/sound_checkpoints.py",
        "    if damaged:\n        raise CheckpointError(",
        "    if False and damaged:\n        raise CheckpointError(",
        (CHECKPOINT,),
    ),
    Mutant(
        "a half-removed checkpoint is not swept away",
        "training/sound_checkpoints.py",
        "        if not (path / artifact.MANIFEST).is_file():\n            disk.remove(path)\n",
        "        pass\n",
        (CHECKPOINT, f"{RETENTION}::test_a_half_removed_checkpoint_is_swept_at_the_next_save"),
    ),
    Mutant(
        "the best checkpoint is removed with the others",
        "training/sound_checkpoints.py",
        "if one.step not in newest | best | before and",
        "if one.step not in newest | before and",
        (CHECKPOINT,),
    ),
    Mutant(
        "a damaged checkpoint counts as one of those kept",
        "training/sound_checkpoints.py",
        "            problems = problems_of(one.path)\n            if problems:",
        "            problems = problems_of(one.path)\n            if False and problems:",
        (f"{RETENTION}::test_damaged_ones_do_not_count_and_are_not_deleted",),
    ),
    Mutant(
        "an asynchronous save writes the tensors that training changes",
        "training/saving.py",
        "self._thread.submit(self._write, snapshot.copied(), keep)",
        "self._thread.submit(self._write, snapshot, keep)",
        (f"{SAVING}::test_an_asynchronous_save_holds_the_state_of_its_moment",),
    ),
    Mutant(
        "the last save may fail silently",
        "training/saving.py",
        'if occasion != "cadence":',
        "if False:",
        (f"{SAVING}::test_the_last_state_must_be_saved",),
    ),
    Mutant(
        "a failure to save ends the training",
        "training/saving.py",
        "            saved = self._settled(step, lambda: self._write(snapshot, keep))",
        "            saved = self._write(snapshot, keep)",
        (f"{SAVING}::test_training_goes_on_and_counts",),
    ),
    Mutant(
        "the random numbers of a step go on from the step before",
        "training/trainer.py",
        "        torch.manual_seed(self.settings.seed * 1_000_003 + step * self.world.size + self.world.rank)\n",
        "",
        (f"{EXACT}::test_continued_from_any_step_no_bit_differs", f"{TRAINER}::test_eight_steps_with_dropout_are_four_and_four"),
    ),
    Mutant(
        "the optimizer's state is not restored",
        "training/checkpoint.py",
        "    optimizer.load_state(read_tensors(checkpoint.path / OPTIMIZER))\n    return progress\n",
        "    return progress\n",
        (CHECKPOINT,),
    ),
    Mutant(
        "a change of the order of rows is no reason to refuse",
        "training/checkpoint.py",
        "    if changed:\n",
        "    if False and changed:\n",
        (CHECKPOINT,),
    ),
    Mutant(
        "records after the checkpoint stay and occur twice",
        "core/metrics.py",
        'if record["step"] <= keep_until_step]',
        "if True]",
        ("tests/core/test_metrics.py", KILLED),
    ),
    Mutant(
        "two processes may work in one run folder",
        "core/disk.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        (PROCESS,),
    ),
    Mutant(
        "a manifest may name files outside its folder",
        "core/artifact.py",
        '    if Path(name).is_absolute() or ".." in Path(name).parts:\n',
        "    if False:\n",
        ("tests/core/test_artifact.py",),
    ),
)


def changed_package(mutant: Mutant, folder: Path) -> None:
    """A copy of the package in a folder, with the change. Raises ValueError if the text is not there, or more than once."""
    shutil.copytree(ROOT / "fledge", folder / "fledge", ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / "fledge" / mutant.file
    path.write_text(changed_text(mutant), encoding="utf-8")


def changed_text(mutant: Mutant) -> str:
    """The file as the mutant has it. Raises ValueError if the text is not there, or more than once."""
    text = (ROOT / "fledge" / mutant.file).read_text(encoding="utf-8")
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.name}: its text occurs {text.count(mutant.old)} times in {mutant.file}")
    return text.replace(mutant.old, mutant.new)


def caught_by(mutant: Mutant) -> str | None:
    """The first test that fails on the mutant; None if all pass."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        changed_package(mutant, Path(folder))
        for name in ("tests", "pyproject.toml", "recipes"):
            (Path(folder) / name).symlink_to(ROOT / name)
        command = [sys.executable, "-m", "pytest", "-x", "-m", "not slow", "-p", "no:cacheprovider", "--rootdir", folder, *mutant.tests]
        environment = {**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode == 0:
            return None
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if not failed or done.returncode != 1:
            raise RuntimeError(f"{mutant.name}: the tests did not run\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return failed[0].removeprefix("FAILED ").split(" - ")[0].rpartition("::")[2]


def main() -> None:
    chosen = [mutant for mutant in MUTANTS if not sys.argv[1:] or any(name in mutant.name for name in sys.argv[1:])]
    survived = 0
    for mutant in chosen:
        started = time.monotonic()
        test = caught_by(mutant)
        survived += test is None
        print(
            f"{'survives' if test is None else 'caught':9}{time.monotonic() - started:5.0f} s  {mutant.name:62}  {test or ''}", flush=True
        )
    print(f"{len(chosen) - survived} of {len(chosen)} mutants are caught")
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
