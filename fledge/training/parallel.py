"""Who trains and on what: the processes of a run, their device, and the arithmetic that was chosen for it.

One process, or as many as `torchrun` or `accelerate launch` started; each computes a share of the rows and holds the whole model
(DDP) or a part of every parameter (FSDP2, see `layout`). The trainer asks `World` and is the same code in every case. The rank
comes from `core.process`, the collectives from torch.

What is chosen by measurement (precision, fp32 kernel, threads) decides the last bits of a result, so it is measured at the first
start of a stage only, written to `machine.json` and read from there when the stage continues. Another number of processes continues it
and says that it is no longer bitwise the same; any other change of the arithmetic is refused unless the settings allow it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from fledge.core import __version__, console, disk, process
from fledge.core.config import differences
from fledge.core.errors import ArtifactError, DistributedError, MachineError
from fledge.model.attention import fused_kernel, use_flash_attention_3
from fledge.model.float8 import has_float8
from fledge.model.llama import Llama
from fledge.model.precision import Precision, autocast, can_compute, choose_precision, set_fp32_products, use_fast_fp32
from fledge.training.checkpoint_folders import list_checkpoints
from fledge.training.compiling import wants_compiling
from fledge.training.layout import Layout, choose_layout, device_bytes, shard, whole
from fledge.training.settings import DeviceName, TrainingSettings

MACHINE = "machine.json"
SHARED_BY_PROCESSES = frozenset({"processes", "parallel", "threads", "compiled"})
"""What another number of processes may change (a sharded model is not compiled); each is told of, none is refused."""


@dataclass(frozen=True)
class World:
    """The processes that train together, seen from one of them. Every method but `main` must be called by all of them alike."""

    rank: int
    size: int
    device: torch.device
    sharded: bool = False
    """Whether each process holds a part of every parameter (FSDP2)."""
    elastic: bool = False
    """Whether nothing that is computed may depend on the number of processes, see `elastic`."""

    @property
    def layout(self) -> Layout:
        """How the processes share the model."""
        return "single" if self.size == 1 else "fsdp" if self.sharded else "ddp"

    @property
    def alone_if_elastic(self) -> World:
        """For sums of what is measured in between: each process makes them alone where their order may not depend on the others."""
        return replace(self, rank=0, size=1) if self.elastic else self

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, elementwise, in place; the same bits for each of them."""
        if self.size > 1:
            torch.distributed.all_reduce(values)
        return values

    def tree_sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, a power of two, in place: of neighbours, then of pairs of them, and so on."""
        distance = 1
        while distance < self.size:
            theirs, partner = torch.empty_like(values), self.rank ^ distance
            exchanges = [
                torch.distributed.P2POp(torch.distributed.isend, values, partner),
                torch.distributed.P2POp(torch.distributed.irecv, theirs, partner),
            ]
            for exchange in torch.distributed.batch_isend_irecv(exchanges):
                exchange.wait()
            values += theirs
            distance *= 2
        return values

    def from_main(self, number: int) -> int:
        """The number that the main process has."""
        return int(self.sum(torch.tensor(number if self.main else 0, device=self.device)))

    def least(self, number: int) -> int:
        """The smallest of the numbers that the processes have."""
        if self.size == 1:
            return number
        values = torch.tensor(number, device=self.device)
        torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MIN)
        return int(values)

    def barrier(self) -> None:
        """Wait for all processes."""
        self.from_main(0)

    def lay_out(self, wanted: Literal["auto", "ddp", "fsdp"], trained: int, frozen: int = 0, elastic: bool = False) -> World:
        """The same processes, sharing a model of so many parameters as wanted; for auto the main one's memory decides."""
        if self.size == 1:
            return replace(self, elastic=elastic)
        main_bytes = self.from_main(device_bytes(self.device))
        return replace(self, sharded=choose_layout(wanted, self.size, trained, frozen, main_bytes) == "fsdp", elastic=elastic)

    def place(self, model: Llama) -> Llama:
        """The model on this process's device, all of it or a part; with other parameters than before, so optimizers are made later."""
        if not self.sharded:
            return model.to(self.device)
        shard(model, self.device)
        return model

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call in training: its backward pass averages the gradients over all processes."""
        if self.size == 1 or self.sharded or self.elastic:
            return model
        device_ids = [self.device] if self.device.type == "cuda" else None
        # The buffers are tables that every process has made alike.
        return DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True, broadcast_buffers=False)

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
def open_world(device: DeviceName) -> Iterator[World]:
    """The processes of this run, connected while the block lasts.

    Raises MachineError if the device is not there, DistributedError if another process is lost.
    """
    rank, size = process.rank(), process.world_size()
    chosen = choose_device(device)
    if size == 1:
        yield World(rank, size, chosen)
        return
    _meet("nccl" if chosen.type == "cuda" else "gloo", rank, size)
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


def _meet(backend: str, rank: int, size: int) -> None:
    """Connect the processes: where the environment says; those that Fledge launched by a file, with nothing that listens on the network."""
    folder = process.report_folder()
    store: torch.distributed.Store  # type: ignore[name-defined]
    if folder is not None:
        store = torch.distributed.FileStore(str(folder / "processes"), size)  # type: ignore[attr-defined]
    else:
        # With --master-port, torchrun keeps its store: without a name of its own a restart waits for the addresses of the dead.
        store = torch.distributed.PrefixStore(f"start-{process.restarts()}", next(rendezvous("env://"))[0])  # type: ignore[attr-defined]
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)


@dataclass(frozen=True)
class Machine:
    """The arithmetic of a run."""

    precision: Precision
    fast_fp32: bool
    """Whether fp32 products run through oneDNN, see `model.precision.use_fast_fp32`."""
    threads: int
    compiled: bool = False
    """Whether the model is compiled."""
    micro_batch_rows: int | None = None
    """Rows at once, where memory allowed no more; None: as the settings say."""

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        """The context for a forward pass."""
        return autocast(self.precision, device)


def settle_machine(
    folder: Path, settings: TrainingSettings, world: World, like: Path | None = None, training_flops: float = 0.0
) -> Machine:
    """Choose the arithmetic of a stage, or read what was chosen when it started first, and make it so in this process.

    `training_flops` is what lies ahead, for what pays only in long runs. `like` is the folder of a stage whose choice is taken over:
    preference training computes as the scores were computed.
    What the settings name outright always holds. Raises MachineError if machine.json cannot be read, ArtifactError if steps have been
    taken with another arithmetic (of more than the number of processes) and the settings do not allow to continue all the same.
    """
    if world.main:
        before = _read(folder) or {}
        known = _known(before if before or like is None else _read(like) or {}, world)
        machine = _settle(known, settings, world, training_flops, is_taken_over=bool(list_checkpoints(folder)))
        circumstances = _circumstances(settings, world, machine)
        changes = _changes(folder, before.get("circumstances", circumstances), circumstances, settings.inexact_resume)
        _warn(changes)
        # What was measured on another machine does not hold here.
        kept = before if before.get("circumstances") == circumstances else {}
        record = {**kept, "chosen": asdict(machine), "circumstances": circumstances, "changes": [*before.get("changes", []), *changes]}
        if record != before:
            disk.write_json(folder / MACHINE, record)
    world.barrier()
    if not world.main:
        machine = _settle(Machine(**(_read(folder) or {})["chosen"]), settings, world, training_flops, is_taken_over=True)
    return machine


def _changes(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any], are_allowed: bool) -> list[str]:
    """What parts the steps to come from those in checkpoints, "name: old -> new"; nothing if there is none yet."""
    found = list(differences(before, now)) if list_checkpoints(folder) else []
    changes = [f"{name}: {old} -> {new}" for name, old, new in found]
    names = {name for name, _, _ in found}
    exempt = SHARED_BY_PROCESSES if "processes" in names and "determinism" not in names else frozenset()
    if names - exempt and not are_allowed:
        raise ArtifactError(
            f"{folder} began with another arithmetic than it would continue with: {'; '.join(changes)}",
            f"make it as it was, or set {folder.name}.inexact_resume=true: the order of rows stays, the last bits will differ",
        )
    return changes


def require_same_machine(folder: Path, settings: TrainingSettings, processes: int) -> None:
    """Raise what `settle_machine` would for so many processes, as far as it is known before a model is there; nothing is written."""
    record = _read(folder)
    if record is None or settings.inexact_resume:
        return
    before = record.get("circumstances", {})
    was_sharded = before.get("parallel") == "fsdp"
    is_sharded = processes > 1 and (was_sharded if settings.parallel == "auto" else settings.parallel == "fsdp")
    device = choose_device(settings.device)
    world = World(process.rank(), processes, device, is_sharded, settings.determinism == "elastic")
    machine = _settle(_known(record, world), settings, world, 0.0, is_taken_over=True)
    _changes(folder, before, _circumstances(settings, world, machine), are_allowed=False)


def choose_machine(settings: TrainingSettings, device: torch.device, training_flops: float) -> Machine:
    """What `settle_machine` would choose at a first start, noted nowhere; made so in this process."""
    return _settle(None, settings, World(0, 1, device), training_flops)


def chosen_machine(folder: Path) -> Machine | None:
    """What a stage computed with; None if it has not started."""
    record = _read(folder)
    return Machine(**record["chosen"]) if record else None


def machine_changes(folder: Path) -> list[str]:
    """How the machine of a stage has changed since its first start, in order; then the last bits may differ."""
    return list((_read(folder) or {}).get("changes", []))


def keep_trial(folder: Path, machine: Machine, tried: Machine, change_is_allowed: bool) -> Machine:
    """The machine as trying showed it to be, noted in machine.json for the next start. Every process calls this with the same.

    Raises ArtifactError in all of them if steps have been taken with another one, still to the bit, and the settings want it so.
    """
    record = _read(folder)
    if tried == machine or record is None:
        return tried
    before, changes = record["circumstances"], record.get("changes", [])
    circumstances = {**before, **asdict(tried), "micro_batch_rows": tried.micro_batch_rows or before["micro_batch_rows"]}
    more = _changes(folder, before, circumstances, change_is_allowed or bool(changes))
    if process.is_main():
        _warn(more)
        chosen = {"chosen": asdict(tried), "circumstances": circumstances, "changes": [*changes, *more]}
        disk.write_json(folder / MACHINE, {**record, **chosen})
    return tried


def _warn(changes: Sequence[str]) -> None:
    if changes:
        console.warn(f"from here on no longer bitwise what an undisturbed run would give: {'; '.join(changes)}")


def kept_measurement(folder: Path, name: str, measure: Callable[[], float]) -> float:
    """What was measured at the first start of a stage on this machine, by name; measured now if it was not. The main process calls this."""
    record = _read(folder) or {}
    if name not in record.get("measured", {}):
        record["measured"] = {**record.get("measured", {}), name: measure()}
        disk.write_json(folder / MACHINE, record)
    return float(record["measured"][name])


def _known(record: dict[str, Any], world: World) -> Machine | None:
    """What was chosen, but for the threads where these were shared by another number of processes."""
    if not record:
        return None
    chosen = Machine(**record["chosen"])
    same_processes = world.elastic or record.get("circumstances", {}).get("processes") == world.size
    return chosen if same_processes else replace(chosen, threads=torch.get_num_threads())


def _settle(known: Machine | None, settings: TrainingSettings, world: World, training_flops: float, is_taken_over: bool = False) -> Machine:
    """`is_taken_over`: whether a model that is known not to compile stays so, though the settings ask for it."""
    device = world.device
    # Where the number of processes must not show, how they share the cores must not either.
    unset = 1 if settings.determinism == "elastic" else torch.get_num_threads()
    threads = settings.threads or (known.threads if known else unset)
    torch.set_num_threads(threads)
    fast_fp32 = known.fast_fp32 if known else use_fast_fp32(device)
    if known is not None and settings.precision in ("auto", "fp8_or_bf16") and can_compute(known.precision, device, has_float8()):
        precision = known.precision
    else:
        precision = choose_precision(settings.precision, device, has_float8())
    set_fp32_products(precision, fast_fp32)
    use_flash_attention_3(device)
    # The reference's scores are computed without a compiler, and the first loss is ln 2 only if the policy is too.
    asked = "off" if settings.objective.kind == "preference" and settings.compile == "auto" else settings.compile
    is_kept = known is not None and (asked == "auto" or (is_taken_over and asked != "off"))
    compiled = known.compiled if known and is_kept else wants_compiling(asked, device, training_flops, threads)
    # A sharded model is never compiled, see `preparation`.
    return Machine(precision, fast_fp32, threads, compiled and not world.sharded, known.micro_batch_rows if known else None)


def _circumstances(settings: TrainingSettings, world: World, machine: Machine) -> dict[str, Any]:
    """What changes the last bits of a result without being part of what was asked for."""
    on_gpu = world.device.type == "cuda"
    return {
        "fledge": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(world.device) if on_gpu else torch.backends.cpu.get_cpu_capability(),
        **({"determinism": "elastic"} if world.elastic else {"processes": world.size, "parallel": world.layout}),
        **({"attention": fused_kernel()} if on_gpu else {}),
        **asdict(machine),
        "micro_batch_rows": machine.micro_batch_rows or settings.micro_batch_rows,
    }


def choose_device(device: DeviceName) -> torch.device:
    """The device that is asked for; of several GPUs this process's own. Raises MachineError if it is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    chosen = device if device != "auto" else "cuda" if there["cuda"] else "mps" if there["mps"] and process.world_size() == 1 else "cpu"
    if not there[chosen]:
        needed = "a torch built for CUDA" if chosen == "cuda" else "macOS on Apple silicon"
        raise MachineError(
            f"device is {chosen}, but torch finds no GPU of that kind", f"set device to auto or cpu; {chosen} needs {needed}"
        )
    if chosen != "cuda":
        return torch.device(chosen)
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
