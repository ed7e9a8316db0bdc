"""Layers that this file alone knows: what a user writes, and all that follows from it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.channels import Effect
from ehap_tf.models import clone_with_policy

layers = tf_keras.layers
own = tf_keras.utils.register_keras_serializable("own")


@own
class Standardised(layers.Conv2D):
    """A convolution whose filters have mean 0 and variance 1 before they are applied."""

    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        mean, variance = tf.nn.moments(kernel, [0, 1, 2], keepdims=True)
        return super().convolution_op(inputs, (kernel - mean) * tf.math.rsqrt(variance + 1e-3))


@own
class Gained(layers.Layer):
    """A Dense layer with a learned gain for each unit."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units = units

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight("gain", (self.units,), initializer="ones")
        self.matrix = self.add_weight("matrix", (shape[-1], self.units))
        self.bias = self.add_weight("bias", (self.units,), initializer="zeros")

    def call(self, inputs: Any) -> Any:
        return tf.matmul(inputs, self.matrix) * self.gain + self.bias

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "units": self.units}


@own
class Norm(layers.Layer):
    """Divides each channel by a deviation that was measured once."""

    def build(self, shape: Any) -> None:
        self.deviation = self.add_weight("deviation", shape[-1:], trainable=False)
        self.offset = self.add_weight("offset", shape[-1:], initializer="zeros")

    def call(self, inputs: Any) -> Any:
        return inputs / self.deviation + self.offset


def standardised(call: Any) -> Effect:
    ids = call.ids.settle(call.inputs[0], "each filter looks at all of its weights")
    call.ids.freeze(ids, "each filter looks at all of its weights")
    out = call.ids.filters(call.path, call.layer.filters)
    weights = {"kernel": (None, None, ids, out), "bias": (out,)}
    return Effect([ids], [out], weights=weights, filters=("kernel", -1), config={"filters": out})


def gained(call: Any) -> Effect:
    (ids,) = call.inputs
    out = call.ids.filters(call.path, call.layer.units)
    weights = {"matrix": (ids, out), "gain": (out,), "bias": (out,)}
    return Effect([ids], [out], weights=weights, filters=("matrix", 1), config={"units": out})


def norm(call: Any) -> Effect:
    ids = call.ids.settle(call.inputs[0], "the offset shows where the channel is zero")
    return Effect([ids], [ids], weights={"deviation": (ids,), "offset": (ids,)})


RULES = {Standardised: standardised, Gained: gained, Norm: norm}


def standardised_in_integers(builder: Any, layer: Any, x: Any) -> Any:
    mean, variance = tf.nn.moments(layer.kernel, [0, 1, 2], keepdims=True)
    kernel = (layer.kernel - mean) * tf.math.rsqrt(variance + 1e-3)
    return builder.call(
        layers.Conv2D, layer.name, x, layer.filters, layer.kernel_size,
        weights=[kernel.numpy(), layer.bias.numpy()],
    )  # fmt: skip


def gained_in_integers(builder: Any, layer: Any, x: Any) -> Any:
    kernel = layer.matrix.numpy() * layer.gain.numpy()
    return builder.dense(x, kernel, layer.bias.numpy(), layer.name)


def norm_in_integers(builder: Any, layer: Any, x: Any) -> Any:
    return builder.affine(x, 1.0 / layer.deviation.numpy(), layer.offset, layer.name)


IN_INTEGERS = {
    Standardised: standardised_in_integers,
    Gained: gained_in_integers,
    Norm: norm_in_integers,
}


@pytest.fixture(autouse=True)
def rules(own_rules) -> None:
    """The rules, for as long as a test runs."""
    for layer_class, rule in RULES.items():
        ehap.register_channel_rule(layer_class, rule)
    for layer_class, rule in IN_INTEGERS.items():
        ehap.register_integer_rule(layer_class, rule)


def net(seed: int = 0) -> tf_keras.Model:
    inputs = layers.Input((6, 6, 2))
    x = Standardised(5, 3, name="convolution")(inputs)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(Norm(name="norm")(x)))
    x = layers.Activation("relu")(Gained(7, name="gained")(x))
    model = tf_keras.Model(inputs, layers.Dense(3, name="end")(x))
    rng = np.random.default_rng(seed)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    for name, weights in {"norm": ("deviation", "offset"), "gained": ("gain", "bias")}.items():
        for weight in weights:  # no ReLU behind them is dead
            weight = getattr(model.get_layer(name), weight)
            weight.assign(rng.uniform(0.5, 1.5, weight.shape))
    return model


@pytest.fixture(scope="module")
def data() -> Any:
    rng = np.random.default_rng(1)
    return rng.normal(size=(24, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 24)


LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WIDTHS = {"convolution": 5, "gained": 7, "end": 3}


def naive_traces(model: tf_keras.Model, weight: tf.Variable, data: Any) -> np.ndarray:
    """The diagonal of the Hessian by Keras' own call, added up over each filter."""
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = LOSS(data[1], model(data[0]))
        gradient = inner.gradient(loss, weight)
    hessian = outer.jacobian(gradient, weight)
    diagonal = tf.linalg.diag_part(tf.reshape(hessian, [tf.size(weight)] * 2))
    return np.reshape(diagonal, weight.shape).sum(axis=tuple(range(weight.shape.rank - 1)))


def test_their_filters_are_ranked(data):
    model = net()
    exact = ehap.rank_filters(model, data, LOSS, estimator="exact")
    hutchinson = ehap.rank_filters(model, data, LOSS, probes=200)
    magnitude = ehap.rank_filters(model, criterion="magnitude")
    obd = ehap.rank_filters(
        model, data, LOSS, criterion="obd", estimator="gauss_newton", probes=400
    )
    assert {name: len(values) for name, values in obd.items()} == WIDTHS
    for name, attribute in {"convolution": "kernel", "gained": "matrix"}.items():
        weight = getattr(model.get_layer(name), attribute)
        truth = naive_traces(model, weight, data)
        np.testing.assert_allclose(exact.trace[name], truth, rtol=1e-3, atol=1e-5)
        apart = np.abs(hutchinson.trace[name] - truth) / hutchinson.trace_standard_error[name]
        assert apart.max() < 4
        squares = np.square(weight.numpy()).reshape(-1, WIDTHS[name])
        np.testing.assert_allclose(magnitude[name], squares.mean(axis=0), rtol=1e-6)
    # On a gate behind the norm the deviation cancels, and what is left is the loss along y = a x.
    reference = ehap.rank_filters(model, data, LOSS, criterion="obd", estimator="exact")
    for name in WIDTHS:
        apart = np.abs(obd[name] - reference[name]) / np.maximum(obd.standard_error[name], 1e-9)
        assert apart.max() < 4


@pytest.fixture
def plan(data):
    scores = ehap.rank_filters(net(), data, LOSS, estimator="gauss_newton", probes=8)
    found = ehap.plan_pruning(net(), scores, target_params=0.6)
    assert len(found.kept["convolution"]) < 5 and len(found.kept["gained"]) < 7
    return found


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_they_are_pruned_as_masked(data, plan, residual):
    model = net()
    plan = dataclasses.replace(plan, residual=residual)
    slim, masked = ehap.prune(model, plan), ehap.mask(model, plan)
    np.testing.assert_allclose(slim(data[0]), masked(data[0]), rtol=1e-5, atol=1e-5)
    assert ehap.count_parameters(slim) == slim.count_params() == plan.params_after
    assert plan.params_after < plan.params_before


def test_their_multiply_accumulates_count(plan):
    assert not plan.uncounted
    assert plan.macs_before == 16 * 9 * 2 * 5 + 5 * 7 + 7 * 3
    convolution, gained = len(plan.kept["convolution"]), len(plan.kept["gained"])
    assert plan.macs_after == 16 * 9 * 2 * convolution + convolution * gained + gained * 3
    assert ehap.count_macs(ehap.prune(net(), plan)) == plan.macs_after


def test_what_reads_them_is_repaired(data, plan):
    model = net()
    slim = ehap.prune(model, plan)
    repaired = ehap.repair(slim, model, plan, data[0])
    before, after = (np.square(m(data[0]) - model(data[0])).mean() for m in (slim, repaired))
    assert after < 0.2 * before
    for name, attribute in {"convolution": "kernel", "gained": "matrix"}.items():
        old, new = (getattr(m.get_layer(name), attribute) for m in (slim, repaired))
        np.testing.assert_array_equal(old, new)  # what it computes is not known


def test_means_are_left_to_what_is_known(data, plan):
    """`compensate` knows what the kernel of Dense does, and not what those of this file do."""
    model = net()
    slim = ehap.prune(model, plan)
    mended = ehap.compensate(slim, model, plan, data)
    np.testing.assert_array_equal(mended.get_layer("gained").bias, slim.get_layer("gained").bias)
    changed = mended.get_layer("end").bias - slim.get_layer("end").bias
    assert np.abs(changed).max() > 1e-3


def test_they_are_cloned_to_bfloat16(data):
    model = net()
    clone = clone_with_policy(model, "mixed_bfloat16")
    assert clone.get_layer("gained").compute_dtype == "bfloat16"
    scale = np.abs(model(data[0])).max()
    np.testing.assert_allclose(clone(data[0]), model(data[0]), atol=0.03 * scale)
    scores = ehap.rank_filters(model, data, LOSS, precision="bf16", probes=4)
    assert all(np.isfinite(scores[name]).all() for name in WIDTHS)


@own
class Halved(layers.Layer):
    """Every second position: an operator of the converter's, which moves values."""

    def call(self, inputs: Any) -> Any:
        return inputs[:, ::2, ::2]


def snr(expected: Any, received: Any) -> float:
    expected, received = np.asarray(expected), np.asarray(received)
    noise = np.square(expected - received).mean()
    return float(10 * np.log10(np.square(expected).mean() / noise))


def test_they_become_integers(data, plan, tmp_path):
    slim = ehap.prune(net(), plan)
    decided = ehap.plan_quantization(slim)
    assert decided.bits == {"convolution": 8, "norm": 8, "gained": 8, "end": 8}
    qat = ehap.quantize(slim, "ptq", representative_data=data)
    file = ehap.export_tflite(qat, tmp_path / "net.tflite", data=data)
    assert not file.float_operators
    assert snr(slim(data[0]), ehap.TFLiteModel(file.path)(data[0])) > 30
    # And they train, as what they have become.
    qat.compile("sgd", LOSS)
    qat.fit(*data, verbose=0)
    ehap.save_qat(qat, tmp_path / "qat.h5")
    np.testing.assert_array_equal(ehap.load_qat(tmp_path / "qat.h5")(data[0]), qat(data[0]))


def test_one_that_the_converter_knows_is_declared(data, tmp_path):
    inputs = layers.Input((6, 6, 2))
    x = Halved(name="halved")(layers.Conv2D(4, 3, padding="same", activation="relu")(inputs))
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    with pytest.raises(ValueError, match=r"Halved\) is not supported .*register_integer_rule"):
        ehap.quantize(model)
    ehap.register_integer_rule(Halved, ehap.IntegerKernel("grid"))
    (layer,) = (x for x in ehap.plan_quantization(model).layers if x.name == "halved")
    assert layer.output == "input"
    qat = ehap.quantize(model, "ptq", representative_data=data)
    file = ehap.export_tflite(qat, tmp_path / "net.tflite", data=data)
    assert not file.float_operators
    assert snr(model(data[0]), ehap.TFLiteModel(file.path)(data[0])) > 30


def test_a_rule_that_builds_something_else_is_refused():
    ehap.register_integer_rule(Norm, lambda builder, layer, x: x)
    with pytest.raises(ValueError, match=r"Norm must build what layer 'norm' computes.*difference"):
        ehap.quantize(net())
    ehap.register_integer_rule(
        Gained, lambda builder, layer, x: builder.dense(x, layer.matrix[:, 1:], None, "g")
    )
    ehap.register_integer_rule(Norm, norm_in_integers)
    with pytest.raises(ValueError, match=r"of shape \[\(2, 7\)\]. Received: \[\(2, 6\)\]"):
        ehap.quantize(net())


def test_what_is_no_rule_is_refused():
    with pytest.raises(TypeError, match=r"a function or an IntegerKernel. Received: 'grid'"):
        ehap.register_integer_rule(Norm, "grid")
    with pytest.raises(TypeError, match="layer_class must be a layer class of tf_keras"):
        ehap.register_integer_rule("Norm", norm_in_integers)
    with pytest.raises(ValueError, match="output must be one of"):
        ehap.IntegerKernel("own")


_FRESH = """
import sys
import numpy as np, tf_keras
import tests.test_layers_of_your_own as mine
import ehap_tf as ehap
for layer_class, rule in mine.RULES.items():
    ehap.register_channel_rule(layer_class, rule)
folder = sys.argv[1]
model, slim = (tf_keras.models.load_model(f"{folder}/{n}.keras") for n in ("model", "slim"))
plan = ehap.PruningPlan.from_json(open(f"{folder}/plan.json").read())
x = np.load(f"{folder}/x.npy")
np.testing.assert_allclose(ehap.prune(model, plan)(x), slim(x), rtol=1e-5, atol=1e-5)
again = ehap.plan_pruning(slim, ehap.rank_filters(slim, criterion="magnitude"), target_params=0.7)
np.testing.assert_allclose(
    ehap.prune(slim, again)(x), ehap.mask(slim, again)(x), rtol=1e-5, atol=1e-5
)
print(len(again.kept["gained"]))
"""


@pytest.mark.slow
def test_a_fresh_process_prunes_what_was_saved(data, plan, tmp_path, fresh_processes):
    model = net()
    model.save(tmp_path / "model.keras")
    ehap.prune(model, plan).save(tmp_path / "slim.keras")
    (tmp_path / "plan.json").write_text(plan.to_json())
    np.save(tmp_path / "x.npy", data[0])
    ended = fresh_processes.run(_FRESH, tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < len(plan.kept["gained"])


def test_filters_are_said_twice_alike(monkeypatch):
    def without(call):
        return dataclasses.replace(gained(call), filters=None)

    def elsewhere(call):
        return dataclasses.replace(gained(call), filters=("matrix", 0))

    def unnamed(call):
        return dataclasses.replace(gained(call), filters=("kernel", -1))

    for rule, message in {
        without: "by call.ids.filters, so it must say which",
        elsewhere: r"Received: \('matrix', 0\) and weights of matrix, gain, bias",
        unnamed: r"Received: \('kernel', -1\)",
    }.items():
        monkeypatch.setitem(ehap.channels.rules._RULES, Gained, rule)
        with pytest.raises(ValueError, match=message):
            ehap.rank_filters(net(), criterion="magnitude")


def test_without_a_rule_they_are_no_filters(monkeypatch):
    for layer_class in RULES:
        monkeypatch.delitem(ehap.channels.rules._RULES, layer_class)
    assert list(ehap.rank_filters(net(), criterion="magnitude")) == ["end"]
