"""`python -m fledge.publish.unpickling FILE FOLDER`: tensors and plain data of a `.pt` file as safetensors and JSON; a process of its own.

A pickle can run code. This is the one place that opens any: by torch's restricted reader, which builds tensors and plain values only
(`weights_only`; the version Fledge asks for has its known holes closed), in a process of few rights. What it writes is data.

    the kernel   no network (Linux, where namespaces are allowed), no new privileges, no second process (unless it is root's);
                 memory, size of files and time by the file's size
    an audit     no sockets, processes, foreign functions; nothing read outside FILE, FOLDER and the Python installation, nothing
                 changed outside FOLDER
    not there    secrets in the environment

The audit sees what Python code does. Machine code that a hostile file brings to run in torch's own reader meets only the kernel's part.

    weights.safetensors   every tensor of the state dict, by the file's names
    config.json           the plain dict beside it that describes the model; {} if there is none
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fledge.core import console
from fledge.core.errors import CheckpointError

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
_STATE_KEYS = ("model", "model_state_dict", "state_dict", "module", "weights", "params")
_CONFIG_KEYS = ("config", "model_args", "model_config", "args", "hparams", "hyper_parameters", "params")
_NEW_USER_NAMESPACE, _NEW_NETWORK_NAMESPACE = 0x10000000, 0x40000000
_PR_SET_NO_NEW_PRIVS = 38
_FORBIDDEN_EVENTS = (
    *("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill", "pty.", "ctypes.", "gc."),
    *("os.chdir", "os.fwalk", "signal.pthread_kill", "sqlite3."),
)
_FORBIDDEN_MODULES = frozenset({"_posixsubprocess", "_ctypes", "_cffi_backend"})
"""Not to be imported again: `shut_in` takes from the first what no audit sees."""
_CHANGES = {
    **dict.fromkeys(("os.rename", "os.symlink", "os.link"), 2),
    **dict.fromkeys(("os.remove", "os.truncate", "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.utime", "os.mkfifo"), 1),
    **dict.fromkeys(("os.chflags", "os.lchflags", "os.setxattr", "os.removexattr"), 1),
}
"""Events, and how many of their arguments are paths of what is changed."""
_LOOKS = frozenset({"os.listdir", "os.scandir"})
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_MEMORY_BYTES, _MEMORY_PER_BYTE = 4 << 30, 6
_SECONDS, _BYTES_PER_SECOND = 600, 10 << 20
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")


def unpickle(path: Path, folder: Path) -> dict[str, Any]:
    """Convert a file in a process of its own; returns the config found in it. Raises CheckpointError with what that process said."""
    seconds = _allowed_seconds(path)
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-s", "-m", __name__, str(path.resolve()), str(folder.resolve())]
    try:
        ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise CheckpointError(f"{path} cannot be converted: not done after {seconds} s", "save its state dict, and nothing else") from error
    if ended.returncode:
        told = (ended.stderr.strip().splitlines() or [f"the process ended with {ended.returncode}"])[-1]
        raise CheckpointError(f"{path} cannot be converted: {told}", "save its state dict, and nothing else, with what wrote it")
    if ended.stdout.strip():
        console.warn(ended.stdout.strip())
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return found


def main(path: Path, folder: Path) -> None:
    """What the process does. It ends with a message on stderr if the file holds anything but tensors and plain data."""
    if not leave_the_network():
        print("this system lets no process leave its network: while the file is opened, only Python's audit keeps it from there")
    import torch

    from fledge.core import disk
    from fledge.model.tensors import write_tensors

    limit(path)
    shut_in(folder, path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the errors of a damaged or hostile file have no common type
        raise SystemExit(f"it holds more than tensors and plain data, or is damaged ({type(error).__name__})") from error
    weights = state_dict(content, torch.Tensor)
    if not weights:
        raise SystemExit("there is no state dict in it")
    write_tensors(folder / WEIGHTS, {name: weight.detach().contiguous() for name, weight in weights.items()})
    disk.write_json(folder / CONFIG, plain_config(content))


def state_dict(content: Any, tensor: type) -> dict[str, Any]:
    """The tensors by name: of the content itself, or of the part of it that is usually called so."""
    if not isinstance(content, Mapping):
        return {}
    found = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, tensor)}
    if found:
        return found
    return next((inner for key in _STATE_KEYS if (inner := state_dict(content.get(key), tensor))), {})


def plain_config(content: Any) -> dict[str, Any]:
    """The first part that is a dict of plain values and usually describes a model."""
    parts = (content.get(key) for key in _CONFIG_KEYS) if isinstance(content, Mapping) else ()
    for part in parts:
        if isinstance(part, Mapping):
            plain = {str(key): value for key, value in part.items() if isinstance(value, (str, int, float, bool, list)) or value is None}
            with contextlib.suppress(TypeError, ValueError):
                json.dumps(plain, allow_nan=False)
                return plain
    return {}


def leave_the_network() -> bool:
    """Go where there is no network; False if the system does not let one. What `shut_in` forbids holds in any case."""
    if sys.platform != "linux":
        return False
    return int(ctypes.CDLL(None).unshare(_NEW_USER_NAMESPACE | _NEW_NETWORK_NAMESPACE)) == 0


def limit(path: Path) -> None:
    """Bound what this process may take while it converts a file, by the file's size; kept by the kernel, and not to be raised again."""
    size_bytes = path.stat().st_size
    memory_bytes = _MEMORY_BYTES + _MEMORY_PER_BYTE * size_bytes
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        # torch with its libraries for accelerators has mapped gigabytes before it reads anything.
        mapped_pages = int(Path("/proc/self/statm").read_text().split()[0])
        _lower(resource.RLIMIT_AS, mapped_pages * resource.getpagesize() + memory_bytes)
    _lower(resource.RLIMIT_FSIZE, memory_bytes)
    _lower(resource.RLIMIT_CPU, _allowed_seconds(path))
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NPROC, 0)


def _allowed_seconds(path: Path) -> int:
    return _SECONDS + path.stat().st_size // _BYTES_PER_SECOND


def _lower(kind: int, value: int) -> None:
    most = resource.getrlimit(kind)[1]
    allowed = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (allowed, allowed))


def shut_in(folder: Path, path: Path) -> None:
    """From now on Python code of this process opens no socket, starts no process, loads no library of functions, reads nothing but `path`,
    `folder` and the Python installation, and changes nothing outside `folder`. It cannot be undone.
    """
    inside = [os.path.realpath(folder)]
    readable = [*inside, os.path.realpath(path), *map(os.path.realpath, (sys.prefix, sys.base_prefix, *filter(None, sys.path)))]
    _take_away_processes()

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN_EVENTS) or (event == "import" and arguments[0] in _FORBIDDEN_MODULES):
            raise PermissionError(f"{event} is forbidden while a pickle is read")
        if event == "open":
            _require_within(arguments[:1], inside if (arguments[2] or 0) & _WRITING else readable)
        elif event in _CHANGES:
            _require_within(arguments[: _CHANGES[event]], inside)
        elif event in _LOOKS:
            _require_within(arguments[:1], readable)

    sys.addaudithook(refuse)


def _require_within(places: Iterable[Any], folders: Iterable[str]) -> None:
    """Raises PermissionError for a path that leads elsewhere; an open file was allowed when it was opened."""
    for place in places:
        if isinstance(place, int):
            continue
        full = os.path.realpath(os.fsdecode(place if place is not None else "."))
        if not any(full == folder or full.startswith(folder.rstrip(os.sep) + os.sep) for folder in folders):
            raise PermissionError(f"{full} is out of reach while a pickle is read")


def _take_away_processes() -> None:
    """`fork_exec` starts processes without an audit event; whoever wants it from now on finds a function that refuses."""
    import _posixsubprocess

    def refused(*arguments: object) -> int:
        raise PermissionError("no process is started while a pickle is read")

    for module in (_posixsubprocess, subprocess):
        for name in ("fork_exec", "_fork_exec"):
            if hasattr(module, name):
                setattr(module, name, refused)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
