"""A pickle is opened by a process that can take little and change nothing, and that ends."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.core.errors import CheckpointError
from fledge.publish import unpickling

ATTEMPTS = """
import os, resource, signal, socket, subprocess, sys
from pathlib import Path
import _posixsubprocess
from fledge.publish.unpickling import leave_the_network, limit, shut_in
outside, given = Path(sys.argv[1]), Path(sys.argv[2])
leave_the_network()
limit(given)
shut_in(Path("."), given)

def fork_exec():
    _posixsubprocess.fork_exec([b"true"], [b"/bin/true"], True, (), None, None, -1, -1, -1, -1, -1, -1, -1, -1, False, False, 0,
                               None, None, None, 0, None)

def import_again():
    del sys.modules["_posixsubprocess"]
    import _posixsubprocess

forbidden = {
    "socket": socket.socket,
    "subprocess": lambda: subprocess.run(["true"]),
    "fork_exec": fork_exec,
    "import again": import_again,
    "system": lambda: os.system("true"),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "kill": lambda: os.kill(os.getppid(), 0),
    "foreign functions": lambda: __import__("ctypes").CDLL(None),
    "read": lambda: (outside / "token").read_bytes(),
    "read by bytes": lambda: open(os.fsencode(outside / "token")),
    "environ": lambda: open(f"/proc/{os.getppid()}/environ", "rb"),
    "list": lambda: os.listdir(outside),
    "write": lambda: open(outside / "new", "w"),
    "write by bytes": lambda: open(os.fsencode(outside / "new"), "wb"),
    "append": lambda: open(outside / "token", "a"),
    "cut off by opening": lambda: os.open(outside / "token", os.O_RDONLY | os.O_TRUNC),
    "the file itself": lambda: os.open(given, os.O_RDONLY | os.O_TRUNC),
    "remove": lambda: os.remove(outside / "token"),
    "remove by bytes": lambda: os.remove(os.fsencode(outside / "token")),
    "rename out": lambda: os.rename("inside", outside / "new"),
    "rename in": lambda: os.rename(outside / "token", "token"),
    "replace": lambda: os.replace("inside", outside / "token"),
    "truncate": lambda: os.truncate(outside / "token", 0),
    "mkdir": lambda: os.mkdir(outside / "new"),
    "rmdir": lambda: os.rmdir(outside / "empty"),
    "symlink": lambda: os.symlink(outside, "link"),
    "link": lambda: os.link(outside / "token", "link"),
    "chmod": lambda: os.chmod(outside / "token", 0o777),
    "utime": lambda: os.utime(outside / "token", (0, 0)),
    "chdir": lambda: os.chdir(outside),
    "through a folder": lambda: os.open("../outside/token", os.O_RDONLY, dir_fd=os.open(".", os.O_RDONLY)),
}
Path("inside").write_text("x")
for name, attempt in forbidden.items():
    try: attempt()
    except PermissionError: continue
    except BaseException as error: sys.exit(f"{name}: {error!r}")
    sys.exit(f"{name} was not refused")
try: bytearray(1 << 36)
except MemoryError: pass
else: sys.exit("memory was not refused")
for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):
    assert resource.getrlimit(kind)[0] == resource.getrlimit(kind)[1] != resource.RLIM_INFINITY, kind
given.read_bytes()
import email.mime.text
os.rename("inside", "renamed")
print("all refused")
"""


def test_what_a_hole_in_the_reader_would_want_is_refused(tmp_path: Path) -> None:
    """Code that runs behind the locks of `main` stands in for such a hole."""
    place, outside = tmp_path / "place", tmp_path / "outside"
    for folder in (place, outside, outside / "empty"):
        folder.mkdir()
    (outside / "token").write_text("secret")
    (tmp_path / "given.pt").write_bytes(b"x")
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(unpickling.__file__).parents[2]), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-s", "-c", ATTEMPTS, str(outside), str(tmp_path / "given.pt")]
    ended = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert (ended.stdout, ended.returncode) == ("all refused\n", 0), ended.stderr
    assert sorted(path.name for path in outside.iterdir()) == ["empty", "token"] and (outside / "token").read_text() == "secret"
    assert [path.name for path in place.iterdir()] == ["renamed"] and (tmp_path / "given.pt").read_bytes() == b"x"


class _Stub:
    """Stands for the process; keeps what it was started with."""

    def __init__(self, result: Exception | str) -> None:
        self.result, self.environment, self.seconds = result, dict[str, str](), 0

    def __call__(self, command: list[str], env: dict[str, str], cwd: Path, timeout: int, **options: Any) -> Any:
        self.environment, self.seconds = env, timeout
        if isinstance(self.result, Exception):
            raise self.result
        (cwd / unpickling.CONFIG).write_text("{}")
        return subprocess.CompletedProcess(command, 0, self.result, "")


def test_the_process_has_no_secrets_and_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    (tmp_path / "x.pt").write_bytes(bytes(1000))
    started = _Stub("this system lets no process leave its network\n")
    monkeypatch.setattr(unpickling.subprocess, "run", started)
    assert unpickling.unpickle(tmp_path / "x.pt", tmp_path) == {}
    assert not {"HF_TOKEN", "HOME"} & started.environment.keys() and started.seconds == 600
    assert "lets no process leave its network" in capsys.readouterr().err
    monkeypatch.setattr(unpickling.subprocess, "run", _Stub(subprocess.TimeoutExpired("x", 600)))
    with pytest.raises(CheckpointError, match="not done after 600 s"):
        unpickling.unpickle(tmp_path / "x.pt", tmp_path)


def test_whether_the_network_was_left_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in (-1, 0):
        monkeypatch.setattr(
            unpickling.ctypes, "CDLL", lambda _, answer=answer: type("C", (), {"unshare": staticmethod(lambda flags: answer)})
        )
        monkeypatch.setattr(unpickling.sys, "platform", "linux")
        assert unpickling.leave_the_network() == (answer == 0)


def test_the_state_dict_and_the_config_are_found_where_they_usually_are() -> None:
    weights, config = {"a.weight": torch.ones(2)}, {"dim": 8, "name": "x", "tied": None, "code": print}
    for content in (weights, {"model": weights}, {"state_dict": {"module": weights}}, {**weights, "step": 3}):
        assert unpickling.state_dict(content, Tensor) == weights
    for nothing in (None, [weights], {}, {"model": [1]}, {"loss": 1.0}):
        assert unpickling.state_dict(nothing, Tensor) == {}
    assert unpickling.plain_config({"model": weights, "model_args": config}) == {"dim": 8, "name": "x", "tied": None}
    assert unpickling.plain_config({"config": {"x": float("nan")}, "args": {"y": 1}}) == {"y": 1}
    assert unpickling.plain_config(weights) == unpickling.plain_config(None) == {}
