"""The page of a run: its phases, and other runs beside it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fledge.core import artifact
from fledge.core.errors import ArtifactError
from fledge.stages import run_stage
from fledge.stages.run import Run

MakeRun = Callable[..., Run]
Walk = Callable[..., None]


def test_phases_of_every_stage_and_what_the_report_tells_of_them(
    make_run: MakeRun, walk: Walk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows grow in pretraining, batches in fine-tuning; dpo has a budget. Two sources of documents in a mixture that changes."""
    (tmp_path / "manual.txt").write_text(
        "\n\n".join(f"Turn the screw number {number} to the left. Then turn it back." for number in range(90))
    )
    files = {"text": ("text", "documents", "text.txt"), "manual": ("text", "documents", "manual.txt")}
    files |= {"talks": ("jsonl", "conversations", "talks.jsonl"), "pairs": ("jsonl", "preferences", "pairs.jsonl")}
    sources = [
        {"kind": kind, "name": name, "content": content, "path": str(tmp_path / file)}
        | ({"maximum_document_characters": 200} if kind == "text" else {})
        for name, (kind, content, file) in files.items()
    ]
    only_manual = "{until_tokens: 1024, sequence_length: 128, batch_tokens: 256, mixture: {text: 0, manual: 1}}"
    run = make_run(
        f"corpus.sources={json.dumps(sources)}",
        "pretrain.steps=null",
        "pretrain.mixture={text: 3, manual: 1}",
        f"pretrain.phases=[{{until_tokens: 256}}, {only_manual}]",
        "sft.steps=null",
        "sft.phases=[{until_tokens: 256, batch_tokens: 256}, {until_tokens: 1024}]",
        "dpo.steps=null",
        "dpo.budget={tokens_per_parameter: 0.05}",
    )
    walk(run)
    stats = {stage: artifact.open_artifact(run.folder / stage).stats for stage in ("pretrain", "sft", "dpo")}
    assert [(stats[stage]["steps"], stats[stage]["tokens"]) for stage in stats] == [
        (5, 1_024),
        (3, 1_280),
        (-(-round(0.05 * stats["dpo"]["parameters"]) // 512), stats["dpo"]["steps"] * 512),
    ]
    assert stats["pretrain"]["sources"]["text"]["tokens"] == 192
    assert stats["pretrain"]["sources"]["text"]["share"] == 192 / 1_024
    shown = capsys.readouterr().out
    assert "pretrain: phase 2 of 2: 3 steps of 2 rows x 128 tokens, until step 5, 1,024 tokens" in shown
    assert shown.count("pretrain: text: 18.75% of the tokens (192)") == 2
    page = (run.folder / "report" / "report.html").read_text()
    assert "text 75%, manual 25%" in page and "text 0%, manual 100%" in page
    assert "pretrain: share of the tokens by source" in page
    assert re.search(r"5 steps, 0\.\d+ epochs; text 18\.8%, 0\.\d+ epochs; manual 81\.2%, 0\.\d+ epochs", page)


def test_a_report_beside_another_run(make_run: MakeRun, walk: Walk, capsys: pytest.CaptureFixture[str]) -> None:
    """Made anew where only the runs beside it differ; a run that goes on as before finds it done."""
    short = ("sft=null", "dpo=null", "question=null")
    run, other = make_run(*short, name="one"), make_run(*short, "pretrain.seed=5", name="two")
    walk(other, "pretrain")
    walk(run)
    page = run.folder / "report" / "report.html"
    plain = page.read_text()
    beside = replace(run, compared=(str(other.folder),))
    run_stage("report", beside)
    told = page.read_text()
    assert "Beside other runs" in told and "Beside other runs" not in plain
    assert "pretrain.seed</th><td>0</td><td>5</td>" in told
    assert [kept.read_text() for kept in run.folder.glob("report~*/report.html")] == [plain]
    capsys.readouterr()
    run_stage("report", run)
    run_stage("report", beside)
    assert page.read_text() == told
    assert capsys.readouterr().err.count("report: already done") == 2
    with pytest.raises(ArtifactError, match="nothing finished to compare with"):
        run_stage("report", replace(run, compared=("nobody",)))
