"""Batches from a Keras loader are taken wherever data is."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap

RNG = np.random.default_rng(0)
X = RNG.normal(size=(10, 4)).astype(np.float32)
Y = RNG.integers(0, 3, 10)


def _loader(base: type, length: int = 3, weighted: bool = False) -> Any:
    class Batches(base):
        epochs = 0

        def __len__(self):
            return length

        def __getitem__(self, number):
            part = slice(4 * number, 4 * number + 4)
            return (X[part], Y[part], None) if weighted else (X[part], Y[part])

        def on_epoch_end(self):
            Batches.epochs += 1

    return Batches()


@pytest.fixture(scope="module")
def model() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    inputs = tf_keras.Input((4,))
    x = tf_keras.layers.Dense(6, name="hidden")(inputs)
    x = tf_keras.layers.ReLU()(tf_keras.layers.BatchNormalization(name="norm")(x))
    return tf_keras.Model(inputs, tf_keras.layers.Dense(3, name="logits")(x))


LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize("base", [tf_keras.utils.Sequence, keras.utils.PyDataset])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_batches_of_a_loader_are_those_of_the_arrays(model, base: type, weighted: bool):
    loader = _loader(base, weighted=weighted)
    scores = ehap.rank_filters(model, loader, LOSS, criterion="taylor_fo")
    expected = ehap.rank_filters(model, (X, Y), LOSS, criterion="taylor_fo")
    np.testing.assert_allclose(scores["hidden"], expected["hidden"], rtol=1e-5)
    assert type(loader).epochs == 0  # nothing is shuffled


def test_a_loader_settles_batch_norms_and_trains(model):
    loader = _loader(keras.utils.PyDataset)
    settled = ehap.recalibrate(model, loader)
    assert np.abs(settled.get_layer("norm").moving_mean).max() > 0
    trained = ehap.finetune(model, loader, loader, epochs=1, loss=LOSS)
    assert np.any(trained.get_layer("hidden").kernel != model.get_layer("hidden").kernel)


def test_a_loader_of_no_batches_is_refused(model):
    with pytest.raises(ValueError, match=r"at least 1\. Received: Batches of 0"):
        ehap.recalibrate(model, _loader(keras.utils.PyDataset, length=0))
