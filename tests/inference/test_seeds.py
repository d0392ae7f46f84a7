"""One seed for several texts: none of them is drawn by another seed too."""

from __future__ import annotations

from fledge.inference.seeds import of_sample
from fledge.inference.settings import GenerationSettings


def test_no_two_texts_of_any_seeds_share_a_stream() -> None:
    seeds = [*range(50), (1 << 63) - 1]
    derived = [of_sample(GenerationSettings(seed=seed), number).seed for seed in seeds for number in range(50)]
    assert len(set(derived)) == len(derived)
    assert derived[::50] == seeds, "a single text has the seed that was given"
    assert all(seed is not None and 0 <= seed < 1 << 63 for seed in derived)


def test_without_a_seed_there_is_none() -> None:
    assert of_sample(GenerationSettings(), 3) == GenerationSettings()
