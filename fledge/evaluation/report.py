"""The report: everything a run measured, on one page that explains itself to a newcomer.

One pure function from plain data (`report_data.py`) to HTML; how it learned stands in `report_training.py`. The stage collects the
data, `core/page.py` draws, `explanations.py` has the words.
Every figure stands beside what it must be compared with: compressors, guessing, the plan, the answer of the documentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fledge.core import page
from fledge.core.console import format_bytes, format_count, format_seconds
from fledge.core.markup import element
from fledge.core.page import Markup, Section
from fledge.evaluation import explanations
from fledge.evaluation.checkpoint import CheckpointEvaluation, replies_table, results_table
from fledge.evaluation.compression import CompressorFigure
from fledge.evaluation.generations import Answer, Sample
from fledge.evaluation.report_data import CorpusCard, LineageLine, ReportData, StageUse
from fledge.evaluation.report_training import measured_section, others_section, training_section, written_section
from fledge.evaluation.score_words import TITLES, score_title
from fledge.evaluation.statistics import Score, percent

SHOWN_ANSWERS = 6
"""The first ones of the seeded sample are shown and the others folded away: nobody picked the good ones."""
SHOWN_LINES = 12
"""Of a text that a model wrote; one that has learned too little may write nothing but empty lines."""
HEADLINES = ("bits_per_byte", "stop_rate", "reward_accuracy")


def report(data: ReportData) -> str:
    """The page as self-contained HTML."""
    parts = [
        page.section("In short", _introduction(data), page.tiles(_headlines(data)), *_exchanges([data.asked] if data.asked else [])),
        _samples(data.samples),
        _answers(data.evaluations),
        _replies(data.evaluations),
        _compression(data),
        _abilities(data.evaluations),
        training_section(data),
        measured_section(data),
        written_section(data),
        others_section(data),
        _use(data.stages),
        _text(data),
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
    tokens = [(stage.name, stage.used_tokens) for stage in data.stages if stage.used_tokens]
    if tokens:
        of_stages = ", ".join(f"{name} {format_count(count)}" for name, count in tokens)
        tiles.append(page.Tile("Tokens trained on", format_count(sum(count for _, count in tokens)), of_stages))
    parameters = dict(data.model).get("parameters")
    if parameters:
        tiles.append(page.Tile("Parameters", format_count(int(parameters.replace(",", "")))))
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
    return [page.exchange(sample.prompt, _in_short(sample.text), *([sample.note] if sample.note else [])) for sample in samples]


def _in_short(text: str) -> str:
    """A text without the lines that nobody would read on."""
    lines = text.split("\n")
    if len(lines) <= SHOWN_LINES:
        return text or "(nothing)"
    return "\n".join([*lines[:SHOWN_LINES], f"... ({len(lines) - SHOWN_LINES:,} more lines)"])


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
    found = [(one.name, score) for one in evaluations for score in one.scores if is_benchmark(score)]
    rows = [_interval_row(checkpoint, score) for checkpoint, score in found]
    if rows:
        content += [page.interval_chart("Benchmarks", rows, baseline_label="guessing"), explanations.BENCHMARKS]
    if not content:
        return None
    columns, table_rows = results_table(evaluations)
    table = page.table(columns, table_rows, frozenset(range(1, len(columns))))
    legend = "In brackets the 95 % interval. A ? marks a figure whose interval includes guessing."
    return page.section("What it can do", *explanations.ABILITIES, *content, page.details("All figures", table, legend))


def is_benchmark(score: Score) -> bool:
    """Whether a score is the share of right answers to a benchmark, `NAME/METRIC`, known or one's own."""
    base, _, metric = score.name.partition("/")
    return bool(metric) and base not in TITLES and score.unit == "share" and score.low is not None and score.high is not None


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


def _text(data: ReportData) -> Section | None:
    """The data cards in short, with the tokenizer and what packing made of the text."""
    content: list[str] = [part for card in data.cards for part in _card(card)]
    content += [page.definition_list(data.corpus)] if data.corpus else []
    return page.section("The text it learned from", *content) if content else None


def _card(card: CorpusCard) -> list[str]:
    limits = [page.details("Known limits", element("ul", *(element("li", limit) for limit in card.limits)))] if card.limits else []
    return [element("h3", card.name), card.summary, page.table(card.columns, card.rows, frozenset(range(2, len(card.columns)))), *limits]


def _lineage(lines: Sequence[LineageLine]) -> Section | None:
    if not lines:
        return None
    drawn = [f"{'    ' * line.depth}{line.role}: {line.kind} {line.id[:12]}  {line.path}" for line in lines]
    return page.section("Lineage", *explanations.LINEAGE, page.text_block("\n".join(drawn), monospace=True))
