"""How far a model prefers the chosen answer of a pair, by itself and compared with the model its preference training began from.

    perplexity        exp(-log p(answer) / tokens) over all chosen, and over all rejected answers
    raw accuracy      log p(chosen) > log p(rejected)                                  under the model alone
    reward            beta (log p_model(answer) - log p_reference(answer))             Rafailov et al., 2023
    reward margin     reward(chosen) - reward(rejected)
    reward accuracy   share of pairs with a positive margin; a tie counts half

Names and definitions are TRL's (rewards/accuracies, rewards/margins). Everything is given overall and for each kind of damage,
because an average hides a kind that was not learned.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fledge.corpus.document import Split
from fledge.evaluation.scoring import ScoredSequence, loglikelihoods
from fledge.evaluation.settings import EvaluateSettings
from fledge.evaluation.statistics import Score, mean_score, perplexity_score, share_score
from fledge.model.llama import Llama
from fledge.tokens.shards import TokenSet, TokenShard

TIE_NATS = 1e-6
"""Differences below this are rounding; equal answers must not look like a preference."""


@dataclass(frozen=True)
class PairLogProbabilities:
    """Log-probabilities in nats of both answers of each pair, under one model."""

    chosen: tuple[float, ...]
    rejected: tuple[float, ...]
    damages: tuple[str, ...]
    """How each rejected answer was made; "" if unknown."""
    chosen_tokens: tuple[int, ...] = ()
    rejected_tokens: tuple[int, ...] = ()
    """Of each answer; empty if they were not counted."""


def pair_log_probabilities(
    model: Llama, token_set: TokenSet, settings: EvaluateSettings, split: Split = "validation"
) -> PairLogProbabilities:
    """Scores the drawn pairs of a set of preferences: the same pairs for every model, by `settings.seed`."""
    sequences: list[ScoredSequence] = []
    damages: list[str] = []
    for shard, pair in _drawn_pairs(token_set, settings, split):
        assert shard.supervised is not None, "a set of preferences has a mask"
        damages.append(_damage(shard, pair))
        for segment in (2 * pair, 2 * pair + 1):
            begin = int(shard.starts[segment])
            end = begin + int(shard.lengths[segment])
            sequences.append(ScoredSequence(shard.tokens[begin:end].tolist(), shard.supervised[begin:end].astype(bool).tolist()))
    found = [likelihood.log_probability for likelihood in loglikelihoods(model, sequences, settings.batch_tokens, settings.precision)]
    counts = [sum(sequence.scored) for sequence in sequences]
    return PairLogProbabilities(tuple(found[0::2]), tuple(found[1::2]), tuple(damages), tuple(counts[0::2]), tuple(counts[1::2]))


def preference_scores(model: PairLogProbabilities, reference: PairLogProbabilities | None, beta: float = 0.1) -> list[Score]:
    """Raw accuracy, and with a reference reward accuracy and margin: overall, then for each kind of damage; and both perplexities.

    Empty without pairs.
    """
    if not model.chosen:
        return []
    if reference is not None and len(reference.chosen) != len(model.chosen):
        raise ValueError(f"{len(reference.chosen)} reference pairs for {len(model.chosen)} pairs")
    kinds = [None, *sorted({damage for damage in model.damages if damage})]
    scores = []
    for kind in kinds:
        places = [place for place, damage in enumerate(model.damages) if kind in (None, damage)]
        suffix = "" if kind is None else f"/{kind}"
        raw = [model.chosen[place] - model.rejected[place] for place in places]
        if reference is not None:
            margins = [beta * (raw[index] - reference.chosen[place] + reference.rejected[place]) for index, place in enumerate(places)]
            scores.append(
                _accuracy(f"reward_accuracy{suffix}", margins, "right answer gained more than the damaged one since the reference")
            )
            scores.append(mean_score(f"reward_margin{suffix}", margins, "nats", f"beta = {beta}"))
        scores.append(
            _accuracy(f"raw_accuracy{suffix}", raw, "right answer more likely than the damaged one; shorter answers have it easier")
        )
    return scores + list(_perplexities(model))


def _perplexities(pairs: PairLogProbabilities) -> Iterator[Score]:
    """Preference training may make both answers less likely, which margins hide."""
    sides = {"chosen": (pairs.chosen, pairs.chosen_tokens), "rejected": (pairs.rejected, pairs.rejected_tokens)}
    for side, (log_probabilities, tokens) in sides.items():
        if tokens:
            yield perplexity_score(f"{side}_perplexity", [-value for value in log_probabilities], tokens, f"of the {side} answers")


def _accuracy(name: str, differences: Sequence[float], note: str) -> Score:
    won = sum(0.5 if abs(difference) < TIE_NATS else float(difference > 0) for difference in differences)
    return share_score(name, won, len(differences), chance=0.5, note=note)


def _drawn_pairs(token_set: TokenSet, settings: EvaluateSettings, split: Split) -> list[tuple[TokenShard, int]]:
    pairs = [(shard, pair) for shard in token_set.shards(split) for pair in range(len(shard.starts) // 2)]
    return random.Random(settings.seed).sample(pairs, min(settings.preference_pairs, len(pairs)))


def _damage(shard: TokenShard, pair: int) -> str:
    return "" if shard.damages is None else shard.damages[2 * pair].as_py() or ""
