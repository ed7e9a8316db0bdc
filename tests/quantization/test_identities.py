"""What is identity at inference costs no operator, wherever it stands, and acts in training."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.graph import is_identity_at_inference
from ehap_tf.models.kinds import layer_kind
from ehap_tf.quantization import export_tflite, quantize
from ehap_tf.quantization.integer_rules.wrappers import unwrapped
from ehap_tf.quantization.tflite.output_grids import output_quantizer
from tests.quantization.nets import images, layers, randomize, sequences

OF_ANY_RANK = {
    "ActivityRegularization": lambda: layers.ActivityRegularization(l2=1e-3),
    "AlphaDropout": lambda: layers.AlphaDropout(0.5),
    "Dropout": lambda: layers.Dropout(0.5),
    "GaussianDropout": lambda: layers.GaussianDropout(0.5),
    "GaussianNoise": lambda: layers.GaussianNoise(0.5),
    "linear": lambda: layers.Activation("linear"),
    "stop_gradient": lambda: tf.stop_gradient,
    "two": lambda: lambda x: layers.Dropout(0.5)(layers.GaussianNoise(0.5)(x)),
}
OF_SEQUENCES = OF_ANY_RANK | {
    "SpatialDropout1D": lambda: layers.SpatialDropout1D(0.5),
    "Dropout of steps": lambda: layers.Dropout(0.5, noise_shape=(None, None, 1)),
}
OF_IMAGES = OF_ANY_RANK | {
    "RandomContrast": lambda: layers.RandomContrast(0.2),
    "RandomFlip": lambda: layers.RandomFlip(),
    "SpatialDropout2D": lambda: layers.SpatialDropout2D(0.5),
}
NOTHING = lambda: lambda x: x  # noqa: E731


def network(kernel, *between, shape, norm=True, limit=None):
    """Kernel, BatchNorm, ReLU, with `between` behind each; kernels of two sizes."""
    x = inputs = layers.Input(shape)
    for filters, make in zip((6, 5), between, strict=True):
        x = make()(kernel(filters)(x))
        x = make()(layers.BatchNormalization()(x)) if norm else x
        x = make()(layers.ReLU(limit)(x))
    return randomize(tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x))))


def operators(model):
    """The kinds of layers that compute something at inference, and which of them have a range."""
    return [
        (layer_kind(unwrapped(layer)), output_quantizer(layer) is not None)
        for layer in quantize(model).layers
        if not is_identity_at_inference(unwrapped(layer))
    ]


CASES = {
    "Conv2D": (lambda filters: layers.Conv2D(filters, 3), (8, 8, 3), OF_IMAGES),
    "Conv1D": (lambda filters: layers.Conv1D(filters, 3), (16, 3), OF_SEQUENCES),
    "Dense": (layers.Dense, (20,), OF_ANY_RANK),
}


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "no norm"])
@pytest.mark.parametrize("kernel", CASES)
def test_it_stands_anywhere(kernel, norm):
    make, shape, kinds = CASES[kernel]
    expected = operators(network(make, NOTHING, NOTHING, shape=shape, norm=norm))
    # Without a BatchNorm a few do: they are told apart before it already.
    few = ("Dropout", "GaussianNoise", "SpatialDropout1D")
    names = [name for name in kinds if norm or name in few]
    for pair in itertools.zip_longest(names[::2], names[1::2], fillvalue="Dropout"):
        model = network(make, *(kinds[name] for name in pair), shape=shape, norm=norm)
        assert operators(model) == expected, pair


@pytest.mark.parametrize(("kernel", "x"), [("Conv2D", images()), ("Conv1D", sequences())])
def test_the_file_has_no_operator_more_and_the_same_numbers(kernel, x, tmp_path):
    make, shape, _ = CASES[kernel]
    files, outputs = [], []
    for dropout in (NOTHING, OF_ANY_RANK["Dropout"]):
        model = network(make, dropout, dropout, shape=shape)
        qat = quantize(model, representative_data=x)
        files.append(export_tflite(qat, tmp_path / "net.tflite", data=x))
        outputs.append(qat(x).numpy())
    assert files[1].operators == files[0].operators
    assert files[1].difference < 0.05
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_it_stands_among_volumes():
    def volumes(make):
        inputs = layers.Input((4, 6, 6, 3))
        x = layers.ReLU()(make()(layers.MaxPooling3D()(make()(inputs))))
        return randomize(tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(make()(x)))))

    expected = operators(volumes(NOTHING))
    assert operators(volumes(lambda: layers.SpatialDropout3D(0.5))) == expected


def test_dropout_before_a_relu_does_not_widen_its_range():
    """It moves behind the ReLU, where it does the same."""
    model = network(layers.Dense, OF_ANY_RANK["Dropout"], NOTHING, shape=(20,), norm=False)
    x = np.random.default_rng(0).standard_normal((500, 20)).astype(np.float32)
    qat = quantize(model, representative_data=x)
    relu = next(layer for layer in qat.layers if layer_kind(unwrapped(layer)) == "ReLU")
    before = float(relu._output_quantizer_vars["max_var"])
    for _ in range(100):
        outputs = tf_keras.Model(qat.inputs, relu.output)(x, training=True)
    assert float(relu._output_quantizer_vars["max_var"]) == pytest.approx(before, rel=0.01)
    # Dropped out all the same, behind it.
    dropped = [layer for layer in qat.layers if layer_kind(unwrapped(layer)) == "Dropout"]
    behind = tf_keras.Model(qat.inputs, dropped[-1].output)(x, training=True).numpy()
    assert np.mean(behind == 0.0) > np.mean(outputs == 0.0) + 0.2


def test_dropout_before_a_batch_norm_acts_there_in_training():
    """Its statistics are those of what was dropped out."""
    inputs = layers.Input((20,))
    x = layers.BatchNormalization(momentum=0.0, name="norm")(
        layers.Dropout(0.75)(layers.Dense(4)(inputs))
    )
    model = randomize(tf_keras.Model(inputs, layers.ReLU()(x)))
    x = np.random.default_rng(0).standard_normal((4000, 20)).astype(np.float32)
    qat = quantize(model, representative_data=x)
    qat(x, training=True)
    variance = next(w for w in qat.weights if "moving_variance" in w.name).numpy()
    products = x @ model.layers[1].kernel.numpy() + model.layers[1].bias.numpy()
    expected = 4.0 * np.square(products).mean(0) - np.square(products.mean(0))
    np.testing.assert_allclose(variance, expected, rtol=0.15)
    assert (variance > 2.0 * products.var(0)).all()
