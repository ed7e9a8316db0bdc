from __future__ import annotations

import numpy as np
import pytest

from ehap_tf.sensitivity.estimators.scaling import Scales

GOOD, OVERFLOW, ZERO = np.ones((1, 3)), np.array([[1.0, np.inf, 1.0]]), np.zeros((1, 3))


def test_an_overflow_halves_the_scale_and_asks_for_the_probe_again() -> None:
    scales = Scales(adaptive=True)
    before = scales.values()
    usable = scales.update(True, np.concatenate([GOOD, OVERFLOW, GOOD]))
    np.testing.assert_array_equal(usable, [True, False, True])
    np.testing.assert_array_equal(scales.values(), before * [1, 0.5])
    assert not scales.update(False, GOOD).any()
    np.testing.assert_array_equal(scales.values(), before * [0.5, 0.5])
    assert scales.repeated == 2


def test_a_product_that_is_all_zero_raises_the_scale() -> None:
    scales = Scales(adaptive=True)
    before = scales.values()
    assert not scales.update(True, ZERO).any()
    np.testing.assert_array_equal(scales.values(), before * [1, 2])


def test_zeros_of_examples_without_weight_are_right() -> None:
    scales = Scales(adaptive=True)
    before = scales.values()
    assert scales.update(True, ZERO, weightless=True).all()
    assert not scales.update(True, OVERFLOW, weightless=True).any()
    np.testing.assert_array_equal(scales.values(), before * [1, 0.5])


def test_good_calls_let_the_scales_grow() -> None:
    scales = Scales(adaptive=True, patience=4)
    before = scales.values()
    for _ in range(4):
        assert scales.update(True, GOOD).all()
    np.testing.assert_array_equal(scales.values(), before * 2)


@pytest.mark.parametrize(
    ("finite", "products"), [(True, OVERFLOW), (False, GOOD), (True, ZERO), (True, GOOD * np.nan)]
)
def test_a_probe_that_cannot_be_saved_is_an_error(finite: bool, products: np.ndarray) -> None:
    scales = Scales(adaptive=True)
    with pytest.raises(FloatingPointError, match="float16"):
        for _ in range(100):
            scales.update(finite, products)


def test_no_factor_goes_back_to_where_it_overflowed() -> None:
    """A product that is zero below an overflow: factors that only follow the last call swing."""
    scales = Scales(adaptive=True)
    with pytest.raises(FloatingPointError, match="gives zero"):
        for _ in range(1000):
            loss_scale, probe_scale = scales.values()
            overflows = loss_scale * probe_scale > 2.0**20
            scales.update(True, OVERFLOW if overflows else ZERO)


def test_the_limits_of_one_probe_do_not_bind_the_next() -> None:
    scales = Scales(adaptive=True)
    before = scales.values()
    scales.update(True, OVERFLOW)
    scales.update(True, GOOD)
    for _ in range(3):
        assert not scales.update(True, ZERO).any()
    np.testing.assert_array_equal(scales.values(), before * [1, 4])


def test_other_precisions_take_zeros_and_refuse_infinity() -> None:
    scales = Scales(adaptive=False)
    assert scales.update(True, ZERO).all()
    with pytest.raises(FloatingPointError, match="NaN or infinite"):
        scales.update(True, OVERFLOW)
