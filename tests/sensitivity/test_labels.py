from __future__ import annotations

import numpy as np
import pytest
import tf_keras

from ehap_tf.sensitivity.network.labels import require_labels

layers = tf_keras.layers
NUMBERS, ONE_HOT = np.arange(4), np.eye(4)
SPARSE = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def classifier() -> tf_keras.Model:
    return tf_keras.Sequential([layers.Input((3,)), layers.Dense(4)])


@pytest.mark.parametrize(
    ("labels", "loss"),
    [
        (NUMBERS, SPARSE),
        (NUMBERS[:, None], "sparse_categorical_crossentropy"),
        (ONE_HOT, "categorical_crossentropy"),
        (ONE_HOT, "binary_crossentropy"),
        (NUMBERS, lambda labels, outputs: outputs),
    ],
)
def test_labels_that_the_loss_takes(labels: np.ndarray, loss: object) -> None:
    require_labels(classifier(), labels, loss)


def test_a_mask_as_wide_as_there_are_classes_is_not_one_hot() -> None:
    inputs = layers.Input((4, 4, 3))
    model = tf_keras.Model(inputs, layers.Conv2D(4, 1)(inputs))
    require_labels(model, np.zeros((2, 4, 4), int), SPARSE)
    with pytest.raises(ValueError, match="one-hot labels of shape"):
        require_labels(model, np.zeros((2, 4, 4, 4)), SPARSE)


def test_one_hot_for_a_sparse_loss() -> None:
    with pytest.raises(ValueError, match=r"x must hold class numbers.*\(4, 4\).*argmax"):
        require_labels(classifier(), ONE_HOT, SPARSE, "x")


@pytest.mark.parametrize("labels", [NUMBERS, NUMBERS[:, None]])
def test_class_numbers_for_a_loss_that_is_not_sparse(labels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"one-hot labels of shape \(None, 4\).*to_categorical"):
        require_labels(classifier(), labels, tf_keras.losses.CategoricalCrossentropy())


@pytest.mark.parametrize("named", [False, True], ids=["in order", "by name"])
def test_several_outputs(named: bool) -> None:
    inputs = layers.Input((3,))
    outputs = [layers.Dense(4, name="kind")(inputs), layers.Dense(4, name="ink")(inputs)]
    model = tf_keras.Model(inputs, outputs)

    def arranged(*values: object) -> object:
        return dict(zip(model.output_names, values, strict=True)) if named else values

    require_labels(model, arranged(NUMBERS, ONE_HOT), arranged(SPARSE, "mse"))
    with pytest.raises(ValueError, match="one-hot"):
        require_labels(model, arranged(ONE_HOT, NUMBERS), arranged(SPARSE, "mse"))
    with pytest.raises(ValueError, match="one-hot"):
        require_labels(model, arranged(NUMBERS, ONE_HOT), SPARSE)
