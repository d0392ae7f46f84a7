"""TRL's contestants: its SFTTrainer and DPOTrainer on token ids that Fledge has packed; runs in the environment of the peers.

`losses` trains on given batches in their order and returns what the trainer logs; `contestant` waits for its turn before each step.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

Wait = Callable[[], None]


class ReadyMadePairs(DPOTrainer):  # type: ignore[misc]
    """With token ids in place of texts."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


class TakeTurns(TrainerCallback):  # type: ignore[misc]
    """Waits before each step."""

    def __init__(self, wait: Wait) -> None:
        self.wait = wait

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.wait()


def losses(given: SimpleNamespace) -> list[dict[str, float]]:
    """What TRL logs of each step on the batches of a file."""
    rows = json.loads(Path(given.batches).read_text())
    trainer = _sft(given, rows) if given.stage == "sft" else _dpo(given, rows)
    trainer.train()
    return [record for record in trainer.state.log_history if "loss" in record]


def contestant(given: SimpleNamespace, turns: Callable[..., Iterator[None]]) -> Iterator[None]:
    """SFTTrainer with its own packing, on all conversations; tokens per step are counted over the rows that it has packed."""
    rows = json.loads(Path(given.batches).read_text())
    waiting: Iterator[None] | None = None

    def wait() -> None:
        nonlocal waiting
        if waiting is None:
            packed = trainer.train_dataset["input_ids"]
            given.rows, given.tokens = 1, given.batch * sum(map(len, packed)) / len(packed)
            waiting = turns(given, trainer.model.num_parameters(), packed_rows=len(packed))
        next(waiting)

    trainer = _sft(given, rows, wait)
    trainer.train()
    yield


def _common(given: SimpleNamespace) -> dict[str, Any]:
    """As Fledge computes: fp32, AdamW with its betas, clipping, no decay of vectors, a constant learning rate, the rows in their order."""
    return {
        "output_dir": tempfile.mkdtemp(),
        "max_steps": given.steps,
        "per_device_train_batch_size": given.batch // given.accumulation,
        "gradient_accumulation_steps": given.accumulation,
        "learning_rate": given.learning_rate,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "train_sampling_strategy": "sequential",
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "logging_strategy": given.logging,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "max_length": given.row_tokens,
    }


def _sft(given: SimpleNamespace, rows: list[dict[str, Any]], wait: Wait | None = None) -> Any:
    """Assistant-only loss, by the mask that goes with the ids."""
    packing = {"packing": True, "packing_strategy": given.packing} if given.packing else {"packing": False}
    return SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.model),
        args=SFTConfig(**_common(given), **packing, shuffle_dataset=False, loss_type="nll"),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given.model),
        callbacks=[TakeTurns(wait)] if wait else [],
    )


def _dpo(given: SimpleNamespace, rows: list[dict[str, Any]]) -> Any:
    return ReadyMadePairs(
        model=AutoModelForCausalLM.from_pretrained(given.model),
        ref_model=AutoModelForCausalLM.from_pretrained(given.model),
        args=DPOConfig(**_common(given), **given.loss),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(given.model),
    )
