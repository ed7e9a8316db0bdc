"""Every layer class of Keras 3 is carried over and back, or refused by its name."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.models import load_model, to_keras3, to_tf_keras
from ehap_tf.models.cloning import copy_model
from tests.models.keras3_layers import inputs_of, is_known_to_tf_keras, kinds, model_of
from tests.models.keras3_nets import distance, outputs, with_random_weights

layers = keras.layers

REFUSED = {
    "RandomCrop": "computes something else at inference in Keras 3",
}
"""Classes that both have and that are not carried over, each with the reason."""

WORK_ON_MODELS = (
    ehap.compensate, ehap.compress, ehap.finetune, ehap.mask, ehap.oracle_importance,
    ehap.plan_pruning, ehap.prune, ehap.rank_blocks, ehap.rank_filters, ehap.recalibrate,
    ehap.remove_blocks, ehap.repair, ehap.residual_blocks,
)  # fmt: skip
"""What gives a model of the caller's Keras back, or is a step before that."""


@pytest.fixture(scope="module")
def models() -> dict[type, Any]:
    return {kind: _finished(with_random_weights(model_of(kind))) for kind in kinds()}


def test_every_layer_there_and_back(models: dict[type, Any]):
    wrong = {}
    for kind, model in models.items():
        if not is_known_to_tf_keras(kind) or kind.__name__ in REFUSED:
            continue
        x = inputs_of(model)
        expected = outputs(model, x)
        try:
            copy = to_tf_keras(model)
            back = to_keras3(copy)
            distances = [distance(expected, outputs(other, x)) for other in (copy, back)]
        except Exception as error:
            wrong[kind.__name__] = repr(error)
            continue
        if not max(distances) < 1e-5 or list(_call_arguments(copy)):
            wrong[kind.__name__] = f"{distances}, {list(_call_arguments(copy))}"
    assert wrong == {}


def test_layers_that_cannot_be_carried_over_are_named(models: dict[type, Any]):
    refused = [k for k in models if not is_known_to_tf_keras(k) or k.__name__ in REFUSED]
    assert {"RMSNormalization", *REFUSED} <= {kind.__name__ for kind in refused}
    for kind in refused:
        with pytest.raises(ValueError, match=rf"\({kind.__name__}\)"):
            to_tf_keras(models[kind])


def test_arguments_that_were_given_to_a_call_are_kept():
    kept = {}
    for kind in kinds():
        default = inspect.signature(kind.call).parameters.get("training", None)
        if default is None or default.default is True:
            continue  # what was given is what Keras 3 writes down by itself
        theirs = getattr(tf_keras.layers, kind.__name__, None)
        takes_it = theirs and "training" in inspect.signature(theirs.call).parameters
        if takes_it and kind.__name__ not in REFUSED:
            model = model_of(kind, training=True)
            copy = to_tf_keras(model)
            kept[kind.__name__] = [
                "training" in kwargs and kwargs["training"] is True
                for twin in (copy, to_tf_keras(to_keras3(copy)))
                for kwargs in _call_arguments(twin)
            ]
    assert {"Dropout", "BatchNormalization", "LSTM"} <= set(kept)
    assert {name: given for name, given in kept.items() if given != [True, True]} == {}


def test_states_and_settings_of_attention_and_recurrent_layers_are_kept():
    x, state = keras.Input((5, 4)), keras.Input((4,))
    attention = layers.MultiHeadAttention(2, 2, name="attention")
    y, scores = attention(x, x, use_causal_mask=True, return_attention_scores=True)
    z = layers.GRU(4, name="gru")(y, initial_state=state)
    z = layers.Bidirectional(layers.LSTM(4, name="lstm"), name="both")(
        layers.RepeatVector(3)(z), initial_state=[z, z, z, z]
    )
    model = with_random_weights(keras.Model([x, state], [z, scores]))
    x = inputs_of(model)
    copy = to_tf_keras(model)
    back = to_keras3(copy)
    for other in (copy, back):
        assert distance(outputs(model, x), outputs(other, x)) < 1e-5
    names = [weight.path for weight in model.weights]
    assert [weight.path for weight in back.weights] == names


def test_a_backward_layer_of_the_users_own_goes_in_and_comes_back():
    x = keras.Input((5, 4))
    own = layers.GRU(3, go_backwards=True, activation="relu", name="own")
    both = layers.Bidirectional(layers.GRU(3, name="gru"), backward_layer=own)
    model = with_random_weights(keras.Model(x, both(x)))
    x = inputs_of(model)
    copy = to_tf_keras(model)
    for other in (copy, to_keras3(copy), to_keras3(copy_model(copy))):
        assert distance(outputs(model, x), outputs(other, x)) < 1e-5


@pytest.mark.parametrize("is_from_file", [False, True])
def test_masks_that_inputs_carry_are_not_given_to_the_calls(tmp_path, is_from_file: bool):
    words = keras.Input((5,), dtype="int32")
    x = layers.Dropout(0.2)(layers.Embedding(7, 4, mask_zero=True)(words))
    x = layers.LSTM(3, return_sequences=True)(x)
    x = layers.MultiHeadAttention(2, 2)(x, x)
    model = with_random_weights(keras.Model(words, layers.Bidirectional(layers.GRU(2))(x)))
    numbers = np.array([[1, 2, 0, 3, 0], [4, 0, 0, 0, 0]])
    expected = outputs(model, numbers)
    if is_from_file:
        model.save(tmp_path / "model.keras")
        model = keras.saving.load_model(tmp_path / "model.keras")
    copy = to_tf_keras(model)
    assert distance(expected, outputs(copy, numbers)) < 1e-5
    assert list(_call_arguments(copy)) == []
    assert not any("not_equal" in layer.name for layer in copy.layers)
    back = to_keras3(copy)
    assert distance(expected, outputs(back, numbers)) < 1e-5


def test_a_mask_that_only_one_keras_hands_on_is_refused():
    words, inner = keras.Input((5,), dtype="int32"), keras.Input((5, 4))
    nested = keras.Model(inner, layers.GRU(4, return_sequences=True)(inner), name="nested")
    x = nested(layers.Embedding(7, 4, mask_zero=True)(words))
    model = keras.Model(words, layers.LSTM(2, name="lstm")(x))
    with pytest.raises(
        ValueError, match=r"'lstm' \(LSTM\): .* mask in tf_keras and none in Keras 3"
    ):
        to_tf_keras(model)


def test_a_mask_that_was_given_is_kept():
    x, mask = keras.Input((5, 4)), keras.Input((5,), dtype="bool")
    model = with_random_weights(keras.Model([x, mask], layers.LSTM(3)(x, mask=mask)))
    data = [inputs_of(model)[0], np.array([[True] * 5, [True, False, True, False, False]])]
    copy = to_tf_keras(model)
    assert distance(outputs(model, data), outputs(copy, data)) < 1e-5
    assert distance(outputs(model, data), outputs(to_keras3(copy), data)) < 1e-5


def test_a_network_with_augmentation_computes_the_same_at_each_call(tmp_path):
    inputs = keras.Input((8, 8, 1))
    x = layers.RandomRotation(0.5)(inputs)
    x = layers.Conv2D(4, 3, activation="relu")(x)
    model = with_random_weights(keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x))))
    x = inputs_of(model)
    expected = model.predict(x, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras")
    for _ in range(2):
        np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(loaded(x, training=False), expected, rtol=1e-5, atol=1e-6)


def _everything() -> Any:
    """Random layers, a recurrent branch and an attention branch, nested, around a convolution."""
    images = keras.Input((8, 8, 1))
    x = layers.RandomTranslation(0.1, 0.1)(layers.RandomRotation(0.1)(images))
    x = layers.Conv2D(6, 3, strides=3, activation="relu", name="conv")(x)
    x = layers.Reshape((4, 6))(x)
    inner = keras.Input((4, 6))
    y = layers.Bidirectional(layers.LSTM(3, return_sequences=True), name="both")(inner)
    y = layers.GRU(6, name="gru", return_sequences=True)(y)
    x = keras.Model(inner, y, name="recurrent")(x)
    x = layers.MultiHeadAttention(2, 3, name="attention")(x, x)
    x = layers.Dense(16, name="hidden", activation="relu")(layers.Flatten()(x))
    return with_random_weights(keras.Model(images, layers.Dense(3, name="logits")(x)))


@pytest.mark.usefixtures("eagerly")
def test_recurrent_and_attention_networks_are_pruned_trained_and_given_back():
    model = _everything()
    x = inputs_of(model)
    plan = ehap.plan_pruning(model, ehap.rank_filters(model, criterion="random"), 0.5)
    slim, masked = ehap.prune(model, plan), ehap.mask(model, plan)
    assert isinstance(slim, keras.Model)
    assert ehap.count_parameters(slim) == plan.params_after < ehap.count_parameters(model)
    assert distance(outputs(masked, x), outputs(slim, x)) < 1e-5
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    trained = ehap.finetune(slim, (x, np.array([0, 1])), epochs=1, loss=loss)
    assert isinstance(trained, keras.Model)
    # In training, the augmentation is on.
    twin = to_tf_keras(trained)
    flip = next(n for n in twin.layers if isinstance(n, tf_keras.layers.RandomRotation))
    image = np.random.default_rng(0).normal(size=(1, 8, 8, 1)).astype(np.float32)
    assert np.abs(flip(image, training=True) - image).max() > 0.1


def test_a_model_that_could_not_come_back_is_refused_before_the_work():
    @keras.saving.register_keras_serializable(package="test_one_way")
    class OneWay(keras.layers.Layer):
        def call(self, inputs):
            return inputs

    class Other(tf_keras.layers.Layer):
        def __init__(self, extra: int = 3, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.extra = extra

        def call(self, inputs):
            return inputs

        def get_config(self):
            return {**super().get_config(), "extra": self.extra}

    tf_keras.utils.register_keras_serializable(package="test_one_way", name="OneWay")(Other)
    inputs = keras.Input((8,))
    model = keras.Model(inputs, layers.Dense(3)(OneWay(name="odd")(inputs)))
    for work in WORK_ON_MODELS:
        needed = [p for p in inspect.signature(work).parameters.values() if p.default is p.empty]
        others = "not even looked at"
        with pytest.raises(
            ValueError, match=r"(?s)not be given back.*'odd'.*'extra'.*to_tf_keras\(m"
        ):
            work(*[model if p.annotation == "tf_keras.Model" else others for p in needed])
    assert ehap.count_parameters(model) == 27  # nothing comes back of a count
    growing = keras.Sequential([keras.Input((8,)), layers.Dense(3)])
    ehap.rank_filters(growing, criterion="random")
    growing.add(OneWay(name="odd"))
    with pytest.raises(ValueError, match="not be given back"):
        ehap.rank_filters(growing, criterion="random")


def _finished(model: Any) -> Any:
    for layer in model.layers:
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()  # Normalization computes with what it derives from its weights
    return model


def _call_arguments(model: tf_keras.Model) -> Iterator[dict[str, Any]]:
    """What the calls in a graph were given besides tensors at the first places."""
    for layer in model.layers:
        for node in layer._inbound_nodes[:1]:
            kwargs = {k: v for k, v in node.call_kwargs.items() if k not in ("value", "key")}
            if kwargs and not tf.is_tensor(kwargs):
                yield kwargs
