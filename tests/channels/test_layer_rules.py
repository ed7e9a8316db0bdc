"""Every layer with a rule, between two convolutions: the slim model equals the masked one."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tf_keras.src.applications.convnext import LayerScale, StochasticDepth
from tf_keras.src.layers.core.tf_op_layer import TFOpLambda

from ehap_tf.channels import Effect, register_channel_rule, trace_channels
from ehap_tf.channels.rules import _RULES
from ehap_tf.pruning import count_macs, count_parameters, mask, plan_pruning, prune
from tests.pruning.nets import ROUNDING, batch, random_scores, relative_error, shake

layers = tf_keras.layers


class Standardised(layers.Conv2D):
    """Each filter looks at all of its input channels before it is applied."""

    def convolution_op(self, inputs, kernel):
        mean, variance = tf.nn.moments(kernel, [0, 1, 2], keepdims=True)
        return super().convolution_op(inputs, (kernel - mean) / tf.sqrt(variance + 1e-5))


MAPS = {
    "grouped": lambda: layers.Conv2D(6, 3, groups=2, padding="same"),
    "a group for each channel": lambda: layers.Conv2D(16, 3, groups=8, activation="sigmoid"),
    "a group for each, no bias": lambda: layers.Conv2D(8, 3, groups=8, use_bias=False),
    "dilated": lambda: layers.Conv2D(5, 3, dilation_rate=2, padding="same"),
    "transposed": lambda: layers.Conv2DTranspose(5, 3, strides=2),
    "depthwise": lambda: layers.DepthwiseConv2D(3, depth_multiplier=2, activation="sigmoid"),
    "separable": lambda: layers.SeparableConv2D(5, 3, depth_multiplier=2),
    "dense on maps": lambda: layers.Dense(5, activation="relu"),
    "batch norm": lambda: layers.BatchNormalization(),
    "batch renorm": lambda: layers.BatchNormalization(renorm=True),
    "batch norm over devices": lambda: layers.experimental.SyncBatchNormalization(),
    "identity": lambda: layers.Identity(),
    "sigmoid": lambda: layers.Activation("sigmoid"),
    "swish": lambda: layers.Activation(tf.nn.swish),
    "relu6": lambda: layers.ReLU(6.0),
    "leaky": lambda: layers.LeakyReLU(),
    "elu": lambda: layers.ELU(),
    "thresholded": lambda: layers.ThresholdedReLU(0.5),
    "sloped relu": lambda: layers.ReLU(negative_slope=0.5, threshold=1.0),
    "own function": lambda: layers.Activation(lambda x: tf.square(x) - 1.0),
    "leaky inside": lambda: layers.Conv2D(5, 3, activation=tf.nn.leaky_relu),
    "prelu": lambda: layers.PReLU(alpha_initializer="uniform"),
    "prelu shared": lambda: layers.PReLU(alpha_initializer="uniform", shared_axes=[1, 2]),
    "max pool": lambda: layers.MaxPooling2D(3, 2, padding="same"),
    "average pool": lambda: layers.AveragePooling2D(2),
    "zero padding": lambda: layers.ZeroPadding2D(1),
    "cropping": lambda: layers.Cropping2D(1),
    "up sampling": lambda: layers.UpSampling2D(2),
    "dropout of channels": lambda: layers.Dropout(0.5, noise_shape=(None, 1, 1, 8)),
    "opened lambda": lambda: layers.Lambda(lambda x: x * 2),
    "dropout": lambda: layers.SpatialDropout2D(0.5),
    "noise": lambda: layers.GaussianNoise(0.5),
    "instance norm": lambda: layers.GroupNormalization(8),
    "instance norm by default": lambda: layers.GroupNormalization(-1),
    "layer norm over positions": lambda: layers.LayerNormalization(axis=[1, 2]),
    "layer scale": lambda: LayerScale(0.3, 8),
    "stochastic depth": lambda: StochasticDepth(0.5),
    "rescaling": lambda: layers.Rescaling(2.0, 1.0),
    "keepdims": lambda: layers.GlobalMaxPooling2D(keepdims=True),
    "reshape": lambda: layers.Reshape((4, 16, -1)),
    "reshape back": lambda: tf_keras.Sequential(
        [layers.Reshape((512,)), layers.Reshape((8, 8, 8))]
    ),
    "nested": lambda: tf_keras.Sequential([layers.Conv2D(5, 3), layers.ReLU()]),
    "in each row": lambda: layers.TimeDistributed(layers.Conv1D(5, 3, activation="sigmoid")),
    "norm of each row": lambda: layers.TimeDistributed(layers.BatchNormalization()),
    "a model in each row": lambda: layers.TimeDistributed(
        tf_keras.Sequential([layers.Conv1D(5, 3), layers.BatchNormalization(), layers.ReLU()])
    ),
}

FREEZING = {
    "layer norm": lambda: layers.LayerNormalization(),
    "layer norm over all axes": lambda: layers.LayerNormalization(axis=[1, 2, 3]),
    "group norm": lambda: layers.GroupNormalization(4),
    "group norm of rows": lambda: layers.GroupNormalization(8, axis=1),
    "softmax": lambda: layers.Softmax(),
    "softmax by name": lambda: layers.Activation("softmax"),
    "softmax of tf": lambda: layers.Activation(tf.nn.log_softmax),
    "own mixing function": lambda: layers.Activation(lambda x: tf.nn.l2_normalize(x, -1)),
    "depthwise with softmax": lambda: layers.DepthwiseConv2D(3, activation="softmax"),
    "standardised kernels": lambda: Standardised(8, 3, name="standardised"),
    "permute": lambda: layers.Permute((3, 1, 2)),
    # What depends on training is not taken apart.
    "lambda": lambda: layers.Lambda(lambda x, training=None: x * 2),
}


def sandwich(layer):
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(8, 3, padding="same", name="before")(inputs)
    x = layers.Conv2D(6, 1, padding="same", name="after")(layer(x))
    x = layers.GlobalAveragePooling2D()(x)
    return shake(tf_keras.Model(inputs, layers.Dense(3, name="logits")(x)))


def check(model, plan):
    x = batch(model)
    slim = prune(model, plan)
    assert relative_error(slim(x), mask(model, plan)(x)) < ROUNDING
    assert count_parameters(slim) == plan.params_after
    assert count_macs(slim) == plan.macs_after
    return slim


@pytest.mark.parametrize("name", MAPS)
def test_channels_pass_through(name):
    model = sandwich(MAPS[name]())
    plan = plan_pruning(model, random_scores(model, 1), prune_ratio=0.5)
    assert len(plan.kept["before"]) < 8, "the layer froze what it should have passed on"
    check(model, plan)


@pytest.mark.parametrize("name", FREEZING)
def test_channels_stay_where_a_layer_mixes_them(name):
    model = sandwich(FREEZING[name]())
    plan = plan_pruning(model, random_scores(model, 1), prune_ratio=0.5)
    assert len(plan.kept["before"]) == 8
    assert len(plan.kept["after"]) < 6
    assert any(model.layers[2].name in reason for reason in plan.frozen.values())
    check(model, plan)


OF_OTHER_RANKS = {
    "Conv1D": lambda: layers.Conv1D(6, 3, padding="same", dilation_rate=2),
    "Conv1DTranspose": lambda: layers.Conv1DTranspose(6, 3, strides=2),
    "DepthwiseConv1D": lambda: layers.DepthwiseConv1D(3, depth_multiplier=2),
    "SeparableConv1D": lambda: layers.SeparableConv1D(6, 3, depth_multiplier=2),
    "pooling 1D": lambda: layers.AveragePooling1D(2),
    "padding 1D": lambda: layers.ZeroPadding1D(1),
    "Conv3D": lambda: layers.Conv3D(6, 3, padding="same", groups=2),
    "Conv3DTranspose": lambda: layers.Conv3DTranspose(6, 3, strides=2),
    "pooling 3D": lambda: layers.MaxPooling3D(2),
    "up sampling 3D": lambda: layers.UpSampling3D(2),
}


@pytest.mark.parametrize("name", OF_OTHER_RANKS)
def test_layers_of_other_ranks(name):
    layer = OF_OTHER_RANKS[name]()
    rank = 1 if "1D" in name else 3
    conv = {1: layers.Conv1D, 3: layers.Conv3D}[rank]
    pool = {1: layers.GlobalAveragePooling1D, 3: layers.GlobalAveragePooling3D}[rank]
    inputs = layers.Input((6,) * rank + (3,))
    x = layer(conv(6, 3, padding="same", name="before")(inputs))
    x = pool()(conv(5, 2, activation="relu")(x))
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(x)))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert len(plan.kept["before"]) < 6
    check(model, plan)


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_a_layer_that_makes_something_of_zero_between_branches(residual):
    """In a sum a removed channel's place is zero, not what the layer makes of zero."""
    inputs = layers.Input((6, 6, 3))
    a = layers.ReLU(negative_slope=0.5, threshold=1.0)(layers.Conv2D(8, 3, name="a")(inputs))
    b = layers.Conv2D(8, 3, name="b")(inputs)
    x = layers.Conv2D(4, 1, name="after")(layers.Add()([a, b]))
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = plan_pruning(model, random_scores(model, 1), prune_ratio=0.5, residual=residual)
    assert len(plan.kept["a"]) < 8
    check(model, plan)


def test_a_layer_as_activation_is_followed_where_it_has_no_weights():
    free = sandwich(layers.Conv2D(8, 3, activation=layers.LeakyReLU(0.3), name="middle"))
    frozen = sandwich(layers.Conv2D(8, 3, activation=layers.PReLU("uniform"), name="middle"))
    for model, stays in ((free, False), (frozen, True)):
        plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
        assert (len(plan.kept["middle"]) == 8) == stays
        assert ("PReLU" in plan.frozen.get("middle", "")) == stays


def test_operators_with_one_number_a_channel_are_frozen():
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, name="a")(inputs) * [1.0, 2.0, 3.0, 4.0]
    x = layers.Conv2D(4, 1, name="b")(x) + tf.constant([1.0, 2.0, 3.0, 4.0])
    x = tf.nn.relu(layers.Conv2D(4, 1, name="c")(x)) * 2 - 1
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.6)
    assert [len(plan.kept[name]) for name in "ab"] == [4, 4]
    assert len(plan.kept["c"]) < 4
    assert "Keras layer in its place" in plan.frozen["a"]
    check(model, plan)


@pytest.mark.parametrize("step", [2, -1])
def test_channels_that_are_taken_in_steps_say_so(step):
    model = sandwich(lambda x: x[..., ::step])
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert len(plan.kept["before"]) == 8
    assert plan.frozen["before"].endswith(f"takes channels in steps of {step}")


KEEP_ZERO = {
    "relu": tf.nn.relu,
    "relu of Keras": tf_keras.activations.relu,
    "relu6": lambda x: tf_keras.activations.relu(x, max_value=6),
    "leaky relu": tf.nn.leaky_relu,
    "swish": tf.nn.swish,
    "gelu": tf_keras.activations.gelu,
    "tanh": tf.tanh,
    "negative": lambda x: -x,
    "cast": lambda x: tf.cast(x, "float32"),
    "times a number": lambda x: 2 * x,
    "times a tensor": lambda x: x * tf.constant([3.0]),
    "divided by a number": lambda x: x / 2,
    "square": lambda x: x**2,
    "clipped": lambda x: tf.minimum(x, 6.0),
}
MAKE_SOMETHING_OF_ZERO = {
    "sigmoid": tf.sigmoid,
    "plus a number": lambda x: x + 1,
    "from a number": lambda x: 1 - x,
    "dividing a number": lambda x: 2 / (x + 100),
    "power of a number": lambda x: tf.pow(2.0, x),
    "clipped away from zero": lambda x: tf.clip_by_value(x, 1.0, 6.0),
}


@pytest.mark.parametrize("name", [*KEEP_ZERO, *MAKE_SOMETHING_OF_ZERO])
def test_operators_with_their_arguments_keep_zero_or_do_not(name):
    model = sandwich((KEEP_ZERO | MAKE_SOMETHING_OF_ZERO)[name])
    loaded = tf_keras.Model.from_config(model.get_config())
    for graph in (trace_channels(model), trace_channels(loaded)):
        effects = [c.effect for c in graph.calls.values() if isinstance(c.layer, TFOpLambda)]
        assert effects[-1].note is None
        assert effects[-1].preserves_zero == (name in KEEP_ZERO)


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_relu_as_an_operator_is_pruned_like_the_layer(residual):
    plans, models = [], []
    for relu in (layers.ReLU(), tf.nn.relu):
        inputs = layers.Input((6, 6, 3))
        x = relu(layers.Conv2D(4, 3, padding="same", name="a")(inputs))
        shortcut = relu(tf.pad(x, [[0, 0], [0, 0], [0, 0], [0, 4]]))
        x = layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same", name="b")(x))
        x = layers.Conv2D(4, 1, name="after")(relu(layers.Add()([x, shortcut])))
        models.append(
            shake(tf_keras.Model(inputs, layers.Dense(2, name="logits")(layers.Flatten()(x))))
        )
        scores = random_scores(models[-1], 1)
        plans.append(plan_pruning(models[-1], scores, prune_ratio=0.5, residual=residual))
        check(models[-1], plans[-1])
    layer, operator = plans
    assert {name: kept.tolist() for name, kept in operator.kept.items()} == {
        name: kept.tolist() for name, kept in layer.kept.items()
    }
    assert (operator.params_after, operator.macs_after) == (layer.params_after, layer.macs_after)
    models[1].set_weights(models[0].get_weights())
    x = batch(models[0])
    assert relative_error(prune(models[1], operator)(x), prune(models[0], layer)(x)) < ROUNDING
    assert relative_error(mask(models[1], operator)(x), mask(models[0], layer)(x)) < ROUNDING


@pytest.mark.parametrize("nested", [False, True])
def test_a_text_of_any_length(nested):
    steps = [
        layers.Embedding(20, 6, name="words"),
        layers.Conv1D(8, 3, padding="same", activation="relu", name="before"),
        layers.Conv1D(6, 3, name="after"),
        layers.GlobalMaxPooling1D(name="pool"),
    ]
    if nested:
        steps = [tf_keras.Sequential([layers.Input((None,)), *steps], name="encoder")]
    x = inputs = layers.Input((None,), dtype="int32")
    for step in steps:
        x = step(x)
    model = shake(tf_keras.Model(inputs, layers.Dense(2, name="logits")(x)))
    plan = plan_pruning(model, random_scores(model, 1), prune_ratio=0.5)
    prefix = "encoder/" if nested else ""
    assert len(plan.kept[f"{prefix}before"]) < 8
    assert "no channel rule for Embedding" in plan.frozen[f"{prefix}words"]
    slim, masked = prune(model, plan), mask(model, plan)
    assert count_parameters(slim) == plan.params_after
    for length in (5, 9):
        words = np.random.default_rng(0).integers(0, 20, (2, length))
        assert relative_error(slim(words), masked(words)) < ROUNDING


def test_axes_of_unknown_size_in_the_place_of_channels():
    inputs, numbers = layers.Input((None, 3)), layers.Input((None,))
    c = layers.Conv1D(4, 3, name="c")(inputs)
    d = layers.Dense(8, name="d")(layers.Reshape((7,))(numbers))
    both = layers.Add(name="sum")([layers.Flatten(name="flat")(c), d])
    row = layers.Reshape((-1,), name="row")(layers.Conv1D(3, 3, name="e")(inputs))
    x = layers.Dense(2, name="logits")(layers.Reshape((8,), name="back")(both))
    model = shake(tf_keras.Model([inputs, numbers], [x, row]))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert [len(plan.kept[name]) for name in "cde"] == [4, 8, 3]
    assert plan.frozen["flat"] == "'flat' flattens an axis of unknown size"
    assert plan.frozen["row"] == "'row' has a channel axis of unknown size"
    assert plan.frozen["sum"] == "'sum' is given an axis of unknown size in place of channels"
    rng = np.random.default_rng(0)
    x = [rng.normal(size=shape).astype(np.float32) for shape in ((2, 4, 3), (2, 7))]
    assert relative_error(prune(model, plan)(x), mask(model, plan)(x)) < ROUNDING


@pytest.mark.parametrize("layer", [layers.GlobalAveragePooling1D, layers.BatchNormalization])
@pytest.mark.parametrize("computed", [False, True])
def test_a_second_tensor_freezes(layer, computed):
    inputs, mask_input = layers.Input((5, 3)), layers.Input((5,), dtype="bool", name="there")
    x = layers.Conv1D(8, 3, padding="same", name="before")(inputs)
    judge = layers.Dense(5, activation="softplus", name="judge")
    there = judge(layers.Flatten()(x)) > 0 if computed else mask_input
    x = layers.Flatten()(layer(name="masked")(x, mask=there))
    x = layers.Dense(6, activation="relu", name="after")(x)
    model = shake(tf_keras.Model([inputs, mask_input], layers.Dense(2, name="logits")(x)))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert len(plan.kept["before"]) == 8 and len(plan.kept["after"]) < 6
    assert plan.frozen["masked"] == "'masked' is called with 2 tensors"
    x = [batch(model)[0], np.array([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]], bool)]
    assert relative_error(prune(model, plan)(x), mask(model, plan)(x)) < ROUNDING


@pytest.mark.parametrize("pad", [tf.pad, tf.compat.v1.pad])
@pytest.mark.parametrize("channels", [0, 2])
def test_padding_with_ones_is_not_padding_with_zeros(pad, channels):
    """The value comes third behind the tensor, in TensorFlow 1 fourth, behind a name."""
    name = ("padded",) if pad is tf.compat.v1.pad else ()
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(4, 1, name="a")(inputs)
    x = pad(x, [[0, 0], [1, 1], [1, 1], [0, channels]], "CONSTANT", *name, 1.0)
    x = layers.Conv2D(4, 1, name="b")(x)
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.6)
    assert (len(plan.kept["a"]) == 4) == bool(channels)
    check(model, plan)


def test_unknown_layer_freezes_and_says_what_to_do():
    class Odd(layers.Layer):
        def call(self, x):
            return tf.reverse(x, [-1])

    model = sandwich(Odd(name="odd"))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert len(plan.kept["before"]) == 8
    assert "register_channel_rule" in plan.frozen["odd"]


class Scale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight("scale", (shape[-1],), initializer="uniform")
        self.offset, self.rank = None, 4

    def call(self, x):
        return x * self.scale


def test_registered_rule_unfreezes_a_custom_layer(monkeypatch):
    def scale(call):
        (ids,) = call.inputs
        weights = {"scale": (ids,), "offset": (ids,)}
        return Effect([ids], [ids], weights=weights, preserves_zero=True)

    monkeypatch.setitem(_RULES, Scale, None)
    assert register_channel_rule(Scale)(scale) is scale
    model = sandwich(Scale())
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert len(plan.kept["before"]) < 8
    check(model, plan)


WRONG = {
    "nothing": (lambda ids: None, TypeError, "return an Effect. Received: NoneType"),
    "ids alone": (lambda ids: ids, TypeError, "return an Effect. Received: an array of int64"),
    "inputs in no list": (lambda ids: Effect(ids, [ids]), TypeError, "inputs a list of arrays"),
    "two outputs": (lambda ids: Effect([ids], [ids] * 2), ValueError, "for 1 tensors. Received: 2"),
    "few outputs": (lambda ids: Effect([ids], [ids[:5]]), ValueError, "outputs 8 ids.*Received: 5"),
    "few inputs": (lambda ids: Effect([ids[1:]], [ids]), ValueError, "inputs 8 ids.*Received: 7"),
    "flags": (lambda ids: Effect([ids], [ids > 0]), TypeError, "outputs integer arrays.*bool"),
    "misspelt": (
        lambda ids: scaled(ids, scales=(ids,)),
        ValueError,
        "weights.*: scale. .*'scales'",
    ),
    "no weight": (lambda ids: scaled(ids, rank=(ids,)), ValueError, "weights.*: scale. .*'rank'"),
    "axes in no tuple": (lambda ids: scaled(ids, scale=ids), TypeError, r"'scale'\] a list"),
    "too many axes": (
        lambda ids: scaled(ids, scale=(None, ids)),
        ValueError,
        r"weights\['scale'\] ids for 1 axes of shape \(8,\)\. Received: 2",
    ),
    "few of an axis": (
        lambda ids: scaled(ids, scale=(ids[:4],)),
        ValueError,
        r"weights\['scale'\] 8 ids for number 0 of the axes .*Received: 4",
    ),
}


def scaled(ids, **weights):
    return Effect([ids], [ids], weights=weights)


@pytest.mark.parametrize("name", WRONG)
def test_a_rule_that_does_not_fit_its_layer_is_named(name, monkeypatch):
    effect, error, message = WRONG[name]

    def my_rule(call):
        return effect(call.inputs[0])

    monkeypatch.setitem(_RULES, Scale, my_rule)
    says = "the channel rule my_rule of Scale, for layer 'odd', must"
    with pytest.raises(error, match=f"{says} .*{message}"):
        trace_channels(sandwich(Scale(name="odd")))


def test_channels_first_is_frozen_with_a_reason():
    inputs = layers.Input((3, 8, 8))
    x = layers.Conv2D(4, 3, data_format="channels_first", name="c")(inputs)
    model = tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x)))
    assert "channels_first" in trace_channels(model).notes["c"]


def test_attention_is_kept_whole():
    inputs = layers.Input((6, 4))
    x = layers.Dense(8, name="before")(inputs)
    x = layers.MultiHeadAttention(2, 4, name="mha")(x, x)
    x = layers.Dense(6, name="after", activation="relu")(x)
    model = tf_keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(x)))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert len(plan.kept["before"]) == 8
    assert "kept whole" in plan.frozen["mha"]
    x = batch(model)
    assert relative_error(prune(model, plan)(x), mask(model, plan)(x)) < ROUNDING


@pytest.mark.parametrize("layer", [layers.Reshape((1,), name="up"), layers.Flatten(name="up")])
def test_a_scalar_input_becomes_a_channel_that_stays(layer):
    image, scalar = layers.Input((8, 8, 3)), layers.Input(())
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, name="c")(image))
    x = layers.Concatenate()([x, layer(scalar)])
    model = shake(tf_keras.Model([image, scalar], layers.Dense(2, name="logits")(x)))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert len(plan.kept["c"]) < 8
    assert "an input that has none" in plan.frozen["up"]
    check(model, plan)


def test_batch_norm_over_another_axis_is_frozen():
    inputs = layers.Input((8, 8, 3))
    x = layers.BatchNormalization(axis=1, name="odd_norm")(layers.Conv2D(4, 1, name="c")(inputs))
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    assert len(plan.kept["c"]) == 4
    assert "axis" in plan.frozen["odd_norm"]


def test_multiple_inputs_and_dictionaries():
    a, b = layers.Input((4, 4, 2), name="a"), layers.Input((4, 4, 3), name="b")
    x = layers.Concatenate()([layers.Conv2D(4, 1, name="ca")(a), layers.Conv2D(4, 1, name="cb")(b)])
    out = layers.Dense(2, name="logits")(layers.Flatten()(x))
    model = tf_keras.Model({"a": a, "b": b}, {"scores": out})
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    rng = np.random.default_rng(0)
    data = {
        "a": rng.normal(size=(2, 4, 4, 2)).astype("f"),
        "b": rng.normal(size=(2, 4, 4, 3)).astype("f"),
    }
    slim, masked = prune(model, plan)(data), mask(model, plan)(data)
    assert relative_error(slim["scores"], masked["scores"]) < ROUNDING


@pytest.mark.parametrize("residual", ["union", "tied"])
@pytest.mark.parametrize("bias", [False, True])
def test_groups_of_one_channel_are_pruned_like_a_depthwise_convolution(bias, residual):
    """In a residual block, as the layer of this name: the same plan, the same outputs."""
    models = []
    for grouped in (True, False):
        inputs = layers.Input((6, 6, 3))
        x = shortcut = layers.Conv2D(8, 1, activation="relu", name="a")(inputs)
        options = {"padding": "same", "use_bias": bias, "name": "each"}
        each = layers.Conv2D(8, 3, groups=8, **options) if grouped else None
        x = (each or layers.DepthwiseConv2D(3, **options))(x)
        x = layers.ReLU()(layers.BatchNormalization()(x))
        x = layers.Add()([layers.Conv2D(8, 1, name="b")(x), shortcut])
        x = layers.Flatten()(layers.Conv2D(4, 1, name="after")(x))
        models.append(shake(tf_keras.Model(inputs, layers.Dense(2, name="logits")(x))))
    scores = random_scores(models[0], 1)
    plans = [plan_pruning(model, scores, 0.5, residual=residual) for model in models]
    kept = [{name: ids.tolist() for name, ids in plan.kept.items()} for plan in plans]
    assert kept[0] == kept[1] and len(plans[0].kept["a"]) < 8
    assert plans[0].params_after == plans[1].params_after
    assert plans[0].macs_after == plans[1].macs_after
    assert "each" not in plans[0].kept
    for weight, other in zip(models[0].weights, models[1].weights, strict=True):
        weight.assign(tf.reshape(other, weight.shape))
    x = batch(models[0])
    slims = [check(model, plan) for model, plan in zip(models, plans, strict=True)]
    assert relative_error(*(slim(x) for slim in slims)) < ROUNDING
    assert slims[0].get_layer("each").groups == len(plans[0].kept["a"])


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_units_that_are_folded_into_a_map_go_channel_by_channel(residual):
    """A generator: those of one channel at all positions live or die together."""
    inputs = layers.Input((5,))
    x = layers.Dense(3 * 2 * 8, activation="relu", name="code")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Reshape((3, 2, 8), name="map")(x)
    x = layers.Conv2DTranspose(4, 3, 2, name="up")(x)
    model = shake(tf_keras.Model(inputs, layers.Conv2D(3, 1, name="image")(x)))
    plan = plan_pruning(model, random_scores(model, 1), target_params=0.6, residual=residual)
    kept = plan.kept["code"].reshape(6, -1)
    assert 0 < kept.shape[1] < 8 and (kept % 8 == kept[0] % 8).all()
    assert check(model, plan).get_layer("map").target_shape == (3, 2, kept.shape[1])


def test_a_reshape_that_cuts_the_channels_into_positions():
    """Channels that become the same channel of neighbouring positions live or die together."""
    model = sandwich(layers.Reshape((8, 16, 4)))
    scores = {**random_scores(model), "before": np.arange(8.0) / 100}
    plan = plan_pruning(model, scores, prune_ratio=0.4)
    kept = plan.kept["before"]
    assert 0 < len(kept) < 8 and (kept[: len(kept) // 2] + 4 == kept[len(kept) // 2 :]).all()
    check(model, plan)


def test_filters_that_only_go_all_at_once_say_so():
    inputs = layers.Input((6, 6, 6))
    x = layers.Conv2D(6, 1, name="a")(inputs)
    x = layers.Conv2D(2, 3, groups=2, name="pair")(x)
    x = layers.Conv2D(1, 3, name="single")(x)
    x = layers.Conv2D(4, 1, name="after")(x)
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.9)
    assert len(plan.kept["pair"]) == 2 and len(plan.kept["single"]) == 1
    assert plan.frozen["pair"].startswith("they live or die together")
    assert plan.frozen["single"] == "it is the only one"
    check(model, plan)
