"""Who trains and on what: the processes of a run, their device, and the arithmetic that was chosen for it.

One process, or as many as `torchrun` or `accelerate launch` started; each computes a share of the rows and holds the whole model
(DDP) or a part of every parameter (FSDP2, see `layout`). The trainer asks `World` and is the same code in every case. The rank
comes from `core.process`, the collectives from torch.

What is chosen by measurement (precision, fp32 kernel, threads) decides the last bits of a result, so it is measured at the first
start of a stage only, written to `machine.json` and read from there when the stage continues. If the machine or the processes
have changed meanwhile, training goes on and says that it is no longer bitwise the same.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fledge.core import console, disk, process
from fledge.core.config import differences
from fledge.core.errors import DistributedError, MachineError
from fledge.model.llama import Llama
from fledge.model.precision import Precision, autocast, choose_precision, use_fast_fp32
from fledge.training.layout import Layout, choose_layout, device_bytes, shard, whole
from fledge.training.settings import TrainingSettings

MACHINE = "machine.json"


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them. Every method but `main` must be called by all of them alike."""

    rank: int
    size: int
    device: torch.device
    sharded: bool = False
    """Whether each process holds a part of every parameter (FSDP2)."""

    @property
    def layout(self) -> Layout:
        """How the processes share the model."""
        return "single" if self.size == 1 else "fsdp" if self.sharded else "ddp"

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, elementwise, in place; the same bits for each of them."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def from_main(self, number: int) -> int:
        """The number that the main process has."""
        return int(self.sum(torch.tensor(number if self.main else 0, device=self.device)))

    def barrier(self) -> None:
        """Wait for all processes."""
        self.from_main(0)

    def lay_out(self, wanted: Literal["auto", "ddp", "fsdp"], parameters: int) -> World:
        """The same processes, sharing a model of so many parameters as wanted; for auto the main one's memory decides."""
        if self.size == 1:
            return self
        main_bytes = self.from_main(device_bytes(self.device))
        return replace(self, sharded=choose_layout(wanted, self.size, parameters, main_bytes) == "fsdp")

    def place(self, model: Llama) -> Llama:
        """The model on this process's device, all of it or a part; with other parameters than before, so optimizers are made later."""
        if not self.sharded:
            return model.to(self.device)
        shard(model, self.device)
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: its backward pass averages the gradients over all processes."""
        if self.size == 1 or self.sharded:
            return model
        assert not list(model.buffers()), "buffers would be sent from the main process in every step"
        device_ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True)

    def gradient_sync(self, wrapped: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a micro-batch: whole gradients travel with the last one of a step only.

        Sharded ones travel each time: to wait, each process would have to keep the gradient of the whole model, in fp32.
        """
        if last or not isinstance(wrapped, DistributedDataParallel):
            return contextlib.nullcontext()
        return wrapped.no_sync()

    def gather(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole tensors by name, for the main process to write; the others get none.

        Those that are cut are put together one at a time and kept on the CPU, so no device ever holds more than one.
        """
        gathered = {}
        for name, tensor in tensors.items():
            complete = whole(tensor.detach())
            if self.main:
                gathered[name] = complete.cpu() if self.sharded else complete
        return gathered


@contextlib.contextmanager
def open_world(device: Literal["auto", "cpu", "cuda"]) -> Iterator[World]:
    """The processes of this run, connected while the block lasts.

    Raises MachineError if the device is not there, DistributedError if another process is lost.
    """
    rank, size = process.rank(), process.world_size()
    chosen = _choose_device(device)
    if size == 1:
        yield World(rank, size, chosen)
        return
    torch.distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    alone = False
    try:
        yield World(rank, size, chosen)
    except RuntimeError as error:
        alone = _tells_of_a_lost_process(error)
        if not alone:
            raise
        problem = f"process {rank} lost another process: {str(error).splitlines()[0]}"
        raise DistributedError(problem, "see what the first process that ended says, then run the same command again") from error
    finally:
        # Taking leave of a process that is gone can wait for ever.
        if not alone:
            torch.distributed.destroy_process_group()


@dataclass(frozen=True)
class Machine:
    """The arithmetic of a run."""

    precision: Precision
    fast_fp32: bool
    """Whether fp32 products run through oneDNN, see `model.precision.use_fast_fp32`."""
    threads: int

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        return autocast(self.precision, device)


def settle_machine(folder: Path, settings: TrainingSettings, world: World, like: Path | None = None) -> Machine:
    """Choose the arithmetic of a stage, or read what was chosen when it started first, and make it so in this process.

    `like` is the folder of a stage whose choice is taken over: preference training computes as the scores were computed.
    What the settings name outright always holds. Raises MachineError if machine.json cannot be read.
    """
    if world.main:
        before = _read(folder) or {}
        known = _known(before if before or like is None else _read(like) or {}, world)
        machine = _settle(known, settings, world.device)
        circumstances = _circumstances(settings, world, machine)
        changes = [f"{name}: {old} -> {new}" for name, old, new in differences(before.get("circumstances", circumstances), circumstances)]
        if changes:
            console.warn(f"from here on no longer bitwise what an undisturbed run would give: {'; '.join(changes)}")
        record = {"chosen": asdict(machine), "circumstances": circumstances, "changes": [*before.get("changes", []), *changes]}
        if record != before:
            disk.write_json(folder / MACHINE, record)
    world.barrier()
    if not world.main:
        machine = _settle(Machine(**(_read(folder) or {})["chosen"]), settings, world.device)
    return machine


def chosen_machine(folder: Path) -> Machine | None:
    """What a stage computed with; None if it has not started."""
    record = _read(folder)
    return Machine(**record["chosen"]) if record else None


def _known(record: dict[str, Any], world: World) -> Machine | None:
    """What was chosen, but for the threads where these were shared by another number of processes."""
    if not record:
        return None
    chosen = Machine(**record["chosen"])
    same_processes = record.get("circumstances", {}).get("processes") == world.size
    return chosen if same_processes else replace(chosen, threads=torch.get_num_threads())


def _settle(known: Machine | None, settings: TrainingSettings, device: torch.device) -> Machine:
    threads = settings.threads or (known.threads if known else torch.get_num_threads())
    torch.set_num_threads(threads)
    if known is None:
        fast_fp32 = use_fast_fp32(device)
        return Machine(choose_precision(settings.precision, device), fast_fp32, threads)
    torch.set_float32_matmul_precision("medium" if known.fast_fp32 else "highest")
    return Machine(known.precision if settings.precision == "auto" else settings.precision, known.fast_fp32, threads)


def _circumstances(settings: TrainingSettings, world: World, machine: Machine) -> dict[str, Any]:
    """What changes the last bits of a result without being part of what was asked for."""
    on_gpu = world.device.type == "cuda"
    return {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(world.device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        "processes": world.size,
        "parallel": world.layout,
        "micro_batch_rows": settings.micro_batch_rows,
        **asdict(machine),
    }


def _choose_device(device: Literal["auto", "cpu", "cuda"]) -> torch.device:
    available = torch.cuda.is_available()
    if device == "cpu" or (device == "auto" and not available):
        return torch.device("cpu")
    if not available:
        raise MachineError("device is cuda, but torch finds no GPU", "set device to auto or cpu, or install a torch built for CUDA")
    number = process.local_rank()
    if number >= torch.cuda.device_count():
        raise MachineError(
            f"process {number} of this machine has no GPU of its own, there are {torch.cuda.device_count()}",
            "start as many processes as there are GPUs",
        )
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


def _tells_of_a_lost_process(error: RuntimeError) -> bool:
    """nccl has an error type of its own; gloo raises plain RuntimeErrors, from the backward pass too."""
    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _read(folder: Path) -> dict[str, Any] | None:
    path = folder / MACHINE
    if not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        Machine(**record["chosen"])
    except (ValueError, TypeError, KeyError) as error:
        remedy = "remove it; the next start chooses anew"
        raise MachineError(f"{path} does not say how this run computes: {error}", remedy) from error
    found: dict[str, Any] = record
    return found
