"""`python -m fledge.publish.unpickling FILE FOLDER`: tensors and plain data of a `.pt` file as safetensors and JSON; a process of its own.

A pickle can run code. This is the one place that opens any: by torch's restricted reader, which builds tensors and plain values only
(`weights_only`; the version Fledge asks for has its known holes closed), in a process that has no network, no secret in its environment,
cannot start another, and writes nowhere but into FOLDER. What it writes there is data.

    weights.safetensors   every tensor of the state dict, by the file's names
    config.json           the plain dict beside it that describes the model; {} if there is none
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge.core.errors import CheckpointError

WEIGHTS, CONFIG = "weights.safetensors", "config.json"
_STATE_KEYS = ("model", "model_state_dict", "state_dict", "module", "weights", "params")
_CONFIG_KEYS = ("config", "model_args", "model_config", "args", "hparams", "hyper_parameters", "params")
_NEW_USER_NAMESPACE, _NEW_NETWORK_NAMESPACE = 0x10000000, 0x40000000
_FORBIDDEN_EVENTS = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.", "ctypes.")
_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "TMPDIR")


def unpickle(path: Path, folder: Path) -> dict[str, Any]:
    """Convert a file in a process of its own; returns the config found in it. Raises CheckpointError with what that process said."""
    environment = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-s", "-m", __name__, str(path.resolve()), str(folder.resolve())]
    ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        told = (ended.stderr.strip().splitlines() or [f"the process ended with {ended.returncode}"])[-1]
        raise CheckpointError(f"{path} cannot be converted: {told}", "save its state dict, and nothing else, with what wrote it")
    found: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    return found


def main(path: Path, folder: Path) -> None:
    """What the process does. It ends with a message on stderr if the file holds anything but tensors and plain data."""
    leave_the_network()
    import torch

    from fledge.core import disk
    from fledge.model.tensors import write_tensors

    shut_in(folder)
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


def leave_the_network() -> None:
    """Go where there is no network, if the system lets one; what `shut_in` forbids holds in any case."""
    if sys.platform == "linux":
        ctypes.CDLL(None).unshare(_NEW_USER_NAMESPACE | _NEW_NETWORK_NAMESPACE)


def shut_in(folder: Path) -> None:
    """From now on this process opens no socket, starts no other, loads no library, and writes into `folder` only. It cannot be undone."""
    inside = str(folder.resolve())

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_FORBIDDEN_EVENTS):
            raise PermissionError(f"{event} is forbidden while a pickle is read")
        writes = event == "open" and isinstance(arguments[0], str) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        if writes and not os.path.realpath(arguments[0]).startswith(inside + os.sep):
            raise PermissionError(f"{arguments[0]} must not be written while a pickle is read")

    sys.addaudithook(refuse)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
