"""From a float net to a file and back: the file computes what the QAT model computes."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.channels import ScatterChannels
from ehap_tf.files import CorruptFileError
from ehap_tf.graph import batch_norms
from ehap_tf.quantization import (
    evaluate_tflite,
    export_float_tflite,
    export_tflite,
    freeze_batch_norm,
    load_qat,
    measure_latency_ms,
    quantize,
    save_qat,
)
from ehap_tf.quantization.tflite import integer_graph
from ehap_tf.quantization.tflite.evaluate import TFLiteModel
from tests.pruning.nets import computed
from tests.quantization.nets import NETS, SHAPE, build, images, randomize, side_by_side

layers = tf_keras.layers


def union_net() -> tf_keras.Model:
    """A residual sum of three narrow channels and six, as union pruning leaves it."""
    rng = np.random.default_rng(0)
    x = inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(6, 3, padding="same", use_bias=False)(x)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(3, 3, padding="same", use_bias=False)(x)
    y = ScatterChannels([4, 0, 3], 6)(layers.BatchNormalization()(y))
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.GlobalAveragePooling2D()(x)
    model = tf_keras.Model(inputs, layers.Dense(4, name="logits")(x))
    for weight in model.weights:
        noise = 0.3 * rng.standard_normal(weight.shape).astype(np.float32)
        weight.assign(np.abs(weight.numpy() + noise) if "variance" in weight.name else noise)
    return model


@pytest.fixture(scope="module")
def qat() -> tf_keras.Model:
    return quantize(union_net(), representative_data=(images(),))


@pytest.fixture(scope="module")
def exported(qat, tmp_path_factory):
    return export_tflite(qat, tmp_path_factory.mktemp("file") / "net.tflite")


def test_file_is_integer_and_scatter_is_gone(exported):
    assert exported.float_operators == ()
    assert set(exported.operators) == {"CONV_2D", "ADD", "MEAN", "FULLY_CONNECTED"}
    assert (exported.input.dtype, exported.output.dtype) == ("int8", "int8")
    assert exported.input.shape == (1, 8, 8, 3)
    assert set(exported.tensor_types) == {"INT8", "INT32"}
    assert exported.bytes == exported.path.stat().st_size


def test_file_agrees_with_qat_model_to_one_step(qat, exported):
    expected = computed(qat, images())
    received = TFLiteModel(exported.path)(images())
    assert np.abs(received - expected).max() <= 1.001 * exported.output.scale
    assert np.mean(np.abs(received - expected) < 1e-4) > 0.8


def small(x, gain=0.2):
    """A branch whose range is much smaller than `large`'s, and one of its own."""
    start = tf_keras.initializers.RandomNormal(stddev=gain)
    return layers.Conv2D(4, 1, kernel_initializer=start)(x)


def large(x):
    return small(x, gain=2.0)


def average(x):
    return layers.AveragePooling2D(3, 1, padding="same")(x)


def moved(x):
    return layers.UpSampling2D(2)(layers.MaxPooling2D(2)(layers.ReLU()(x)))


def concat(*tensors):
    return layers.Concatenate()(tensors)


ONE_GRID = {
    "two ranges": (lambda x: concat(small(x), large(x)), 0),
    "moved": (lambda x: concat(moved(small(x)), large(x)), 0),
    "nested": (lambda x: concat(concat(small(x), small(x, 1.0)), large(x)), 0),
    "another reader": (lambda x: concat(x, large(x)), 1),
    "read twice": (lambda x: (lambda y: concat(y, y, large(x)))(small(x)), 0),
    "prescribed": (lambda x: concat(layers.Activation("sigmoid")(small(x)), large(x)), 1),
    "limit": (lambda x: concat(layers.ReLU(6.0)(small(x, 3.0)), small(x, 9.0)), 0),
    "another limit": (lambda x: concat(layers.ReLU(1.5)(small(x, 3.0)), small(x, 9.0)), 0),
    "hard sigmoid": (
        lambda x: concat(layers.Activation("hard_sigmoid")(small(x, 3.0)), small(x, 9.0)),
        0,
    ),
    "maximum": (lambda x: layers.Maximum()([small(x), large(x)]), 0),
    "minimum": (lambda x: layers.Minimum()([small(x), large(x)]), 0),
    "average": (lambda x: concat(average(small(x)), large(x)), 1),
    "half-way averages": (lambda x: layers.AveragePooling2D(2)(x), 0),
}


@pytest.mark.parametrize("name", ONE_GRID)
def test_operators_with_one_grid_read_what_was_written_on_it(name, tmp_path):
    """Neither an own range that the file does not have nor a rounding the other way."""
    merge, conversions = ONE_GRID[name]
    tf_keras.utils.set_random_seed(0)
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    model = tf_keras.Model(inputs, layers.Conv2D(4, 3)(merge(x)))
    qat = quantize(model, representative_data=(images(),))
    exported = export_tflite(qat, tmp_path / "net.tflite")
    assert exported.operators.get("QUANTIZE", 0) == conversions
    # Other images than those that set the ranges, larger ones among them.
    x = 1.2 * images(256, seed=7)
    difference = np.abs(TFLiteModel(exported.path)(x) - computed(qat, x))
    # The kernels of a conversion are not exact, and differ among themselves.
    assert conversions or difference.mean() <= 0.01 * exported.output.scale


def test_evaluation_counts_matches(qat, exported):
    labels = computed(qat, images()).argmax(1)
    labels[:16] = (labels[:16] + 1) % 4
    assert evaluate_tflite(exported.path, (images(), labels)) == pytest.approx(0.75, abs=0.03)
    assert measure_latency_ms(exported.path, runs=5) > 0


def test_quantize_leaves_the_model_alone():
    model = union_net()
    before = [weight.numpy() for weight in model.weights]
    names = [layer.name for layer in model.layers]
    quantize(model, representative_data=(images(16),))
    assert all((a == b.numpy()).all() for a, b in zip(before, model.weights, strict=True))
    assert names == [layer.name for layer in model.layers]


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_qat_model_survives_the_disk(suffix, tmp_path):
    """Layers that are not trainable (the identity before a BatchNorm), shared ones, slopes."""
    names = ["parts", "pre_activation", "pools", "prelu"]
    qat = quantize(side_by_side(NETS, names, SHAPE), representative_data=(images(),))
    save_qat(qat, tmp_path / f"qat.{suffix}")
    loaded = load_qat(tmp_path / f"qat.{suffix}")
    pairs = zip(names, computed(loaded, images()), computed(qat, images()), strict=True)
    for name, received, expected in pairs:
        np.testing.assert_array_equal(received, expected, err_msg=name)
    trainable = [weight.shape for weight in qat.trainable_weights]
    assert [weight.shape for weight in loaded.trainable_weights] == trainable


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_frozen_qat_model_survives_the_disk(suffix, tmp_path):
    qat = quantize(build("union_block"), representative_data=(images(),))
    variables = [weight.shape for weight in qat.trainable_variables]
    freeze_batch_norm(qat)
    save_qat(qat, tmp_path / f"qat.{suffix}")
    loaded = load_qat(tmp_path / f"qat.{suffix}")
    assert (computed(loaded, images()) == computed(qat, images())).all()
    # Gamma and beta train on, the statistics stand.
    assert [weight.shape for weight in loaded.trainable_variables] == variables
    norms = batch_norms(loaded)
    assert norms and not any(norm.trainable for norm in norms)
    save_qat(loaded, tmp_path / f"again.{suffix}")
    again = load_qat(tmp_path / f"again.{suffix}")
    assert [weight.shape for weight in again.trainable_variables] == variables
    for norm in norms:
        norm.trainable = True
    save_qat(loaded, tmp_path / f"thawed.{suffix}")
    assert all(norm.trainable for norm in batch_norms(load_qat(tmp_path / f"thawed.{suffix}")))


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_what_is_before_a_stopped_gradient_does_not_train(suffix, tmp_path):
    """The file is that of the net without it."""
    nets = []
    for stop in (tf.stop_gradient, tf.identity):
        inputs = layers.Input((8, 8, 3))
        x = stop(layers.Conv2D(4, 3, activation="relu", name="before")(inputs))
        x = layers.Flatten()(layers.Conv2D(4, 3, name="behind")(x))
        net = randomize(tf_keras.Model(inputs, layers.Dense(3)(x)))
        nets.append(quantize(net, representative_data=(images(),)))
    file, expected = (export_tflite(qat, tmp_path / f"{qat.name}.tflite") for qat in nets)
    assert file.operators == expected.operators
    np.testing.assert_array_equal(*(TFLiteModel(f.path)(images()) for f in (file, expected)))
    save_qat(nets[0], tmp_path / f"qat.{suffix}")
    for qat in (nets[0], load_qat(tmp_path / f"qat.{suffix}")):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(qat(images(), training=True))
        weights = qat.trainable_weights
        gradients = zip(weights, tape.gradient(loss, weights), strict=True)
        assert [weight.shape for weight, gradient in gradients if gradient is None] == [
            (3, 3, 3, 4),
            (4,),
        ]
        assert len(weights) == 6


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_global_policy_is_not_followed(policy, tmp_path):
    """A quantized model computes in float32, where it is made, read and exported."""
    float32 = quantize(build("pools"), representative_data=(images(),))
    expected = computed(float32, images())
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        qat = quantize(build("pools"), representative_data=(images(),))
        assert {layer.compute_dtype for layer in qat.layers} == {"float32"}
        assert (computed(qat, images()) == expected).all()
        for name in ("qat.h5", "qat.keras"):
            save_qat(qat, tmp_path / name)
            loaded = load_qat(tmp_path / name)
            assert {layer.compute_dtype for layer in loaded.layers} == {"float32"}
            assert (computed(loaded, images()) == expected).all()
        file = export_tflite(qat, tmp_path / "net.tflite")
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert file.float_operators == ()
    difference = TFLiteModel(file.path)(images()) - computed(qat, images())
    assert np.abs(difference).mean() <= 0.5 * file.output.scale


def test_truncated_files_are_named(qat, exported, tmp_path):
    save_qat(qat, tmp_path / "qat.h5")
    half = tmp_path / "half.h5"
    whole = (tmp_path / "qat.h5").read_bytes()
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CorruptFileError, match=r"half\.h5"):
        load_qat(half)
    cut = tmp_path / "cut.tflite"
    cut.write_bytes(exported.path.read_bytes()[: exported.bytes // 2])
    with pytest.raises(CorruptFileError, match=r"cut\.tflite"):
        evaluate_tflite(cut, (images(), np.zeros(64, int)))


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_the_file_of_a_float_model_is_not_taken_for_a_quantized_one(suffix, tmp_path):
    path = tmp_path / f"float.{suffix}"
    tf_keras.Sequential([layers.Input((4,)), layers.Dense(2)]).save(path)
    with pytest.raises(CorruptFileError, match=rf"float\.{suffix}.*no layer of it is quantized"):
        load_qat(path)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_layer_class_that_was_not_registered_is_named(suffix, tmp_path):
    class Own(layers.Layer):
        def call(self, inputs):
            return inputs * inputs

    model = tf_keras.Sequential([layers.Input((8, 8, 3)), layers.Flatten(), Own(), layers.Dense(4)])
    save_qat(quantize(model, allow_float=True), tmp_path / f"qat.{suffix}")
    with pytest.raises(ValueError, match=r"is not known here .*register_keras") as caught:
        load_qat(tmp_path / f"qat.{suffix}")
    assert not isinstance(caught.value, CorruptFileError)


def test_wrong_inputs_are_named(exported, tmp_path):
    with pytest.raises(ValueError, match=r"\(8, 8, 3\)"):
        evaluate_tflite(exported.path, (np.zeros((2, 9, 8, 3), np.float32), np.zeros(2, int)))
    with pytest.raises(ValueError, match="2 NaN or infinite"):
        x = images()
        x[3, 1, 1, 0], x[60, 0, 0, 2] = np.nan, np.inf
        evaluate_tflite(exported.path, (x, np.zeros(64, int)))
    with pytest.raises(ValueError, match="empty"):
        evaluate_tflite(exported.path, (np.zeros((0, 8, 8, 3), np.float32), np.zeros(0, int)))
    with pytest.raises(FileNotFoundError):
        evaluate_tflite(tmp_path / "absent.tflite", (images(), np.zeros(64, int)))


def test_uncalibrated_model_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="representative_data"):
        export_tflite(quantize(union_net()), tmp_path / "net.tflite")


def test_unwritable_path_is_noticed_first(qat, tmp_path):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "net.tflite", tmp_path / "folder"):
        with pytest.raises(OSError):
            export_tflite(qat, path)


@pytest.mark.parametrize("name", ["union_block", "augmented"])
def test_float_file_is_the_float_model(name, tmp_path):
    model = build(name)
    file = export_float_tflite(model, tmp_path / "float.tflite")
    received = TFLiteModel(file.path)(images(8))
    np.testing.assert_allclose(received, computed(model, images(8)), atol=1e-4)


def test_folding_a_scatter_changes_no_bit(qat, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(integer_graph.IntegerGraph, "_find_foldable_scatters", lambda self: {})
    unfolded = export_tflite(qat, tmp_path / "unfolded.tflite")
    assert sum(unfolded.operators.values()) > sum(exported.operators.values())
    outputs = [TFLiteModel(path)(images()) for path in (exported.path, unfolded.path)]
    np.testing.assert_array_equal(*outputs)


def test_a_wide_scatter_is_gathered(tmp_path, monkeypatch):
    """Bit for bit what the selection convolution of a narrow one computes, without its weights."""
    qat = quantize(build("scatter_scattered"), representative_data=(images(),))
    selected = export_tflite(qat, tmp_path / "selected.tflite")
    monkeypatch.setattr(integer_graph, "LARGEST_SELECTION", 4 * 6 - 1)
    gathered = export_tflite(qat, tmp_path / "gathered.tflite")
    assert "GATHER" not in selected.operators and gathered.operators["GATHER"] == 1
    assert gathered.operators["CONV_2D"] == selected.operators["CONV_2D"] - 1
    assert gathered.float_operators == ()
    outputs = [TFLiteModel(file.path)(images()) for file in (selected, gathered)]
    np.testing.assert_array_equal(*outputs)
