"""How processes share a model: each holds all of it (DDP), or each a part of every parameter (FSDP2); and the ways between.

FSDP2 cuts every parameter, its gradient and the optimizer's state along the first axis into one part per process (`fully_shard`;
Zhao et al. 2023, arXiv:2304.11277). A unit, here a layer, is put together when it is computed and falls apart again afterwards;
the root unit holds embedding, last norm and head. What is computed is the same, in the same precision, so the layout changes
nothing but the order of sums.

A parameter that is cut is a `DTensor`, which has the shape of the whole. `whole` and `part_of` are the only ways between the two:
files hold whole tensors, so a checkpoint does not know by which layout, or by how many processes, it was written.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from fledge.core import process
from fledge.model.llama import Llama

Layout = Literal["single", "ddp", "fsdp"]

TRAINED_BYTES, FROZEN_BYTES = 16, 4
"""Of a parameter: a weight, its gradient and two moments, fp32; or the weight alone."""
COMFORTABLE_SHARE = 0.5
"""Of a device's memory, for what grows with the parameters; activations, collectives and bf16 copies need the rest."""


def choose_layout(wanted: Literal["auto", "ddp", "fsdp"], processes: int, trained: int, frozen: int, device_bytes: int) -> Layout:
    """How so many processes share a model of so many trained and frozen parameters, on devices of so much memory each.

    auto: DDP, which sends less, as long as 16 bytes per trained and 4 per frozen parameter fit into half of a device; else FSDP2.
    """
    if processes == 1:
        return "single"
    if wanted != "auto":
        return wanted
    return "fsdp" if TRAINED_BYTES * trained + FROZEN_BYTES * frozen > COMFORTABLE_SHARE * device_bytes else "ddp"


def device_bytes(device: torch.device) -> int:
    """Memory of a GPU; on a CPU this process's part of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine_bytes // process.local_world_size()


def shard(model: Llama, device: torch.device) -> None:
    """Cut the model in place, layer by layer, and bring this process's part to its device; every process has the same weights before.

    The parameters are other objects afterwards, so optimizers are made later. In training only `forward` puts units together.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # Objectives compute nothing in place, which is what the warning is about.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (process.world_size(),))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, as it lies between steps: cut parameters cut, also after a forward pass without a backward, as validation's is.

    Only a backward pass takes the root unit apart again; until then the model shows buffers of FSDP2's in place of parameters.
    """
    take_apart = getattr(model, "reshard", None)
    if take_apart is not None:
        take_apart()
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@contextmanager
def root_together(model: nn.Module) -> Iterator[None]:
    """Embedding, last norm and head whole while the block lasts, so that the parts of a cut model can be called by themselves.

    Every process enters it, and computes the same number of passes within; a model that is not cut stays as it is.
    """
    put_together, take_apart = getattr(model, "unshard", None), getattr(model, "reshard", None)
    if put_together is not None:
        put_together()
    yield
    if take_apart is not None:
        take_apart()


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a `DTensor`; asked by its method, because loading that class costs a second that others need not pay."""
    return hasattr(tensor, "full_tensor")


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes, each of which must ask for it; a tensor that is not cut is returned as it is."""
    if not is_sharded(tensor):
        return tensor
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    gathered: Tensor = tensor.full_tensor()
    return gathered


def part_of(tensor: Tensor, like: Tensor) -> Tensor:
    """A copy of this process's part of a tensor that it has whole, cut and placed as `like` is; nothing travels."""
    if not is_sharded(like):
        return tensor.to(like.device, copy=True)
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    # The clone lets go of the whole tensor, of which the part is a view.
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None).clone()
