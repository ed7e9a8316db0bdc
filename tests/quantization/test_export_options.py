"""What the file can look like, what lies beside it, and what it says about wrong data."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tensorflow_model_optimization.python.core.quantization.keras.quantize_wrapper import (
    QuantizeWrapper,
)

from ehap_tf.files import CorruptFileError
from ehap_tf.quantization import (
    Normalization,
    TFLiteModel,
    evaluate_tflite,
    export_float_tflite,
    export_tflite,
    load_qat,
    measure_latency_ms,
    quantization_report,
    quantize,
    read_metadata,
    save_qat,
)
from ehap_tf.quantization.apply.quality import worst_filters
from ehap_tf.quantization.tflite import folding, tflite_file
from ehap_tf.quantization.tflite.conversion import IO_DTYPES
from ehap_tf.quantization.tflite.folding import FoldedKernel
from tests.pruning.nets import computed
from tests.quantization.nets import SHAPE, build, conv, head, images, layers, randomize

# The working directory of the process is another one than that of the tests.


@pytest.fixture(scope="module")
def model():
    return build("union_block")


@pytest.fixture(scope="module")
def qat(model):
    return quantize(model, representative_data=(images(),))


@pytest.fixture(scope="module")
def file(qat, tmp_path_factory):
    return export_tflite(
        qat,
        tmp_path_factory.mktemp("file") / "net.tflite",
        normalization=Normalization((0.5, 0.4, 0.3), (0.2, 0.2, 0.1)),
        labels=("a", "b", "c", "d"),
    )


def test_metadata_say_how_to_use_the_file(file):
    metadata = read_metadata(file.path)
    assert metadata["input"]["scale"] == file.input.scale
    assert metadata["normalization"]["mean"] == [0.5, 0.4, 0.3]
    assert metadata["labels"] == ["a", "b", "c", "d"]


def test_metadata_of_another_file_are_refused(file, tmp_path):
    other = tmp_path / "other.tflite"
    other.write_bytes(file.path.read_bytes() + b"\0")
    (tmp_path / "other.tflite.json").write_text(file.path.with_name("net.tflite.json").read_text())
    with pytest.raises(CorruptFileError, match="another file"):
        read_metadata(other)


@pytest.mark.parametrize("io_dtype", ["uint8", "float32"])
def test_inputs_and_outputs_of_other_types(qat, file, io_dtype, tmp_path):
    other = export_tflite(qat, tmp_path / "other.tflite", io_dtype=io_dtype)
    assert (other.input.dtype, other.output.dtype) == (io_dtype, io_dtype)
    assert other.float_operators == ()
    expected, received = TFLiteModel(file.path)(images()), TFLiteModel(other.path)(images())
    np.testing.assert_allclose(received, expected, atol=1e-5)


def test_outputs_are_compared_with_the_model_on_real_inputs(qat, file, tmp_path):
    assert (file.difference, file.agreement) == (None, None)
    compared = export_tflite(qat, tmp_path / "net.tflite", data=(images(),))
    expected, received = computed(qat, images()), TFLiteModel(file.path)(images())
    steps = np.abs(received - expected).mean() / file.output.scale
    # Traced and eager sums may round one value of the 256 in the other direction.
    assert compared.difference == pytest.approx(steps, abs=1.5 / 256)
    same = np.mean(received.argmax(1) == expected.argmax(1))
    assert compared.agreement == pytest.approx(same, abs=1.5 / 64)
    assert read_metadata(compared.path)["agreement_with_qat_model"] == compared.agreement


def test_file_that_computes_something_else_is_refused(qat, tmp_path, monkeypatch):
    class Mirrored(TFLiteModel):
        def __call__(self, examples):
            return -super().__call__(examples)

    monkeypatch.setattr("ehap_tf.quantization.tflite.conversion.TFLiteModel", Mirrored)
    with pytest.raises(ValueError, match=r"up to 10 steps .*Received: \d\d.* CONV_2D"):
        export_tflite(qat, tmp_path / "net.tflite", data=(images(),))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"labels": ("a", "b")}, "labels must name the 4 outputs. Received: 2"),
        ({"data": (images(0),)}, "data is empty"),
        ({"data": (np.zeros((2, 9, 8, 3)),)}, r"9, 8, 3"),
    ],
)
def test_wrong_arguments_leave_no_file(qat, tmp_path, options, text):
    with pytest.raises(ValueError, match=text):
        export_tflite(qat, tmp_path / "net.tflite", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("io_dtype", ["int8", "float32"])
def test_the_difference_is_in_steps_whatever_the_type(qat, file, tmp_path, monkeypatch, io_dtype):
    class Shifted(TFLiteModel):
        def __call__(self, examples):
            return super().__call__(examples) + 50.0 * file.output.scale

    monkeypatch.setattr("ehap_tf.quantization.tflite.conversion.TFLiteModel", Shifted)
    with pytest.raises(ValueError, match=r"Received: (49\.|50)"):
        export_tflite(qat, tmp_path / "net.tflite", io_dtype=io_dtype, data=(images(),))


def test_the_report_counts_steps_of_a_float_file(model, qat, file, tmp_path, monkeypatch):
    class Shifted(TFLiteModel):
        def __call__(self, examples):
            return super().__call__(examples) + 50.0 * file.output.scale

    monkeypatch.setattr("ehap_tf.quantization.apply.quality.TFLiteModel", Shifted)
    other = export_tflite(qat, tmp_path / "net.tflite", io_dtype="float32")
    report = quantization_report(model, qat, other, (images(), np.zeros(64, int)))
    assert report.largest_difference == pytest.approx(50.0, abs=2.01)


def test_metadata_that_cannot_be_written_leave_no_file(qat, tmp_path):
    (tmp_path / "net.tflite.json").mkdir()
    with pytest.raises(OSError):
        export_tflite(qat, tmp_path / "net.tflite")
    assert not (tmp_path / "net.tflite").exists()


def test_metadata_take_numpy_labels_and_one_value_for_all_channels(qat, tmp_path):
    normalization = Normalization(0.5, np.float32(0.25))
    path = tmp_path / "net.tflite"
    export_tflite(qat, path, normalization=normalization, labels=list(np.arange(4)))
    metadata = read_metadata(path)
    assert metadata["labels"] == ["0", "1", "2", "3"]
    assert (metadata["normalization"]["mean"], metadata["normalization"]["std"]) == ([0.5], [0.25])


def test_metadata_without_the_lists_are_read(file, tmp_path):
    (tmp_path / "net.tflite").write_bytes(file.path.read_bytes())
    metadata = read_metadata(file.path)
    older = {key: metadata[key] for key in metadata if key not in ("inputs", "outputs")}
    assert len(older) == len(metadata) - 2
    (tmp_path / "net.tflite.json").write_text(json.dumps(older))
    assert read_metadata(tmp_path / "net.tflite") == older


def test_a_file_that_xnnpack_does_not_take_runs_without(tmp_path, monkeypatch):
    """Of a dead layer, whose outputs have steps that are too small for XNNPACK."""
    monkeypatch.setattr(folding, "FINEST_STEP", 0.0)
    inputs = layers.Input(SHAPE)
    model = tf_keras.Model(inputs, head(conv(inputs, activation="relu")))
    # Enough to be dead, and within what the other kernels hold.
    model.layers[1].bias.assign(np.full(6, -100.0))
    model.layers[-1].bias.assign(np.arange(1.0, 5.0))
    qat = quantize(model, representative_data=(5.0 * images(),))
    with pytest.warns(RuntimeWarning, match="without XNNPACK.*failed to create XNNPACK runtime"):
        path = export_tflite(qat, tmp_path / "dead.tflite").path
    with pytest.raises(RuntimeError, match="XNNPACK"):
        tflite_file.Interpreter(str(path)).allocate_tensors()
    with pytest.warns(RuntimeWarning, match="without XNNPACK"):
        received = TFLiteModel(path)(images(8))
    with pytest.warns(RuntimeWarning, match="without XNNPACK"):
        assert measure_latency_ms(path, runs=3) > 0.0
    np.testing.assert_allclose(received, np.tile(np.arange(1.0, 5.0), (8, 1)), atol=0.02)


def test_unknown_type_is_named(qat, tmp_path):
    with pytest.raises(ValueError, match=r"io_dtype must be one of .*Received: 'int4'"):
        export_tflite(qat, tmp_path / "net.tflite", io_dtype="int4")


def test_four_bit_weights_are_stored_in_four_bits(model, file, tmp_path):
    qat = quantize(model, weight_bits=4, representative_data=(images(),))
    small = export_tflite(qat, tmp_path / "net.tflite")
    assert small.tensor_types["INT4"] == 3
    assert small.float_operators == ()
    difference = TFLiteModel(small.path)(images()) - computed(qat, images())
    assert np.abs(difference).max() <= 2.001 * small.output.scale


def test_another_type_than_was_asked_for_is_refused(qat, tmp_path, monkeypatch):
    monkeypatch.setitem(IO_DTYPES, "uint8", tf.int8)
    with pytest.raises(ValueError, match=r"must be uint8\. Received: .* in int8"):
        export_tflite(qat, tmp_path / "net.tflite", io_dtype="uint8")
    assert list(tmp_path.iterdir()) == []


def test_four_bit_kernels_in_eight_bits_are_refused(model, tmp_path, monkeypatch):
    qat = quantize(model, weight_bits=4, representative_data=(images(),))
    rounded = FoldedKernel._rounded
    monkeypatch.setattr(
        FoldedKernel, "_rounded", lambda kernel: rounded(dataclasses.replace(kernel, bits=8))
    )
    # Of the Dense layer, whose kernel is packed afterwards.
    with pytest.raises(ValueError, match=r"hold 3 kernels in 4 bits\. Received: 1"):
        export_tflite(qat, tmp_path / "net.tflite")
    assert list(tmp_path.iterdir()) == []


def test_equal_four_bit_kernels_need_not_be_stored_in_four_bits(tmp_path):
    inputs = layers.Input(SHAPE)
    net = randomize(tf_keras.Model(inputs, head(conv(conv(conv(inputs))))))
    net.layers[3].kernel.assign(net.layers[2].kernel)
    qat = quantize(net, weight_bits=4, representative_data=(images(),))
    larger = net.layers[2].kernel.shape.num_elements() // 2
    with pytest.warns(RuntimeWarning, match=rf"stored in 8: 1, which is {larger} bytes more"):
        assert export_tflite(qat, tmp_path / "net.tflite").tensor_types["INT4"] == 2


def test_transposed_convolution_keeps_eight_bits(tmp_path):
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2DTranspose(5, 3, strides=2, padding="same")(conv(inputs))
    net = randomize(tf_keras.Model(inputs, head(x)))
    qat = quantize(net, weight_bits=4, representative_data=(images(),))
    small = export_tflite(qat, tmp_path / "net.tflite")
    assert small.tensor_types["INT4"] == 2
    assert small.float_operators == ()


@pytest.mark.parametrize("io_dtype", ["int8", "uint8", "float32"])
def test_data_in_another_range_are_refused(qat, file, tmp_path, io_dtype):
    spec = file.input
    low, high = (spec.scale * (end - spec.zero_point) for end in (-128, 127))
    labels = np.zeros(64, int)
    file = export_tflite(qat, tmp_path / "net.tflite", io_dtype=io_dtype)
    mostly_black = np.where(images() > 1.0, images() * 255.0, 0.0)
    assert 0.02 < np.count_nonzero(mostly_black) / mostly_black.size < 0.3
    for x in (images() * 60.0, images() * 1e-3, mostly_black):
        with pytest.raises(ValueError, match=rf"another range.* {low:.4g} to {high:.4g}\. "):
            evaluate_tflite(file.path, (x, labels))
    assert 0.0 <= evaluate_tflite(file.path, (images(), labels)) <= 1.0


def test_one_grey_image_in_front_is_in_range(file):
    """In a batch of its own; and one that is far too bright."""
    x = images()
    x[0], x[1] = 0.001 * x[0] + 0.3, 60.0 * x[1]
    data = tf.data.Dataset.from_tensor_slices((x, np.zeros(64, int))).batch(1)
    assert 0.0 <= evaluate_tflite(file.path, data) <= 1.0
    assert 0.0 <= evaluate_tflite(file.path, data.skip(1)) <= 1.0


def test_a_float_file_takes_any_range(model, tmp_path):
    file = export_float_tflite(model, tmp_path / "float.tflite")
    evaluate_tflite(file.path, (images() * 60.0, np.zeros(64, int)))


def test_labels_of_the_wrong_shape_are_refused(file):
    with pytest.raises(ValueError, match="one class number for each example"):
        evaluate_tflite(file.path, (images(), np.eye(5)[np.zeros(64, int)]))


def test_one_hot_labels_are_class_numbers(file):
    labels = np.random.default_rng(0).integers(0, 4, 64)
    right = TFLiteModel(file.path)(images()).argmax(axis=1) == labels
    for kind in (labels, np.eye(4)[labels]):
        assert evaluate_tflite(file.path, (images(), kind)) == right.mean()


def test_progress_counts_up(file):
    seen = []
    data = tf.data.Dataset.from_tensor_slices((images(), np.zeros(64, int))).batch(30)
    evaluate_tflite(file.path, data, progress=lambda done, total, figures: seen.append(done))
    assert seen == [30, 60, 64]


def test_float_operator_is_refused_unless_allowed(tmp_path):
    inputs = layers.Input((8, 8, 3))
    x = layers.ThresholdedReLU(0.3, name="soft")(layers.Conv2D(4, 3)(inputs))
    x = layers.Dense(2)(layers.Flatten()(x))
    net = randomize(tf_keras.Model(inputs, x))
    qat = quantize(net, representative_data=(images(),), allow_float=True)
    with pytest.raises(ValueError, match="soft"):
        export_tflite(qat, tmp_path / "net.tflite")
    assert not (tmp_path / "net.tflite").exists()
    file = export_tflite(qat, tmp_path / "net.tflite", allow_float=True)
    assert file.float_ops > 0
    assert file.operators["CONV_2D"] == 1


class Waves(layers.Layer):
    def call(self, inputs):
        return tf.sin(inputs), tf.cos(inputs)


def test_float_layer_with_several_outputs(tmp_path):
    inputs = layers.Input((8, 8, 3))
    waves = layers.Multiply()(Waves()(conv(inputs)))
    net = randomize(tf_keras.Model(inputs, head(waves)))
    qat = quantize(net, representative_data=(images(),), allow_float=True)
    expected, received = (computed(m, images()) for m in (net, qat))
    assert np.abs(received - expected).mean() < 0.05 * np.abs(expected).mean()
    file = export_tflite(qat, tmp_path / "net.tflite", allow_float=True)
    difference = TFLiteModel(file.path)(images()) - received
    assert np.abs(difference).mean() <= 0.5 * file.output.scale


def test_report_finds_the_spoilt_layer(model, tmp_path):
    labels = computed(model, images()).argmax(1)
    spoilt = build("union_block")
    values = spoilt.layers[1].kernel.numpy()
    values[0, 0, 0, 2] += 30.0  # One huge weight coarsens its channel.
    spoilt.layers[1].kernel.assign(values)
    qat = quantize(spoilt, representative_data=(images(),))
    file = export_tflite(qat, tmp_path / "net.tflite")
    report = quantization_report(spoilt, qat, file, (images(), labels))
    one_hot = quantization_report(spoilt, qat, file, (images(), np.eye(4)[labels]))
    assert one_hot.file_accuracy == report.file_accuracy > 0.0
    named, named_qat = (
        tf_keras.Model(net.inputs, {"logits": net.outputs[0]}) for net in (spoilt, qat)
    )
    assert quantization_report(named, named_qat, file, (images(), labels)) == report
    entries = {entry.name: entry for entry in report.layers}
    assert report.examples == 64
    assert report.qat_agreement >= 0.9
    assert report.largest_difference <= 2.001
    kernels = [entry for entry in report.layers if entry.kind == "Conv2D"]
    assert all(entry.weights_db > 30 for entry in kernels[1:])
    assert entries[spoilt.layers[3].name].output_db > 10
    assert report.to_json()["layers"][0]["name"] == report.layers[0].name
    # The huge weight rounds the others of its filter away, and stretches the range of the outputs.
    (worst, ratio), (_, second) = entries[spoilt.layers[1].name].worst_filters[:2]
    assert worst == 2 and ratio < 15 and second > 30
    assert all(entry.worst_filters[0][1] > 30 for entry in kernels[1:])
    outputs = entries[spoilt.layers[3].name].worst_channels
    assert sorted(channel for channel, _ in outputs) == [0, 1, 3, 4, 5]
    assert [ratio for _, ratio in outputs] == sorted(ratio for _, ratio in outputs)
    assert all(ratio < 25 for _, ratio in outputs)
    ratios = sorted(entry.output_db for entry in report.layers if entry.kind != "Conv2D")
    assert [entry.output_db for entry in report.worst_layers(3)] == ratios[:3]


@pytest.mark.parametrize(
    ("layer", "axis"),
    [
        (lambda: layers.Conv2D(5, 3), -1),
        (lambda: layers.Conv2DTranspose(5, 3), -2),
        (lambda: layers.DepthwiseConv2D(3), -2),
        (lambda: layers.Dense(5), -1),
    ],
    ids=["Conv2D", "Conv2DTranspose", "DepthwiseConv2D", "Dense"],
)
def test_filters_are_judged_by_their_median_weight(layer, axis):
    """Scaled down, without a scale of its own or with one huge weight; a dead one not at all."""
    inputs = layers.Input(SHAPE)
    net = randomize(tf_keras.Model(inputs, layer()(inputs)))
    kernel = net.layers[-1].weights[0]
    values = np.moveaxis(kernel.numpy().copy(), axis, 0)
    values[0] = 0.0
    values[1] *= 0.01
    values[1].flat[0] = values[2].flat[0] = np.abs(values[2:]).max()
    kernel.assign(np.moveaxis(values, 0, axis))
    qat = quantize(net, representative_data=(images(),))
    found = worst_filters(next(layer for layer in qat.layers if isinstance(layer, QuantizeWrapper)))
    assert found[0][0] == 1
    assert 0 not in dict(found)
    assert found[0][1] < found[1][1] - 20.0


def test_fresh_process_loads_the_qat_model(qat, tmp_path, fresh_processes):
    """From every form that Keras has; weights go into a model that is built anew."""
    names = ("qat.h5", "qat.keras", "saved_model", "qat_weights.h5", "float.keras")
    for name in names[:2]:
        save_qat(qat, tmp_path / name)
    qat.save(tmp_path / "saved_model", save_format="tf")
    qat.save_weights(tmp_path / "qat_weights.h5")
    build("union_block").save(tmp_path / "float.keras")
    np.save(tmp_path / "x.npy", images(4))
    code = """
import numpy as np, tf_keras
from ehap_tf.quantization import load_qat, quantization_scope, quantize

def rebuilt():
    model = quantize(tf_keras.models.load_model("float.keras"))
    model.load_weights("qat_weights.h5")
    return model

def from_saved_model():
    with quantization_scope():
        return tf_keras.models.load_model("saved_model", compile=False)

x = np.load("x.npy")
loaders = (lambda: load_qat("qat.h5"), lambda: load_qat("qat.keras"), from_saved_model, rebuilt)
np.save("y.npy", [load().predict(x, verbose=0) for load in loaders])
"""
    fresh_processes.run(code, cwd=tmp_path).check_returncode()
    for received in np.load(tmp_path / "y.npy"):
        np.testing.assert_allclose(received, computed(qat, images(4)), atol=1e-6)


def test_other_suffix_is_refused(qat, tmp_path):
    with pytest.raises(ValueError, match=r"\.h5"):
        save_qat(qat, tmp_path / "qat.tflite")
    with pytest.raises(FileNotFoundError):
        load_qat(tmp_path / "absent.h5")


def test_a_model_for_any_size_is_refused_before_training():
    inputs = layers.Input((None, None, 3))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3)(inputs))
    model = tf_keras.Model(inputs, layers.Dense(3)(x))
    with pytest.raises(
        ValueError, match=r"inputs of one size.*\(None, None, None, 3\).*clone_model"
    ):
        quantize(model)
    # The way out that the message names.
    twin = tf_keras.models.clone_model(model, tf_keras.Input((8, 8, 3)))
    twin.set_weights(model.get_weights())
    assert quantize(twin).input_shape == (None, 8, 8, 3)
