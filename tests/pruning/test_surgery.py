import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.models import MODEL_NAMES, build_model
from ehap_tf.pruning import count_macs, count_parameters, mask, plan_pruning, prune
from tests.pruning.nets import (
    ROUNDING,
    Pair,
    batch,
    random_scores,
    relative_error,
    shake,
    small_residual_net,
    wrapped,
)

layers = tf_keras.layers


# Every kind of block once; the others are deeper or wider.
BLOCKS = ("resnet8", "resnet8a", "wrn16_4", "preresnet29", "vgg16")
# The deep ones take up to ten seconds each.
DEEP = [f"resnet{depth}{option}" for depth in (44, 56, 110) for option in ("", "a")]
AMOUNTS = [
    pytest.param(name, ratio, marks=() if name in BLOCKS and ratio == 0.6 else pytest.mark.families)
    for name in MODEL_NAMES
    for ratio in ([0.6] if name in DEEP else [0.3, 0.6, 0.9])
]


@pytest.fixture(scope="module")
def built_in(request):
    model = shake(build_model(request.param))
    x = batch(model)
    return model, random_scores(model), x, model(x)


@pytest.mark.parametrize("residual", ["union", "tied"])
@pytest.mark.parametrize(("built_in", "prune_ratio"), AMOUNTS, indirect=["built_in"])
def test_slim_model_equals_masked_model(built_in, residual, prune_ratio):
    model, scores, x, whole = built_in
    plan = plan_pruning(model, scores, prune_ratio=prune_ratio, residual=residual)
    slim = prune(model, plan)
    masked = mask(model, plan)(x)
    # A masked model that masks nothing would agree with an unpruned one.
    assert relative_error(masked, whole) > 1e-3
    assert relative_error(slim(x), masked) < 2e-5
    assert count_parameters(slim) == plan.params_after < count_parameters(model)
    assert count_macs(slim) == plan.macs_after < count_macs(model)


def test_brute_force_oracle_of_a_residual_net():
    """What the slim model computes, written out in numpy on the weights of the original."""
    model = small_residual_net()
    plan = plan_pruning(model, random_scores(model, 3), prune_ratio=0.4)
    x = batch(model)
    value = {name: np.zeros(model.get_layer(name).filters) for name in ("stem", "a", "b")}
    for name, flags in value.items():
        flags[plan.kept[name]] = 1

    def run(name, tensor):
        return np.asarray(model.get_layer(name)(tensor))

    stem = run("stem_relu", run("stem_bn", run("stem", x)) * value["stem"])
    a = run("a_relu", run("a_bn", run("a", stem)) * value["a"])
    b = run("b_bn", run("b", a)) * value["b"]
    truth = run("logits", run("pool", run("out", [b + stem][0])))
    assert relative_error(prune(model, plan)(x), truth) < ROUNDING


def test_original_is_untouched_bit_for_bit():
    model = small_residual_net()
    model.compile("sgd", "mse")
    optimizer, weights = model.optimizer, model.get_weights()
    config = model.get_config()
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    prune(model, plan)
    mask(model, plan)
    assert model.optimizer is optimizer
    assert model.get_config() == config
    assert all((a == b).all() for a, b in zip(weights, model.get_weights(), strict=True))
    assert all(len(layer.inbound_nodes) == 1 for layer in model.layers)


def test_nothing_removed_gives_the_same_model():
    model = small_residual_net()
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.0)
    slim = prune(model, plan)
    assert [layer.name for layer in slim.layers] == [layer.name for layer in model.layers]
    assert (np.asarray(slim(batch(model))) == np.asarray(model(batch(model)))).all()


def test_pruning_twice_works_and_leaves_no_stale_scatter():
    model = small_residual_net()
    once = prune(model, plan_pruning(model, random_scores(model, 1), prune_ratio=0.3))
    plan = plan_pruning(once, random_scores(once, 2), prune_ratio=0.4)
    twice = prune(once, plan)
    x = batch(model)
    assert relative_error(twice(x), mask(once, plan)(x)) < ROUNDING
    assert count_parameters(twice) == plan.params_after < count_parameters(once)


@pytest.mark.parametrize("suffix", [".keras", ".h5", ""])
def test_slim_model_survives_saving(tmp_path, suffix):
    model = small_residual_net()
    slim = prune(model, plan_pruning(model, random_scores(model, 1), prune_ratio=0.4))
    assert any("scatter" in layer.name for layer in slim.layers)
    path = str(tmp_path / f"slim{suffix}")
    slim.save(path)
    loaded = tf_keras.models.load_model(path, compile=False)
    x = batch(model)
    assert (np.asarray(loaded(x)) == np.asarray(slim(x))).all()


def test_names_flags_policies_and_regularizers_stay():
    inputs = layers.Input((6, 6, 3), name="image")
    x = layers.Conv2D(
        4, 3, name="c", kernel_regularizer="l2", kernel_constraint="max_norm", trainable=False
    )(inputs)
    x = layers.Conv2D(4, 3, name="half", dtype="mixed_float16")(x)
    out = layers.Dense(2, name="scores", dtype="float32")(layers.Flatten(name="flat")(x))
    model = tf_keras.Model(inputs, out, name="mine")
    slim = prune(model, plan_pruning(model, random_scores(model), prune_ratio=0.5))
    assert slim.name == "mine"
    assert slim.output_names == ["scores"]
    assert slim.input_names == ["image"]
    assert not slim.get_layer("c").trainable
    assert isinstance(slim.get_layer("c").kernel_regularizer, tf_keras.regularizers.L2)
    assert isinstance(slim.get_layer("c").kernel_constraint, tf_keras.constraints.MaxNorm)
    assert slim.get_layer("half").dtype_policy.name == "mixed_float16"
    assert slim.get_layer("c").filters < 4 or slim.get_layer("half").filters < 4


def test_a_layer_made_of_layers_keeps_its_weights_and_which_of_them_train():
    inputs = layers.Input((6, 6, 3))
    x = Pair(name="pair")(layers.Conv2D(4, 3, name="c")(inputs))
    x = layers.Conv2D(6, 1, name="d")(x)
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    pair = model.get_layer("pair")
    pair.first.trainable = pair.norm.trainable = False
    scores = {layer: values + 1 for layer, values in random_scores(model).items()}
    scores["d"][2] = 0
    slim = prune(model, plan_pruning(model, scores, prune_ratio=0.01))
    assert slim.get_layer("d").filters == 5
    copy = slim.get_layer("pair")
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 4)).astype(np.float32)
    assert (np.asarray(copy(x)) == np.asarray(pair(x))).all()
    assert [part.trainable for part in (copy.first, copy.second, copy.norm)] == [
        False, True, False,
    ]  # fmt: skip


def test_an_output_padded_with_zero_channels_keeps_its_name():
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(4, 3, name="c")(inputs)
    padded = tf.pad(x, [[0, 0], [0, 0], [0, 0], [1, 2]])
    scores = layers.Dense(2, name="scores")(layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(x)))
    model = shake(tf_keras.Model(inputs, [padded, scores]))
    plan = plan_pruning(model, random_scores(model, 1), prune_ratio=0.4)
    slim = prune(model, plan)
    assert slim.output_names == model.output_names
    x = batch(model)
    for received, expected in zip(slim(x), mask(model, plan)(x), strict=True):
        assert relative_error(received, expected) < ROUNDING


def test_what_a_user_wrote_is_handed_on_without_a_registration():
    class Small(tf_keras.regularizers.Regularizer):
        def __call__(self, weight):
            return 0.5 * tf.reduce_sum(tf.square(weight))

        def get_config(self):
            return {}

    class Positive(tf_keras.constraints.Constraint):
        def __call__(self, weight):
            return tf.abs(weight)

    def wave(x):
        return tf.sin(x) + 0.5

    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(
        6, 3, name="c", activation=wave, kernel_regularizer=Small(), kernel_constraint=Positive()
    )(inputs)  # fmt: skip
    x = layers.Conv2D(6, 3, name="d", activation=layers.LeakyReLU(0.3))(x)
    model = shake(tf_keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.4)
    slim, x = prune(model, plan), batch(model)
    assert len(plan.kept["c"]) < 6 and len(plan.kept["d"]) < 6
    assert relative_error(slim(x), mask(model, plan)(x)) < ROUNDING
    assert slim.get_layer("c").activation is wave
    assert isinstance(slim.get_layer("c").kernel_constraint, Positive)
    kernel = slim.get_layer("c").kernel
    assert float(slim.losses[0]) == pytest.approx(float(Small()(kernel)))
    assert slim.get_layer("d").activation is not model.get_layer("d").activation


@pytest.mark.parametrize("outside", [False, True])
def test_a_model_used_in_two_places_stays_one_model(outside):
    """The oracle is the original with zeros for the filters that go."""
    inner = tf_keras.Sequential(
        [
            layers.Input((6, 6, 4)),
            layers.Conv2D(6, 3, padding="same", activation="relu", name="wide"),
            layers.Conv2D(4, 3, padding="same", name="narrow"),
        ],
        name="inner",
    )
    inputs = layers.Input((6, 6, 4))
    x = inner(inputs) if outside else wrapped(inner, "A")(inputs)
    x = wrapped(inner, "B")(layers.Conv2D(4, 1, name="between")(x))
    model = shake(tf_keras.Model(inputs, layers.Dense(3, name="logits")(layers.Flatten()(x))))
    path = "inner" if outside else "A/inner"
    scores = {layer: values + 1 for layer, values in random_scores(model).items()}
    assert set(scores) == {f"{path}/wide", f"{path}/narrow", "between", "logits"}
    scores[f"{path}/wide"] = np.array([9.0, 0.1, 9.0, 0.2, 0.3, 9.0])
    plan = plan_pruning(model, scores, prune_ratio=2.5 / 17)
    assert plan.kept[f"{path}/wide"].tolist() == [0, 2, 5]
    slim, x = prune(model, plan), batch(model)
    assert relative_error(slim(x), mask(model, plan)(x)) < ROUNDING
    assert count_parameters(slim) == plan.params_after == count_parameters(model) - 3 * (37 + 36)
    kernel, bias = inner.get_layer("wide").get_weights()
    stays = np.array([1, 0, 1, 0, 0, 1])
    inner.get_layer("wide").set_weights([kernel * stays, bias * stays])
    assert relative_error(slim(x), model(x)) < ROUNDING


def test_sequential_stays_sequential():
    model = tf_keras.Sequential(
        [
            layers.Input((8, 8, 3)),
            layers.Conv2D(6, 3, name="c1", activation="sigmoid"),
            layers.MaxPooling2D(name="p"),
            layers.Flatten(name="f"),
            layers.Dense(8, name="d1", activation="relu"),
            layers.Dense(3, name="d2"),
        ]
    )
    plan = plan_pruning(model, random_scores(model), prune_ratio=0.5)
    slim = prune(model, plan)
    assert isinstance(slim, tf_keras.Sequential)
    assert [layer.name for layer in slim.layers] == [layer.name for layer in model.layers]
    assert relative_error(slim(batch(model)), mask(model, plan)(batch(model))) < ROUNDING


def test_masks_of_sequences_get_through():
    """What a removed channel's place holds is zero; words that are not there count nowhere."""
    inputs = layers.Input((5,), dtype="int32")
    x = layers.Embedding(9, 4, mask_zero=True, name="words")(inputs)
    a = layers.Dense(8, activation="sigmoid", name="a")(x)
    b = layers.Dense(8, activation="relu", name="b")(x)
    x = layers.GlobalAveragePooling1D(name="pool")(layers.Add(name="sum")([a, b]))
    model = shake(tf_keras.Model(inputs, layers.Dense(3, name="logits")(x)))
    words = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 0, 0]])
    plan = plan_pruning(model, random_scores(model, 1), prune_ratio=0.5)
    slim, masked = prune(model, plan), mask(model, plan)
    assert any("scatter" in layer.name for layer in slim.layers)
    embedded = np.asarray(model.get_layer("words")(words))
    parts = []
    for name in "ab":
        stays = np.isin(np.arange(8), plan.kept[name])
        parts.append(np.asarray(model.get_layer(name)(embedded)) * stays)
    there = (words != 0)[..., None]
    pooled = (sum(parts) * there).sum(1) / there.sum(1)
    truth = model.get_layer("logits")(pooled)
    assert relative_error(masked(words), truth) < ROUNDING
    assert relative_error(slim(words), truth) < ROUNDING


def in_frames():
    """A network with a residual sum in each frame, and layers of TimeDistributed around it."""
    image = layers.Input((6, 6, 4))
    x = layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = layers.GlobalMaxPooling2D()(layers.Add()([x, image]))
    inside = tf_keras.Model(image, layers.Dense(5, name="dense")(x))
    inputs = layers.Input((3, 6, 6, 2))
    x = layers.TimeDistributed(layers.Conv2D(4, 3, padding="same", name="conv"), name="stem")(
        inputs
    )
    x = layers.TimeDistributed(layers.BatchNormalization(), name="norm")(x)
    x = layers.TimeDistributed(inside, name="frames")(layers.ReLU()(x))
    x = layers.LSTM(4)(layers.TimeDistributed(layers.Dense(6, "sigmoid", name="in"), name="mix")(x))
    return shake(tf_keras.Model(inputs, layers.Dense(3, name="out")(x)))


@pytest.mark.parametrize("residual", ["union", "tied"])
def test_what_is_distributed_over_time_is_cut(residual, tmp_path):
    model = in_frames()
    x, paths = batch(model), ["stem/conv", "frames/conv", "frames/dense", "mix/in"]
    widths = {path: len(values) for path, values in random_scores(model).items() if path != "out"}
    assert list(widths) == paths
    scores = {path: np.arange(width) / width for path, width in widths.items()}
    plan = plan_pruning(model, scores, prune_ratio=0.4, residual=residual)
    assert all(len(plan.kept[path]) < len(scores[path]) for path in paths)
    slim, masked = prune(model, plan), mask(model, plan)(x)
    assert relative_error(masked, model(x)) > 1e-3
    assert relative_error(slim(x), masked) < ROUNDING
    assert count_parameters(slim) == slim.count_params() == plan.params_after
    assert count_macs(slim) == plan.macs_after < count_macs(model)
    assert type(slim.get_layer("mix").layer) is layers.Dense
    slim.save(tmp_path / "slim.keras")
    again = tf_keras.models.load_model(tmp_path / "slim.keras")
    np.testing.assert_array_equal(again(x), slim(x))
    assert list(random_scores(again)) == [*paths, "out"]


def test_what_is_distributed_over_time_is_looked_at_without_a_trace():
    """The caller's layer is called nowhere but by the caller."""
    inputs = layers.Input((3, 6))
    inner, read = layers.Dense(5, name="inner"), layers.Dense(2, name="read")
    x = layers.TimeDistributed(inner, name="steps")(inputs)
    model = shake(tf_keras.Model(inputs, layers.Flatten()(layers.TimeDistributed(read)(x))))
    plan = plan_pruning(model, {"steps/inner": np.arange(5.0)}, prune_ratio=0.4)
    slim = prune(model, plan)
    assert relative_error(slim(batch(model)), mask(model, plan)(batch(model))) < ROUNDING
    assert len(inner.inbound_nodes) == len(read.inbound_nodes) == 0
    # What the caller does with it afterwards is the caller's own.
    alone = layers.Input((6,))
    other = tf_keras.Model(alone, inner(alone))
    assert inner.input is alone and len(inner.inbound_nodes) == 1
    again = plan_pruning(model, {"steps/inner": np.arange(5.0)}, prune_ratio=0.4)
    np.testing.assert_array_equal(again.kept["steps/inner"], plan.kept["steps/inner"])
    assert tf_keras.Model.from_config(other.get_config()).count_params() == 35


def test_a_layer_in_two_time_distributed_is_cut_once():
    """The second time on the outputs of the first, so that its inputs and units are the same."""
    shared, inputs = layers.Dense(6, name="shared"), layers.Input((3, 6))
    x = layers.TimeDistributed(layers.Dense(6, name="first"), name="a")(inputs)
    x = layers.TimeDistributed(shared, name="c")(layers.TimeDistributed(shared, name="b")(x))
    model = shake(tf_keras.Model(inputs, layers.Dense(2, name="out")(shared(x))))
    scores = {"a/first": np.arange(6.0), "b/shared": np.arange(6.0)}
    plan = plan_pruning(model, scores, prune_ratio=0.5)
    slim, x = prune(model, plan), batch(model)
    assert len(plan.kept["b/shared"]) < 6
    assert relative_error(slim(x), mask(model, plan)(x)) < ROUNDING
    assert slim.get_layer("b").layer is slim.get_layer("c").layer is slim.get_layer("shared")


def test_subclassed_model_is_refused():
    class Mine(tf_keras.Model):
        def call(self, x):
            return x

    with pytest.raises(TypeError, match="Functional or Sequential"):
        plan_pruning(Mine(), {}, prune_ratio=0.5)
