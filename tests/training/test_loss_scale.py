from __future__ import annotations

from fledge.training.loss_scale import GROWTH_STEPS, INITIAL_SCALE, SMALLEST_SCALE, LossScale


def test_it_halves_at_an_overflow_and_doubles_after_many_good_steps() -> None:
    scale = LossScale()
    assert scale.scale == INITIAL_SCALE
    scale = scale.after(was_finite=False)
    assert scale == LossScale(INITIAL_SCALE / 2, 0)
    for step in range(GROWTH_STEPS - 1):
        scale = scale.after(was_finite=True)
        assert scale == LossScale(INITIAL_SCALE / 2, step + 1)
    assert scale.after(was_finite=True) == LossScale(INITIAL_SCALE, 0)
    assert scale.after(was_finite=False) == LossScale(INITIAL_SCALE / 4, 0)


def test_it_ends_at_one() -> None:
    scale = LossScale(2 * SMALLEST_SCALE)
    assert not scale.is_exhausted
    scale = scale.after(was_finite=False)
    assert scale.is_exhausted
    assert scale.after(was_finite=False).scale == SMALLEST_SCALE
