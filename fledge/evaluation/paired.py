"""Is the difference between two models more than chance? Both answered the same items, so items are compared one by one.

That what is hard for one is mostly hard for the other cancels in the differences: two accuracies whose own intervals overlap widely
may still differ beyond doubt, and only the pairs can tell. Of shares, the items on which the models disagree decide, by the exact sign
test, which for right and wrong is McNemar's exact test (McNemar, 1947; Dixon and Mood, 1946). Of ratios such as bits per byte, documents
are drawn again with replacement, the same ones for both models (paired bootstrap: Efron and Tibshirani, 1993, ch. 16; Koehn, 2004). Many
comparisons find something by chance, so all p-values of a table are adjusted together (Holm, 1979).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fledge.evaluation.statistics import Z_95_PERCENT

SIGNIFICANCE_LEVEL = 0.05
RESAMPLES = 10_000
"""Of the bootstrap: p-values down to 0.0002, and ends of the interval whose own error is about 2 % of its width."""
MINIMUM_RESAMPLED_ITEMS = 6
"""Fewer than so many can show no difference at 5 %, whatever they say, and drawn again they give an interval that is too narrow."""
_CHUNK_CELLS = 4_000_000
"""Draws held at one time: 32 MB of counts."""


@dataclass(frozen=True)
class PairedDifference:
    """How far a model is from the one it is compared with on the same items, plain enough for JSON."""

    difference: float
    """Its figure minus the other's, in the figure's own unit."""
    low: float | None
    """Lower end of the 95 % interval of the difference; None where the items are too few to tell."""
    high: float | None
    p_value: float
    """Probability of a difference at least as large if the two were equally good; 1 where nothing differs."""
    n: int
    """Items that both models have."""
    higher: int
    """Items on which its figure is above the other's."""
    lower: int
    method: str
    adjusted_p_value: float | None = None
    """By Holm, together with all others of a comparison; None where it stands alone."""

    @property
    def is_significant(self) -> bool:
        """At 5 %, adjusted where it is."""
        return (self.p_value if self.adjusted_p_value is None else self.adjusted_p_value) < SIGNIFICANCE_LEVEL


def sign_test(higher: int, lower: int) -> float:
    """Two-sided p-value of so many items for one and for the other, if each were equally likely; exact, ties left out before."""
    n, fewer = higher + lower, min(higher, lower)
    if n == 0 or higher == lower:
        return 1.0
    # In logarithms: from 1,030 items on 2**n is no float any more.
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(fewer + 1)]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def compare_shares(ours: Sequence[float], theirs: Sequence[float]) -> PairedDifference:
    """Outcomes per item in [0, 1] (0 wrong, 1 right, a tie 0.5), in the same order for both.

    The interval is Agresti and Min's (2005): Wald's after adding half an item to each cell of the two-by-two table.
    """
    differences = _differences(ours, theirs)
    n, mean = len(differences), math.fsum(differences) / len(differences)
    higher, lower = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    centre = math.fsum(differences) / (n + 2)
    variance = (math.fsum(one * one for one in differences) + 1) / (n + 2) - centre**2
    half_width = Z_95_PERCENT * math.sqrt(max(0.0, variance) / (n + 2))
    low, high = max(-1.0, centre - half_width), min(1.0, centre + half_width)
    return PairedDifference(mean, low, high, sign_test(higher, lower), n, higher, lower, "exact sign test")


def compare_ratios(
    ours: tuple[Sequence[float], Sequence[float]],
    theirs: tuple[Sequence[float], Sequence[float]],
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedDifference:
    """(numerators, denominators) per item of two ratios of sums; the same items, drawn alike for both.

    Interval by percentiles; p = 2 min(P(d <= 0), P(d >= 0)) over the draws and what was found (Davison and Hinkley, 1997, ch. 4), but at
    least that of n items which all point one way. Of fewer than `MINIMUM_RESAMPLED_ITEMS` items there is no interval.
    """
    tops, bottoms = _stacked(ours[0], theirs[0]), _stacked(ours[1], theirs[1])
    n = tops.shape[1]
    ratios = tops / bottoms
    found = float(tops[0].sum() / bottoms[0].sum() - tops[1].sum() / bottoms[1].sum())
    higher, lower = int((ratios[0] > ratios[1]).sum()), int((ratios[0] < ratios[1]).sum())
    if not higher and not lower:
        ends = 0.0 if n >= MINIMUM_RESAMPLED_ITEMS else None
        return PairedDifference(0.0, ends, ends, 1.0, n, 0, 0, "paired bootstrap")
    drawn = _resampled(tops, bottoms, np.random.default_rng(seed), resamples)
    low, high = (float(end) for end in np.quantile(drawn, (0.025, 0.975))) if n >= MINIMUM_RESAMPLED_ITEMS else (None, None)
    below, above = ((float(count) + 1) / (resamples + 1) for count in ((drawn <= 0).sum(), (drawn >= 0).sum()))
    # Of few items the bootstrap knows too little of the tails: no test that assumes nothing of them can go below this.
    p_value = min(1.0, max(2 * min(below, above), 2.0 ** (1 - n)))
    return PairedDifference(found, low, high, p_value, n, higher, lower, "paired bootstrap")


def holm(differences: Sequence[PairedDifference]) -> list[PairedDifference]:
    """The same, each with the p-value that holds beside all the others: the k-th smallest of m times m - k + 1, never falling."""
    order = sorted(range(len(differences)), key=lambda place: differences[place].p_value)
    adjusted, least = list(differences), 0.0
    for rank, place in enumerate(order):
        least = min(1.0, max(least, (len(order) - rank) * differences[place].p_value))
        adjusted[place] = replace(differences[place], adjusted_p_value=least)
    return adjusted


def _differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    if len(ours) != len(theirs) or len(ours) == 0:
        raise ValueError(f"paired outcomes are of the same items, at least one: {len(ours)} and {len(theirs)} were given")
    return [one - other for one, other in zip(ours, theirs, strict=True)]


def _stacked(ours: Sequence[float], theirs: Sequence[float]) -> NDArray[np.float64]:
    """(2, n), ours first."""
    _differences(ours, theirs)
    return np.array([ours, theirs], dtype=np.float64)


def _resampled(tops: NDArray[np.float64], bottoms: NDArray[np.float64], random: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """(resamples,) differences of the ratios over items drawn with replacement; how often each item was drawn is multinomial."""
    n = tops.shape[1]
    chunk = max(1, _CHUNK_CELLS // n)
    drawn = []
    for start in range(0, resamples, chunk):
        counts = random.multinomial(n, np.full(n, 1 / n), size=min(chunk, resamples - start))
        ratios = (counts @ tops.T) / (counts @ bottoms.T)
        drawn.append(ratios[:, 0] - ratios[:, 1])
    return np.concatenate(drawn)
