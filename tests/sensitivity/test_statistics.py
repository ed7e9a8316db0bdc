from __future__ import annotations

import numpy as np
import pytest

from ehap_tf.sensitivity.statistics import RunningMoments, misranked_share


@pytest.mark.parametrize("cuts", [[], [1], [3, 3, 10], [1, 2, 3, 19]])
def test_blocks_give_the_moments_of_the_whole(cuts: list[int]) -> None:
    # A large mean makes a naive sum of squares lose every digit.
    values = np.random.default_rng(0).normal(1e8, 1.0, (20, 5))
    moments = RunningMoments(5)
    for block in np.split(values, cuts):
        moments.add(block)
    assert moments.count == 20
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-14)
    expected = values.std(axis=0, ddof=1) / np.sqrt(20)
    np.testing.assert_allclose(moments.standard_error, expected, rtol=1e-6)


def test_one_observation_has_no_error() -> None:
    moments = RunningMoments(2)
    moments.add([[1.0, 2.0]])
    assert np.isnan(moments.standard_error).all()


def test_misranked_share_is_what_happens() -> None:
    rng = np.random.default_rng(0)
    truth, error = rng.normal(size=400), np.full(400, 0.3)
    expected = misranked_share(truth, error)
    shares = []
    for _ in range(200):
        seen = truth + rng.normal(size=400) * error
        shares.append(
            [np.mean((seen > t) != (truth > t)) for t in np.quantile(truth, 0.1 * np.arange(1, 10))]
        )
    assert expected == pytest.approx(np.mean(shares, axis=0).max(), rel=0.02)


def test_misranked_share_without_error_is_zero() -> None:
    assert misranked_share(np.arange(10.0), np.zeros(10)) == 0
    assert misranked_share(np.ones(10), np.ones(10)) == pytest.approx(0.5)
