"""`rounding="gptq"`: the arithmetic against slow twins, the layers, the file."""

from __future__ import annotations

import itertools
import pathlib
import warnings

import numpy as np
import pytest
import tf_keras
from ai_edge_litert import schema_py_generated as schema

from ehap_tf.quantization import calibrate, export_tflite, quantize
from ehap_tf.quantization.apply import kernel_rounding
from ehap_tf.quantization.apply.bias_correction import correct_biases
from ehap_tf.quantization.apply.column_rounding import (
    Grid,
    grid_of,
    rounded_matrix,
    rounded_rows,
    rounded_to_nearest,
    squared_error,
)
from ehap_tf.quantization.apply.kernel_rounding import KernelRounding
from ehap_tf.quantization.plan.quantizers import largest_integer, to_channels_last
from tests.pruning.nets import computed
from tests.quantization.nets import SHAPE, build, head, layers, randomize


def correlated(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers whose last axis is correlated, as channels are."""
    mixing = rng.normal(size=(shape[-1],) * 2) + 1.0
    return (rng.normal(size=shape) @ mixing).astype(np.float32)


def photos(count: int = 96, seed: int = 3) -> np.ndarray:
    """Images of smooth, correlated channels."""
    x = correlated(np.random.default_rng(seed), count, *SHAPE)
    return (x + np.roll(x, 1, 1) + np.roll(x, 1, 2) + np.roll(x, 2, 2)).astype(np.float32)


def gram_of(rng: np.random.Generator, inputs: int) -> np.ndarray:
    x = correlated(rng, 3 * inputs, inputs).astype(np.float64)
    return x.T @ x / len(x) + 0.01 * np.eye(inputs)


def obq(matrix: np.ndarray, gram: np.ndarray, grid: Grid) -> np.ndarray:
    """`rounded_rows` as Optimal Brain Quantization writes it, the inverse taken anew each time."""
    left, integers = matrix.astype(np.float64).copy(), np.zeros_like(matrix)
    waiting = list(np.argsort(-np.diag(gram), kind="stable"))
    while waiting:
        inverse = np.linalg.inv(gram[np.ix_(waiting, waiting)])
        row, *waiting = waiting
        integers[row] = grid.integers(left[row], row)
        error = (left[row] - integers[row] * grid.steps) / inverse[0, 0]
        left[waiting] -= np.outer(inverse[0, 1:], error)
    return integers


@pytest.mark.parametrize(("inputs", "bits"), [(5, 2), (40, 4), (150, 4), (150, 8)])
def test_rows_are_rounded_as_obq_does(inputs: int, bits: int) -> None:
    rng = np.random.default_rng(inputs + bits)
    gram, matrix = gram_of(rng, inputs), rng.normal(size=(inputs, 7))
    grid = grid_of(matrix, largest_integer(bits), 0.8)
    received = rounded_rows(matrix, gram, grid)
    assert np.array_equal(received, obq(matrix, gram, grid))
    assert np.abs(received).max(0).tolist() == [largest_integer(bits)] * 7


def test_against_every_other_choice_of_integers() -> None:
    """Four weights of three values each: 81 kernels, one of them the best."""
    rng = np.random.default_rng(0)
    every = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=4))).T
    better, optimal, draws = 0, 0, 300
    for _ in range(draws):
        gram, matrix = gram_of(rng, 4), rng.normal(size=(4, 1))
        grid = grid_of(matrix, 1)
        ours = rounded_rows(matrix, gram, grid) * grid.steps
        allowed = every[:, ((grid.ends == 0) | (every == grid.ends)).all(0)] * grid.steps
        least = squared_error(allowed - matrix, gram).min()
        error, nearest = (
            squared_error(one - matrix, gram)[0] for one in (ours, rounded_to_nearest(matrix, 1))
        )
        assert error >= least * (1 - 1e-9)
        better += error <= nearest * (1 + 1e-9)
        optimal += error <= least * (1 + 1e-9)
    assert better > 0.9 * draws, better
    assert optimal > 0.6 * draws, optimal


@pytest.mark.parametrize("levels", [1, 7, 127])
def test_a_column_is_never_worse_than_to_nearest(levels: int) -> None:
    rng = np.random.default_rng(levels)
    for inputs in (1, 4, 30):
        gram, matrix = gram_of(rng, inputs), rng.normal(size=(inputs, 9))
        matrix[:, 3] = 0.0
        wanted = matrix + 0.03 * rng.normal(size=matrix.shape)
        values = rounded_matrix(matrix, wanted, gram, levels)
        nearest = rounded_to_nearest(matrix, levels)
        errors = squared_error(values - wanted, gram), squared_error(nearest - wanted, gram)
        assert (errors[0] <= errors[1]).all()
        # Rounding once more, by the largest value that was found, changes nothing.
        np.testing.assert_allclose(rounded_to_nearest(values, levels), values, rtol=1e-12)


def every_kind(x):
    """Each kernel of the file once or more: grouped, depthwise, separable, transposed, shared."""
    shared = layers.Conv2D(6, 3, padding="same", groups=2)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(6, 3, use_bias=False)(x)))
    x = shared(layers.ReLU()(shared(x)))
    x = layers.ReLU()(layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(x))
    x = layers.SeparableConv2D(5, 3, padding="same", activation="relu")(x)
    x = layers.Conv2DTranspose(4, 3, 2, "same", activation="relu")(x)
    return head(x)


@pytest.fixture(scope="module")
def kinds() -> tf_keras.Model:
    inputs = layers.Input(SHAPE)
    return randomize(tf_keras.Model(inputs, every_kind(inputs)))


def rounded(model: tf_keras.Model, bits: int, x: np.ndarray):
    """What `quantize` does, and what the rounding says of it."""
    qat = quantize(model, "ptq", bits, representative_data=x, bias_correction=False)
    kernels = KernelRounding(intercept=True)
    correct_biases(qat, [x], [kernels])
    calibrate(qat, x)
    return qat, kernels


@pytest.mark.parametrize("bits", [4, 8])
def test_every_kernel_becomes_better(kinds: tf_keras.Model, bits: int) -> None:
    qat, kernels = rounded(kinds, bits, photos())
    assert kernels.skipped == []
    assert len(kernels.errors) == sum("kernel" in weight.name for weight in qat.weights) == 8
    for name, (nearest, ours) in kernels.errors.items():
        assert ours <= nearest, name
    assert np.mean([ours / nearest for nearest, ours in kernels.errors.values()]) < 0.6
    same = quantize(kinds, "ptq", bits, representative_data=photos(), rounding="gptq")
    for one, other in zip(qat.get_weights(), same.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_of_a_layer_are_nearer_to_those_in_float(bias: bool) -> None:
    rng = np.random.default_rng(5)
    x = correlated(rng, 500, 12) + 2.0
    model = tf_keras.Sequential([layers.Input((12,)), layers.Dense(9, use_bias=bias)])
    randomize(model)
    expected = computed(model, x)
    errors = {}
    for rounding in ("nearest", "gptq"):
        qat = quantize(model, "ptq", 4, representative_data=x, rounding=rounding)
        errors[rounding] = np.square(computed(qat, x) - expected).mean()
    assert errors["gptq"] < 0.5 * errors["nearest"]


@pytest.mark.parametrize("bits", [4, 8])
def test_networks_come_nearer_to_float(kinds: tf_keras.Model, bits: int) -> None:
    x, other = photos(), photos(seed=4)
    expected = computed(kinds, other)
    errors = {
        rounding: np.square(
            computed(quantize(kinds, "ptq", bits, representative_data=x, rounding=rounding), other)
            - expected
        ).mean()
        for rounding in ("nearest", "gptq")
    }
    assert errors["gptq"] < (0.5 if bits == 4 else 1.0) * errors["nearest"]


def planned(qat: tf_keras.Model) -> list[bytes]:
    """The integers of every kernel in the order of the file, where the filters come first."""
    found = []
    for layer in qat.layers:
        for variable, quantizer, _ in getattr(layer, "_weight_vars", ()):
            values = to_channels_last(variable, quantizer.grouping).numpy()
            sizes = np.abs(values).max(tuple(range(values.ndim - 1)))
            exact = values / np.where(sizes > 0, sizes, 1.0) * largest_integer(quantizer.bits)
            integers = np.rint(exact)
            np.testing.assert_allclose(exact, integers, atol=1e-4)
            is_depthwise = quantizer.grouping == "depthwise"
            turned = integers if is_depthwise else np.moveaxis(integers, -1, 0)
            found.append(turned.astype(np.int8).tobytes())
    return sorted(found)


def stored(path: pathlib.Path) -> list[bytes]:
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    found = []
    for tensor in model.subgraphs[0].tensors:
        data = model.buffers[tensor.buffer].data
        if data is None or len(tensor.shape) < 2:
            continue
        if tensor.type == schema.TensorType.INT4:
            packed = np.asarray(data, np.uint8)
            nibbles = np.stack([packed & 15, packed >> 4], 1).ravel()[: np.prod(tensor.shape)]
            found.append(np.where(nibbles > 7, nibbles.astype(int) - 16, nibbles).astype(np.int8))
        elif tensor.type == schema.TensorType.INT8:
            found.append(np.asarray(data, np.uint8).view(np.int8))
    return sorted(one.tobytes() for one in found)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_file_holds_the_integers_that_were_chosen(
    kinds: tf_keras.Model, bits: int, tmp_path: pathlib.Path
) -> None:
    x = photos()
    qat = quantize(kinds, "ptq", bits, representative_data=x, rounding="gptq")
    file = export_tflite(qat, tmp_path / "net.tflite", data=x)
    assert file.float_ops == 0
    assert stored(file.path) == planned(qat)


@pytest.mark.parametrize("case", ["dead", "copied", "few", "one value"])
def test_what_is_not_determined_is_rounded_all_the_same(case: str) -> None:
    x = photos(96)
    if case == "dead":
        x[..., 1] = 0.0
    elif case == "copied":
        x[..., 1] = x[..., 0]
    elif case == "few":
        x = x[:1]
    else:
        x = np.zeros_like(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        qat, kernels = rounded(build("union_block"), 4, x)
    assert all(np.isfinite(weight).all() for weight in qat.get_weights())
    assert len(kernels.errors) == 3
    assert all(0.0 <= ours <= nearest for nearest, ours in kernels.errors.values())


def test_too_many_inputs_are_rounded_to_nearest_with_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_rounding, "LARGEST_SYSTEM", 30)
    model, x = build("union_block"), photos()
    with pytest.warns(RuntimeWarning, match=r"rounded the kernels .* to nearest.*inputs: \w+$"):
        qat = quantize(model, "ptq", 4, representative_data=x, rounding="gptq")
    changed = {
        one.name
        for one, other in zip(
            qat.weights, quantize(model, "ptq", 4, representative_data=x).weights, strict=True
        )
        if "kernel" in one.name and not np.array_equal(one, other)
    }
    assert len(changed) == sum("kernel" in weight.name for weight in qat.weights) - 1


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rounding": "up"}, r"rounding must be one of \('nearest', 'gptq'\)\. Received: 'up'"),
        ({"rounding": "gptq"}, r"method=\"ptq\".*Received: rounding='gptq', method='qat'"),
        ({"rounding": "gptq", "method": "ptq"}, "representative_data is needed"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, str], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        quantize(build("union_block"), **options)
