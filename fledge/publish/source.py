"""What is exported: a checkpoint opened once -> [source] -> the same weights and ids for writers, cards and checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fledge.core.artifact import Artifact
from fledge.core.errors import CheckpointError, ConfigError
from fledge.inference.settings import GenerationSettings
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.publish.generation import end_token, read_generation
from fledge.publish.settings import ModelTarget, WeightType
from fledge.publish.targets import refusals
from fledge.tokens.folder import META_FILE
from fledge.tokens.tokenizer import Tokenizer, open_tokenizer

DTYPES: dict[WeightType, torch.dtype] = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Source:
    """A checkpoint; an adapter is folded into its base."""

    artifact: Artifact
    model: Llama
    """In fp32."""
    tokenizer: Tokenizer
    generation: GenerationSettings
    """How it is sampled from, unless a program asks for something else."""

    @property
    def end_token(self) -> int:
        """The id that ends what it says."""
        return end_token(self.model.config, self.tokenizer)

    @property
    def stop_ids(self) -> Sequence[int]:
        """Every id at which generation stops, the usual one first."""
        return tuple(dict.fromkeys((self.end_token, *self.model.config.end_token_ids)))


def open_source(checkpoint: Artifact) -> Source:
    """Open a checkpoint for export. Raises CheckpointError, also for a folder of others, DataError if its tokenizer was changed."""
    if not (checkpoint.path / META_FILE).is_file():
        raise CheckpointError(
            f"{checkpoint.path} has no tokenizer of Fledge's", f"take it over first: fledge import {checkpoint.path} FOLDER"
        )
    tokenizer = open_tokenizer(checkpoint.path)
    return Source(checkpoint, load_model(checkpoint.path).eval(), tokenizer, read_generation(checkpoint.path))


def require_expressible(source: Source, target: ModelTarget, weight_type: WeightType) -> None:
    """Raises ConfigError naming everything that the target cannot express."""
    reasons = refusals(source.model.config, source.tokenizer.definition, target, weight_type)
    if reasons:
        remedy = "choose another --dtype" if all("q8_0" in reason for reason in reasons) else "export it with --to hf, which expresses all"
        raise ConfigError(f"{source.artifact.path} cannot be exported to {target}: {'; '.join(reasons)}", remedy)
    if weight_type == "f16":
        _require_in_range(source)


def _require_in_range(source: Source) -> None:
    largest = torch.finfo(torch.float16).max
    for name, weight in source.model.named_parameters():
        if bool((weight.abs() > largest).any()):
            raise ConfigError(f"{name} in {source.artifact.path} holds values above {largest:,.0f}, the largest of f16", "use --dtype bf16")
