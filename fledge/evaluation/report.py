"""The report: everything a run measured, on one page that explains itself to a newcomer.

One pure function from plain data to HTML; the stage collects the data, `core/page.py` draws, `explanations.py` has the words.
Every figure stands beside what it must be compared with: compressors, guessing, the plan, the answer of the documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fledge.core import page
from fledge.core.console import format_bytes, format_count, format_seconds
from fledge.core.page import Markup, Section
from fledge.corpus.sources.settings import Content
from fledge.evaluation import explanations
from fledge.evaluation.checkpoint import CheckpointEvaluation, replies_table, results_table, score_title
from fledge.evaluation.compression import CompressorFigure
from fledge.evaluation.explanations import MetricsChart
from fledge.evaluation.generations import Answer, Sample
from fledge.evaluation.statistics import Score, percent

SHOWN_ANSWERS = 6
"""The first ones of the seeded sample are shown and the others folded away: nobody picked the good ones."""
HEADLINES = ("bits_per_byte", "stop_rate", "reward_accuracy")

Record = Mapping[str, float | int | None]
"""A line of metrics.jsonl."""


@dataclass(frozen=True)
class StageUse:
    """What a stage was meant to use and what it did use; None where it has no such figure."""

    name: str
    seconds: float | None = None
    planned_seconds: float | None = None
    """Expected before the first step."""
    peak_bytes: int | None = None
    """The most memory at once, of the process or of the GPU."""
    planned_peak_bytes: int | None = None
    """Expected before the first step."""
    planned_tokens: int | None = None
    used_tokens: int | None = None
    note: str = ""


@dataclass(frozen=True)
class TrainingHistory:
    """A training stage with its records, in the order of steps."""

    name: str
    records: Sequence[Record]
    content: Content = "documents"
    """What it learned from; only bits per byte of documents can stand beside those of compressors."""


@dataclass(frozen=True)
class LineageLine:
    """One artifact in the tree of what was made from what."""

    depth: int
    role: str
    kind: str
    id: str
    path: str


@dataclass(frozen=True)
class ReportData:
    """All that the page shows; a part without content is left out of it."""

    run_name: str
    recipe_name: str
    written_at: str = ""
    """Date and time as people write it."""
    asked: Sample | None = None
    """The recipe's question and what the last model says."""
    stages: Sequence[StageUse] = ()
    training: Sequence[TrainingHistory] = ()
    compressors: Sequence[CompressorFigure] = ()
    evaluations: Sequence[CheckpointEvaluation] = ()
    """In the order of training."""
    samples: Sequence[Sample] = ()
    """Prompts that the base model continued, or questions asked by hand."""
    corpus: Sequence[tuple[str, str]] = ()
    """Facts on text and tokenizer: (name, value)."""
    model: Sequence[tuple[str, str]] = ()
    lineage: Sequence[LineageLine] = ()
    environment: Sequence[tuple[str, str]] = ()


def report(data: ReportData) -> str:
    """The page as self-contained HTML."""
    parts = [
        page.section("In short", _introduction(data), page.tiles(_headlines(data)), *_exchanges([data.asked] if data.asked else [])),
        _samples(data.samples),
        _answers(data.evaluations),
        _replies(data.evaluations),
        _compression(data),
        _abilities(data.evaluations),
        _training(data),
        _use(data.stages),
        _facts("The text it learned from", data.corpus),
        _facts("The model", data.model),
        _lineage(data.lineage),
        _facts("Machine and software", data.environment),
    ]
    made = f"Made by the recipe {data.recipe_name}" + (f" on {data.written_at}" if data.written_at else "")
    footer = "Written by Fledge. This page needs no network and holds all that it shows."
    return page.page(data.run_name, *(part for part in parts if part is not None), subtitle=made, footer=footer)


def _introduction(data: ReportData) -> str:
    """The road of this run: only the stages that it has."""
    steps = [explanations.STEPS[history.name] for history in data.training if history.name in explanations.STEPS]
    return " ".join([explanations.OPENING, *steps, explanations.HELD_OUT])


def _headlines(data: ReportData) -> list[page.Tile]:
    tiles = []
    for name in HEADLINES:
        measured = [(one.name, score) for one in data.evaluations if (score := one.score(name)) is not None]
        if measured:
            checkpoint, score = _of_base(measured) if name == "bits_per_byte" else measured[-1]
            value = percent(score.value) if score.unit == "share" else f"{score.value:.2f}"
            tiles.append(page.Tile(score_title(name), value, f"after {checkpoint}; {_comparison_note(score, data.compressors)}"))
    seconds = sum(stage.seconds or 0.0 for stage in data.stages)
    return [*tiles, page.Tile("Time", format_seconds(seconds), "all stages together")] if seconds else tiles


def _of_base(measured: Sequence[tuple[str, Score]]) -> tuple[str, Score]:
    """Bits per byte of the base model: chat training is not meant to improve them, and what pretraining started from is not its result."""
    return next((one for one in measured if one[0] == "pretrain"), measured[0])


def _comparison_note(score: Score, compressors: Sequence[CompressorFigure]) -> str:
    if score.name == "bits_per_byte":
        return ", ".join(f"{figure.name} {figure.bits_per_byte:.2f}" for figure in compressors) or "lower is better"
    return f"{score.n:,} questions" if score.baseline is None else f"guessing {percent(score.baseline)}"


def _samples(samples: Sequence[Sample]) -> Section | None:
    return page.section("Samples", *explanations.SAMPLES, *_exchanges(samples)) if samples else None


def _exchanges(samples: Sequence[Sample]) -> list[Markup]:
    return [page.exchange(sample.prompt, sample.text, *([sample.note] if sample.note else [])) for sample in samples]


def _answers(evaluations: Sequence[CheckpointEvaluation]) -> Section | None:
    speaking = [evaluation for evaluation in evaluations if evaluation.answers]
    if not speaking:
        return None
    names = [evaluation.name for evaluation in speaking]
    asked = list(zip(*(evaluation.answers for evaluation in speaking), strict=False))
    shown = [_one_answer(names, answers) for answers in asked[:SHOWN_ANSWERS]]
    rows = [[answers[0].question, *(_said(one) for one in answers), answers[0].reference] for answers in asked[SHOWN_ANSWERS:]]
    if rows:
        shown.append(page.details(f"{len(rows)} more answers", page.table(["question", *names, "documentation"], rows)))
    return page.section("Answers", *explanations.ANSWERS, *shown)


def _replies(evaluations: Sequence[CheckpointEvaluation]) -> Section | None:
    columns, rows = replies_table(evaluations)
    return page.section("Prompts", *explanations.PROMPTS, page.table(columns, rows)) if rows else None


def _one_answer(names: Sequence[str], answers: Sequence[Answer]) -> Markup:
    """The last model's answer, and below it the earlier ones' and the documentation's."""
    earlier = [f"After {name}: {_said(answer)}" for name, answer in zip(names[:-1], answers[:-1], strict=True)]
    return page.exchange(answers[-1].question, _said(answers[-1]), *earlier, f"Documentation: {answers[-1].reference}")


def _said(answer: Answer) -> str:
    text = answer.text or "(nothing)"
    return text if answer.stopped else f"{text} ... (did not stop)"


def _compression(data: ReportData) -> Section | None:
    measured = [(one.name, score) for one in data.evaluations if (score := one.score("bits_per_byte")) is not None]
    if not measured:
        return None
    base, score = _of_base(measured)
    bars = [page.BarRow(f"model after {name}", one.value, emphasis=name == base) for name, one in measured]
    bars += [page.BarRow(figure.name, figure.bits_per_byte, _priming_note(figure)) for figure in data.compressors]
    interval = "" if score.low is None or score.high is None else f", 95 % interval {score.low:.3f} to {score.high:.3f}"
    return page.section(
        "How well it predicts text",
        *explanations.COMPRESSION,
        page.bar_chart("Bits per byte of held-out text: lower is better", sorted(bars, key=lambda bar: bar.value), "bits per byte"),
        f"After {base}: {score.value:.3f} bits per byte over {score.n:,} held-out documents{interval}; {score.note}.",
        *_against_compressors(score, data.compressors),
    )


def _against_compressors(score: Score, compressors: Sequence[CompressorFigure]) -> list[str]:
    """One sentence that names every compressor, win or loss; a difference inside the interval is neither."""
    relations = []
    for figure in compressors:
        level = score.low is not None and score.high is not None and score.low <= figure.bits_per_byte <= score.high
        relation = "about as many bits as" if level else "fewer bits than" if score.value < figure.bits_per_byte else "more bits than"
        relations.append(f"{relation} {figure.name} ({figure.bits_per_byte:.2f})")
    return [f"On the same text it needs {', '.join(relations)}."] if relations else []


def _priming_note(figure: CompressorFigure) -> str:
    return f"after reading {format_count(figure.priming_bytes)} bytes of the training text" if figure.priming_bytes else ""


def _abilities(evaluations: Sequence[CheckpointEvaluation]) -> Section | None:
    content: list[str] = []
    for title, names in explanations.SCORE_CHARTS:
        found = [(one.name, score) for name in names for one in evaluations for score in one.scores if _is_shown(score, name)]
        rows = [_interval_row(checkpoint, score) for checkpoint, score in found if score.low is not None and score.high is not None]
        if rows:
            content.append(page.interval_chart(title, rows, baseline_label="guessing"))
            content.append(page.definition_list(_score_notes(names, found)))
    if not content:
        return None
    columns, table_rows = results_table(evaluations)
    table = page.table(columns, table_rows, frozenset(range(1, len(columns))))
    legend = "In brackets the 95 % interval. A ? marks a figure whose interval includes guessing."
    return page.section("What it can do", *explanations.ABILITIES, *content, page.details("All figures", table, legend))


def _is_shown(score: Score, name: str) -> bool:
    """Kinds of damage are drawn for the reward accuracy only; the folded table has them all."""
    base, _, kind = score.name.partition("/")
    return base == name and (not kind or name == "reward_accuracy")


def _interval_row(checkpoint: str, score: Score) -> page.IntervalRow:
    assert score.low is not None and score.high is not None
    return page.IntervalRow(f"{score_title(score.name)}, after {checkpoint}", score.value, score.low, score.high, score.baseline)


def _score_notes(names: Sequence[str], found: Sequence[tuple[str, Score]]) -> list[tuple[str, str]]:
    """What each score means, and what may be said against guessing."""
    notes = []
    for name in names:
        checkpoints_by_verdict: dict[str, list[str]] = {}
        for checkpoint, score in found:
            if score.name == name:
                checkpoints_by_verdict.setdefault(score.verdict, []).append(checkpoint)
        if checkpoints_by_verdict:
            verdicts = [f"After {_list(said)}: {verdict}." for verdict, said in checkpoints_by_verdict.items() if verdict]
            notes.append((score_title(name), " ".join([explanations.SCORE_EXPLANATIONS[name], *verdicts])))
    return notes


def _list(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _training(data: ReportData) -> Section | None:
    levels = [(figure.bits_per_byte, figure.name) for figure in data.compressors]
    content: list[str] = []
    for history in data.training:
        folded: list[str] = []
        if text := explanations.METRICS_EXPLANATIONS.get(history.name):
            content.append(text)
        for chart in explanations.TRAINING_CHARTS:
            # of answers alone the bits per byte would say nothing that the loss does not, and invite a wrong comparison
            if chart is explanations.BITS_PER_BYTE and history.content != "documents":
                continue
            drawn = _metrics_chart(history, chart, levels if chart is explanations.BITS_PER_BYTE else [])
            if drawn is not None:
                (folded if chart.folded else content).append(drawn)
        if folded:
            content.append(page.details(f"{history.name}: learning rate, gradient, speed", *folded))
    return page.section("How it learned", *explanations.TRAINING, *content) if content else None


def _metrics_chart(history: TrainingHistory, chart: MetricsChart, levels: Sequence[tuple[float, str]]) -> Markup | None:
    lines = []
    for metric, label in chart.metrics:
        records = [record for record in history.records if metric in record]
        if records:
            lines.append(page.Series(label, [record["step"] or 0 for record in records], [record[metric] for record in records]))
    if not lines:
        return None
    return page.line_chart(f"{history.name}: {chart.title}", lines, "optimizer step", chart.y_label, marks=levels)


def _use(stages: Sequence[StageUse]) -> Section | None:
    if not stages:
        return None
    rows = [
        [
            stage.name,
            _count(stage.planned_tokens),
            _count(stage.used_tokens),
            *_compared(stage.planned_seconds, stage.seconds, format_seconds),
            *_compared(stage.planned_peak_bytes, stage.peak_bytes, format_bytes),
            stage.note,
        ]
        for stage in stages
    ]
    total_seconds = sum(stage.seconds or 0.0 for stage in stages)
    rows.append(["all", "", "", "", format_seconds(total_seconds), *[""] * 5])
    columns = ["stage", "tokens planned", "tokens used", "time expected", "time used", "off by"]
    columns += ["memory expected", "memory used", "off by", "result"]
    return page.section("Plan and use", *explanations.USE, page.table(columns, rows, frozenset(range(1, 9))))


def _compared(planned: float | None, used: float | None, shown: Callable[[float], str]) -> list[str]:
    """What was expected, what it was, and by how much of what it was the expectation was off."""
    off = "" if planned is None or not used else f"{planned / used - 1:+.0%}"
    return ["" if planned is None else shown(planned), "" if used is None else shown(used), off]


def _count(value: int | None) -> str:
    return "" if value is None else format_count(value)


def _facts(title: str, facts: Sequence[tuple[str, str]]) -> Section | None:
    return page.section(title, page.definition_list(facts)) if facts else None


def _lineage(lines: Sequence[LineageLine]) -> Section | None:
    if not lines:
        return None
    drawn = [f"{'    ' * line.depth}{line.role}: {line.kind} {line.id[:12]}  {line.path}" for line in lines]
    return page.section("Lineage", *explanations.LINEAGE, page.text_block("\n".join(drawn), monospace=True))
