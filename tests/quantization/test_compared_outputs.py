"""Outputs of a file against those of its QAT model: many classes, several outputs, one number."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow_model_optimization as tfmot
import tf_keras

from ehap_tf.quantization import (
    TFLiteModel,
    evaluate_tflite,
    export_tflite,
    load_qat,
    quantization_report,
    quantize,
    read_metadata,
    save_qat,
)
from ehap_tf.quantization.plan.scheme import EhapQuantizeScheme, quantization_scope
from ehap_tf.quantization.tflite.integer_graph import float_output_names
from ehap_tf.quantization.tflite.output_grids import output_step
from ehap_tf.quantization.tflite.tflite_file import inspect_tflite, open_interpreter
from tests.pruning.nets import computed
from tests.quantization.nets import SHAPE, conv, images, layers, randomize


def many_classes(activation: str, gain: float, bias: float = 0.0) -> tf_keras.Model:
    """A net with 100 outputs, as `quantize` returns it; `gain` is the size of its logits."""
    inputs = layers.Input(SHAPE)
    x = layers.GlobalMaxPooling2D()(conv(inputs, 16))
    net = randomize(tf_keras.Model(inputs, layers.Dense(100, activation=activation)(x)))
    kernel, shift = net.layers[-1].weights
    kernel.assign(gain * kernel)
    shift.assign(gain * shift + bias)
    return quantize(net, representative_data=(images(),))


@pytest.mark.parametrize(("activation", "bias"), [("softmax", 0.0), ("sigmoid", -90.0)])
def test_constants_for_many_classes_are_refused(tmp_path, monkeypatch, activation, bias):
    """Though all but one or two of the 100 outputs are 0 in every file."""
    qat = many_classes(activation, 10.0, bias)
    expected = computed(qat, images())
    assert expected.max(axis=1).mean() > 0.5
    assert export_tflite(qat, tmp_path / "net.tflite", data=(images(),)).difference < 0.1

    class Constant(TFLiteModel):
        def __call__(self, examples):
            y = super().__call__(examples)
            return np.zeros_like(y) + expected.mean(axis=0)

    monkeypatch.setattr("ehap_tf.quantization.tflite.conversion.TFLiteModel", Constant)
    assert np.abs(expected - expected.mean(axis=0)).mean() < 10.0 / 256.0
    with pytest.raises(
        ValueError, match=r"0\.5 times their variance.*Received: (1|1\.0\d|0\.99\d?) times"
    ):
        export_tflite(qat, tmp_path / "other.tflite", data=(images(),))
    assert not (tmp_path / "other.tflite").exists()


def test_outputs_that_only_rounding_tells_apart_are_not_judged(tmp_path, monkeypatch):
    """An untrained classifier says of all examples about the same."""
    qat = many_classes("softmax", 0.2)
    spread = 256.0 * computed(qat, images()).std(axis=0)
    assert 0.1 < np.sqrt(np.square(spread).mean()) < 3.0

    class Mixed(TFLiteModel):
        def __call__(self, examples):
            return super().__call__(examples)[::-1]

    monkeypatch.setattr("ehap_tf.quantization.tflite.conversion.TFLiteModel", Mixed)
    assert export_tflite(qat, tmp_path / "net.tflite", data=(images(),)).difference > 0.0


def test_a_step_of_an_output_that_keeps_a_grid(tmp_path):
    inputs = layers.Input(SHAPE)
    net = randomize(tf_keras.Model(inputs, layers.Flatten()(layers.MaxPooling2D()(conv(inputs)))))
    qat = quantize(net, representative_data=(images(),))
    file = export_tflite(qat, tmp_path / "net.tflite", data=(images(),))
    steps = np.abs(TFLiteModel(file.path)(images()) - computed(qat, images())).mean()
    assert file.difference == pytest.approx(steps / file.output.scale, abs=1e-3)


@pytest.mark.parametrize(("activation", "threshold"), [("sigmoid", 0.5), (None, 0.0)])
def test_a_single_output_is_scored_by_a_threshold(tmp_path, activation, threshold):
    inputs = layers.Input(SHAPE)
    x = layers.Dense(1, activation=activation)(layers.Flatten()(conv(inputs)))
    net = randomize(tf_keras.Model(inputs, x))
    labels = (computed(net, images())[:, 0] > threshold).astype(int)
    assert 0.2 < labels.mean() < 0.8
    qat = quantize(net, representative_data=(images(),))
    file = export_tflite(qat, tmp_path / "net.tflite", data=(images(),))
    assert file.agreement is None
    expected = np.mean((TFLiteModel(file.path)(images())[:, 0] > threshold) == labels)
    assert expected > 0.9
    assert evaluate_tflite(file.path, (images(), labels), threshold=threshold) == expected
    report = quantization_report(net, qat, file, (images(), labels), threshold=threshold)
    assert (report.float_accuracy, report.file_accuracy) == (1.0, expected)
    for call in (
        lambda: evaluate_tflite(file.path, (images(), labels)),
        lambda: quantization_report(net, qat, file, (images(), labels)),
    ):
        with pytest.raises(ValueError, match=r"threshold is needed .*0\.5"):
            call()


def two_heads(as_dict: bool = True) -> tf_keras.Model:
    """A classifier and a number, as `quantize` returns them; in a dict the number is the first."""
    inputs = layers.Input(SHAPE, name="photo")
    x = layers.Flatten()(conv(inputs))
    heads = [layers.Dense(4, name="kind")(x), layers.Dense(1, name="years")(x)]
    outputs = {"kind": heads[0], "age": heads[1]} if as_dict else heads
    return quantize(randomize(tf_keras.Model(inputs, outputs)), representative_data=(images(),))


@pytest.mark.parametrize("io_dtype", ["int8", "float32"])
def test_several_outputs_are_compared_each_in_its_steps(tmp_path, monkeypatch, io_dtype):
    qat = two_heads()
    file = export_tflite(qat, tmp_path / "net.tflite", io_dtype=io_dtype, data=(images(),))
    expected = [y for _, y in sorted(computed(qat, images()).items())]
    pairs = list(zip(TFLiteModel(file.path)(images()), expected, strict=True))
    assert [len(y[0]) for y, _ in pairs] == [1, 4]
    steps = [np.abs(y - e).mean() / output_step(qat, index) for index, (y, e) in enumerate(pairs)]
    assert file.difference == pytest.approx(max(steps), abs=1.5 / 64)
    same = np.mean(pairs[1][0].argmax(1) == pairs[1][1].argmax(1))
    assert file.agreement == pytest.approx(same, abs=1.5 / 64)
    outputs = read_metadata(file.path)["outputs"]
    assert [y["agreement_with_qat_model"] for y in outputs] == [None, file.agreement]

    class Shifted(TFLiteModel):
        def __call__(self, examples):
            age, kind = super().__call__(examples)
            return age, kind + 50.0 * output_step(qat, 1)

    monkeypatch.setattr("ehap_tf.quantization.tflite.conversion.TFLiteModel", Shifted)
    with pytest.raises(ValueError, match=r"Received: (49\.\d|50) steps in output 1 of 2\. One"):
        export_tflite(qat, tmp_path / "net.tflite", io_dtype=io_dtype, data=(images(),))


@pytest.mark.parametrize(
    ("as_dict", "shapes"),
    [(True, {"age": [1, 1], "kind": [1, 4]}), (False, {"kind": [1, 4], "years": [1, 1]})],
)
def test_metadata_say_which_tensor_is_which_output(tmp_path, as_dict, shapes):
    file = export_tflite(two_heads(as_dict), tmp_path / "net.tflite")
    metadata = read_metadata(file.path)
    assert [(y["model_name"], y["shape"]) for y in metadata["outputs"]] == list(shapes.items())
    # An application that knows no signatures finds them by their names.
    found = {
        details["name"]: details for details in open_interpreter(file.path).get_output_details()
    }
    for y in metadata["outputs"]:
        details = found[y["name"]]
        assert details["shape"].tolist() == y["shape"]
        assert details["quantization"] == (y["scale"], y["zero_point"])
    assert metadata["inputs"] == [{"model_name": "photo", **metadata["input"]}]
    assert {"model_name": next(iter(shapes)), **metadata["output"]} == metadata["outputs"][0]


def test_labels_are_those_of_the_output_that_has_as_many(tmp_path):
    inputs = layers.Input(SHAPE)
    x = layers.Flatten()(inputs)
    heads = [layers.Dense(size, name=f"of_{place}")(x) for place, size in enumerate((4, 3, 4))]
    qat = quantize(tf_keras.Model(inputs, heads), representative_data=(images(),))
    file = export_tflite(qat, tmp_path / "net.tflite", labels="abc", data=(images(),))
    metadata = read_metadata(file.path)
    assert (metadata["labels"], metadata["labelled_output"]) == (["a", "b", "c"], "of_1")
    of_outputs = [y["agreement_with_qat_model"] for y in metadata["outputs"]]
    assert min(of_outputs) == metadata["agreement_with_qat_model"] and len(of_outputs) == 3
    for labels in ("ab", "abcd"):
        with pytest.raises(
            ValueError, match=rf"have \[4, 3, 4\] num.* Received: {len(labels)} names"
        ):
            export_tflite(qat, tmp_path / "other.tflite", labels=labels)
    assert not (tmp_path / "other.tflite").exists()


def test_outputs_are_called_as_in_the_float_model(tmp_path):
    """Whatever layers they have become: to Keras, and in the metadata."""
    inputs = layers.Input(SHAPE)
    image = conv(inputs)
    x = layers.Flatten()(image)
    outputs = {
        "probs": layers.Dense(4, activation="softmax", name="probs")(x),
        "predictions": layers.Activation("linear", name="predictions")(layers.Dense(2)(x)),
        "inner": tf_keras.Sequential([layers.Input(x.shape[1:]), layers.Dense(3)], "inner")(x),
        "pooled": layers.AveragePooling2D(2, name="pooled")(image),
    }
    net = randomize(tf_keras.Model(inputs, list(outputs.values())))
    assert net.output_names == list(outputs)
    qat = quantize(net, representative_data=(images(),))
    losses = dict.fromkeys(list(outputs)[:3], "mse")
    qat.compile("sgd", losses, run_eagerly=True)
    history = qat.fit(images(), dict(zip(losses, net(images()), strict=False)), verbose=0).history
    assert set(history) == {"loss", *(f"{name}_loss" for name in losses)}
    for name in ("qat.h5", "qat.keras"):
        save_qat(qat, tmp_path / name)
    for trained in (qat, *(load_qat(tmp_path / name) for name in ("qat.h5", "qat.keras"))):
        assert trained.output_names[:3] == list(losses)
        metadata = read_metadata(export_tflite(trained, tmp_path / "net.tflite").path)
        assert [y["model_name"] for y in metadata["outputs"]] == list(outputs)


def test_outputs_of_older_models_have_the_names_of_their_layers():
    """Those of TFMOT's own wrappers, whose names it makes."""
    inputs = layers.Input(SHAPE)
    net = tf_keras.Model(inputs, [layers.Dense(2, name="a")(inputs), layers.ReLU(name="b")(inputs)])
    with quantization_scope():
        annotated = tfmot.quantization.keras.quantize_annotate_model(net)
        qat = tfmot.quantization.keras.quantize_apply(annotated, EhapQuantizeScheme())
    assert float_output_names(qat) == ["a", "b"]


@pytest.mark.parametrize("io_dtype", ["int8", "float32"])
def test_outputs_are_in_the_order_of_the_model(tmp_path, io_dtype):
    inputs = layers.Input(SHAPE)
    x = conv(inputs)
    pooled = [
        layers.Flatten()(x),
        layers.GlobalAveragePooling2D()(x),
        layers.GlobalMaxPooling2D()(x),
    ]
    sizes = (2, 4, 3)
    outputs = [layers.Dense(size)(y) for size, y in zip(sizes, pooled, strict=True)]
    qat = quantize(randomize(tf_keras.Model(inputs, outputs)), representative_data=(images(),))
    file = export_tflite(qat, tmp_path / "net.tflite", io_dtype=io_dtype, labels=("a", "b"))
    assert file.output.shape == inspect_tflite(file.path).output.shape == (1, 2)
    received = TFLiteModel(file.path)(images())
    for y, expected in zip(received, computed(qat, images()), strict=True):
        np.testing.assert_allclose(y, expected, atol=0.03 * np.ptp(expected))
    with pytest.raises(ValueError, match=r"one output.*Received: 3"):
        evaluate_tflite(file.path, (images(), np.zeros(64, int)))
