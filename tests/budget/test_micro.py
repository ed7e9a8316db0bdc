"""Files in TensorFlow Lite Micro and in Arm's compiler, and the memory that is planned for them."""

from __future__ import annotations

import importlib
import itertools
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import ehap_tf as ehap
from ehap_tf.budget import require_target
from ehap_tf.quantization.tflite.arena import Buffer, greedy_bytes, peak_bytes
from tests.budget.nets import NETS, autoencoder, exported

layers = tf_keras.layers
SHIPPED = pathlib.Path(__file__).parents[2] / "saved_models/resnet32_cifar10/model_int8.tflite"


@pytest.mark.parametrize("make", NETS)
def test_micro_computes_what_the_reference_kernels_do(file_of, make):
    pytest.importorskip("tflite_micro")
    model, file, x = file_of(make)
    data = x[0] if len(x) == 1 else dict(zip(model.input_names, x, strict=True))
    check = ehap.verify_micro(file.path, data, examples=20)
    assert check.missing == () and check.examples == 20
    assert file.arena_bytes == pytest.approx(check.arena_bytes, rel=0.05)
    assert file.peak_bytes <= file.arena_bytes
    assert check.agreement >= 0.95
    # Halves are rounded otherwise here and there, the more the more numbers there are.
    assert check.largest_difference <= 1.0
    assert check.equal >= (0.2 if make is autoencoder else 0.7)


def test_the_shipped_file_runs_and_its_arena_is_told():
    pytest.importorskip("tflite_micro")
    x = np.random.default_rng(0).standard_normal((30, 32, 32, 3)).astype(np.float32)
    dataset = tf.data.Dataset.from_tensor_slices((x, np.zeros(30))).batch(8)
    check = ehap.verify_micro(SHIPPED, dataset, examples=20)
    assert (check.examples, check.missing) == (20, ())
    assert check.equal >= 0.95 and check.agreement == 1.0
    assert ehap.inspect_tflite(SHIPPED).arena_bytes == pytest.approx(check.arena_bytes, rel=0.02)


def test_operators_that_micro_lacks_are_all_named(tmp_path):
    pytest.importorskip("tflite_micro")
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="gelu")(inputs)
    x = layers.Lambda(lambda t: tf.tile(t, [1, 1, 2, 1]))(x)
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    file, (x,) = exported(model, tmp_path / "net.tflite")
    check = ehap.verify_micro(file.path, x)
    assert check == ehap.MicroCheck(missing=("GELU", "TILE"))


def test_vela_estimates_cycles_and_memory(tmp_path):
    pytest.importorskip("ethosu")
    compiled = tmp_path / "compiled.tflite"
    estimate = ehap.compile_for_ethos_u(SHIPPED, output=compiled)
    assert (estimate.cpu_operators, estimate.npu_operators) == (0, 51)
    assert 1e5 < estimate.cycles < 1e7 and 40_000 < estimate.sram_bytes < 80_000
    assert compiled.stat().st_size > 1000
    larger = ehap.compile_for_ethos_u(SHIPPED, "ethos-u55-256")
    assert larger.cycles < estimate.cycles
    with pytest.raises(ValueError, match=r"Vela cannot compile .* 'ethos-u56': .*invalid choice"):
        ehap.compile_for_ethos_u(SHIPPED, "ethos-u56")


def brute_peak(buffers: list[Buffer]) -> int:
    steps = range(max(b.last for b in buffers) + 1)
    return max(sum(b.bytes for b in buffers if b.first <= s <= b.last) for s in steps)


def test_plans_are_checked_by_brute_force():
    rng = np.random.default_rng(0)
    for _ in range(200):
        buffers = []
        for _ in range(rng.integers(1, 7)):
            first = int(rng.integers(0, 5))
            last = first + int(rng.integers(0, 4))
            buffers.append(Buffer(16 * int(rng.integers(1, 9)), first, last))
        peak, greedy = peak_bytes(buffers), greedy_bytes(buffers)
        assert peak == brute_peak(buffers) <= greedy
        best = min(greedy_in_order(order) for order in itertools.permutations(buffers))
        assert peak <= best <= greedy


def greedy_in_order(buffers: tuple[Buffer, ...]) -> int:
    """First fit in this order, by trying every multiple of 16."""
    placed: list[tuple[int, Buffer]] = []
    for buffer in buffers:
        others = [
            (start, start + other.bytes)
            for start, other in placed
            if other.first <= buffer.last and buffer.first <= other.last
        ]
        offset = next(
            place
            for place in itertools.count(0, 16)
            if all(place >= end or place + buffer.bytes <= start for start, end in others)
        )
        placed.append((offset, buffer))
    return max(start + buffer.bytes for start, buffer in placed)


def test_a_target_is_asked_for_its_operators_before_anything_is_trained():
    pytest.importorskip("tflite_micro")
    inputs = layers.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, activation="gelu")(inputs)
    x = layers.Lambda(lambda t: tf.reverse(t, [1]))(x)
    model = tf_keras.Model(inputs, layers.Dense(3)(layers.Flatten()(x)))
    assert require_target(model, "litert") == ()
    with pytest.raises(ValueError, match=r"target 'tflm' lacks operators .*: GELU\."):
        require_target(model, "tflm")
    with pytest.raises(ValueError, match="target must be one of litert, tflm, ethos-u55-32"):
        require_target(model, "esp32")
    without = tf_keras.Model(inputs, layers.Lambda(lambda t: tf.reverse(t, [1]))(inputs))
    assert require_target(without, "ethos-u55-128") == ("STRIDED_SLICE",)


def test_examples_must_be_there():
    pytest.importorskip("tflite_micro")
    with pytest.raises(ValueError, match="examples must be at least 1"):
        ehap.verify_micro(SHIPPED, np.zeros((2, 32, 32, 3)), examples=0)
    with pytest.raises(ValueError, match="data is empty"):
        ehap.verify_micro(SHIPPED, np.zeros((0, 32, 32, 3)))
    with pytest.raises(ValueError, match="the file takes inputs of shape"):
        ehap.verify_micro(SHIPPED, np.zeros((1, 28, 28, 3)))


def test_without_the_extra_the_command_that_installs_it_is_told(monkeypatch):
    def missing(name, *rest):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"pip install 'ehap_tf\[micro\]'"):
        ehap.verify_micro(SHIPPED, np.zeros((1, 32, 32, 3)))
