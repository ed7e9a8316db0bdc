"""Bias correction: on for post-training quantization, kept where it helps."""

import warnings

import numpy as np
import pytest
import tf_keras

from ehap_tf.quantization import quantize
from ehap_tf.quantization.apply.bias_correction import correct_biases
from ehap_tf.quantization.apply.side_by_side import LARGEST_TENSOR, examples_in_memory
from tests.pruning.nets import computed
from tests.quantization.nets import build, images, layers, randomize


@pytest.fixture(scope="module")
def model():
    return build("union_block")


def difference(qat, model):
    return computed(qat, images()) - computed(model, images())


def test_it_removes_the_mean_error(model):
    qat = quantize(model, weight_bits=4, representative_data=(images(),))
    before = np.abs(difference(qat, model).mean(axis=0)).mean()
    assert correct_biases(qat, [images()]) == ()
    assert np.abs(difference(qat, model).mean(axis=0)).mean() < 0.3 * before


def test_it_is_on_for_post_training_quantization_only(model):
    def weights(method, **options):
        return quantize(model, method, representative_data=images(), **options).get_weights()

    def equal(one, other):
        return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))

    off = weights("qat")
    on = weights("qat", bias_correction=True)
    assert not equal(on, off)
    assert equal(weights("ptq"), on)
    assert equal(weights("ptq", bias_correction=False), off)


def test_a_block_that_is_called_twice_is_corrected_call_by_call():
    """Each call is an operator of its own, with a bias of its own."""
    inputs = layers.Input((8, 8, 3))
    convolution, norm = layers.Conv2D(3, 3, padding="same"), layers.BatchNormalization()
    x = inputs
    for _ in range(2):
        x = layers.ReLU()(norm(convolution(x)))
    twice = randomize(tf_keras.Model(inputs, layers.GlobalAveragePooling2D()(x)))
    before, after = (
        quantize(twice, "ptq", weight_bits=4, representative_data=images(), bias_correction=on)
        for on in (False, True)
    )
    errors = [np.abs(difference(qat, twice).mean(axis=0)).mean() for qat in (before, after)]
    assert errors[1] < 0.5 * errors[0]
    # A bias and a beta, of each call; alike until one is corrected.
    different = [
        {w.numpy().tobytes() for w in qat.weights if "bias" in w.name or "beta" in w.name}
        for qat in (before, after)
    ]
    assert len(different[0]) == 2 < len(different[1])


def bias(qat):
    (variable,) = (weight for weight in qat.weights if "bias" in weight.name)
    return variable.numpy()


def dense(kernel):
    model = tf_keras.Sequential([layers.Input((2,)), layers.Dense(1, "relu", name="dense")])
    model.layers[0].set_weights([np.asarray(kernel, np.float32)[:, None], np.zeros(1)])
    return model


def test_a_layer_keeps_its_bias_where_the_correction_would_do_harm():
    """The only error is in what ReLU cuts off: taking out its mean would move what it leaves."""
    x = np.asarray(32 * [[1.0, 0.0], [0.0, 1.0]], np.float32)
    qat = quantize(dense([-0.5, 1.0]), "ptq", weight_bits=4, representative_data=x)
    assert bias(qat) == 0.0
    # Negative control: the same error in what it leaves.
    qat = quantize(dense([0.5, 1.0]), "ptq", weight_bits=4, representative_data=x)
    assert np.abs(bias(qat)) == pytest.approx(0.5 / 14, rel=0.05)


@pytest.mark.parametrize(("sign", "corrected"), [(-1.0, False), (1.0, True)])
def test_corrections_are_taken_back_where_errors_had_cancelled(sign, corrected):
    """Two kernels err by opposite amounts, and one of them has no bias to correct."""
    x = inputs = layers.Input((2,))
    first, second = layers.Dense(1, name="first"), layers.Dense(1, use_bias=False)
    model = tf_keras.Model(inputs, layers.Add()([first(x), second(x)]))
    first.set_weights([np.float32([[0.5], [1.0]]), np.zeros(1, np.float32)])
    second.set_weights([np.float32([[sign * 0.5], [1.0]])])
    x = np.random.default_rng(0).uniform(0.5, 1.0, (64, 2)).astype(np.float32)
    qat = quantize(model, "ptq", weight_bits=4, representative_data=x)
    assert (bias(qat) != 0.0) == corrected


def test_errors_of_chance_are_not_taken_for_means():
    """Errors of kernels on noise around 0 have a mean of 0: a correction would only add noise."""
    rng = np.random.default_rng(0)
    model = randomize(tf_keras.Sequential([layers.Input((40,)), layers.Dense(30, name="dense")]))
    model.layers[0].bias.assign(np.zeros(30))

    def corrections(x):
        qat = quantize(model, "ptq", weight_bits=4, representative_data=x.astype(np.float32))
        return np.abs(bias(qat))

    noise = rng.standard_normal((64, 40))
    assert np.mean(corrections(noise) == 0.0) > 0.5
    assert np.mean(corrections(noise + 2.0) == 0.0) < 0.2


def test_activations_of_all_examples_fit_memory():
    model = tf_keras.Sequential([layers.Input((256, 256, 3)), layers.Conv2D(64, 1)])
    assert examples_in_memory(model) == LARGEST_TENSOR // (256 * 256 * 64)
    assert examples_in_memory(tf_keras.Sequential([layers.Input((5,)), layers.Dense(3)])) == 2048


def test_layers_that_no_bias_corrects_are_named():
    bare = layers.Conv2D(4, 3, use_bias=False, name="bare")
    model = tf_keras.Sequential([layers.Input((8, 8, 3)), bare, layers.Flatten(), layers.Dense(3)])
    kernel = np.full((3, 3, 3, 4), 0.4 / 127, np.float32)  # 0 on the grid of the one large weight
    kernel[1, 1, 0] = 1.0
    bare.set_weights([kernel])
    with pytest.warns(RuntimeWarning, match=r"neither a bias nor a BatchNorm: bare$") as caught:
        quantize(model, "ptq", representative_data=np.abs(images()), bias_correction=True)
    ours = [warning for warning in caught if "bias_correction" in str(warning.message)]
    assert [warning.filename for warning in ours] == [__file__]


def test_only_who_asks_is_told_of_layers_left_out():
    model = tf_keras.Sequential([layers.Input((8, 8, 3)), layers.Conv2D(4, 3, use_bias=False)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quantize(model, "ptq", representative_data=(images(),))
