"""What a training stage is asked for, its inputs opened: known without torch, so that what is finished is found finished at once.

Inputs by role: `tokens.0`, `tokens.1`, ... the token sets; `start_from` the checkpoint before; `scores` the reference of dpo; `base` the
checkpoint whose weights are frozen, where an adapter is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fledge.core import artifact
from fledge.core.artifact import Artifact, Request
from fledge.core.errors import ConfigError
from fledge.model.adapter_config import BASE, find_base, is_adapter, open_base
from fledge.stages import CONTENT_OF, TRAINING_STAGES, Stage, has_stage
from fledge.stages.checkpoint_names import open_checkpoint
from fledge.stages.parent_tokenizer import open_parent_tokenizer
from fledge.stages.run import Run
from fledge.tokens.shards import TokenSet, open_token_set
from fledge.tokens.tokenizer import Tokenizer, require_one_tokenizer
from fledge.training.settings import TrainingSettings


@dataclass(frozen=True)
class Task:
    """What one training stage has to do, with everything it reads opened."""

    run: Run
    stage: Stage
    settings: TrainingSettings
    token_sets: tuple[TokenSet, ...]
    tokenizer: Tokenizer
    parent: Artifact | None
    scores: Artifact | None
    wanted: Request

    @property
    def folder(self) -> Path:
        return self.run.folder / self.stage

    @property
    def answers(self) -> bool:
        """Whether the model learns to answer, so that the end of a turn ends what it says."""
        return self.token_sets[0].content != "documents"


def open_task(run: Run, stage: Stage) -> Task:
    """Open the inputs of a stage. Raises ArtifactError naming the command that makes what is missing."""
    settings: TrainingSettings = run.recipe.section(stage)
    tokens = run.token_sets(settings.tokens, CONTENT_OF[stage])
    parent = open_parent(run, stage)
    if settings.keep and parent is None:
        raise ConfigError(f"{stage}.keep is {', '.join(settings.keep)}, but nothing is there to keep it from", f"set {stage}.start_from")
    scores = run.open(run.folder / "score", "scores", "score") if stage == "dpo" else None
    base = _base(stage, parent) if settings.lora is not None else None
    given = {"start_from": parent, "scores": scores, BASE: base}
    inputs = {**tokens, **{role: found for role, found in given.items() if found is not None}}
    token_sets = tuple(open_token_set(found.path) for found in tokens.values())
    tokenizer = open_parent_tokenizer(parent, tokens)
    made_with = {f"token set {token_set.folder}": token_set.tokenizer_sha256 for token_set in token_sets}
    holder = f"checkpoint {parent.path}" if parent else f"tokenizer {tokenizer.folder}"
    require_one_tokenizer({**made_with, holder: tokenizer.sha256}, run.command)
    shape = None if parent else run.recipe.model
    wanted = artifact.request("training", {"stage": stage, "training": settings, "model": shape}, inputs)
    return Task(run, stage, settings, token_sets, tokenizer, parent, scores, wanted)


def _base(stage: Stage, parent: Artifact | None) -> Artifact:
    """What an adapter is trained for: the parent, or where that is an adapter, which is then trained on, what it was trained for."""
    if parent is None:
        raise ConfigError(f"{stage}.lora adds to weights that are there, and {stage} begins with random ones", f"set {stage}.start_from")
    if is_adapter(parent.path):
        return open_base(find_base(parent.path))
    _require_lasting(parent.path)
    return parent


def _require_lasting(checkpoint: Path) -> None:
    """Refuse one that its own training may still remove, without which the adapter would be worth nothing."""
    training = checkpoint.absolute().parent.parent
    if (training / artifact.STARTED).is_file() and not (training / artifact.MANIFEST).is_file():
        raise ConfigError(
            f"{checkpoint} belongs to a training that is not finished and may remove it, and an adapter is nothing without its base",
            "finish that training first, or copy the folder to another place and start from there",
        )


def open_parent(run: Run, stage: Stage) -> Artifact | None:
    """The checkpoint a stage starts from: the one given, or the final one of the stage before. None: random weights."""
    given = run.recipe.section(stage).start_from
    if given is not None:
        return open_checkpoint(given)
    if stage == "pretrain":
        return None
    earlier = TRAINING_STAGES[: TRAINING_STAGES.index(stage)]
    before = next((one for one in reversed(earlier) if has_stage(one, run)), None)
    if before is None:
        raise ConfigError(f"{stage} has nothing to start from", f"set {stage}.start_from to a checkpoint")
    run.open(run.folder / before, "training", before)
    return open_checkpoint(f"{run.folder / before}@final")
