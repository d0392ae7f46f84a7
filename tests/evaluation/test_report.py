"""The report as a reader gets it: well-formed, self-contained, every figure there, nothing claimed that was not measured."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from fledge.evaluation.checkpoint import CheckpointEvaluation
from fledge.evaluation.compression import CompressorFigure
from fledge.evaluation.explanations import SAMPLES, SCORE_CHARTS, SCORE_EXPLANATIONS
from fledge.evaluation.generations import Answer, Sample
from fledge.evaluation.report import SHOWN_ANSWERS, report
from fledge.evaluation.report_data import CorpusCard, LineageLine, OtherRun, PhaseUse, ReportData, SourceShare, StageUse, TrainingHistory
from fledge.evaluation.score_words import TITLES
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


def test_benchmarks_asked_while_it_learned_are_drawn_with_interval_and_guessing(data: ReportData) -> None:
    assert "Evaluation over time" not in text_of(report(data))
    asked = {"benchmark/boolq/acc": 0.5, "benchmark/boolq/acc/low": 0.37, "benchmark/boolq/acc/high": 0.63}
    known = {"benchmark/boolq/acc/guessing": 0.62, "benchmark/boolq/acc/n": 50, "benchmark/text/byte_perplexity": 7.5}
    records = [{"step": step, "time": 1.0, **asked, **known, "benchmark/text/byte_perplexity/n": 1} for step in (10, 20)]
    history = TrainingHistory("pretrain", [*data.training[0].records, *records])
    html = report(replace(data, training=[history]))
    text = text_of(html)
    assert "Evaluation over time" in text
    for figures in ("pretrain: BoolQ: acc, n = 50", "guessing", "0.5 (0.37 to 0.63)", "pretrain: Text: byte perplexity, n = 1", "7.5"):
        assert figures in text, figures
    assert html.count("<polygon") == 1, "a figure without an interval has no band"


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


@pytest.fixture
def curriculum(data: ReportData) -> TrainingHistory:
    """Two phases, two sources, all that a run records, and samples of one prompt."""
    records = [
        {
            "step": step,
            "train/loss": 4 / step,
            "train/tokens": 100 * step,
            "train/tokens_per_second": 5e3,
            "train/peak_memory_bytes": 2_500_000_000,
        }
        | {"train/gradient_norm": 1.5, "train/learning_rate": 0.01, "validation/loss": 5 / step}
        for step in range(1, 21)
    ]
    phases = [PhaseUse(15, 64, 8, {"web": 0.75, "books": 0.25}), PhaseUse(5, 128, 8, {"web": 0.4, "books": 0.6})]
    sources = [SourceShare("books", 4_000, 0.31, 0.4), SourceShare("web", 8_800, 0.69, 1.25)]
    samples = [(step, Sample("The <i>bird</i>", f"sings {step}")) for step in range(1, 21)]
    return TrainingHistory("pretrain", records, "documents", phases, sources, samples)


def test_curves_phases_mixture_and_samples(data: ReportData, curriculum: TrainingHistory) -> None:
    html = report(replace(data, training=[curriculum]))
    text = text_of(html)
    for chart in ("loss", "learning rate", "gradient norm", "throughput", "memory at its peak"):
        assert f"pretrain: {chart}" in text
    assert "2.5" in text.split("pretrain: memory at its peak", 1)[1]
    assert "phase steps tokens tokens in a row tokens in a batch mixture 1 15 7,680 64 512 web 75%, books 25% 2 5 5,120 128 1,024" in text
    assert "web 69.0 % web: 69.0 % 8,800 tokens, read 1.25 times books 31.0 %" in text
    assert "<i>" not in html
    assert [int(step) for step in re.findall(r"(\d+) sings \1\b", text)] == [1, 5, 9, 12, 16, 20]


def test_one_phase_and_one_source_are_no_curriculum(data: ReportData, curriculum: TrainingHistory) -> None:
    plain = replace(curriculum, phases=curriculum.phases[:1], sources=curriculum.sources[:1], samples=())
    text = text_of(report(replace(data, training=[plain])))
    for words in ("pretrain: phases", "share of the tokens by source", "What it wrote while it learned", "Beside other runs"):
        assert words not in text
    assert "pretrain: loss" in text


def test_other_runs_stand_beside_this_one(data: ReportData, curriculum: TrainingHistory) -> None:
    ours = OtherRun("demo", [curriculum], data.evaluations, {"parameters": "10"}, {"pretrain.seed": "0", "pretrain.batch_rows": "8"})
    longer = replace(curriculum, records=[{**record, "train/tokens": 2 * (record["train/tokens"] or 0)} for record in curriculum.records])
    theirs = OtherRun("other", [longer], data.evaluations[:1], {"parameters": "99"}, {"pretrain.seed": "7", "pretrain.batch_rows": "8"})
    html = report(replace(data, training=[curriculum], others=[ours, theirs]))
    text = text_of(html).split("Beside other runs", 2)[2]
    assert "demo other parameters 10 99" in text
    assert "after dpo" not in text
    assert "Bits per byte, after pretrain 1.840 (1.800 to 1.880) 1.840 (1.800 to 1.880)" in text
    assert "asked for differently demo other pretrain.seed 0 7" in text
    assert "pretrain.batch_rows" not in text
    # Curves over tokens: the other run has trained on twice as many.
    assert "other: 20 points, from 4 at 200 to 0.2 at 4,000" in text
    assert "Beside other runs" not in text_of(report(replace(data, others=[ours])))


def test_benchmarks_have_a_chart_of_their_own(data: ReportData) -> None:
    scores = (share_score("boolq/acc", 130, 200, chance=0.5, majority=0.62), share_score("mine/exact_match", 3, 20))
    html = report(replace(data, evaluations=[replace(data.evaluations[0], scores=(*data.evaluations[0].scores, *scores))]))
    text = text_of(html)
    assert "Benchmarks BoolQ: acc, after pretrain 65.0 %" in text
    assert "mine: exact match, after pretrain 15.0 %" in text
    assert "Benchmarks" not in text_of(report(data))


def test_data_cards_in_short(data: ReportData) -> None:
    card = CorpusCard(
        "corpus/documents", "This corpus holds 3 <documents>.", ("source", "split", "rows"), [["web", "train", "3"]], ["a limit"]
    )
    html = report(replace(data, cards=[card]))
    text = text_of(html)
    assert "corpus/documents This corpus holds 3 <documents>. source split rows web train 3 Known limits a limit Documents 7,550" in text
    assert "<documents>" not in html


def test_a_text_of_empty_lines_is_cut(data: ReportData) -> None:
    text = text_of(report(replace(data, samples=[Sample("a", "\n".join(["x"] * 40)), Sample("b", ""), Sample("c", "\n".join("x" * 12))])))
    assert text.count("more lines") == 1
    assert "... (28 more lines)" in text
    assert "(nothing)" in text


def test_a_page_can_be_printed(data: ReportData) -> None:
    """Light, nothing cut: charts, rows and tiles stay whole, tables repeat their heads, what is folded is shown."""
    style = report(data).split("@media print", 1)[1].split("</style>", 1)[0]
    for rule in ("--paper: #ffffff", "break-inside: avoid", "table-header-group", "overflow: visible", "::details-content", "@page"):
        assert rule in style, rule


def test_every_score_that_is_drawn_is_explained() -> None:
    drawn = [name for _, names in SCORE_CHARTS for name in names]
    assert set(drawn) == set(SCORE_EXPLANATIONS) <= set(TITLES)
