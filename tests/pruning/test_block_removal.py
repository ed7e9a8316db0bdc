"""Residual blocks removed whole, against branches whose last BatchNorm is zero."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.models import build_model
from tests.pruning.nets import ROUNDING, batch, relative_error, shake, wrapped

layers = tf_keras.layers
LOSS = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def block(x, filters: int, name: str, stride: int = 1):
    """A residual block of ResNet; a stride asks for a convolution in the shortcut."""
    shortcut = x
    if stride > 1:
        shortcut = layers.Conv2D(filters, 1, strides=stride, name=f"{name}_shortcut")(x)
    x = layers.Conv2D(filters, 3, strides=stride, padding="same", name=f"{name}_a")(x)
    x = layers.ReLU(name=f"{name}_a_relu")(layers.BatchNormalization(name=f"{name}_a_bn")(x))
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, name=f"{name}_b")(x)
    x = layers.BatchNormalization(name=f"{name}_last")(x)
    return layers.ReLU(name=f"{name}_out")(layers.Add(name=name)([x, shortcut]))


@pytest.fixture
def net() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(0)
    x = inputs = layers.Input((8, 8, 3))
    x = layers.ReLU(name="stem_relu")(layers.Conv2D(4, 3, padding="same", name="stem")(x))
    for name, filters, stride in (("one", 4, 1), ("two", 4, 1), ("wide", 6, 2), ("three", 6, 1)):
        x = block(x, filters, name, stride)
    return shake(
        tf_keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)), name="net")
    )


def with_zero_branches(model: tf_keras.Model, names: list[str]) -> tf_keras.Model:
    """The oracle: the same layers, but the last BatchNorm of some branches gives zero."""
    twin = tf_keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    for name in names:
        gamma, beta, *statistics = twin.get_layer(f"{name}_last").get_weights()
        twin.get_layer(f"{name}_last").set_weights([0 * gamma, 0 * beta, *statistics])
    return twin


def data_of(model: tf_keras.Model, examples: int = 12) -> tuple[np.ndarray, np.ndarray]:
    labels = np.random.default_rng(1).integers(0, model.output_shape[-1], examples)
    return batch(model, examples), labels


@pytest.mark.parametrize("names", [["one"], ["three"], ["one", "two"], ["two", "one", "three"], []])
def test_without_blocks_is_as_if_their_branches_were_zero(net: tf_keras.Model, names: list[str]):
    x = batch(net)
    before = [w.copy() for w in net.get_weights()]
    short = ehap.remove_blocks(net, names)
    assert relative_error(short(x), with_zero_branches(net, names)(x)) < ROUNDING
    if len(names) == 1:
        assert relative_error(ehap.remove_blocks(net, names[0])(x), short(x)) == 0
    gone = {layer.name for layer in net.layers} - {layer.name for layer in short.layers}
    parts = ("", "_a", "_a_relu", "_a_bn", "_b", "_last", "_out")
    assert gone == {f"{name}{part}" for name in names for part in parts}
    for layer in short.layers:
        for new, old in zip(
            layer.get_weights(), net.get_layer(layer.name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(new, old)
    for new, old in zip(net.get_weights(), before, strict=True):
        np.testing.assert_array_equal(new, old)
    assert short.name == net.name


def test_which_sums_are_blocks(net: tf_keras.Model):
    assert ehap.residual_blocks(net) == ["one", "two", "three"]
    # The first block of a later stage has a convolution in its shortcut.
    names = [f"stage{s}_block{b}_add" for s in (1, 2, 3) for b in (1, 2, 3)]
    assert ehap.residual_blocks(build_model("resnet20")) == [
        name for name in names if name not in ("stage2_block1_add", "stage3_block1_add")
    ]
    assert len(ehap.residual_blocks(build_model("preresnet29"))) == 6
    assert ehap.residual_blocks(build_model("vgg16")) == []

    x = layers.Input((4, 4, 3))
    left, right = layers.Conv2D(3, 1)(x), layers.Conv2D(3, 1)(x)
    once = layers.Add(name="siblings")([left, right])
    twice = layers.Add(name="shared")
    y = twice([once, layers.ReLU()(once)])
    y = twice([y, layers.ReLU()(y)])
    y = y + layers.Conv2D(3, 1)(y)
    (operator,) = ehap.residual_blocks(tf_keras.Model(x, y))
    assert "operators__.add" in operator


def test_nested_models_and_operators():
    tf_keras.utils.set_random_seed(0)
    inner_input = layers.Input((8, 8, 4))
    inner = tf_keras.Model(inner_input, block(inner_input, 4, "inside"), name="backbone")
    x = inputs = layers.Input((8, 8, 4))
    x = inner(x)
    x = layers.Conv2D(4, 3, padding="same")(x) + x
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    nested, operator = ehap.residual_blocks(model)
    assert nested == "backbone/inside"
    x = batch(model)
    zeroed = tf_keras.models.clone_model(model)
    zeroed.set_weights(model.get_weights())
    last = zeroed.get_layer("backbone").get_layer("inside_last")
    gamma, beta, *statistics = last.get_weights()
    last.set_weights([0 * gamma, 0 * beta, *statistics])
    assert relative_error(ehap.remove_blocks(model, [nested])(x), zeroed(x)) < ROUNDING
    convolution = next(ly for ly in model.layers if isinstance(ly, layers.Conv2D))
    without = ehap.remove_blocks(model, [operator])
    assert convolution.name not in {layer.name for layer in without.layers}
    convolution.set_weights([0 * w for w in convolution.get_weights()])
    assert relative_error(without(x), model(x)) < ROUNDING


def test_a_block_of_a_model_used_in_two_places_is_one_block():
    inner_input = layers.Input((8, 8, 4))
    inner = tf_keras.Model(inner_input, block(inner_input, 4, "inside"), name="inner")
    inputs = layers.Input((8, 8, 4))
    x = layers.Conv2D(4, 3, padding="same")(wrapped(inner, "A")(inputs))
    x = layers.GlobalAveragePooling2D()(wrapped(inner, "B")(x))
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(x)))
    assert ehap.residual_blocks(model) == ["A/inner/inside"]
    x, y = data_of(model)
    short = ehap.remove_blocks(model, "A/inner/inside")
    order = ehap.rank_blocks(model, (x, y), LOSS)
    last = inner.get_layer("inside_last")
    gamma, beta, *statistics = last.get_weights()
    last.set_weights([0 * gamma, 0 * beta, *statistics])
    assert relative_error(short(x), model(x)) < ROUNDING
    assert order == {"A/inner/inside": pytest.approx(float(LOSS(y, model(x))), rel=1e-5)}


@pytest.mark.parametrize("batch_size", [5, pytest.param(None, marks=pytest.mark.families)])
def test_the_order_is_that_of_brute_force(net: tf_keras.Model, batch_size: int | None):
    x, y = data_of(net)
    reports: list[tuple[int, int]] = []
    order = ehap.rank_blocks(
        net, (x, y), LOSS, batch_size=batch_size, progress=lambda *a: reports.append(a[:2])
    )
    chosen: list[str] = []
    for name, loss in order.items():
        left = [one for one in ehap.residual_blocks(net) if one not in chosen]
        losses = {one: float(LOSS(y, with_zero_branches(net, [*chosen, one])(x))) for one in left}
        assert name == min(losses, key=losses.__getitem__)
        assert loss == pytest.approx(losses[name], rel=1e-5)
        chosen.append(name)
    assert chosen == list(order) and len(order) == 3
    assert reports == [(done, 6) for done in range(1, 7)]
    assert list(ehap.rank_blocks(net, (x, y), LOSS, count=2)) == chosen[:2]
    assert ehap.rank_blocks(net, (x, y), LOSS, count=0) == {}


def test_chosen_among_some(net: tf_keras.Model):
    x, y = data_of(net)
    order = ehap.rank_blocks(net, (x, y), LOSS, blocks=["three", "one"])
    alone = {one: float(LOSS(y, with_zero_branches(net, [one])(x))) for one in ("one", "three")}
    assert set(order) == {"one", "three"}
    assert next(iter(order.items())) == (
        min(alone, key=alone.get),
        pytest.approx(min(alone.values())),
    )
    both = float(LOSS(y, with_zero_branches(net, ["one", "three"])(x)))
    assert list(order.values())[1] == pytest.approx(both, rel=1e-5)
    assert ehap.rank_blocks(net, (x, y), LOSS, blocks="three") == {
        "three": pytest.approx(alone["three"])
    }
    with pytest.raises(ValueError, match=r"count must be from 0 to 1.*Received: 2"):
        ehap.rank_blocks(net, (x, y), LOSS, count=2, blocks=["one"])
    with pytest.raises(ValueError, match=r"one, two, three\. Received: wide"):
        ehap.rank_blocks(net, (x, y), LOSS, blocks=["one", "wide"])


@pytest.mark.parametrize("dtype", ["float32", "float64", "mixed_float16"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_sum_is_ranked_in_the_type_of_its_layers(dtype: str, policy: str):
    tf_keras.utils.set_random_seed(0)
    x = inputs = layers.Input((4, 4, 2))
    x = layers.Conv2D(2, 1, dtype=dtype)(x)
    x = x + layers.Conv2D(2, 3, padding="same", dtype=dtype)(x)
    # Beyond float16's range, unless that is the type.
    scale = 1.0 if dtype == "mixed_float16" else 1e6
    wide = layers.Rescaling(scale, dtype=dtype)(x)
    x = layers.Add(dtype=dtype, name="add")([x, wide])
    x = layers.GlobalAveragePooling2D(dtype=dtype)(x)
    x = layers.Rescaling(1 / scale, dtype=dtype)(x)
    model = tf_keras.Model(inputs, layers.Dense(2, dtype="float32")(x))
    operator, add = ehap.residual_blocks(model)
    data = data_of(model)
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        order = ehap.rank_blocks(model, data, LOSS)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert set(order) == {operator, add}
    removed: list[str] = []
    for name, loss in order.items():
        removed.append(name)
        short = ehap.remove_blocks(model, removed)
        assert loss == pytest.approx(float(LOSS(data[1], short(data[0]))), rel=1e-3)


def test_examples_count_by_their_weights(net: tf_keras.Model):
    x, y = data_of(net)
    weights = np.array([1.0] * 4 + [0.0] * 8, np.float32)
    weighted = ehap.rank_blocks(net, (x, y, weights), LOSS, batch_size=6)
    some = ehap.rank_blocks(net, (x[:4], y[:4]), LOSS)
    assert list(weighted) == list(some)
    assert list(weighted.values()) == pytest.approx(list(some.values()), rel=1e-5)


def test_a_block_without_which_the_loss_is_nan_stays():
    tf_keras.utils.set_random_seed(0)
    x = inputs = layers.Input((4, 4, 2))
    lifted = layers.Conv2D(2, 1, bias_initializer=tf_keras.initializers.Constant(9.0))(x)
    x = tf.sqrt(layers.Add(name="lifts")([x, lifted]))
    x = layers.Add(name="free")([x, layers.Conv2D(2, 1)(x)])
    model = tf_keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    x, y = data_of(model)
    expected = {"free": pytest.approx(float(LOSS(y, ehap.remove_blocks(model, "free")(x))))}
    assert ehap.rank_blocks(model, (x, y), LOSS, count=1) == expected
    with pytest.raises(ValueError, match=r"without each of lifts besides free; .* count=1"):
        ehap.rank_blocks(model, (x, y), LOSS)
    with pytest.raises(ValueError, match=r"without each of lifts; .* count=0"):
        ehap.rank_blocks(model, (x, y), LOSS, blocks="lifts")


def test_a_block_inside_a_removed_one_is_gone_with_it():
    tf_keras.utils.set_random_seed(0)
    x = inputs = layers.Input((8, 8, 4))
    inside = layers.Input((8, 8, 4))
    nested = tf_keras.Model(inside, block(inside, 4, "inner"), name="nested")
    harm = layers.Conv2D(4, 1, kernel_initializer="ones", name="harm")
    x = layers.Add(name="outer")([x, harm(nested(layers.Conv2D(4, 1)(x)))])
    x = layers.Add(name="last")([x, layers.Conv2D(4, 1, name="last_branch")(x)])
    model = shake(tf_keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x))))
    assert set(ehap.residual_blocks(model)) == {"nested/inner", "outer", "last"}
    harm.set_weights([30 * np.ones(w.shape) for w in harm.get_weights()])
    x, y = data_of(model)
    reports: list[tuple[int, int]] = []
    order = ehap.rank_blocks(
        model, (x, y), LOSS, count=2, progress=lambda *a: reports.append(a[:2])
    )
    assert list(order) == ["outer", "last"]
    assert reports == [(1, 5), (2, 5), (3, 5), (4, 4)]
    for names in (["outer"], ["outer", "last"]):
        loss = float(LOSS(y, ehap.remove_blocks(model, names)(x)))
        assert order[names[-1]] == pytest.approx(loss, rel=1e-5)
    assert ehap.rank_blocks(model, (x, y), LOSS) == pytest.approx(order)
    with pytest.raises(ValueError, match=r"at most 2 here: .* outer, last\. Received: 3"):
        ehap.rank_blocks(model, (x, y), LOSS, count=3)
    both = ehap.remove_blocks(model, ["nested/inner", "outer"])
    np.testing.assert_array_equal(both(x), ehap.remove_blocks(model, "outer")(x))


def test_several_outputs_each_with_its_loss(net: tf_keras.Model):
    both = tf_keras.Model(net.input, {"a": net.output, "b": net.get_layer("two_out").output})
    x, y = data_of(net)
    other = np.random.default_rng(2).normal(size=(len(x), 8, 8, 4)).astype(np.float32)
    order = ehap.rank_blocks(
        both, (x, {"a": y, "b": other}), {"a": LOSS, "b": "mse"}, count=1, batch_size=5
    )
    losses = {}
    for name in ehap.residual_blocks(both):
        outputs = ehap.remove_blocks(both, name)(x)
        mean_square = float(np.mean((outputs["b"] - other) ** 2))
        losses[name] = float(LOSS(y, outputs["a"])) + mean_square
    best = min(losses, key=losses.__getitem__)
    assert order == {best: pytest.approx(losses[best], rel=1e-5)}


def test_outputs_keep_their_names():
    tf_keras.utils.set_random_seed(0)
    x = inputs = layers.Input((4, 4, 2))
    x = first = layers.ReLU(name="first")(layers.Conv2D(2, 1)(x))
    x = total = layers.Add(name="total")([x, layers.Conv2D(2, 1)(x)])
    last = layers.ReLU(name="last")(x)
    model = tf_keras.Model(inputs, [first, total, last])
    x = batch(model)
    short = ehap.remove_blocks(model, "total")
    assert short.output_names == ["first", "total", "last"]
    for output in short(x):
        np.testing.assert_array_equal(output, short(x)[0])
    short.compile("sgd", dict.fromkeys(model.output_names, "mse"))
    short.fit(x, dict(zip(model.output_names, model(x), strict=True)), verbose=0)

    single = ehap.remove_blocks(tf_keras.Model(inputs, last), "total")
    assert single.output_names == ["last"]
    inner = tf_keras.Model(inputs, total, name="inner")
    outer = tf_keras.Sequential([layers.Input((4, 4, 2)), inner, layers.Flatten(name="flat")])
    inside = ehap.remove_blocks(outer, "inner/total").get_layer("inner")
    assert [layer.name for layer in inside.layers][-1] == "first"


def test_what_cannot_be_removed_is_said(net: tf_keras.Model):
    with pytest.raises(ValueError, match=r"one, two, three\. Received: wide, four"):
        ehap.remove_blocks(net, ["one", "wide", "four"])
    with pytest.raises(ValueError, match=r"count must be from 0 to 3.*Received: 4"):
        ehap.rank_blocks(net, data_of(net), LOSS, count=4)
    with pytest.raises(ValueError, match="loss must be given"):
        ehap.rank_blocks(net, data_of(net), count=1)


@pytest.mark.parametrize(
    ("x", "y", "loss", "message"),
    [
        ((2, 8, 8, 3), np.eye(3)[[0, 1]], LOSS, "data must hold class numbers.*one-hot"),
        ((2, 8, 8, 3), [0, 7], LOSS, r"labels must be in 0 to 2.*Received: 0 to 7"),
        ((2, 8, 8, 3), [0, -1], LOSS, r"labels must be in 0 to 2.*Received: -1 to 0"),
        ((2, 8, 8, 4), [0, 1], LOSS, r"data must hold inputs of shape \(None, 8, 8, 3\)"),
        ((2, 8, 8, 3), [0, 1], "sparse_categorical_crossentropy", "give the loss from_logits"),
        ((2, 8, 8, 3), [0, 1], "categorical_crossentropy", "data must hold one-hot labels"),
        ((2, 8, 8, 3), [0, 1], lambda y, p: tf.reduce_mean(p), "one value per example"),
        ((2, 8, 8, 3), [[np.nan] * 3] * 2, "mse", "loss must be finite"),
    ],
)
def test_what_does_not_fit_is_said_as_by_rank_filters(net: tf_keras.Model, x, y, loss, message):
    data = (np.zeros(x, np.float32), np.array(y))
    for rank in (ehap.rank_blocks, functools.partial(ehap.rank_filters, criterion="taylor_fo")):
        with pytest.raises(ValueError, match=message):
            rank(net, data, loss)


def test_weights_that_are_not_finite_are_refused(net: tf_keras.Model):
    data = data_of(net)
    kernel = net.get_layer("one_a").kernel
    kernel.assign(kernel * np.nan)
    with pytest.raises(ValueError, match=r"'one_a/kernel:0' .* NaN"):
        ehap.rank_blocks(net, data, LOSS)


def test_labels_by_name_and_probabilities_rank_the_same(net: tf_keras.Model):
    x, y = data_of(net)
    expected = pytest.approx(ehap.rank_blocks(net, (x, y), LOSS), rel=1e-4)
    (name,) = net.output_names
    assert ehap.rank_blocks(net, (x, {name: y}), {name: LOSS}) == expected
    softmax = tf_keras.Model(net.input, layers.Softmax()(net.output))
    assert ehap.rank_blocks(softmax, (x, y), "sparse_categorical_crossentropy") == expected


def test_the_rest_prunes_and_a_plan_fits_it(net: tf_keras.Model):
    short = ehap.remove_blocks(net, ["two"])
    scores = ehap.rank_filters(short, criterion="magnitude")
    plan = ehap.plan_pruning(short, scores, target_macs=0.5)
    slim, x = ehap.prune(short, plan), batch(net)
    assert relative_error(slim(x), ehap.mask(short, plan)(x)) < ROUNDING
    assert tf.reduce_all(tf.math.is_finite(slim(x)))
