from __future__ import annotations

import errno
import hashlib
import os
import resource
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.core import disk
from fledge.core.errors import MachineError

# From Python 3.12 on, a fork beside the threads of other libraries warns; these children only write files and exit.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")

OLD, NEW = b"old" * 1000, [b"new" * 1000, b"and more" * 500]
WHOLE = b"".join(NEW)


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def write_new(folder: Path) -> disk.FileDigest:
    return disk.write_bytes(folder / "file", NEW)


def stage_new(folder: Path) -> None:
    with disk.staging(folder / "final") as partial:
        disk.write_bytes(partial / "deep" / "a", b"a" * 100)
        (partial / "b").write_bytes(b"b" * 100)  # a foreign writer
        disk.write_json(partial / "manifest.json", {"files": ["deep/a", "b"]})


STAGED = {"deep/a": b"a" * 100, "b": b"b" * 100, "manifest.json": b'{\n  "files": [\n    "deep/a",\n    "b"\n  ]\n}\n'}


# ---- whole files


def test_a_file_is_written_whole_with_its_digest(tmp_path: Path) -> None:
    digest = write_new(tmp_path)
    assert (tmp_path / "file").read_bytes() == WHOLE
    assert digest == disk.FileDigest(len(WHOLE), hashlib.sha256(WHOLE).hexdigest())
    assert digest == disk.digest_file(tmp_path / "file")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_order_of_operations_is_the_one_that_recovers(tmp_path: Path, operations: Any) -> None:
    operations.count(lambda: disk.write_bytes(tmp_path / "file", b"x"))
    expected = [
        ("create", "file.partial"),
        ("write", "file.partial"),
        ("fsync", "file.partial"),
        ("rename", "file"),
        ("fsync", tmp_path.name),
    ]
    assert [(operation, path.name) for operation, path in operations.seen] == expected
    operations.count(lambda: stage_new(tmp_path))
    names = [operation for operation, _ in operations.seen]
    assert names[0] == "mkdir"
    assert operations.seen[-2:] == [("rename", tmp_path / "final"), ("fsync", tmp_path)]
    flushed = {path.name for operation, path in operations.seen[:-2] if operation == "fsync"}
    assert {"a", "b", "deep", "manifest.json", "final.partial"} <= flushed


def test_text_and_json(tmp_path: Path) -> None:
    disk.write_text(tmp_path / "new" / "text", "größe\n")
    assert (tmp_path / "new" / "text").read_bytes() == "größe\n".encode()
    disk.write_json(tmp_path / "value.json", {"b": 1, "a": "ü"})
    assert (tmp_path / "value.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "ü"\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        disk.write_json(tmp_path / "value.json", {"a": float("nan")})
    assert '"ü"' in (tmp_path / "value.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("there_before", [True, False])
def test_a_full_disk_at_any_operation_of_a_file_leaves_old_or_new(tmp_path: Path, operations: Any, there_before: bool) -> None:
    count = operations.count(lambda: write_new(tmp_path))
    assert count == 6
    for index in range(count):
        operations.undisturbed()
        disk.remove(tmp_path / "file")
        if there_before:
            disk.write_bytes(tmp_path / "file", OLD)
        operations.fill_disk_at(index)
        with pytest.raises(MachineError, match=r"no space left while writing .*file\nfree disk space"):
            write_new(tmp_path)
        # The last operation is the fsync of the folder: by then the new file is in place.
        old = {"file": OLD} if there_before else {}
        assert files_below(tmp_path) == (old if index < count - 1 else {"file": WHOLE}), operations.seen
        operations.undisturbed()
        write_new(tmp_path)
        assert files_below(tmp_path) == {"file": WHOLE}


@pytest.mark.parametrize("by_signal", [True, False])
def test_a_kill_at_any_operation_of_a_file_leaves_old_or_new(tmp_path: Path, operations: Any, by_signal: bool) -> None:
    count = operations.count(lambda: write_new(tmp_path))
    for index in range(count):
        operations.undisturbed()
        disk.write_bytes(tmp_path / "file", OLD)
        assert operations.killed(lambda: write_new(tmp_path), index, by_signal)
        assert (tmp_path / "file").read_bytes() == (OLD if index < count - 1 else WHOLE)
        operations.undisturbed()
        write_new(tmp_path)
        assert files_below(tmp_path) == {"file": WHOLE}, "the leftover of the killed process is gone"


def test_a_producer_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"begin"
        raise KeyError("its own mistake")

    disk.write_bytes(tmp_path / "file", OLD)
    with pytest.raises(KeyError):
        disk.write_bytes(tmp_path / "file", pieces())
    assert files_below(tmp_path) == {"file": OLD}


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(MachineError, match=r"cannot write .*file/below: (Not a directory|File exists)"):
        disk.write_bytes(tmp_path / "file" / "below", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(MachineError, match=r"cannot write .*folder: Is a directory"):
        disk.write_bytes(tmp_path / "folder", b"x")
    assert not (tmp_path / "folder.partial").exists()


# ---- folders


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    with disk.staging(tmp_path / "runs" / "final") as partial:
        assert partial == tmp_path / "runs" / "final.partial"
        assert not (tmp_path / "runs" / "final").exists()
        (partial / "a").write_bytes(b"a")
    assert files_below(tmp_path) == {"runs/final/a": b"a"}


@pytest.mark.parametrize("raised", [KeyError("mine"), KeyboardInterrupt(), PermissionError(errno.EACCES, "read")])
def test_a_block_that_raises_publishes_nothing(tmp_path: Path, raised: BaseException) -> None:
    with pytest.raises(type(raised)), disk.staging(tmp_path / "final") as partial:
        (partial / "a").write_bytes(b"a")
        raise raised
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_writer_on_a_full_disk_is_explained(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"no space left while writing .*final"), disk.staging(tmp_path / "final"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "final").mkdir()
    with disk.staging(tmp_path / "final") as partial:
        (partial / "a").write_bytes(b"a")
    with pytest.raises(MachineError, match="final is already there"), disk.staging(tmp_path / "final"):
        pytest.fail("the block must not be entered")
    assert files_below(tmp_path) == {"final/a": b"a"}


def test_a_full_disk_at_any_operation_of_a_folder_leaves_nothing_or_all(tmp_path: Path, operations: Any) -> None:
    count = operations.count(lambda: stage_new(tmp_path))
    for index in range(count):
        operations.undisturbed()
        disk.remove(tmp_path / "final")
        operations.fill_disk_at(index)
        with pytest.raises(MachineError, match="no space left"):
            stage_new(tmp_path)
        assert not (tmp_path / "final.partial").exists(), operations.seen
        if index < count - 1:
            assert not (tmp_path / "final").exists()
            operations.undisturbed()
            stage_new(tmp_path)
        assert files_below(tmp_path / "final") == STAGED


@pytest.mark.parametrize("by_signal", [True, False])
def test_a_kill_at_any_operation_of_a_folder_leaves_nothing_or_all(tmp_path: Path, operations: Any, by_signal: bool) -> None:
    count = operations.count(lambda: stage_new(tmp_path))
    for index in range(count):
        operations.undisturbed()
        disk.remove(tmp_path / "final")
        assert operations.killed(lambda: stage_new(tmp_path), index, by_signal)
        if index < count - 1:
            assert not (tmp_path / "final").exists()
            operations.undisturbed()
            stage_new(tmp_path)
        assert files_below(tmp_path / "final") == STAGED
        assert not (tmp_path / "final.partial").exists()


def test_the_first_of_several_makers_wins(tmp_path: Path) -> None:
    with disk.staging(tmp_path / "final", maker=".1") as slower:
        (slower / "a").write_bytes(b"the slower's")
        with disk.staging(tmp_path / "final", maker=".2") as quicker:
            assert (slower.name, quicker.name) == ("final.1.partial", "final.2.partial")
            (quicker / "a").write_bytes(b"the quicker's")
    assert files_below(tmp_path) == {"final/a": b"the quicker's"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_a_maker_that_cannot_publish_says_so(tmp_path: Path) -> None:
    (tmp_path / "final").write_bytes(b"a file")
    with pytest.raises(MachineError, match=r"cannot write .*final: Not a directory"), disk.staging(tmp_path / "final", maker=".1"):
        pass
    assert files_below(tmp_path) == {"final": b"a file"}


# ---- appending, moving, linking, removing


def test_lines_are_appended_whole(tmp_path: Path, operations: Any) -> None:
    path = tmp_path / "log" / "lines"
    for line in ("one", "zwei ü", "three"):
        disk.append_line(path, line)
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\nthree\n"
    operations.fill_disk_at(0)
    with pytest.raises(MachineError, match="no space left"):
        disk.append_line(path, "four")
    assert path.read_text(encoding="utf-8") == "one\nzwei ü\nthree\n"


def test_a_short_write_is_an_error_not_a_silent_loss(tmp_path: Path) -> None:
    """A real limit of the system: the write that meets it is short, and only the next one fails."""
    path = tmp_path / "lines"
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
        disk.append_line(path, "1234567")
        with pytest.raises(MachineError, match=r"cannot write .*lines: File too large"):
            disk.append_line(path, "890")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"1234567\n89"


def test_truncate_and_move(tmp_path: Path) -> None:
    disk.write_bytes(tmp_path / "a", b"0123456789")
    disk.truncate(tmp_path / "a", 4)
    disk.make_folder(tmp_path / "new" / "folder")
    disk.make_folder(tmp_path / "new" / "folder")
    disk.move(tmp_path / "a", tmp_path / "new" / "folder" / "b")
    assert files_below(tmp_path) == {"new/folder/b": b"0123"}
    with pytest.raises(MachineError, match="cannot write"):
        disk.truncate(tmp_path / "absent", 0)
    with pytest.raises(MachineError, match="cannot write"):
        disk.flush(tmp_path / "absent")


def test_a_link_shares_the_bytes(tmp_path: Path, operations: Any) -> None:
    disk.write_bytes(tmp_path / "a", b"a" * 100)
    operations.count(lambda: disk.link(tmp_path / "a", tmp_path / "new" / "b"))
    assert [operation for operation, _ in operations.seen] == ["link", "fsync"]
    assert (tmp_path / "a").samefile(tmp_path / "new" / "b")
    disk.remove(tmp_path / "a")
    assert files_below(tmp_path) == {"new/b": b"a" * 100}
    with pytest.raises(MachineError, match=r"cannot write .*b: No such file"):
        disk.link(tmp_path / "absent", tmp_path / "b")
    disk.write_bytes(tmp_path / "c", b"c")
    with pytest.raises(MachineError, match=r"cannot write .*b: File exists"):
        disk.link(tmp_path / "c", tmp_path / "new" / "b")


@pytest.mark.parametrize("reason", [errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP])
def test_where_no_link_can_be_the_bytes_are_copied(tmp_path: Path, reason: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(reason, os.strerror(reason))

    content = os.urandom(3 << 20)
    disk.write_bytes(tmp_path / "a", content)
    monkeypatch.setattr(os, "link", refused)
    disk.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == content
    assert not (tmp_path / "a").samefile(tmp_path / "b")


def test_touch_gives_a_sign_of_life(tmp_path: Path) -> None:
    os.utime(tmp_path, (0, 0))
    disk.touch(tmp_path)
    assert tmp_path.stat().st_mtime > 0
    with pytest.raises(MachineError, match=r"cannot write .*absent"):
        disk.touch(tmp_path / "absent")


def test_what_another_process_removes_meanwhile_is_gone_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage_new(tmp_path)
    remove_tree = shutil.rmtree

    def overtaken(folder: Path) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove_tree)
        (folder / "b").unlink()
        raise FileNotFoundError(errno.ENOENT, "No such file", str(folder / "b"))

    monkeypatch.setattr(shutil, "rmtree", overtaken)
    disk.remove(tmp_path / "final")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_half_removed_has_lost_its_manifest_first(tmp_path: Path, operations: Any) -> None:
    stage_new(tmp_path)
    operations.count(lambda: disk.remove(tmp_path / "final"))
    assert [(operation, path.name) for operation, path in operations.seen] == [("unlink", "manifest.json"), ("rmtree", "final")]
    operations.undisturbed()
    stage_new(tmp_path)
    assert operations.killed(lambda: disk.remove(tmp_path / "final"), 1, by_signal=True)
    assert "manifest.json" not in files_below(tmp_path / "final")


def test_remove_takes_files_links_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    (tmp_path / "file").write_bytes(b"")
    for name in ("link", "file", "absent"):
        disk.remove(tmp_path / name)
    assert files_below(tmp_path) == {"kept/a": b"a"}
    assert not (tmp_path / "link").is_symlink()


def test_a_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    first = disk.try_lock(tmp_path / "run" / ".lock", "the first, with a long name")
    assert first is not None
    assert disk.try_lock(tmp_path / "run" / ".lock", "second") is None
    assert (tmp_path / "run" / ".lock").read_text() == "the first, with a long name"
    os.close(first)
    second = disk.try_lock(tmp_path / "run" / ".lock", "second")
    assert second is not None
    assert (tmp_path / "run" / ".lock").read_text() == "second"
    os.close(second)


def test_a_folder_filled_over_several_attempts_appears_whole(tmp_path: Path) -> None:
    disk.write_text(tmp_path / "one.partial" / "sub" / "file", "text")
    seen: list[str] = []
    disk.fail_point = lambda operation, path: seen.append(f"{operation} {path.relative_to(tmp_path)}")
    try:
        disk.publish(tmp_path / "one.partial", tmp_path / "one")
    finally:
        disk.fail_point = None
    assert (tmp_path / "one" / "sub" / "file").read_text() == "text" and not (tmp_path / "one.partial").exists()
    assert seen == ["fsync one.partial/sub", "fsync one.partial/sub/file", "fsync one.partial", "rename one", "fsync ."]
    disk.write_text(tmp_path / "two.partial" / "file", "text")
    with pytest.raises(MachineError):
        disk.publish(tmp_path / "two.partial", tmp_path / "one")
    assert (tmp_path / "two.partial" / "file").exists()
