"""The report as a reader gets it: well-formed, self-contained, every figure there, nothing claimed that was not measured."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from fledge.evaluation.checkpoint import TITLES, CheckpointEvaluation
from fledge.evaluation.compression import CompressorFigure
from fledge.evaluation.explanations import SAMPLES, SCORE_CHARTS, SCORE_EXPLANATIONS
from fledge.evaluation.generations import Answer
from fledge.evaluation.report import SHOWN_ANSWERS, LineageLine, ReportData, Sample, StageUse, TrainingHistory, report
from fledge.evaluation.statistics import Score, share_score


def bits(value: float) -> Score:
    return Score("bits_per_byte", value, 568, value - 0.04, value + 0.04, unit="bits_per_byte", note="context of at most 256 tokens")


def answers(suffix: str) -> tuple[Answer, ...]:
    return tuple(
        Answer(f"What does name_{index} do?", f"It does thing {index}.", f"Thing {index}{suffix}", index != 1) for index in range(20)
    )


@pytest.fixture
def data() -> ReportData:
    records = [
        {"step": step, "time": 1.0, "train/loss": 8 / step, "train/learning_rate": 0.1, "validation/bits_per_byte": 2 + 1 / step}
        for step in range(1, 60)
    ]
    records.append({"step": 60, "time": 1.0, "train/loss": None, "train/learning_rate": 0.1})
    chat = (share_score("stop_rate", 97, 100), share_score("answer_choice", 270, 400, chance=0.5))
    preference = (share_score("reward_accuracy", 350, 400, chance=0.5), share_score("reward_accuracy/run_on", 66, 133, chance=0.5))
    return ReportData(
        "demo",
        "recipes/demo.yaml",
        "2026-11-21 12:00",
        stages=[StageUse("pretrain", 61.5, planned_tokens=819_200, used_tokens=614_400), StageUse("evaluate", 12.0, note="3 checkpoints")],
        training=[TrainingHistory("pretrain", records), TrainingHistory("sft", records, "conversations")],
        compressors=[
            CompressorFigure("zlib", 2.65, 170_198),
            CompressorFigure("xz primed with the training text", 1.6, 170_198, 2_254_216),
        ],
        evaluations=[
            CheckpointEvaluation("pretrain", (bits(1.84), share_score("yes_no", 101, 200, chance=0.5, majority=0.5))),
            CheckpointEvaluation("dpo", (bits(2.1), *chat, *preference), answers(".")),
        ],
        samples=[Sample("What does `<b>` & co do?", "<script>alert(1)</script>")],
        corpus=[("Documents", "7,550")],
        model=[("Parameters", "4.22M")],
        lineage=[
            LineageLine(0, "this", "evaluation", "ab" * 32, "runs/demo/evaluate"),
            LineageLine(1, "dpo", "training", "cd" * 32, "runs/demo/dpo"),
        ],
        environment=[("torch", "2.13.0")],
    )


def text_of(html: str) -> str:
    """What a reader sees, folded parts included, and without the style sheet."""
    root = ElementTree.fromstring(html.removeprefix("<!DOCTYPE html>\n"))
    body = root.find("body")
    assert body is not None
    return re.sub(r"\s+", " ", " ".join(body.itertext()))


def test_every_figure_is_there(data: ReportData) -> None:
    text = text_of(report(data))
    for figure in ("1.84", "2.65", "1.60", "97.0 %", "67.5 %", "87.5 %", "614,400", "819,200", "7,550", "4.22M", "2.13.0", "abababababab"):
        assert figure in text, figure
    for index in range(20):
        assert f"Thing {index}." in text


def test_what_was_expected_stands_beside_what_was_used(data: ReportData) -> None:
    use = StageUse("pretrain", 100.0, planned_seconds=90.0, peak_bytes=2_000_000_000, planned_peak_bytes=2_100_000_000)
    text = text_of(report(replace(data, stages=[use])))
    for figures in ("1 min 30 s 1 min 40 s -10%", "2.1 GB 2.0 GB +5%"):
        assert figures in text
    unknown = text_of(report(replace(data, stages=[replace(use, planned_seconds=None, planned_peak_bytes=None)])))
    assert "-10%" not in unknown
    assert "2.0 GB" in unknown


def test_wins_and_losses_are_told_apart(data: ReportData) -> None:
    text = text_of(report(data))
    assert "it needs fewer bits than zlib (2.65), more bits than xz primed with the training text (1.60)" in text
    level = replace(data, compressors=[CompressorFigure("xz", 1.86, 1000)])
    assert "about as many bits as xz (1.86)" in text_of(report(level))


def test_near_chance_is_said_in_words(data: ReportData) -> None:
    text = text_of(report(data))
    assert "After pretrain: not distinguishable from guessing (50 %) at n = 200." in text
    assert "After dpo: better than guessing (50 %)." in text


def test_the_question_of_the_recipe_stands_near_the_top(data: ReportData) -> None:
    asked = Sample("What is a <bird>?", "A bird & a song.", "answered by the model after dpo")
    text = text_of(report(replace(data, asked=asked)))
    for words in (asked.prompt, asked.text, asked.note):
        assert text.index(words) < text.index(SAMPLES[0])
        assert words not in text_of(report(data))


def test_an_answer_that_did_not_stop_is_marked(data: ReportData) -> None:
    assert text_of(report(data)).count("(did not stop)") == 1


def test_what_every_model_says_to_the_prompts_stands_side_by_side(data: ReportData) -> None:
    said = [(Sample("Once <upon>", f"a {one.name} time"),) for one in data.evaluations]
    replied = [replace(one, replies=replies) for one, replies in zip(data.evaluations, said, strict=True)]
    html = report(replace(data, evaluations=replied))
    assert ">Prompts</h2>" in html and ">Prompts</h2>" not in report(data)
    text = text_of(html)
    assert text.index("Once <upon>") < text.index("a pretrain time") < text.index("a dpo time")


def test_bits_per_byte_are_those_of_the_base_model(data: ReportData) -> None:
    """After pretraining, not of what it started from; without pretraining of the first."""
    parent = CheckpointEvaluation("elsewhere@final (before pretrain)", (bits(1.99),))
    html = text_of(report(replace(data, evaluations=[parent, *data.evaluations])))
    assert "After pretrain: 1.840 bits per byte" in html and "model after elsewhere@final" in html
    assert "After elsewhere@final" in text_of(report(replace(data, evaluations=[parent, data.evaluations[1]])))


def test_the_first_answers_are_shown_whatever_they_are(data: ReportData) -> None:
    html = report(data)
    shown, folded = html.split("more answers</summary>", 1)
    for index in range(20):
        assert (f"Thing {index}." in shown) == (index < SHOWN_ANSWERS)
        assert (f">Thing {index}." in folded) == (index >= SHOWN_ANSWERS)


def test_text_of_a_model_is_text(data: ReportData) -> None:
    html = report(data)
    assert "<script" not in html
    assert "<script>alert(1)</script>" in text_of(html)
    assert "What does `<b>` & co do?" in text_of(html)


def test_nothing_is_loaded_from_elsewhere(data: ReportData) -> None:
    html = report(data)
    assert not re.search(r"(?:src|href)=\"(?!#)|url\(|@import|https?://(?!www\.w3\.org/)", html)


def test_compressors_stand_beside_documents_only(data: ReportData) -> None:
    text = text_of(report(data))
    assert "pretrain: bits per byte of held-out text" in text
    assert "sft: bits per byte" not in text
    assert "sft: loss" in text


def test_parts_without_content_are_left_out() -> None:
    text = text_of(report(ReportData("empty", "recipe.yaml")))
    assert "In short" in text
    for title in ("Answers", "Samples", "What it can do", "How it learned", "Plan and use", "Lineage", "How well it predicts text"):
        assert title not in text


def test_a_base_model_alone_has_a_report(data: ReportData) -> None:
    text = text_of(report(replace(data, evaluations=data.evaluations[:1], samples=[], training=data.training[:1])))
    assert "How well it predicts text" in text
    assert "Answers" not in text
    assert "pretraining" in text
    assert "DPO" not in text


def test_values_that_are_not_numbers_do_not_break_a_chart(data: ReportData) -> None:
    broken = TrainingHistory(
        "pretrain", [{"step": 1, "train/loss": None}, {"step": 2, "train/loss": math.nan}, {"step": 3, "train/loss": 2.0}]
    )
    html = report(replace(data, training=[broken]))
    assert "nan" not in html.lower().replace("banana", "")


def test_every_score_that_is_drawn_is_explained() -> None:
    drawn = [name for _, names in SCORE_CHARTS for name in names]
    assert set(drawn) == set(SCORE_EXPLANATIONS) <= set(TITLES)
