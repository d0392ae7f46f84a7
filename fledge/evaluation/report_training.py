"""The part of the report that tells how the model learned: curves, phases, mixture, what it wrote on the way, and other runs beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fledge.core import page
from fledge.core.console import format_count
from fledge.core.markup import element
from fledge.core.page import Markup, Section
from fledge.evaluation import explanations
from fledge.evaluation.checkpoint import CheckpointEvaluation
from fledge.evaluation.explanations import MetricsChart
from fledge.evaluation.report_data import OtherRun, ReportData, TrainingHistory
from fledge.evaluation.score_words import format_score, score_title

SHOWN_SAMPLES = 6
"""Of a prompt: the first, the last, and others between them at even distances."""
SHARES = ("/acc", "/acc_norm", "/exact_match")


def training_section(data: ReportData) -> Section | None:
    """Curves of every training stage, with the phases and the mixture that they came from."""
    levels = [(figure.bits_per_byte, figure.name) for figure in data.compressors]
    content: list[str] = []
    for history in data.training:
        content += [element("h3", history.name)] if len(data.training) > 1 else []
        content += _curves(history, levels)
        content += _phases(history)
        content += _mixture(history)
    return page.section("How it learned", *explanations.TRAINING, *content) if content else None


def measured_section(data: ReportData) -> Section | None:
    """The benchmarks that were asked while it learned, each with its interval and what guessing would reach."""
    charts = [chart for history in data.training for chart in _benchmarks(history)]
    return page.section("Evaluation over time", *explanations.MEASURED, page.grid(*charts)) if charts else None


def written_section(data: ReportData) -> Section | None:
    """What each stage wrote while it was trained, prompt by prompt."""
    content = [table for history in data.training for table in _samples(history)]
    return page.section("What it wrote while it learned", *explanations.WRITTEN, *content) if content else None


def others_section(data: ReportData) -> Section | None:
    """This run beside others: figures, scores, curves and what was asked for differently."""
    if len(data.others) < 2:
        return None
    names = [one.name for one in data.others]
    content: list[str] = [page.table(["", *names], list(_fact_rows(data.others)), frozenset(range(1, len(names) + 1)))]
    content += [chart for stage in _stages(data.others) for chart in _beside(stage, data.others)]
    different = list(_different_settings(data.others))
    if different:
        content.append(page.table(["asked for differently", *names], different))
    return page.section("Beside other runs", *explanations.OTHERS, *content)


def _curves(history: TrainingHistory, levels: Sequence[tuple[float, str]]) -> list[str]:
    large: list[str] = []
    small: list[Markup] = []
    if text := explanations.METRICS_EXPLANATIONS.get(history.name):
        large.append(text)
    for chart in explanations.TRAINING_CHARTS:
        # of answers alone the bits per byte would say nothing that the loss does not, and invite a wrong comparison
        if chart is explanations.BITS_PER_BYTE and history.content != "documents":
            continue
        drawn = _metrics_chart(history, chart, levels if chart is explanations.BITS_PER_BYTE else [])
        if drawn is not None:
            (small if chart.small else large).append(drawn)
    return [*large, *([page.grid(*small)] if small else [])]


def _metrics_chart(history: TrainingHistory, chart: MetricsChart, levels: Sequence[tuple[float, str]]) -> Markup | None:
    lines = []
    for metric, label in chart.metrics:
        steps, values = history.series(metric)
        if steps:
            lines.append(page.Series(label, steps, [_in_unit(value, chart) for value in values]))
    if not lines:
        return None
    borders = [] if chart.small else _phase_borders(history)
    return page.line_chart(f"{history.name}: {chart.title}", lines, "optimizer step", chart.y_label, marks=levels, x_marks=borders)


def _benchmarks(history: TrainingHistory) -> Iterator[Markup]:
    """A chart per metric; records are named as `training.observers.BenchmarkFigure` names them."""
    recorded = dict.fromkeys(name for record in history.records for name in record)
    for name in recorded:
        if not name.startswith("benchmark/") or f"{name}/n" not in recorded:
            continue
        (steps, values), lows, highs = history.series(name), history.by_step(f"{name}/low"), history.by_step(f"{name}/high")
        guessing, title = history.last(f"{name}/guessing"), score_title(name.removeprefix("benchmark/"))
        line = page.Series("model", steps, values, [(lows.get(step), highs.get(step)) for step in steps])
        marks = [] if guessing is None else [(guessing, "guessing")]
        unit = "share of right answers" if name.endswith(SHARES) else title
        yield page.line_chart(f"{history.name}: {title}, n = {history.last(f'{name}/n')}", [line], "optimizer step", unit, marks=marks)


def _in_unit(value: float | int | None, chart: MetricsChart) -> float | None:
    return value if value is None or chart.divided_by == 1 else round(value / chart.divided_by, 3)


def _phase_borders(history: TrainingHistory) -> list[tuple[float, str]]:
    borders, done = [], 0
    for number, phase in enumerate(history.phases[:-1], start=2):
        done += phase.steps
        borders.append((float(done), f"phase {number}"))
    return borders


def _phases(history: TrainingHistory) -> list[str]:
    """The curriculum, if there is one."""
    if len(history.phases) < 2:
        return []
    names = list(history.phases[0].shares)
    mixed = len(names) > 1
    rows = [
        [
            str(number),
            f"{phase.steps:,}",
            format_count(phase.tokens),
            f"{phase.row_tokens:,}",
            format_count(phase.batch_rows * phase.row_tokens),
            *([", ".join(f"{name} {share:.0%}" for name, share in phase.shares.items())] if mixed else []),
        ]
        for number, phase in enumerate(history.phases, start=1)
    ]
    columns = ["phase", "steps", "tokens", "tokens in a row", "tokens in a batch", *(["mixture"] if mixed else [])]
    return [page.table(columns, rows, frozenset(range(5)), f"{history.name}: phases")]


def _mixture(history: TrainingHistory) -> list[str]:
    """Which sources were read how often, if there are several."""
    if len(history.sources) < 2:
        return []
    rows = [
        page.BarRow(one.name, 100 * one.share, f"{format_count(one.tokens)} tokens, read {one.epochs:.2f} times")
        for one in sorted(history.sources, key=lambda one: -one.share)
    ]
    return [page.bar_chart(f"{history.name}: share of the tokens by source", rows, "%", 1)]


def _samples(history: TrainingHistory) -> Iterator[Markup]:
    prompts = dict.fromkeys(sample.prompt for _, sample in history.samples)
    for prompt in prompts:
        written = [(step, sample.text) for step, sample in history.samples if sample.prompt == prompt]
        shown = written if len(written) <= SHOWN_SAMPLES else [written[place] for place in _spread(len(written))]
        rows = [[f"{step:,}", text or "(nothing)"] for step, text in shown]
        caption = f"{history.name}: after “{prompt}”" if prompt else history.name
        yield page.table(["step", "what it wrote"], rows, frozenset([0]), caption)


def _spread(count: int) -> list[int]:
    return [round(number * (count - 1) / (SHOWN_SAMPLES - 1)) for number in range(SHOWN_SAMPLES)]


def _fact_rows(others: Sequence[OtherRun]) -> Iterator[list[str]]:
    """What two of the runs or more have."""
    for name in dict.fromkeys(name for one in others for name in one.facts):
        known = [one.facts.get(name, "") for one in others]
        if sum(map(bool, known)) > 1:
            yield [name, *known]
    scores = dict.fromkeys((found.name, score.name) for one in others for found in one.evaluations for score in found.scores)
    for checkpoint, score in scores:
        found = [_score_of(one.evaluations, checkpoint, score) for one in others]
        if sum(map(bool, found)) > 1:
            yield [f"{score_title(score)}, after {checkpoint}", *found]


def _score_of(evaluations: Sequence[CheckpointEvaluation], checkpoint: str, score: str) -> str:
    found = next((one.score(score) for one in evaluations if one.name == checkpoint), None)
    return "" if found is None else format_score(found)


def _stages(others: Sequence[OtherRun]) -> list[str]:
    return list(dict.fromkeys(history.name for one in others for history in one.training))


def _beside(stage: str, others: Sequence[OtherRun]) -> Iterator[Markup]:
    """Of one stage the losses of all runs that have it: over tokens, because steps may be of different size."""
    for metric, title in (("train/loss", "training loss"), ("validation/loss", "validation loss")):
        lines = []
        for one in others:
            for history in one.training:
                steps, values = history.series(metric)
                if history.name == stage and steps:
                    lines.append(page.Series(one.name, [_tokens_at(history, step) for step in steps], values))
        if len(lines) > 1 and max(len(line.xs) for line in lines) > 1:
            yield page.line_chart(f"{stage}: {title}", lines, "tokens", "nats")


def _tokens_at(history: TrainingHistory, step: int) -> float:
    """Tokens trained on after a step: as recorded, or between two records in proportion."""
    before_step, before = 0, 0.0
    for found, tokens in zip(*history.series("train/tokens"), strict=True):
        if found >= step:
            return before + (float(tokens or 0) - before) * (step - before_step) / max(1, found - before_step)
        before_step, before = found, float(tokens or 0)
    return before


def _different_settings(others: Sequence[OtherRun]) -> Iterator[list[str]]:
    for name in dict.fromkeys(name for one in others for name in one.settings):
        values = [one.settings.get(name, "") for one in others]
        if len(set(values)) > 1:
            yield [name, *values]
