"""A good answer becomes a worse one: the rejected half of the embedded preference pairs.

The damage must be visible to a model of a few million parameters, which cannot tell a right fact from a wrong one: in a
prototype, pairs of the right answer against another name's answer stayed at 0.53 on held-out pairs, these reach 0.8.
"""

from __future__ import annotations

from random import Random
from typing import Literal, get_args

Damage = Literal["cut", "repeat", "run_on"]

DAMAGES: tuple[Damage, ...] = get_args(Damage)

_OPEN_ENDED = frozenset([
    "a", "an", "and", "as", "at", "be", "by", "for", "from", "if", "in", "into", "is",
    "its", "not", "of", "on", "or", "that", "the", "this", "to", "when", "which", "with",
])  # fmt: skip
"""Words no sentence ends with: "Return the name" might be a whole answer, "Return the name of the" cannot."""
_REPEATED_WORDS = 2
_REPETITIONS = 3


def damaged(answer: str, damage: Damage, following: str, random: Random) -> str:
    """The answer cut off in mid-sentence, with two of its words repeated, or running on into `following`; never equal to it."""
    match damage:
        case "cut":
            return _cut_off(answer, random)
        case "repeat":
            return _with_repetition(answer, random)
        case "run_on":
            return f"{answer} {following}"


def _cut_off(answer: str, random: Random) -> str:
    words = answer.split(" ")
    if len(words) == 1:
        return answer[: len(answer) // 2]
    lengths = range(max(1, len(words) * 3 // 10), max(1, len(words) * 7 // 10) + 1)
    open_ended = [length for length in lengths if words[length - 1].lower() in _OPEN_ENDED]
    return " ".join(words[: random.choice(open_ended or lengths)]).rstrip(".!?")


def _with_repetition(answer: str, random: Random) -> str:
    words = answer.split(" ")
    start = random.randint(0, max(0, len(words) - _REPEATED_WORDS))
    end = start + _REPEATED_WORDS
    return " ".join(words[:start] + words[start:end] * (1 + _REPETITIONS) + words[end:])
