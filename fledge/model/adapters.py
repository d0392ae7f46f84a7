"""Low-rank adapters: a model -> [adapters] -> the same model, of which only small additions are trained; and back, folded in.

    y = W x + s B A dropout(x)                      LoRA (arXiv:2106.09685): s = alpha / rank; rsLoRA (arXiv:2312.03732): alpha / sqrt(rank)
    y = m (W x + s B A dropout(x)) / |W + s B A|    DoRA (arXiv:2402.09353): m a length per row, |.| the rows' norms, constants to autograd

W is frozen and keeps its name, so whatever works on parameters that have a gradient (optimizer, clipping, DDP, FSDP2, checkpoints) works
on adapters as they are. A, B and m have peft's names, `base_model.model.` before them. B begins at zero and m at |W|: a fresh adapter
changes no bit of what the model computes.

Shapes: I inputs, O outputs, R rank; W (O, I), A (R, I), B (O, R), m (O).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.core.errors import ConfigError
from fledge.model.llama import Llama, linear
from fledge.model.settings import Adapter, LoraSettings

_PREFIX, _MAGNITUDE = "base_model.model.", "lora_magnitude_vector"


class LoraLinear(nn.Module):
    """A frozen linear map with an addition of low rank."""

    def __init__(self, frozen: Tensor, settings: LoraSettings) -> None:
        super().__init__()
        outputs, inputs = frozen.shape
        self.scale = settings.scale
        self.weight = nn.Parameter(frozen, requires_grad=False)
        self.lora_A = linear(inputs, settings.rank)
        self.lora_B = linear(settings.rank, outputs)
        self.dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()
        self.lora_magnitude_vector = nn.Parameter(torch.empty(outputs)) if settings.weight_decomposed else None

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """A uniform in +-1 / sqrt(I), as peft draws it, B zero, m the norms of the rows of W."""
        bound = self.lora_A.weight.shape[1] ** -0.5
        self.lora_A.weight.uniform_(-bound, bound, generator=generator)
        self.lora_B.weight.zero_()
        if self.lora_magnitude_vector is not None:
            self.lora_magnitude_vector.copy_(torch.linalg.vector_norm(self.weight, dim=1))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        output: Tensor = F.linear(x, self.weight) + self.scale * self.lora_B(self.lora_A(self.dropout(x)))
        if self.lora_magnitude_vector is not None:
            output = output * (self.lora_magnitude_vector / self._row_norms()).to(output.dtype)
        return output

    @torch.no_grad()
    def merged_weight(self) -> Tensor:
        """(O, I): the one matrix that does the same; summed in fp64, so that it is rounded once."""
        merged = self.weight.double() + self.scale * self.lora_B.weight.double() @ self.lora_A.weight.double()
        if self.lora_magnitude_vector is not None:
            merged *= (self.lora_magnitude_vector.double() / torch.linalg.vector_norm(merged, dim=1))[:, None]
        return merged.to(self.weight.dtype)

    @torch.no_grad()
    def _row_norms(self) -> Tensor:
        """(O), in fp32 also where products are not: a length that is rounded to 8 bits would hide what was learned."""
        with torch.autocast(self.weight.device.type, enabled=False):
            norms: Tensor = torch.linalg.vector_norm(self.weight + self.scale * self.lora_B.weight @ self.lora_A.weight, dim=1)
            return norms


def add_adapter(model: Llama, adapter: Adapter, seed: int | None) -> None:
    """Freeze a model and put an adapter into it, in place; with `seed` None the adapter is left unset, for a loader to fill.

    Drawn on the CPU in the order of the modules, alike in every process. Raises ConfigError if a matrix has no such rank.
    """
    assert model.adapter is None, "a model has one adapter"
    model.requires_grad_(False)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    for parent in list(model.model.layers.modules()):
        for name, module in list(parent.named_children()):
            if name in adapter.settings.targets and isinstance(module, nn.Linear):
                _require_rank(name, module, adapter.settings.rank)
                adapted = LoraLinear(module.weight.detach(), adapter.settings)
                if generator is not None:
                    adapted.initialize(generator)
                setattr(parent, name, adapted)
    model.adapter = adapter
    model.model.has_dropout |= adapter.settings.dropout > 0


def _require_rank(name: str, module: nn.Linear, rank: int) -> None:
    highest = min(module.weight.shape)
    if rank > highest:
        raise ConfigError(f"lora.rank is {rank:,}, and {name} has rank {highest:,} at most", "choose a smaller rank")


def merge_adapter(model: Llama) -> None:
    """Fold the adapter of a model, if it has one, into its weights, in place; all of them can be trained afterwards."""
    for parent, name, module in list(_adapted(model)):
        outputs, inputs = module.weight.shape
        merged = linear(inputs, outputs)
        merged.weight = nn.Parameter(module.merged_weight())
        setattr(parent, name, merged)
    model.requires_grad_(True)
    model.adapter = None
    model.model.has_dropout = model.config.settings.attention_dropout > 0


def adapter_weights(model: Llama) -> dict[str, nn.Parameter]:
    """What an adapter consists of, by our names."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def peft_name(name: str) -> str:
    """The name of a tensor in `adapter_model.safetensors`; peft reads a magnitude with and without ".weight", transformers only with it."""
    return f"{_PREFIX}{name}.weight" if name.endswith(_MAGNITUDE) else f"{_PREFIX}{name}"


def own_name(name: str) -> str:
    """The reverse."""
    name = name.removeprefix(_PREFIX)
    return name.removesuffix(".weight") if name.endswith(f"{_MAGNITUDE}.weight") else name


def _adapted(model: Llama) -> Iterator[tuple[nn.Module, str, LoraLinear]]:
    """Every adapted matrix with what holds it and its name there."""
    for parent in model.modules():
        for name, module in parent.named_children():
            if isinstance(module, LoraLinear):
                yield parent, name, module
