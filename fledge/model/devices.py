"""Where a model is computed: the name in a recipe or on the command line -> a device that is there."""

from __future__ import annotations

import torch
from torch import Tensor

from fledge.core.errors import MachineError
from fledge.model.settings import DeviceName


def choose_device(name: DeviceName, apple_by_itself: bool = False) -> torch.device:
    """The device of that name; `auto` is an NVIDIA GPU where there is one, then, with `apple_by_itself`, Apple's, else the CPU.

    Raises MachineError if it is not there.
    """
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    chosen = name if name != "auto" else "cuda" if there["cuda"] else "mps" if there["mps"] and apple_by_itself else "cpu"
    if not there[chosen]:
        needed = "a torch built for CUDA" if chosen == "cuda" else "macOS on Apple silicon"
        raise MachineError(
            f"device is {chosen}, but torch finds no GPU of that kind", f"set device to auto or cpu; {chosen} needs {needed}"
        )
    return torch.device(chosen)


def require_room(needed_bytes: int, device: torch.device, what: str, remedy: str) -> None:
    """Raises MachineError if `what` takes more than a GPU has left; a CPU's memory is taken as it is written to, so nothing is asked."""
    if device.type != "cuda":
        return
    free_bytes, _ = torch.cuda.mem_get_info(device)
    # What torch holds and does not use is not free for others, but for us.
    left_bytes = free_bytes + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if needed_bytes > left_bytes:
        raise MachineError(f"{what} take {needed_bytes / 1e9:.1f} GB, of which the GPU has {left_bytes / 1e9:.1f} GB left", remedy)


def without_waiting(values: Tensor, device: torch.device) -> Tensor:
    """Values of the CPU on a device. From memory that may be moved, a copy to a GPU waits for all it has been given to do."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
