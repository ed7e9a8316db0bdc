from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.pruning.while_training.stable_text import stable_text


def own_loss(labels: Any, outputs: Any, power: float = 2.0) -> tf.Tensor:
    return tf.reduce_mean(tf.abs(labels - outputs) ** power, axis=-1)


class OwnLoss(tf_keras.losses.Loss):
    def call(self, labels: Any, outputs: Any) -> tf.Tensor:
        return own_loss(labels, outputs)


def make_keras3_loss() -> Any:
    import keras

    class Squared(keras.losses.Loss):  # Keras counts its names on
        def call(self, labels: Any, outputs: Any) -> Any:
            return own_loss(labels, outputs)

    return Squared()


@pytest.mark.parametrize(
    "make",
    [
        lambda: None,
        lambda: "mse",
        lambda: own_loss,
        lambda: functools.partial(own_loss, power=3.0),
        lambda: lambda labels, outputs: own_loss(labels, outputs),
        OwnLoss,
        object,
        make_keras3_loss,
        lambda: tf_keras.losses.Huber(tf.constant(0.5)),
        lambda: [OwnLoss(), own_loss],
        lambda: {"digit": OwnLoss(), "ink": "mse"},
    ],
)
def test_what_is_made_again_has_the_same_text(make: Any) -> None:
    first = make()  # kept, so that the next one has another address
    text = stable_text(first)
    assert text == stable_text(make())
    assert " at 0x" not in text


def test_other_settings_have_other_texts() -> None:
    settings = [
        None, "mse", "mae", 1, 1.5, True, own_loss, OwnLoss(), [OwnLoss()], {"a": "mse"},
        functools.partial(own_loss, power=3.0), functools.partial(own_loss, power=4.0),
        tf_keras.losses.Huber(0.5), tf_keras.losses.Huber(0.6), np.arange(3), np.arange(4),
    ]  # fmt: skip
    assert len(set(map(stable_text, settings))) == len(settings)


def test_order_and_numpys_numbers_do_not_matter() -> None:
    assert stable_text({"b": np.int64(1), "a": 2}) == stable_text({"a": 2, "b": 1})
