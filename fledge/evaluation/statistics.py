"""Every figure carries its sample size, an interval and what guessing would reach, so that nobody reads more into it than is there.

Shares get Wilson's 95 % interval (E. B. Wilson, 1927; unlike the normal approximation it stays inside 0 to 1 and holds for 50
samples). Ratios of sums, such as bits per byte, get the interval of the ratio estimator (Cochran, "Sampling Techniques", ch. 6),
with documents as the sampling unit, because tokens of one document are not independent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Z_95_PERCENT = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""

BOOTSTRAP_DRAWS = 1_000
MAXIMUM_EXPONENT = 700.0
"""exp of more is no number: the perplexity of a word that is many tokens long."""

Unit = Literal["share", "bits_per_byte", "count", "nats", "perplexity", "words", "number"]


@dataclass(frozen=True)
class Score:
    """One measured figure, plain enough for JSON."""

    name: str
    value: float
    n: int
    """Samples: passages, questions, pairs or documents."""
    low: float | None
    """Lower end of the 95 % interval; None where an interval makes no sense (a count)."""
    high: float | None
    chance: float | None = None
    """What guessing reaches; None where guessing has no meaning."""
    majority: float | None = None
    """What always giving the most frequent answer reaches."""
    distinguishable: bool | None = None
    """Whether the better of the two baselines lies outside the interval; None without a baseline."""
    unit: Unit = "share"
    note: str = ""
    """What a reader must know to judge the figure, in plain words."""

    @property
    def baseline(self) -> float | None:
        """The better of guessing and always giving the most frequent answer."""
        known = [value for value in (self.chance, self.majority) if value is not None]
        return max(known) if known else None

    @property
    def verdict(self) -> str:
        """One plain sentence on what the interval allows one to say against the baseline; empty without a baseline."""
        baseline = self.baseline
        if baseline is None or self.distinguishable is None:
            return ""
        if not self.distinguishable:
            return f"not distinguishable from guessing ({percent(baseline)}) at n = {self.n}"
        return f"{'better' if self.value > baseline else 'worse'} than guessing ({percent(baseline)})"


def percent(share: float, decimals: int = 0) -> str:
    """A share as people read it: 0.5 is "50 %"."""
    return f"{100 * share:.{decimals}f} %"


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """95 % interval of a share; `successes` may be fractional, because ties count half."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} samples is no share")
    z2 = Z_95_PERCENT**2
    share = successes / n
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half_width = Z_95_PERCENT * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, centre - half_width), min(1.0, centre + half_width)


def share_score(
    name: str, successes: float, n: int, *, chance: float | None = None, majority: float | None = None, note: str = ""
) -> Score:
    """A share of successes with Wilson's interval, compared with its baselines."""
    low, high = wilson_interval(successes, n)
    baseline = max((value for value in (chance, majority) if value is not None), default=None)
    distinguishable = None if baseline is None else not low <= baseline <= high
    return Score(name, successes / n, n, low, high, chance, majority, distinguishable, note=note)


def mean_score(name: str, values: Sequence[float], unit: Unit, note: str = "") -> Score:
    """A mean with its normal 95 % interval."""
    return ratio_score(name, values, [1.0] * len(values), unit, note)


def ratio_score(name: str, numerators: Sequence[float], denominators: Sequence[float], unit: Unit, note: str = "") -> Score:
    """Sum over sum, one pair per document; the interval is left out for fewer than two documents."""
    n, total = len(numerators), math.fsum(denominators)
    if n < 1 or total <= 0:
        raise ValueError(f"{name}: a ratio needs at least one sample and a positive denominator")
    ratio = math.fsum(numerators) / total
    if n < 2:
        return Score(name, ratio, n, None, None, unit=unit, note=note)
    squares = math.fsum((top - ratio * bottom) ** 2 for top, bottom in zip(numerators, denominators, strict=True))
    half_width = Z_95_PERCENT * math.sqrt(squares * n / (n - 1)) / total
    return Score(name, ratio, n, ratio - half_width, ratio + half_width, unit=unit, note=note)


def perplexity_score(name: str, nats: Sequence[float], tokens: Sequence[float], note: str = "") -> Score:
    """exp(nats per token) over all samples; the interval is that of the ratio, exponentiated."""
    ratio = ratio_score(name, nats, tokens, "perplexity", note)
    low, high = (None if end is None else math.exp(end) for end in (ratio.low, ratio.high))
    return replace(ratio, value=math.exp(ratio.value), low=low, high=high)


def bootstrap_score(
    name: str, nats: Sequence[float], weights: Sequence[float], unit: Literal["perplexity", "bits_per_byte"], note: str = ""
) -> Score:
    """exp(sum of nats over sum of weights), or that in bits, with the 95 % interval of the percentile bootstrap over samples.

    Samples are drawn 1,000 times with a fixed seed (Efron, Tibshirani, "An Introduction to the Bootstrap", ch. 13). No interval for fewer
    than two samples.
    """
    import numpy as np

    def figure(nats_per_weight: float) -> float:
        return nats_per_weight / math.log(2) if unit == "bits_per_byte" else math.exp(min(nats_per_weight, MAXIMUM_EXPONENT))

    n = len(nats)
    ratio = math.fsum(nats) / math.fsum(weights)
    if n < 2:
        return Score(name, figure(ratio), n, None, None, unit=unit, note=note)
    generator, tops, bottoms = np.random.default_rng(0), np.asarray(nats), np.asarray(weights)
    ratios = []
    for _ in range(BOOTSTRAP_DRAWS):
        drawn = generator.integers(n, size=n)
        ratios.append(tops[drawn].sum() / bottoms[drawn].sum())
    low, high = (figure(float(end)) for end in np.percentile(ratios, [2.5, 97.5]))
    return Score(name, figure(ratio), n, low, high, unit=unit, note=note)


def score_from_plain(plain: Mapping[str, Any]) -> Score:
    """A Score from what `dataclasses.asdict` and JSON made of it."""
    return Score(**plain)
