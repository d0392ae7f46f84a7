"""The arms of `superbpe_ablation.py`: what each one is, and the recipe that Fledge trains it by. Pure functions.

An arm is the plain one (byte-level BPE, one length of rows) with any of three parts: SuperBPE, a curriculum of ten lengths, a lower
precision. Everything else is the same: text, bytes seen, bytes per step, size of the vocabulary, model, optimizer, schedule, seed, and the
length of the rows that are validated. Steps have equal bytes and not equal tokens, so all arms take the same steps to the same schedule,
to within the rounding to whole rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fledge.model.precision import Precision

STAGE_SHARES = (1, 1, 2, 2, 6, 9, 15, 15, 30, 42)
"""Text in the stages of the curriculum, in parts of their sum: as recipes/superbpe-197m.yaml has its tokens."""


@dataclass(frozen=True)
class Size:
    """What a device can do in the time."""

    model: Mapping[str, int]
    lengths: tuple[int, ...]
    """Tokens per row in the stages of the curriculum; the last one is the length of the other arms, and of validation."""
    vocabulary_size: int
    budget_bytes: int
    """Text that every arm sees."""
    step_bytes: int
    tokenizer_bytes: int
    """Text that both tokenizers learn from."""
    validation_fraction: float
    validations: int
    """Even distances of them in a run."""
    learning_rate: float
    isolate_documents: bool


SIZES = {
    "cpu": Size(
        model={"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 352},
        lengths=(8, 16, 24, 32, 48, 64, 96, 128, 192, 256),
        vocabulary_size=4_096,
        budget_bytes=1_500_000,
        step_bytes=10_800,
        tokenizer_bytes=10_000_000,
        validation_fraction=0.03,
        validations=8,
        learning_rate=4e-3,
        isolate_documents=True,
    ),
    # FlexAttention, which isolates documents without a dense mask, needs the compiler.
    "cuda": Size(
        model={"hidden_size": 576, "num_hidden_layers": 8, "num_attention_heads": 9, "intermediate_size": 1_536},
        lengths=(8, 16, 32, 64, 128, 256, 512, 768, 1_536, 2_048),
        vocabulary_size=32_768,
        budget_bytes=42_000_000,
        step_bytes=57_344,
        tokenizer_bytes=12_000_000,
        validation_fraction=0.02,
        validations=14,
        learning_rate=1e-3,
        isolate_documents=False,
    ),
}


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    superbpe: bool
    curriculum: bool
    precision: Precision
    is_lower_precision: bool
    """Whether the precision is a part of the arm, and not what the plain one has."""

    @property
    def parts(self) -> tuple[str, ...]:
        """What it has that the plain arm has not."""
        named = {"SuperBPE": self.superbpe, "curriculum": self.curriculum, self.precision: self.is_lower_precision}
        return tuple(name for name, is_in in named.items() if is_in)

    @property
    def name(self) -> str:
        """Its parts, for people."""
        return " + ".join(self.parts) or "plain"

    @property
    def tokenizer(self) -> str:
        """The kind that a recipe names."""
        return "superbpe" if self.superbpe else "byte_bpe"


def all_arms(precisions: Sequence[Precision]) -> list[Arm]:
    """Every combination; the first precision is the plain arm's."""
    return [
        Arm(superbpe, curriculum, precision, precision != precisions[0])
        for precision in precisions
        for superbpe, curriculum in ((False, False), (True, False), (False, True), (True, True))
    ]


def corpus_recipe(sources: Sequence[Mapping[str, Any]], size: Size) -> dict[str, Any]:
    """The text, once for all arms: near copies of what is held out are not trained on."""
    return {"corpus": {"sources": [dict(source) for source in sources], "validation_fraction": size.validation_fraction}}


def tokens_recipe(kind: str, corpus: str, size: Size) -> dict[str, Any]:
    """A tokenizer and its token ids. Both tokenizers have the same size, so the embedding is alike."""
    tokenizer = {"kind": kind, "vocabulary_size": size.vocabulary_size, "maximum_bytes": size.tokenizer_bytes, "corpus": [corpus]}
    return {"tokenizer": tokenizer, "pack": {"corpus": [corpus]}}


def arm_recipe(arm: Arm, size: Size, tokens: str, tokens_per_byte: float, seed: int, device: str, compiled: bool) -> dict[str, Any]:
    """What Fledge is told; `tokens`: the folder of the token set that the arm's tokenizer has packed."""
    lengths = size.lengths if arm.curriculum else size.lengths[-1:]
    shares = STAGE_SHARES if arm.curriculum else (1,)
    budget_tokens, step_tokens = size.budget_bytes * tokens_per_byte, size.step_bytes * tokens_per_byte
    phases = [
        {
            "until_tokens": round(budget_tokens * until / sum(shares)),
            "sequence_length": length,
            "batch_tokens": max(1, round(step_tokens / length)) * length,
        }
        for length, until in zip(lengths, accumulate(shares), strict=True)
    ]
    return {
        "model": {**size.model, "max_position_embeddings": size.lengths[-1]},
        "generation": {"maximum_new_tokens": 1},
        "pretrain": {
            "tokens": [tokens],
            "phases": phases,
            "isolate_documents": size.isolate_documents,
            "learning_rate": size.learning_rate,
            "schedule": {"kind": "warmup_stable_decay", "warmup_fraction": 0.05, "decay_fraction": 0.3, "final_fraction": 0.05},
            "seed": seed,
            "device": device,
            "precision": arm.precision,
            "compile": "on" if compiled else "off",
            "threads": 1 if device == "cpu" else None,
            "log_every_steps": 1,
            "validate_every_tokens": round(budget_tokens / size.validations),
            "metrics": {"tensorboard": False},
        },
    }
