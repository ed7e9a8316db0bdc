"""Multiply-accumulates of every kind of layer, held against TensorFlow's profiler."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.channels import Effect, MacTerm
from ehap_tf.channels.rules import _RULES
from tests.pruning.nets import ROUNDING, batch, random_scores, relative_error, shake

layers = tf_keras.layers


def profiled_macs(model):
    """Half of the floating point operations of convolutions and products in the model's graph.

    The profiler knows no `Einsum` and no three-dimensional convolutions, and divides transposed
    ones by their strides, which is off at the edges; these are counted here, by the sizes of all
    letters and of what is convolved.
    """
    specs = [tf.TensorSpec((1, *t.shape[1:]), t.dtype) for t in model.inputs]

    @tf.function(input_signature=specs)
    def compute(*inputs):
        return model(list(inputs) if len(inputs) > 1 else inputs[0], training=False)

    graph = compute.get_concrete_function().graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    options["account_type_regexes"] = ["Conv2D", "Depthwise.*", "MatMul", "BatchMatMul.*"]
    found = tf.compat.v1.profiler.profile(graph, options=options, cmd="op").total_float_ops / 2
    for operation in graph.get_operations():
        shapes = [tuple(tensor.shape) for tensor in operation.inputs]
        if operation.type == "Einsum":
            left = operation.get_attr("equation").decode().split("->")[0].split(",")
            # The only operand with dots here has one letter beside them.
            left = [part.replace("...", "0123"[: len(shapes[0]) - 1]) for part in left]
            pairs = zip("".join(left), sum(shapes, ()), strict=True)
            found += np.prod(list(dict(pairs).values()))
        elif operation.type == "Conv3D":
            found += np.prod(operation.outputs[0].shape[:-1]) * np.prod(shapes[1])
        elif operation.type in ("Conv2DBackpropInput", "Conv3DBackpropInputV2"):
            found += np.prod(shapes[2][:-1]) * np.prod(shapes[1])
    return found


def chain(shape, *steps, dtype=None):
    x = inputs = layers.Input(shape, dtype=dtype)
    for step in steps:
        x = step(x)
    return tf_keras.Model(inputs, x)


def attending(layer, *arguments, axes=(5, 6), other=(7, 4)):
    query, value = layers.Input(axes), layers.Input(other)
    return tf_keras.Model([query, value], layer(*arguments)([query, value]))


def multi_head(**options):
    query, value = layers.Input((5, 6)), layers.Input((7, 4))
    return tf_keras.Model([query, value], layers.MultiHeadAttention(3, 5, **options)(query, value))


def two(function, *shapes):
    inputs = [layers.Input(shape) for shape in shapes]
    return tf_keras.Model(inputs, function(*inputs))


IMAGE, SERIES = (9, 8, 6), (7, 6)
FILTERS = np.ones((3, 3, 6, 2), np.float32)
NETWORKS = {
    "convolutions": lambda: chain(
        IMAGE,
        layers.Conv2D(8, 3, 2, padding="same"),
        layers.Conv2D(6, (1, 3), groups=2),
        layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same"),
        layers.SeparableConv2D(5, 2, depth_multiplier=2),
        layers.Conv2DTranspose(4, 3, 2),
        layers.Flatten(),
        layers.Dense(3),
    ),
    "one dimension": lambda: chain(
        SERIES,
        layers.Conv1D(8, 3),
        layers.SeparableConv1D(6, 2),
        layers.DepthwiseConv1D(3, padding="same"),
        layers.Conv1DTranspose(4, 3, 2),
    ),
    "three dimensions": lambda: chain(
        (5, 6, 4, 3), layers.Conv3D(4, 3, padding="same"), layers.Conv3DTranspose(2, 2, 2)
    ),
    "dense on maps": lambda: chain(IMAGE, layers.Dense(5), layers.PReLU()),
    "locally connected 1D": lambda: chain(SERIES, layers.LocallyConnected1D(4, 3)),
    "locally connected 2D": lambda: chain(IMAGE, layers.LocallyConnected2D(4, 3)),
    "einsum dense": lambda: chain(
        IMAGE,
        layers.EinsumDense("abcd,de->abce", (None, 8, 5)),
        layers.EinsumDense("...x,xy->...y", (9, 8, 3)),
    ),
    "LSTM": lambda: chain(SERIES, layers.LSTM(5, unroll=True)),
    "GRU": lambda: chain(SERIES, layers.GRU(5, unroll=True, return_sequences=True)),
    "SimpleRNN": lambda: chain(SERIES, layers.SimpleRNN(5, unroll=True)),
    "stacked cells": lambda: chain(
        SERIES, layers.RNN([layers.LSTMCell(5), layers.GRUCell(3)], unroll=True)
    ),
    "Bidirectional": lambda: chain(
        SERIES, layers.Bidirectional(layers.GRU(5, unroll=True, return_sequences=True))
    ),
    "ConvLSTM2D": lambda: chain(
        (3, 6, 5, 2), layers.ConvLSTM2D(4, 3, 2, return_sequences=True, name="steps")
    ),
    "TimeDistributed": lambda: chain(
        (3, *IMAGE),
        layers.TimeDistributed(layers.Conv2D(4, 3)),
        layers.TimeDistributed(chain((7, 6, 4), layers.Conv2D(5, 3), layers.Flatten())),
        layers.TimeDistributed(layers.Dense(3)),
    ),
    "multi-head attention": multi_head,
    "of other widths": lambda: multi_head(value_dim=2, output_shape=8),
    "attention": lambda: attending(layers.Attention, axes=(5, 4)),
    "additive attention": lambda: attending(layers.AdditiveAttention, axes=(5, 4)),
    "Dot": lambda: two(lambda a, b: layers.Dot((2, 2))([a, b]), (5, 4), (7, 4)),
    "matmul": lambda: two(
        lambda a, b: tf.matmul(a, b, transpose_a=True) @ np.ones((3, 2), np.float32), (5, 4), (5, 3)
    ),
    "einsum": lambda: two(lambda a, b: tf.einsum("bij,bkj->bik", a, b), (5, 4), (7, 4)),
    "tensordot": lambda: two(
        lambda a: tf.tensordot(a, np.ones((4, 3), np.float32), [[2], [0]]), (5, 4)
    ),
    "convolution by a constant": lambda: two(lambda a: tf.nn.conv2d(a, FILTERS, 1, "SAME"), IMAGE),
    "Embedding": lambda: chain((7,), layers.Embedding(20, 6), layers.Conv1D(4, 3), dtype="int32"),
    "shared and nested": lambda: chain(
        (6, 6), *[tf_keras.Sequential([layers.Dense(6), layers.Conv1D(6, 1)])] * 2
    ),
    "MobileNetV2": lambda: tf_keras.applications.MobileNetV2((32, 32, 3), 0.35, weights=None),
    "EfficientNetB0": lambda: tf_keras.applications.EfficientNetB0(
        input_shape=(32, 32, 3), weights=None
    ),
}
# What is done in each of three steps, where the graph holds a loop.
STEPS = {
    "ConvLSTM2D": lambda: two(
        lambda x, state: [
            layers.Conv2D(16, 3, 2)(x),
            layers.Conv2D(16, 3, padding="same")(state),
        ],
        (6, 5, 2),
        (2, 2, 4),
    ),
    "TimeDistributed": lambda: chain(
        IMAGE, layers.Conv2D(4, 3), layers.Conv2D(5, 3), layers.Flatten(), layers.Dense(3)
    ),
}
# What the profiler does not see, and why.
NOT_PROFILED = {
    "convolutions": 5 * 2 * 3 * 4 * 6,  # a grouped convolution is a compiled function of its own
    "additive attention": 5 * 7 * 4,  # the scale is multiplied in and summed up as single numbers
    "matmul": 4 * 3 * (5 - 4),  # of a transposed operand it takes the wrong axis
}


DEEP = ("MobileNetV2", "EfficientNetB0")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.families) if n in DEEP else n for n in NETWORKS],
)
def test_macs_are_those_of_the_profiler(name, recwarn):
    model = NETWORKS[name]()
    truth = 3 * profiled_macs(STEPS[name]()) if name in STEPS else profiled_macs(model)
    assert ehap.count_macs(model) == truth + NOT_PROFILED.get(name, 0) > 0
    assert not [w for w in recwarn if "missing" in str(w.message)]


@pytest.mark.parametrize("residual", ["union", pytest.param("tied", marks=pytest.mark.families)])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.LSTM(16),
        lambda: layers.GRU(16, return_sequences=True),
        lambda: layers.Bidirectional(layers.SimpleRNN(8), merge_mode="sum"),
    ],
)
def test_recurrent_layers_read_fewer_channels(layer, residual):
    """Counted at each step, and cut with what comes in: the target is met by the slim model."""
    convolutions = [layers.Conv1D(16, 3, padding="same", name=name) for name in "ab"]
    model = shake(chain((20, 6), *convolutions, layer(), layers.Flatten(), layers.Dense(2)))
    scores = {name: values for name, values in random_scores(model).items() if name in "ab"}
    plan = ehap.plan_pruning(model, scores, target_macs=0.7, residual=residual)
    assert len(plan.kept["b"]) < 16
    slim, x = ehap.prune(model, plan), batch(model)
    assert ehap.count_macs(slim) == plan.macs_after <= 0.7 * ehap.count_macs(model)
    assert ehap.count_parameters(slim) == plan.params_after
    assert relative_error(slim(x), ehap.mask(model, plan)(x)) < ROUNDING


def test_a_target_that_was_met_on_paper_is_refused():
    """Two small convolutions before a large LSTM are no half of its multiply-accumulates."""
    convolutions = [layers.Conv1D(16, 3, padding="same", name=name) for name in "ab"]
    model = chain((20, 6), *convolutions, layers.LSTM(64), layers.Dense(2))
    assert ehap.count_macs(model) == 20 * (3 * 6 * 16 + 3 * 16 * 16 + 4 * 64 * (16 + 64)) + 128
    with pytest.raises(ValueError, match=r"target_macs=0\.5 cannot be reached: at least 0.77"):
        ehap.plan_pruning(model, random_scores(model), target_macs=0.5)


class Mixing(layers.Layer):
    """A product that nobody knows of."""

    def build(self, shape):
        self.kernel = self.add_weight("kernel", (shape[-1], shape[-1]))

    def call(self, x):
        return x @ self.kernel


def test_what_cannot_be_counted_is_named(monkeypatch):
    steps = [layers.Conv2D(8, 3, name="c"), Mixing(name="odd"), layers.Conv2D(4, 1)]
    model = chain((6, 6, 3), *steps, layers.Flatten(), layers.Dense(2))
    known = 16 * 27 * 8 + 16 * 8 * 4 + 16 * 4 * 2
    with pytest.warns(UserWarning, match="missing: odd: what Mixing multiplies is not known"):
        assert ehap.count_macs(model) == known
    with pytest.warns(UserWarning, match="target_macs=0.99 is met in what can be counted.*odd"):
        plan = ehap.plan_pruning(model, random_scores(model), target_macs=0.99)
    assert plan.uncounted == {"odd": "what Mixing multiplies is not known"}
    assert "MACs not counted: odd: what Mixing" in plan.summary()
    assert ehap.PruningPlan.from_json(plan.to_json()) == plan

    def mixing(call):
        (ids,) = call.inputs
        out = call.ids.constants(8, "mixed")
        terms = [MacTerm(16 * 8, (ids,))]
        return Effect([ids], [out], weights={"kernel": (ids, None)}, macs=terms)

    monkeypatch.setitem(_RULES, Mixing, mixing)
    assert ehap.count_macs(model) == known + 16 * 8 * 8
    plan = ehap.plan_pruning(model, random_scores(model), 0.4)
    assert not plan.uncounted and plan.costs["odd"][3] == 16 * 8 * len(plan.kept["c"]) < 1024
    monkeypatch.setitem(
        _RULES, Mixing, lambda call: Effect([call.inputs[0]], [call.inputs[0]], macs=3)
    )
    with pytest.raises(TypeError, match=r"macs a list of MacTerm\. Received: 3"):
        ehap.count_macs(model)
