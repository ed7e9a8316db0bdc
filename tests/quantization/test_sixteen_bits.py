"""16-bit activations with 8-bit weights: what the file holds, computes and lacks."""

from __future__ import annotations

import re

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from ai_edge_litert import schema_py_generated as schema

import ehap_tf as ehap
from ehap_tf.quantization import parse_tflite
from ehap_tf.quantization.plan.quantizers import EhapActivationQuantizer, EhapFixedQuantizer
from ehap_tf.quantization.tflite.output_grids import output_step
from tests.pruning.nets import computed
from tests.quantization.nets import (
    NETS,
    SEQUENCE,
    SEQUENCE_NETS,
    SHAPE,
    conv_norm,
    groups,
    head,
    images,
    sequences,
    side_by_side,
)
from tests.quantization.test_integer_operators import GROUPS, net

layers = tf_keras.layers

LACKING = {
    "group_norm": "SQUARED_DIFFERENCE, RSQRT",
    "hard_swish_operators": "HARD_SWISH",
    "keras3_activations": "HARD_SWISH",
    "layer_norm": "RSQRT",
    "softplus": "RSQRT",
}
"""Networks with layers that TFLite has no 16-bit kernel for."""
LACKING_OPERATORS = {
    "UnitNormalization": "L2_NORMALIZATION",
    "any sign": "RSQRT",
    "cosines": "L2_NORMALIZATION",
    "depth_to_space": "DEPTH_TO_SPACE",
    "divide": "RSQRT",
    "l2_normalize": "L2_NORMALIZATION",
    "l2_normalize image": "L2_NORMALIZATION",
    "log_softmax": "LOG_SOFTMAX",
    "reciprocal": "RSQRT",
    "rsqrt": "RSQRT",
    "share": "RSQRT",
    "space_to_depth": "SPACE_TO_DEPTH",
    "squared_difference": "SQUARED_DIFFERENCE",
}
TABLES = {"elu": 8.0, "selu": 16.0}
"""Functions that kernels interpolate in a table, and the steps that their outputs may be off."""
FIRST = (
    "activation_layers", "average", "dense_norm", "grouped", "leaky", "min_max", "prelu", "sums",
    "swish", "transposed", "union_block",
)  # fmt: skip


def exported(model, x, path, method="ptq"):
    qat = ehap.quantize(model, method, activation_bits=16, representative_data=(x,))
    return qat, ehap.export_tflite(qat, path, data=(x,))


def decibels(wanted, received):
    return 10.0 * np.log10(np.var(wanted) / np.square(received - wanted).mean())


def difference(model, x, path):
    """The mean steps by which each output of the file is off the QAT model's."""
    qat, file = exported(model, x, path)
    assert not file.float_ops
    received, wanted = ehap.TFLiteModel(path)(x), computed(qat, x)
    pairs = zip(received, wanted, strict=True) if len(wanted) > 1 else [(received, wanted[0])]
    return [np.abs(a - b).mean() / output_step(qat, i) for i, (a, b) in enumerate(pairs)]


OTHERS = sorted(set(NETS) - set(LACKING) - set(FIRST))


@pytest.mark.parametrize(
    "names",
    [FIRST, *(pytest.param(n, marks=pytest.mark.families) for n in groups(dict.fromkeys(OTHERS)))],
    ids="-".join,
)
def test_layers_compute_what_the_model_does(names, tmp_path):
    steps = difference(side_by_side(NETS, names, SHAPE), images(), tmp_path / "net.tflite")
    for name, mean in zip(names, steps, strict=True):
        assert mean < TABLES.get(name, 2.5), (name, mean)


@pytest.mark.families
def test_sequences_compute_what_the_model_does(tmp_path):
    names = sorted(set(SEQUENCE_NETS) - {"mixer"})  # It has a LayerNormalization.
    model = side_by_side(SEQUENCE_NETS, names, SEQUENCE)
    steps = difference(model, sequences(), tmp_path / "net.tflite")
    for name, mean in zip(names, steps, strict=True):
        assert mean < TABLES.get(name, 2.5), (name, mean)


@pytest.mark.parametrize(
    "group",
    ["elements", *(pytest.param(g, marks=pytest.mark.families) for g in GROUPS if g != "elements")],
)
def test_operators_compute_what_the_model_does(group, tmp_path):
    tf_keras.utils.set_random_seed(3)
    operators = {n: o for n, o in GROUPS[group].items() if n not in LACKING_OPERATORS}
    x = np.random.default_rng(1).standard_normal((64, 6, 6, 3)).astype(np.float32)
    qat, file = exported(net(operators.values()), x, tmp_path / "net.tflite")
    assert not file.float_ops
    received = ehap.TFLiteModel(file.path)(x)
    for name, one, other in zip(operators, received, computed(qat, x), strict=False):
        # A constant of eight bits in the place of one of sixteen, or a change of scale that a
        # kernel does not make, is off by 40 dB and more.
        assert decibels(other, one) > 50.0, (name, decibels(other, one))


@pytest.mark.parametrize("name", LACKING)
def test_a_layer_without_a_kernel_is_named_before_any_training(name):
    model = side_by_side(NETS, [name], SHAPE)
    for decide in (ehap.quantize, ehap.plan_quantization):
        with pytest.raises(ValueError, match=rf"8-bit activations only: {LACKING[name]}\. Rep"):
            decide(model, activation_bits=16)


@pytest.mark.families
@pytest.mark.parametrize("name", LACKING_OPERATORS)
def test_an_operator_without_a_kernel_is_named(name):
    (operator,) = (operators[name] for operators in GROUPS.values() if name in operators)
    with pytest.raises(ValueError, match=rf"8-bit .* only: .*{LACKING_OPERATORS[name]}"):
        ehap.quantize(net([operator]), activation_bits=16)


def test_it_is_kept_in_float_or_in_8_bits_instead(tmp_path):
    inputs = layers.Input(SHAPE)
    x = layers.LayerNormalization(name="norm")(conv_norm(inputs))
    model = tf_keras.Model(inputs, head(x))
    plan = ehap.plan_quantization(model, activation_bits=16, keep_float=["norm"])
    qat = ehap.quantize(model, "ptq", representative_data=images(), plan=plan)
    file = ehap.export_tflite(qat, tmp_path / "net.tflite", allow_float=True, data=images())
    assert file.float_ops and file.input.dtype == "int16" and file.agreement > 0.95
    assert ehap.plan_quantization(model).activation_bits == 8


def waveform_net() -> tf_keras.Model:
    """From a wave to a wave, as of a denoiser."""
    inputs = layers.Input((128, 1))
    x = layers.Conv1D(16, 9, padding="same", activation="relu")(inputs)
    for dilation in (1, 2, 4):
        options = {"padding": "same", "dilation_rate": dilation, "activation": "relu"}
        x = layers.Add()([x, layers.Conv1D(16, 5, **options)(x)])
    return tf_keras.Model(inputs, layers.Conv1D(1, 9, padding="same")(x))


def waves(count: int) -> np.ndarray:
    """Sums of tones within [-1, 1], some of them a hundred times as loud as others."""
    rng = np.random.default_rng(0)

    def drawn(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, 1, 1))

    time = np.arange(128)[None, :, None]
    tones = [np.sin(drawn(0.06, 1.9) * time + drawn(0.0, 6.3)) * drawn(-1.0, 1.0) for _ in range(4)]
    return (10.0 ** drawn(-2.0, 0.0) * sum(tones) / 4.0).astype(np.float32)


def test_sound_is_ten_decibels_nearer_to_the_float_network(tmp_path):
    model, x = waveform_net(), waves(160)
    wanted = model(x).numpy()
    ratios = {}
    for bits, rounding in ((8, "nearest"), (16, "nearest"), (16, "gptq")):
        options = {"activation_bits": bits, "rounding": rounding}
        qat = ehap.quantize(model, "ptq", representative_data=x, **options)
        file = ehap.export_tflite(qat, tmp_path / f"{bits}.tflite")
        ratios[bits, rounding] = decibels(wanted, ehap.TFLiteModel(file.path)(x))
    eight, sixteen, for_outputs = ratios.values()
    # The rounding of the weights is left, and becomes less.
    assert for_outputs > sixteen + 3.0 and sixteen > max(eight + 10.0, 40.0), ratios


def test_the_file_is_symmetric_integer_throughout_and_accumulates_in_64_bits(tmp_path):
    model = side_by_side(NETS, ["sums"], SHAPE)
    _, file = exported(model, images(), tmp_path / "net.tflite")
    assert (file.input.dtype, file.output.dtype) == ("int16", "int16")
    assert file.difference < 5.0 and file.agreement == 1.0
    content = parse_tflite(file.path)
    (graph,) = content.subgraphs
    types = schema.TensorType
    products = [
        getattr(schema.BuiltinOperator, name)
        for name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    weights = set()
    for operator in graph.operators:
        code = content.operatorCodes[operator.opcodeIndex].builtinCode
        if code in products:
            kernel, bias = (graph.tensors[i] for i in operator.inputs[1:3])
            assert (kernel.type, bias.type) == (types.INT8, types.INT64)
            x = graph.tensors[operator.inputs[0]]
            unit = np.float64(x.quantization.scale[0]) * kernel.quantization.scale
            np.testing.assert_allclose(bias.quantization.scale, unit, rtol=1e-6)
            weights |= {int(i) for i in operator.inputs[1:3]}
        if code == schema.BuiltinOperator.ADD:
            assert not operator.builtinOptions.potScaleInt16
    for index, tensor in enumerate(graph.tensors):
        if index not in weights and tensor.quantization.scale is not None:
            assert tensor.type == types.INT16
            assert tensor.quantization.zeroPoint.tolist() == [0]
    # The weights are those of the file with activations of 8 bits.
    eight = ehap.quantize(model, "ptq", representative_data=images(), bias_correction=False)
    other = ehap.export_tflite(eight, tmp_path / "eight.tflite")
    kernels = [
        sorted(
            bytes(c.buffers[t.buffer].data)
            for t in c.subgraphs[0].tensors
            if t.type == types.INT8 and c.buffers[t.buffer].data is not None
        )
        for c in map(parse_tflite, (file.path, other.path))
    ]
    assert kernels[0] == kernels[1]


def test_a_dense_layer_by_numpy(tmp_path):
    """The sums of products and biases of the file, written out in whole numbers."""
    model = tf_keras.Sequential([layers.Input((24,)), layers.Dense(7, name="dense")])
    x = np.random.default_rng(2).normal(0.0, 3.0, (40, 24)).astype(np.float32)
    model.layers[0].bias.assign(np.linspace(-1.0, 1.0, 7))
    _, file = exported(model, x, tmp_path / "net.tflite")
    content = parse_tflite(file.path)
    (graph,) = content.subgraphs
    (operator,) = graph.operators
    kernel, bias = (graph.tensors[i] for i in operator.inputs[1:])
    weights = np.frombuffer(bytes(content.buffers[kernel.buffer].data), np.int8).reshape(7, 24)
    biases = np.frombuffer(bytes(content.buffers[bias.buffer].data), np.int64)
    interpreted = ehap.TFLiteModel(file.path)
    (integers,) = interpreted.as_integers(x)
    sums = integers.astype(np.int64) @ weights.T.astype(np.int64) + biases
    scales = file.input.scale * kernel.quantization.scale.astype(np.float64) / file.output.scale
    expected = np.clip(np.rint(sums * scales), -32768, 32767)
    received = np.stack([interpreted.run(example)[0] for example in integers])
    # The kernel multiplies by 16 bits of the scale.
    assert np.abs(received - expected).max() <= 1.0
    np.testing.assert_allclose(
        biases * np.float64(file.input.scale) * kernel.quantization.scale,
        model.layers[0].bias.numpy(),
        atol=0.01,
    )


def test_training_follows_the_rounding_and_is_saved(tmp_path):
    model = side_by_side(NETS, ["swish"], SHAPE)
    x = images()
    wanted = 1.3 * model(x).numpy() + 0.1
    qat = ehap.quantize(model, "qat", activation_bits=16, representative_data=(x,))
    qat.compile(tf_keras.optimizers.SGD(0.05), "mse")
    before = qat.evaluate(x, wanted, verbose=0)
    qat.fit(x, wanted, epochs=4, verbose=0)
    assert qat.evaluate(x, wanted, verbose=0) < 0.5 * before
    file = ehap.export_tflite(qat, tmp_path / "net.tflite", data=(x,))
    assert file.difference < 5.0
    ehap.save_qat(qat, tmp_path / "qat.h5")
    loaded = ehap.load_qat(tmp_path / "qat.h5")
    np.testing.assert_array_equal(loaded(x), qat(x))
    again = ehap.export_tflite(loaded, tmp_path / "again.tflite")
    assert again.path.read_bytes() == file.path.read_bytes()


def test_float_inputs_and_outputs(tmp_path):
    qat, file = exported(side_by_side(NETS, ["average"], SHAPE), images(), tmp_path / "net.tflite")
    floats = ehap.export_tflite(qat, tmp_path / "float.tflite", io_dtype="float32")
    assert (floats.input.dtype, floats.output.dtype) == ("float32", "float32")
    # Its QUANTIZE rounds a half otherwise.
    steps = ehap.TFLiteModel(floats.path)(images()) - ehap.TFLiteModel(file.path)(images())
    assert np.abs(steps).max() < 2.1 * file.output.scale
    with pytest.raises(ValueError, match=r"one of \('int16', 'float32'\) .* 16 .*'int8'"):
        ehap.export_tflite(qat, tmp_path / "int8.tflite", io_dtype="int8")


def test_a_table_of_latencies_is_not_made_of_it(tmp_path):
    _, file = exported(side_by_side(NETS, ["average"], SHAPE), images(), tmp_path / "net.tflite")
    with pytest.raises(ValueError, match=r"16 bits; those of 8 .* measure_latency_ms"):
        ehap.measure_operators(file.path)
    assert ehap.measure_latency_ms(file.path, runs=3) > 0.0


def test_kernels_of_4_bits_are_refused():
    model = side_by_side(NETS, ["average"], SHAPE)
    with pytest.raises(ValueError, match=r"kernels must have 8 bits .* Received: 4 bits for all"):
        ehap.quantize(model, weight_bits=4, activation_bits=16)
    plan = ehap.plan_quantization(model, activation_bits=16)
    name = next(iter(plan.bits))
    with pytest.raises(ValueError, match=re.escape(f"Received: 4 bits for {name}")):
        plan.with_bits({name: 4})
    assert ehap.QuantizationPlan.from_json(plan.to_json()) == plan


def test_micro_runs_it_and_what_it_lacks_is_named(tmp_path):
    pytest.importorskip("tflite_micro")
    _, file = exported(side_by_side(NETS, ["sums"], SHAPE), images(), tmp_path / "net.tflite")
    check = ehap.verify_micro(file.path, images(), examples=20)
    assert check.missing == () and check.largest_difference <= 2.0 and check.agreement == 1.0
    assert file.arena_bytes == pytest.approx(check.arena_bytes, rel=0.05)
    model = tf_keras.Sequential(
        [layers.Input(SHAPE), layers.UpSampling2D(interpolation="bilinear"), layers.Conv2D(2, 3)]
    )
    _, file = exported(model, images(), tmp_path / "up.tflite")
    check = ehap.verify_micro(file.path, images())
    assert check.missing == ("RESIZE_BILINEAR of 16 bits",)


def test_the_quantizers_by_numpy():
    x = np.random.default_rng(0).normal(0.0, 2.0, 5000).astype(np.float32)
    quantizer = EhapActivationQuantizer(16)
    variables = {"min_var": tf.constant(-1.5), "max_var": tf.constant(4.0)}
    step = 4.0 / 32767.0
    values = tf.Variable(x)
    with tf.GradientTape() as tape:
        received = quantizer(values, False, variables)
    expected = step * np.clip(np.rint(x.astype(np.float64) / step), -32768, 32767)
    np.testing.assert_allclose(received, expected, atol=1.02 * step)
    assert (np.abs(received - expected) > 0.01 * step).mean() < 0.01  # Ties, in float32.
    inside = (x > -32768 * step) & (x < 32767 * step)
    np.testing.assert_array_equal(tape.gradient(received, values), inside.astype(np.float32))
    assert float(quantizer.grid(variables)[0]) == pytest.approx(step)
    for low, high in ((0.0, 255 / 256), (-1.0, 127 / 128)):  # softmax, tanh
        assert float(EhapFixedQuantizer(low, high, 16).grid({})[0]) == 1.0 / 32768.0
