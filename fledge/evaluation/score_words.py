"""Scores in words: what each is called and how its figure is written; for the terminal, the report, the card and the pages alike."""

from __future__ import annotations

from fledge.evaluation.benchmarks.definitions import BENCHMARKS
from fledge.evaluation.statistics import Score, percent

TITLES = {
    "bits_per_byte": "Bits per byte",
    "token_perplexity": "Perplexity per token",
    "word_perplexity": "Perplexity per word",
    "last_word": "Last word (LAMBADA's form)",
    "yes_no": "Yes/no (BoolQ's form)",
    "stop_rate": "Stops by itself",
    "format_rate": "Answers in the right form",
    "distinct_answers": "Distinct answers",
    "answer_choice": "Right answer after its own question",
    "answer_perplexity": "Perplexity of the right answers",
    "distinct_1": "Different words (distinct-1)",
    "distinct_2": "Different pairs of words (distinct-2)",
    "repetition": "Repetition within an answer",
    "answer_words": "Words of an answer",
    "reward_accuracy": "Reward accuracy",
    "reward_margin": "Reward margin",
    "raw_accuracy": "Right answer more likely than damaged",
    "chosen_perplexity": "Perplexity of chosen answers",
    "rejected_perplexity": "Perplexity of rejected answers",
}


def score_title(name: str) -> str:
    """A score's name as people read it: "reward_accuracy/cut" becomes "Reward accuracy: cut"."""
    base, _, kind = name.partition("/")
    known = BENCHMARKS.get(base)
    title = known.title if known is not None else TITLES.get(base, base.replace("_", " "))
    return f"{title}: {kind.replace('_', ' ')}" if kind else title


def format_value(value: float, unit: str) -> str:
    """A figure in its unit: a share in percent, a count without decimals."""
    if unit == "share":
        return percent(value, decimals=1)
    decimals = 0 if abs(value) >= 10_000 else {"count": 0, "words": 1}.get(unit, 3)
    return f"{value:,.{decimals}f}"


def format_score(score: Score) -> str:
    """A score with its 95 % interval, "25.7 % (20.6 to 31.6)"; a "?" behind one that its interval cannot tell from guessing."""
    value, doubt = format_value(score.value, score.unit), " ?" if score.distinguishable is False else ""
    if score.low is None or score.high is None:
        return f"{value}{doubt}"
    low, high = (format_value(end, score.unit).removesuffix(" %") for end in (score.low, score.high))
    return f"{value} ({low} to {high}){doubt}"
