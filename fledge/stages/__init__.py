"""The road, stage by stage: each module opens its inputs, builds the parts, runs them and commits one artifact.

    corpus -> tokenizer -> pack -> pretrain -> sft -> score -> dpo -> evaluate -> report

A stage is a function of a `Run` (a recipe and the folder it fills). Asked again for what is finished it does nothing; started
and interrupted, it continues.
"""

from __future__ import annotations

import importlib
from typing import Literal, get_args

from fledge.corpus.sources.settings import Content
from fledge.stages.run import Run

Stage = Literal["corpus", "tokenizer", "pack", "pretrain", "sft", "score", "dpo", "evaluate", "report"]
STAGES: tuple[Stage, ...] = get_args(Stage)
REPORT = "report.html"
"""The file that the last stage writes."""
TRAINING_STAGES: tuple[Stage, ...] = ("pretrain", "sft", "dpo")
CONTENT_OF: dict[str, Content] = {"pretrain": "documents", "sft": "conversations", "dpo": "preferences"}
"""What each training stage learns from."""


def has_stage(stage: Stage, run: Run) -> bool:
    """Whether the recipe has this stage: a section of its own, or what it is made for."""
    section = {"score": "dpo", "report": "evaluate"}.get(stage, stage)
    return getattr(run.recipe, section) is not None


def run_stage(stage: Stage, run: Run) -> None:
    """Run one stage; torch and the like are imported by its module, not before."""
    from fledge.stages.stand_ins import with_stand_ins

    importlib.import_module(f"fledge.stages.{stage}").run(with_stand_ins(run, stage))
