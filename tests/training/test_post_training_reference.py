"""Fine-tuning and preference training are those of a plain loop: transformers' Llama, torch's AdamW, the same rows, 50 steps in fp32.

`benchmarks/post_training.py` asks the same of TRL's trainers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from training_assembly import MODEL, assembled, make_scores, training_settings, write_token_set

from fledge.model.adapters import add_adapter
from fledge.model.attention import document_mask
from fledge.model.folder import save_model
from fledge.model.head import IGNORE
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, LoraSettings
from fledge.tokens.shards import TokenSet
from fledge.training.batches import Batch
from fledge.training.settings import PreferenceSettings, ScheduleSettings, TrainingSettings

STEPS, ROWS, BETA = 50, 4, 0.3
LORA = LoraSettings(rank=4, alpha=8)


def settings(**changes: Any) -> TrainingSettings:
    return training_settings(steps=STEPS, batch_rows=ROWS, sequence_length=None, schedule=ScheduleSettings(kind="constant"), **changes)


def plain_loop(
    folder: Path, batches: Iterator[Batch], loss_of: Callable[[Any, Any, Batch], dict[str, Tensor]], lora: bool
) -> list[dict[str, float]]:
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
    from transformers import AutoModelForCausalLM

    model, reference = (AutoModelForCausalLM.from_pretrained(folder) for _ in range(2))
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(LORA.targets)))
        fresh = adapted(Llama(MODEL, 0))
        given = {f"base_model.model.{name}": value.detach() for name, value in fresh.named_parameters() if value.requires_grad}
        set_peft_model_state_dict(model, given)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [one for one in trained if one.ndim > 1], "weight_decay": 0.1},
        {"params": [one for one in trained if one.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=3e-3, betas=(0.9, 0.95))
    measured = []
    for batch in batches:
        values = loss_of(model, reference, batch)
        values["loss"].backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        measured.append({name: float(value.detach()) for name, value in values.items()})
    return measured


def logits_of(model: Any, batch: Batch) -> Tensor:
    assert batch.documents is not None
    forbidden = torch.where(document_mask(batch.documents), 0.0, torch.finfo(torch.float32).min)
    positions = torch.arange(batch.tokens.shape[1]) - batch.documents
    logits: Tensor = model(input_ids=batch.tokens, attention_mask=forbidden, position_ids=positions).logits
    return logits


def answer_loss(model: Any, _: Any, batch: Batch) -> dict[str, Tensor]:
    """The mean over the tokens of the answers."""
    return {"loss": F.cross_entropy(logits_of(model, batch).flatten(0, 1), batch.targets.flatten(), ignore_index=IGNORE)}


def preference_loss(model: Any, reference: Any, batch: Batch) -> dict[str, Tensor]:
    """DPO as its paper's code has it, with a second model."""
    assert batch.pairs is not None
    totals = []
    for one in (model, reference):
        with torch.set_grad_enabled(one is model):
            chances = logits_of(one, batch).log_softmax(-1).gather(-1, batch.targets.clamp(min=0)[..., None])[..., 0]
        answers = F.one_hot(batch.pairs.answers.flatten(), 1 + 2 * batch.pairs.count)[:, 1:].float()
        totals.append((chances.flatten() @ answers).view(-1, 2))
    rewards = BETA * (totals[0] - totals[1])
    margins = rewards[:, 0] - rewards[:, 1]
    values = {"loss": -F.logsigmoid(margins), "rewards/margins": margins, "rewards/accuracies": (margins > 0).float()}
    values |= {
        "rewards/chosen": rewards[:, 0],
        "rewards/rejected": rewards[:, 1],
        "logps/chosen": totals[0][:, 0],
        "logps/rejected": totals[0][:, 1],
    }
    return {name: value.mean() for name, value in values.items()}


def adapted(model: Llama) -> Llama:
    add_adapter(model, Adapter(LORA, Path("base")), seed=0)
    return model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "an adapter"])
@pytest.mark.parametrize("content", ["conversations", "preferences"])
def test_post_training_is_that_of_a_plain_loop(content: str, lora: bool, token_set_of: Callable[[str], TokenSet], tmp_path: Path) -> None:
    token_set = token_set_of(content)
    chosen = settings(lora=LORA if lora else None)
    scores = None
    if content == "preferences":
        chosen = replace(chosen, objective=PreferenceSettings(beta=BETA))
        scores = make_scores(tmp_path / "scores", token_set, chosen)
    save_model(Llama(MODEL, 0), tmp_path / "base")
    model = adapted(Llama(MODEL, 0)) if lora else Llama(MODEL, 0)
    with assembled(tmp_path / "ours", chosen, [token_set], scores, model=model, watched=False) as trainer:
        batches = [trainer.batches.micro_batches(step)[0] for step in range(STEPS)]
        ours = [{name: float(value) for name, value in trainer.step().measures.items()} for _ in range(STEPS)]
    expected = plain_loop(tmp_path / "base", iter(batches), preference_loss if scores else answer_loss, lora)
    assert ours[-1]["loss"] < 0.97 * ours[0]["loss"]
    for name in expected[0]:
        largest = max(abs(one[name] - other[name]) for one, other in zip(ours, expected, strict=True))
        assert largest < 1e-3, f"{name}: {largest:.1e}"


@pytest.mark.parametrize("content", ["conversations", "preferences"])
def test_several_weighted_datasets(content: Any, tmp_path: Path) -> None:
    """A mixture is kept, by tokens, whatever the sizes; each source has its own reference scores."""
    token_set = write_token_set(tmp_path / "tokens", content, {"large": 60, "small": 20})
    chosen = settings(mixture={"large": 0.25, "small": 0.75})
    scores = None
    if content == "preferences":
        chosen = replace(chosen, objective=PreferenceSettings())
        scores = make_scores(tmp_path / "scores", token_set, chosen)
    with assembled(tmp_path / "run", chosen, [token_set], scores, watched=False) as trainer:
        loss = float(trainer.step().measures["loss"])
        use = trainer.plan.use(STEPS)
    assert use["small"].share == pytest.approx(0.75, abs=0.02)
    assert use["small"].epochs > 3 * use["large"].epochs
    if scores is not None:
        assert loss == pytest.approx(0.6931472, abs=1e-6)
