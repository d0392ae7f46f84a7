"""Continued from every step of a run, in the same bits; and what today's and yesterday's files of a state say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from training_assembly import MODEL, assembled, training_settings, write_token_set

from fledge.core.errors import CheckpointError
from fledge.corpus.document import Content
from fledge.model.adapters import add_adapter
from fledge.model.folder import load_model
from fledge.model.llama import Llama
from fledge.model.settings import Adapter, LoraSettings
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.training.checkpoint import STATE, STATE_FORMAT, restore
from fledge.training.checkpoint_folders import checkpoint_folder, list_checkpoints
from fledge.training.settings import MuonSettings, PreferenceSettings, TrainingSettings
from fledge.training.sound_checkpoints import SET_ASIDE, rewind
from fledge.training.trainer import Trainer

STEPS = 40
PICKED = (3, 20, 39)
FIXTURES = Path(__file__).parent / "fixtures"


@dataclass(frozen=True)
class Case:
    """A kind of training with all that could differ: accumulation, dropout where there is some, a schedule, two optimizers."""

    content: Content
    settings: TrainingSettings
    attention_dropout: float = 0.0

    def model(self, base: Path) -> Llama:
        """Fresh weights; with an adapter over them, if the settings want one."""
        model = Llama(replace(MODEL, settings=replace(MODEL.settings, num_hidden_layers=1, attention_dropout=self.attention_dropout)), 0)
        if self.settings.lora is not None:
            add_adapter(model, Adapter(self.settings.lora, base), seed=0)
        return model


COMMON = {
    "steps": STEPS,
    "batch_rows": 4,
    "micro_batch_rows": 2,
    "save_every_steps": 1,
    "keep_checkpoints": STEPS,
    "validate_every_steps": 10,
}
CASES = {
    "pretraining": Case("documents", training_settings(**COMMON, optimizer=MuonSettings()), attention_dropout=0.2),
    "fine-tuning": Case("conversations", training_settings(**COMMON, sequence_length=None), attention_dropout=0.2),
    "adapters": Case(
        "conversations",
        training_settings(**COMMON, sequence_length=None, lora=LoraSettings(rank=4, dropout=0.2, weight_decomposed=True)),
        attention_dropout=0.2,
    ),
    # Without dropout: the reference's scores know none.
    "preferences": Case("preferences", training_settings(**COMMON, sequence_length=None, objective=PreferenceSettings())),
    "preferences by adapters": Case(
        "preferences", training_settings(**COMMON, sequence_length=None, objective=PreferenceSettings(), lora=LoraSettings(rank=4))
    ),
}


def bits(trainer: Trainer) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in {**dict(trainer.model.named_parameters()), **trainer.optimizer.state()}.items()}


@pytest.mark.parametrize("picked", [PICKED, pytest.param(range(1, STEPS), marks=pytest.mark.slow)], ids=["picked", "every"])
@pytest.mark.parametrize("name", CASES)
def test_continued_from_any_step_no_bit_differs(
    tmp_path: Path, token_set_of: Callable[[Content], TokenSet], scores: Path, name: str, picked: tuple[int, ...]
) -> None:
    """A run that goes on from a chosen checkpoint ends with the weights, optimizer, losses and validations of the whole one."""
    case = CASES[name]
    tokens, reference = [token_set_of(case.content)], scores if case.content == "preferences" else None
    with assembled(tmp_path / "run", case.settings, tokens, reference, model=case.model(tmp_path / "base")) as whole:
        whole.run()
    expected = bits(whole)
    final = list_checkpoints(tmp_path / "run")[-1].artifact.id
    seldom = replace(case.settings, save_every_steps=None)
    for step in sorted(picked, reverse=True):
        rewind(tmp_path / "run", checkpoint_folder(tmp_path / "run", step))
        with assembled(tmp_path / "run", seldom, tokens, reference, model=case.model(tmp_path / "base")) as again:
            assert again.progress.step == step
            again.run()
        found = bits(again)
        assert [key for key in expected if not torch.equal(expected[key], found[key])] == []
        assert again.progress == whole.progress
        assert list_checkpoints(tmp_path / "run")[-1].artifact.id == final
        shutil.rmtree(tmp_path / "run" / SET_ASIDE)


# ---- formats


def fixture(folder: Path, number: int) -> tuple[Path, TokenSet]:
    """A copy of the run that a Fledge of that format has left after step 3 of 6, and its tokens."""
    shutil.copytree(FIXTURES / f"format-{number}" / "run", folder)
    return folder, open_token_set(FIXTURES / f"format-{number}" / "tokens")


def test_every_format_has_a_fixture() -> None:
    """A new one is added before its first release: see `write_fixture`."""
    assert sorted(path.name for path in FIXTURES.iterdir()) == [f"format-{number}" for number in range(1, STATE_FORMAT + 1)]
    for folder in FIXTURES.iterdir():
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 64_000


@pytest.mark.parametrize("number", range(1, STATE_FORMAT + 1))
def test_a_state_of_every_format_is_continued(tmp_path: Path, number: int) -> None:
    folder, tokens = fixture(tmp_path / "run", number)
    settings = training_settings(steps=6, save_every_steps=3, keep_checkpoints=9)
    model = load_model(checkpoint_folder(folder, 3))
    with assembled(folder, settings, [tokens], model=model) as trainer:
        assert trainer.progress.step == 3
        trainer.run()
    # Other machines round otherwise, so not to the bit.
    losses = [4.852266, 4.842741, 4.830225, 4.806297, 4.789806, 4.767811]
    assert list(trainer.progress.recent_losses) == pytest.approx(losses, abs=1e-4)


def told(tmp_path: Path, change: Callable[[dict[str, Any]], str]) -> str:
    """What is said to a state whose file is changed."""
    folder, tokens = fixture(tmp_path / "run", STATE_FORMAT)
    checkpoint = list_checkpoints(folder)[-1]
    path = checkpoint.path / STATE
    path.write_text(change(json.loads(path.read_text())))
    with assembled(tmp_path / "other", training_settings(steps=6), [tokens], model=load_model(checkpoint.path)) as trainer:
        with pytest.raises(CheckpointError) as error:
            restore(checkpoint, trainer.model, trainer.optimizer, trainer.plan)
        assert error.value.exit_code == 4
    return error.value.problem


def test_a_newer_format_is_refused_naming_both(tmp_path: Path) -> None:
    said = told(tmp_path, lambda state: json.dumps({**state, "format": STATE_FORMAT + 1}))
    assert said.endswith(f"state.json has format {STATE_FORMAT + 1}, this Fledge reads formats up to {STATE_FORMAT}")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("[]", "cannot be read"),
        ("{", "cannot be read"),
        ('{"format": "x"}', "cannot be read"),
        ("{}", "rows in another order"),
        ({"recent_losses": None}, "is no state of a run of ours"),
        ({"validation_losses": [[1]]}, "is no state of a run of ours"),
        ({"unheard_of": 1}, "is no state of a run of ours"),
    ],
)
def test_a_state_of_no_format_is_refused(tmp_path: Path, content: str | dict[str, Any], problem: str) -> None:
    assert problem in told(tmp_path, lambda state: content if isinstance(content, str) else json.dumps({**state, **content}))


def write_fixture(folder: Path) -> None:
    """The run of the tests above up to step 3, as the code of today writes it."""
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8, "tie_word_embeddings": True}
    model = Llama(replace(MODEL, settings=replace(MODEL.settings, **shape)), 0)  # type: ignore[arg-type]
    tokens = write_token_set(folder / "tokens", "documents", {"manual": 30})
    with assembled(folder / "run", training_settings(steps=6), [tokens], model=model) as trainer:
        for _ in range(3):
            trainer.step()
        trainer.save()
    for name in ("machine.json", "metrics.jsonl"):
        (folder / "run" / name).unlink(missing_ok=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    write_fixture(FIXTURES / f"format-{STATE_FORMAT}")
