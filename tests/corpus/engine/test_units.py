from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_assembly import TextUnit, text_units, tree

from fledge.core import disk
from fledge.core.errors import DataError, MachineError
from fledge.corpus.engine.units import UNIT, WorkFolder, attempt, name_of

# From Python 3.12 on, a fork beside the threads of other libraries warns; these children only write files and exit.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

UNIT_0 = TextUnit(0)
NAME = name_of(UNIT_0.key)


def again(work: WorkFolder) -> WorkFolder:
    """The same folder as another process finds it, which remembers nothing."""
    return WorkFolder(work.folder)


class Recorder:
    """A fail point that counts, and does something at one operation."""

    def __init__(self, act_at: int = -1, act: Callable[[], None] = lambda: None) -> None:
        self.passed = 0
        self._act_at = act_at
        self._act = act

    def __call__(self, operation: str, path: Path) -> None:
        self.passed += 1
        if self.passed - 1 == self._act_at:
            self._act()


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def operations_of(work: WorkFolder) -> int:
    work.discard_all_but([])
    disk.fail_point = counted = Recorder()
    work.make(UNIT_0)
    disk.fail_point = None
    work.discard_all_but([])
    return counted.passed


# ---- a result


def test_a_result_is_a_folder_that_is_found_again(work: WorkFolder) -> None:
    assert work.find(UNIT_0) is None
    done = work.make(UNIT_0)
    assert done.folder == work.folder / NAME
    assert set(tree(done.folder)) == {"deep/text", "key", UNIT}
    assert done.counts == {"read": {"documents": 10}, "kept": {"documents": 7}, "lengths": {"5": 0}}, "as JSON gives them back"
    assert again(work).find(UNIT_0) == work.find(UNIT_0) == done
    assert again(work).glance(UNIT_0) == done
    assert work.names() == {NAME}


def test_the_id_follows_from_the_key_and_the_bytes(work: WorkFolder, tmp_path: Path) -> None:
    class Other(TextUnit):
        def run(self, folder: Path) -> dict[str, Any]:
            super().run(folder)
            (folder / "key").write_text("other")
            return {}

    done = work.make(UNIT_0)
    assert WorkFolder(tmp_path / "elsewhere").make(UNIT_0).id == done.id
    assert WorkFolder(tmp_path / "other").make(Other(0)).id != done.id
    assert work.make(TextUnit(1)).id != done.id


def test_a_folder_is_absolute_wherever_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert WorkFolder(Path("work")).make(UNIT_0).folder == tmp_path / "work" / NAME


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def change_counts(folder: Path) -> None:
    path = folder / UNIT
    path.write_text(path.read_text().replace('"documents": 7', '"documents": 8'))


def become_another(folder: Path) -> None:
    """Whole, but the result of another unit."""
    other = WorkFolder(folder.parent / "other").make(TextUnit(1))
    disk.remove(folder)
    other.folder.rename(folder)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": lambda folder: flip(folder / "deep" / "text"),
    "a file cut off": lambda folder: os.truncate(folder / "deep" / "text", 3),
    "a missing file": lambda folder: (folder / "key").unlink(),
    "an extra file": lambda folder: (folder / "deep" / "more").write_bytes(b""),
    "no unit.json": lambda folder: (folder / UNIT).unlink(),
    "a torn unit.json": lambda folder: os.truncate(folder / UNIT, 30),
    "another form of unit.json": lambda folder: (folder / UNIT).write_text("[1]"),
    "not even text": lambda folder: (folder / UNIT).write_bytes(b"\xff"),
    "an edited count": change_counts,
    "another unit's": become_another,
    "nothing": lambda folder: [path.unlink() for path in folder.rglob("*") if path.is_file()],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_result_is_removed_and_made_again(work: WorkFolder, damage: str) -> None:
    done = work.make(UNIT_0)
    before = tree(done.folder)
    DAMAGES[damage](done.folder)
    late = again(work)
    assert late.find(UNIT_0) is None
    assert not done.folder.exists()
    assert attempt(late, UNIT_0).result(UNIT_0) == done
    assert tree(done.folder) == before
    assert not list(work.folder.glob("*.partial"))


def test_sizes_alone_are_checked_by_a_glance(work: WorkFolder) -> None:
    done = work.make(UNIT_0)
    flip(done.folder / "deep" / "text")
    assert again(work).glance(UNIT_0) == done
    os.truncate(done.folder / "deep" / "text", 3)
    assert again(work).glance(UNIT_0) is None
    assert done.folder.exists(), "a glance removes nothing"


def test_what_was_verified_once_is_remembered(work: WorkFolder) -> None:
    done = work.make(UNIT_0)
    late = again(work)
    assert late.stored_bytes(UNIT_0) == sum(map(len, tree(done.folder).values()))
    assert late.find(UNIT_0) == done
    assert late.stored_bytes(UNIT_0) == 0
    flip(done.folder / "key")
    assert late.find(UNIT_0) == done
    disk.remove(done.folder)
    assert late.find(UNIT_0) is None, "but not what is gone"
    assert again(work).stored_bytes(UNIT_0) is None


def test_a_damaged_result_that_another_process_replaced_stays(work: WorkFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    done = work.make(UNIT_0)
    flip(done.folder / "key")
    hashed = disk.digest_file

    def replaced_meanwhile(path: Path) -> disk.FileDigest:
        digest = hashed(path)
        monkeypatch.undo()
        disk.remove(done.folder)
        again(work).make(UNIT_0)
        return disk.FileDigest(digest.size_bytes, "")

    monkeypatch.setattr(disk, "digest_file", replaced_meanwhile)
    assert again(work).find(UNIT_0) is None
    assert again(work).find(UNIT_0) == done


# ---- failing and dying


@pytest.mark.parametrize(("misdeed", "error"), [("data", DataError), ("bug", ValueError), ("memory", MachineError)])
def test_a_unit_that_raises_leaves_nothing(work: WorkFolder, misdeed: str, error: type[Exception]) -> None:
    with pytest.raises(error) as raised:
        work.make(TextUnit(0, misdeed=misdeed))
    assert tree(work.folder) == {}
    assert not list(work.folder.iterdir())
    if misdeed == "memory":
        assert str(raised.value) == "text 0: no memory left\nuse fewer workers, or a machine with more memory"


def test_a_full_disk_at_any_operation_leaves_nothing_or_all(work: WorkFolder) -> None:
    expected = tree(work.make(UNIT_0).folder)
    count = operations_of(work)
    assert count == 13
    for index in range(count):
        disk.fail_point = Recorder(index, fill_disk)
        with pytest.raises(MachineError, match="no space left"):
            work.make(UNIT_0)
        disk.fail_point = None
        assert not list(work.folder.glob("*.partial"))
        # The last operation flushes the folder that holds the result, which is there by then.
        assert work.names() == ({NAME} if index == count - 1 else set())
        late = again(work)
        assert tree((late.find(UNIT_0) or late.make(UNIT_0)).folder) == expected
        work.discard_all_but([])


def test_a_unit_whose_library_meets_a_full_disk_is_explained(work: WorkFolder) -> None:
    class Full(TextUnit):
        def run(self, folder: Path) -> dict[str, Any]:
            raise OSError(errno.ENOSPC, "Error writing bytes to file")

    with pytest.raises(MachineError, match="no space left while writing"):
        work.make(Full(0))
    assert not list(work.folder.iterdir())


def test_a_kill_at_any_operation_leaves_nothing_or_all(work: WorkFolder) -> None:
    expected = tree(work.make(UNIT_0).folder)
    count = operations_of(work)
    for index in range(count):
        child = os.fork()
        if child == 0:
            disk.fail_point = Recorder(index, lambda: os.kill(os.getpid(), signal.SIGKILL))
            try:
                work.make(UNIT_0)
            finally:
                os._exit(99)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        late = again(work)
        assert (late.find(UNIT_0) is not None) == (index == count - 1)
        late.discard_partials()
        assert tree((late.find(UNIT_0) or late.make(UNIT_0)).folder) == expected
        assert [path.name for path in work.folder.iterdir()] == [NAME]
        late.discard_all_but([])


# ---- side by side


def test_the_first_to_publish_wins(work: WorkFolder) -> None:
    """While one process runs a unit, another finishes the same one."""

    class Overtaken(TextUnit):
        def run(self, folder: Path) -> dict[str, Any]:
            again(work).make(UNIT_0)
            return super().run(folder)

    done = work.make(Overtaken(0))
    assert done == again(work).find(UNIT_0)
    assert [path.name for path in work.folder.iterdir()] == [NAME]


def test_a_result_that_changes_under_our_hands_is_an_error(work: WorkFolder) -> None:
    class Overtaken(TextUnit):
        def run(self, folder: Path) -> dict[str, Any]:
            (work.folder / NAME).mkdir()
            (work.folder / NAME / "stray").write_bytes(b"")
            return super().run(folder)

    with pytest.raises(MachineError, match="changed while it was made"):
        work.make(Overtaken(0))


_RACE = """
import sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from engine_assembly import ids, text_units
from fledge.corpus.engine.units import WorkFolder
work = WorkFolder(Path(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
print(*ids([work.find(unit) or work.make(unit) for unit in text_units(12)]), flush=True)
"""


def test_processes_that_race_for_the_same_keys_agree(work: WorkFolder, undisturbed: Callable[[int], Any]) -> None:
    command = [sys.executable, "-c", _RACE, str(Path(__file__).parent), str(work.folder)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for racer in racers:
        assert racer.stdout is not None
        racer.stdout.readline()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = [racer.communicate()[0].split() for racer in racers]
    expected_ids, expected_files = undisturbed(12)
    assert said == [expected_ids, expected_ids]
    assert tree(work.folder) == expected_files


# ---- tidying


def test_only_what_does_not_belong_is_discarded(work: WorkFolder) -> None:
    for unit in text_units(3):
        work.make(unit)
    (work.folder / "notes.json").write_text("{}")
    (work.folder / "raw").mkdir()
    work.discard_all_but([unit.key for unit in text_units(2)])
    assert {path.name for path in work.folder.iterdir()} == {*(name_of(unit.key) for unit in text_units(2)), "notes.json", "raw"}
    assert work.find(TextUnit(2)) is None
    assert work.find(TextUnit(1)) is not None
    WorkFolder(work.folder / "absent").discard_all_but([])


def test_a_result_half_discarded_counts_as_absent(work: WorkFolder) -> None:
    work.make(UNIT_0)
    disk.fail_point = Recorder(1, fill_disk)  # after the unlink of unit.json, before the rest
    with pytest.raises(MachineError):
        work.discard_all_but([])
    disk.fail_point = None
    assert (work.folder / NAME).exists()
    assert again(work).find(UNIT_0) is None


def test_partial_folders_go_with_their_process(work: WorkFolder) -> None:
    class Looking(TextUnit):
        def run(self, folder: Path) -> dict[str, Any]:
            again(work).discard_partials()
            assert folder.is_dir(), "its process lives"
            mine = folder.name.split(".")
            ended, unburied = (subprocess.Popen([sys.executable, "-c", ""]) for _ in range(2))
            ended.wait()
            os.waitid(os.P_PID, unburied.pid, os.WEXITED | os.WNOWAIT)
            names = {
                "ended here": [mine[0], "0" * 8, str(ended.pid), *mine[3:]],
                "ended here, but not waited for": [mine[0], "3" * 8, str(unburied.pid), *mine[3:]],
                "elsewhere, today": [mine[0], "1" * 8, "1", "elsewhere-1", "partial"],
                "elsewhere, long ago": [mine[0], "2" * 8, "1", "elsewhere-1", "partial"],
            }
            places = {what: work.folder / ".".join(parts) for what, parts in names.items()}
            for place in places.values():
                place.mkdir()
                (place / "file").write_bytes(b"x")
            long_ago = time.time() - 25 * 3600
            os.utime(places["elsewhere, long ago"], (long_ago, long_ago))
            assert set(again(work).partials()) == {NAME}
            again(work).discard_partials()
            assert {what for what, place in places.items() if place.exists()} == {"elsewhere, today"}
            disk.remove(places["elsewhere, today"])
            unburied.wait()
            return super().run(folder)

    work.make(Looking(0))
    assert work.partials() == {}


def test_unit_json_says_what_is_there(work: WorkFolder) -> None:
    done = work.make(UNIT_0)
    content = json.loads((done.folder / UNIT).read_text())
    assert list(content) == ["key", "id", "files", "counts", "checksum"]
    assert content["key"] == UNIT_0.key
    assert content["files"]["deep/text"]["size_bytes"] == 7000
    assert content["id"] == done.id
