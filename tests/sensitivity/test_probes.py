from __future__ import annotations

import numpy as np
import tensorflow as tf

from ehap_tf.sensitivity.estimators.probes import example_signs, kernel_signs


def signs(seed: int, probe: int, first: int, examples: int) -> np.ndarray:
    shape = tf.constant([examples, 3, 10])
    found = example_signs(seed, tf.constant(probe), tf.constant(first), shape, tf.float64)
    return found.numpy()


def test_an_examples_signs_depend_on_its_number_alone() -> None:
    whole = signs(5, 7, 0, 50)
    np.testing.assert_array_equal(signs(5, 7, 20, 10), whole[20:30])
    assert set(np.unique(whole)) == {-1, 1}


def test_signs_look_independent() -> None:
    # 30 outputs of 200 examples in 4 probes of 2 seeds: rows of +-1 with small correlations.
    rows = np.stack([signs(s, p, 0, 200).reshape(-1) for s in (0, 1) for p in range(4)])
    correlation = rows @ rows.T / rows.shape[1]
    np.testing.assert_allclose(correlation, np.eye(8), atol=4 / np.sqrt(6000))
    columns = rows.reshape(8 * 200, 30)
    np.testing.assert_allclose(columns.T @ columns / 1600, np.eye(30), atol=5 / np.sqrt(1600))
    np.testing.assert_allclose(columns.mean(axis=0), 0, atol=4 / np.sqrt(1600))


def test_kernel_signs_repeat_and_differ() -> None:
    shapes = [tf.TensorShape([3, 3, 4, 50]), tf.TensorShape([3, 3, 4, 50])]

    def draw(seed: int, probe: int) -> np.ndarray:
        found = kernel_signs(seed, tf.constant(probe), shapes, tf.float32)
        return np.stack([np.reshape(s, -1) for s in found])

    rows = np.concatenate([draw(0, 0), draw(0, 1), draw(1, 0)])
    np.testing.assert_array_equal(draw(0, 1), rows[2:4])
    np.testing.assert_allclose(rows @ rows.T / 1800, np.eye(6), atol=4 / np.sqrt(1800))


def test_the_global_seed_is_not_touched() -> None:
    tf.random.set_seed(1)
    expected = tf.random.uniform([3]).numpy()
    tf.random.set_seed(1)
    signs(0, 0, 0, 4)
    np.testing.assert_array_equal(tf.random.uniform([3]).numpy(), expected)
