"""Models with several inputs, from the calibration to the file's accuracy."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.quantization import (
    TFLiteModel,
    evaluate_tflite,
    export_tflite,
    measure_latency_ms,
    quantization_report,
    quantize,
)
from ehap_tf.quantization.tflite.inputs import input_batches
from ehap_tf.quantization.tflite.output_grids import output_range
from tests.pruning.nets import computed
from tests.quantization.nets import SHAPE, conv_norm, images, layers, randomize

X = {
    "vector": np.random.default_rng(0).standard_normal((64, 5)).astype(np.float32),
    "image": images(),
    "other": images(seed=2),
}
"""In the order of the model's inputs, which is neither that of their names nor the file's."""
LABELS = np.zeros(64, int)


def model(as_dict: bool = False) -> tf_keras.Model:
    inputs = {name: layers.Input(x.shape[1:], name=name) for name, x in X.items()}
    parts = [layers.GlobalAveragePooling2D()(conv_norm(inputs[n])) for n in ("other", "image")]
    y = layers.Dense(4)(layers.Concatenate()([*parts, layers.Dense(3)(inputs["vector"])]))
    return randomize(tf_keras.Model(inputs if as_dict else list(inputs.values()), y))


def as_dataset(x):
    return tf.data.Dataset.from_tensor_slices((x, LABELS)).batch(64)


FORMS = {
    "list": (list(X.values()), LABELS),
    "tuple": (tuple(X.values()), LABELS),
    "dict": (X, LABELS),
    "dict without labels": X,
    "dataset": as_dataset(tuple(X.values())),
    "dataset of dicts": as_dataset(X),
}


@pytest.fixture(scope="module")
def qat():
    return quantize(model(), representative_data=FORMS["dict"])


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_several_inputs_calibrates_alike(form):
    qat = quantize(model(), method="ptq", representative_data=FORMS[form])
    for name, x in X.items():
        low, high = output_range(qat.get_layer(f"{name}_quantize"))
        assert low == pytest.approx(x.min(), rel=1e-6)
        assert high == pytest.approx(x.max(), rel=1e-6)


@pytest.mark.parametrize("option", ["reestimate", "bias_correction"])
def test_every_form_of_several_inputs_corrects_alike(qat, option):
    def corrected(form):
        options = {"representative_data": FORMS[form], option: True}
        return quantize(model(), method="ptq", **options).get_weights()

    expected = corrected("list")
    assert any(np.any(a != b) for a, b in zip(expected, qat.get_weights(), strict=True))
    for form in ("dict", "dict without labels"):
        for a, b in zip(corrected(form), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("given", "asked", "sizes"),
    [
        (1, 9, [1]),
        (128, 2048, [128]),
        (129, 2048, [65, 64]),
        (300, 200, [100, 100]),
        (300, None, [100, 100, 100]),
    ],
)
def test_arrays_are_cut_into_batches_of_about_one_size(given, asked, sizes):
    network = tf_keras.Sequential([layers.Input((2,)), layers.Dense(1)])
    x = np.arange(2.0 * given).reshape(given, 2)
    batches = [batch for (batch,) in input_batches(network, (x,), asked)]
    assert [len(batch) for batch in batches] == sizes
    np.testing.assert_array_equal(np.concatenate(batches), x[: sum(sizes)])


def test_examples_of_datasets_are_counted_not_batches():
    network = tf_keras.Sequential([layers.Input((2,)), layers.Dense(1)])
    x = np.arange(40.0, dtype=np.float32).reshape(20, 2)
    for size in (1, 3, 20, 50):
        dataset = tf.data.Dataset.from_tensor_slices(x).batch(size).repeat()
        batches = [batch for (batch,) in input_batches(network, dataset, 17)]
        np.testing.assert_array_equal(np.concatenate(batches), x[:17])


def test_a_model_of_one_batch_size_is_given_arrays(tmp_path):
    inputs = layers.Input(images().shape[1:], batch_size=1)
    x = tf.reshape(conv_norm(inputs), (1, -1))
    qat = quantize(tf_keras.Model(inputs, layers.Dense(4)(x)), representative_data=(images(),))
    assert qat.predict(images(), batch_size=64, verbose=0).shape == (64, 4)
    assert export_tflite(qat, tmp_path / "net.tflite", data=(images(),)).difference < 1.0


def test_the_file_takes_its_inputs_by_name(qat, tmp_path):
    file = export_tflite(qat, tmp_path / "net.tflite", data=FORMS["list"])
    assert file.difference < 1.0
    expected = computed(qat, list(X.values()))
    received = TFLiteModel(file.path)(X)

    def steps(outputs):
        return np.abs(outputs - expected).mean() / file.output.scale

    swapped = TFLiteModel(file.path)({**X, "image": X["other"], "other": X["image"]})
    assert steps(received) < 1.0 and steps(swapped) > 5.0
    labels = received.argmax(1)
    labels[:16] = (labels[:16] + 1) % 4
    assert evaluate_tflite(file.path, (X, labels)) == 0.75
    # The weights are a share of examples, as in Keras' weighted_metrics.
    weights = np.where(np.arange(64) < 16, 3.0, 1.0)
    assert evaluate_tflite(file.path, (X, labels, weights)) == 48 / 96
    batches = tf.data.Dataset.from_tensor_slices((X, labels, weights[:, None])).batch(24)
    assert evaluate_tflite(file.path, batches) == 48 / 96
    with pytest.raises(ValueError, match="sample_weight must be finite and not negative"):
        evaluate_tflite(file.path, (X, labels, -weights))
    assert measure_latency_ms(file.path, runs=2) > 0
    for x in (tuple(X.values()), images(), {**X, "more": images()}):
        with pytest.raises(ValueError, match=r"dict of arrays with the keys \['image', 'other', "):
            TFLiteModel(file.path)(x)


def test_numbers_may_be_sorted_or_hardly_vary(tmp_path):
    image, angle = layers.Input((8, 8, 3), name="image"), layers.Input((1,), name="angle")
    x = layers.Concatenate()([layers.GlobalAveragePooling2D()(conv_norm(image)), angle])
    angles = np.linspace(-1.0, 1.0, 64, dtype=np.float32)[:, None]
    net = randomize(tf_keras.Model([image, angle], layers.Dense(4)(x)))
    mixed = np.random.default_rng(0).permutation(angles)
    qat = quantize(net, representative_data={"image": images(), "angle": mixed})
    file = export_tflite(qat, tmp_path / "net.tflite")
    for turned in (angles, 0.2 + 0.01 * angles):
        x = {"image": images(), "angle": turned}
        data = tf.data.Dataset.from_tensor_slices((x, LABELS)).batch(1)
        assert 0.0 <= evaluate_tflite(file.path, data) <= 1.0
    for x in (
        {"image": images(), "angle": 100.0 * angles},
        {"image": 0.001 * images(), "angle": angles},
    ):
        with pytest.raises(ValueError, match="another range"):
            evaluate_tflite(file.path, (x, LABELS))


def test_the_report_takes_several_inputs(qat, tmp_path):
    file = export_tflite(qat, tmp_path / "net.tflite")
    labels = computed(qat, list(X.values())).argmax(1)
    for x in (tuple(X.values()), X):
        report = quantization_report(model(), qat, file, (x, labels))
        assert report.qat_accuracy == 1.0
        assert report.file_accuracy == 1.0


def test_a_model_that_is_built_on_a_dict(tmp_path):
    qat = quantize(model(as_dict=True), representative_data=(X, LABELS))
    file = export_tflite(qat, tmp_path / "net.tflite", data=(X, LABELS))
    assert file.difference < 1.0
    assert list(TFLiteModel(file.path).inputs) == sorted(X)


FLAT = tf_keras.Sequential([layers.Input(SHAPE), layers.Flatten()])


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (
            [images(), images(), images(40)],
            ValueError,
            "one label .* 64 inputs. Received: a list of 3",
        ),
        ([images(), images(40)], ValueError, "one label .* 64 inputs. Received: a list of 2; join"),
        ((images(), {"a": LABELS, "b": LABELS[1:]}), ValueError, "Received: a tuple of 2"),
        ((images(), 1.0), ValueError, "Received: a tuple of 2"),
        (lambda: iter([images()]), TypeError, "tf.data.Dataset. Received: function"),
        (iter([images()]), TypeError, r"\(x, y\) or \(x,\) arrays.* Received: list_iterator"),
        ([], ValueError, "data is empty"),
    ],
)
def test_what_is_no_inputs_with_labels_is_refused(data, error, text):
    with pytest.raises(error, match=text):
        list(input_batches(FLAT, data, 10))


@pytest.mark.parametrize(
    "y",
    [
        images(),
        tf.constant(LABELS),
        LABELS.tolist(),
        np.eye(4)[LABELS].tolist(),
        (LABELS, images()),
        {"a": LABELS.tolist(), "b": [LABELS, LABELS]},
        None,
    ],
    ids=["images", "tensor", "list", "lists", "several", "dict", "none"],
)
def test_labels_of_every_form_are_left_out(y):
    for data in ((images(), y), [images(), y]):
        ((batch,),) = input_batches(FLAT, data, None)
        np.testing.assert_array_equal(batch, images())


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ((images(), LABELS), r"3 inputs vector, image, other.*Received: 1"),
        (({"vector": X["vector"]}, LABELS), "Received: the inputs vector"),
        ((list(X.values())[::-1], LABELS), r"shape \(None, 5\). Received: .*8, 8, 3"),
    ],
)
def test_other_inputs_are_named(data, text):
    with pytest.raises(ValueError, match=text):
        quantize(model(), representative_data=data)
