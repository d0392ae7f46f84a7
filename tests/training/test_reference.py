"""Whatever computes it, the loss is that of a plain loop: transformers' Llama in fp32, torch's AdamW and the same rows, over 200 steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_assembly import END_OF_TEXT, MODEL, assembled, training_settings, write_token_set

from fledge.model.attention import document_mask
from fledge.model.folder import save_model
from fledge.model.head import IGNORE
from fledge.model.llama import Llama
from fledge.model.settings import ModelConfig
from fledge.tokens.shards import TokenSet
from fledge.training.batches import Batch
from fledge.training.optimizer import learning_rate_fraction
from fledge.training.settings import TrainingSettings
from fledge.training.trainer import Trainer

STEPS, ROW_TOKENS = 200, 160
SHAPE = ModelConfig(replace(MODEL.settings, max_position_embeddings=ROW_TOKENS), MODEL.vocabulary_size, begin_token_id=END_OF_TEXT)


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> TokenSet:
    return write_token_set(tmp_path_factory.mktemp("tokens"), "documents", {"books": 400, "web": 100})


def settings(**changes: Any) -> TrainingSettings:
    return training_settings(steps=STEPS, batch_rows=4, sequence_length=ROW_TOKENS, **changes)


def reference_losses(trainer: Trainer, folder: Path) -> list[float]:
    """What a loop that anyone would write gets from the same start and rows."""
    from transformers import AutoModelForCausalLM

    chosen = trainer.settings
    save_model(Llama(SHAPE, chosen.seed), folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    groups = [{"params": matrices, "weight_decay": chosen.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=chosen.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    losses = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = chosen.learning_rate * learning_rate_fraction(chosen.schedule, step, STEPS)
        [batch] = trainer.batches.micro_batches(step)
        logits = model(input_ids=batch.tokens, **seen(batch)).logits
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.gradient_clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def seen(batch: Batch) -> dict[str, Tensor]:
    """Isolated documents as transformers wants to be told of them."""
    if batch.documents is None:
        return {}
    forbidden = torch.where(document_mask(batch.documents), 0.0, torch.finfo(torch.float32).min)
    return {"attention_mask": forbidden, "position_ids": torch.arange(ROW_TOKENS) - batch.documents}


@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({"isolate_documents": False}, 1e-3),
        ({"isolate_documents": True}, 1e-3),
        ({"micro_batch_rows": 1}, 1e-3),
        ({"precision": "bf16"}, 1e-2),
        ({"activation_checkpointing": "full"}, 1e-3),
    ],
    ids=["one document a row", "documents", "accumulated", "bf16", "recomputed"],
)
def test_the_loss_is_that_of_a_plain_loop(changes: dict[str, Any], tolerance: float, documents: TokenSet, tmp_path: Path) -> None:
    with assembled(tmp_path / "reference", settings(isolate_documents=changes.get("isolate_documents", True)), [documents]) as rows:
        expected = np.array(reference_losses(rows, tmp_path / "model"))
    with assembled(tmp_path / "ours", settings(**changes), [documents], model=Llama(SHAPE, 0), watched=False) as trainer:
        trainer.model.model.activation_checkpointing = trainer.settings.activation_checkpointing
        losses = np.array([float(trainer.step().measures["loss"]) for _ in range(STEPS)])
    assert expected[-1] < 0.8 * expected[0]
    print(f"largest deviation {np.abs(losses / expected - 1).max():.2e}")
    assert np.abs(losses / expected - 1).max() < tolerance


def test_the_reference_would_notice(documents: TokenSet, tmp_path: Path) -> None:
    """Other rows of the same text, or another learning rate, are further away than a hundredth."""
    with assembled(tmp_path / "one", settings(), [documents], model=Llama(SHAPE, 0), watched=False) as trainer:
        losses = np.array([float(trainer.step().measures["loss"]) for _ in range(40)])
    with assembled(tmp_path / "other", settings(learning_rate=2e-3), [documents], model=Llama(SHAPE, 0), watched=False) as other:
        slower = np.array([float(other.step().measures["loss"]) for _ in range(40)])
    assert np.abs(slower / losses - 1).max() > 1e-2
