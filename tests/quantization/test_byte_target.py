"""A file of so many bytes: which kernels get 4 bits, and what that costs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import tf_keras

import ehap_tf as ehap
from ehap_tf.quantization import require_target_bytes
from ehap_tf.quantization.apply.byte_target import KernelChoice, bits_for_bytes, kernel_choices
from ehap_tf.quantization.apply.qat import rewritten
from tests.quantization.nets import images, randomize

layers = tf_keras.layers


def net() -> tf_keras.Model:
    i = layers.Input((8, 8, 3), name="image")
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(24, 3, name="stem")(i)))
    x = layers.DepthwiseConv2D(3, name="depth")(x)
    x = layers.Conv2D(32, 3, activation="relu", name="wide")(x)
    x = layers.Conv2DTranspose(24, 2, strides=2, name="up")(x)
    x = layers.Conv2D(16, 3, activation="relu", name="late")(x)
    return randomize(tf_keras.Model(i, layers.Dense(10, name="logits")(layers.Flatten()(x))))


@pytest.fixture(scope="module")
def model() -> tf_keras.Model:
    return net()


@pytest.fixture(scope="module")
def scores(model) -> ehap.FilterScores:
    x = images(64)
    y = np.random.default_rng(0).integers(0, 10, 64)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return ehap.rank_filters(model, (x, y), loss, estimator="gauss_newton", probes=4)


def file_bytes(model: tf_keras.Model, plan: ehap.QuantizationPlan, path) -> int:
    qat = ehap.quantize(model, "ptq", representative_data=images(16), plan=plan)
    return ehap.export_tflite(qat, path / "net.tflite").bytes


def test_the_file_has_the_bytes_that_were_wanted(model, scores, tmp_path):
    largest = file_bytes(model, ehap.plan_quantization(model), tmp_path)
    smallest = file_bytes(model, ehap.plan_quantization(model, 4), tmp_path)
    for share in (0.9, 0.1):
        target = int(smallest + share * (largest - smallest))
        plan = ehap.plan_quantization(model, target_bytes=target, scores=scores)
        written = file_bytes(model, plan, tmp_path)
        assert written <= 1.02 * target
        # What has no trace, or no kernel of 4 bits, keeps its 8.
        assert plan.bits["depth"] == plan.bits["up"] == 8
        # Smaller by the smallest kernel that has 8 bits at most, as 4 of it would do as well.
        more = plan.with_bits({name: 8 for name, bits in plan.bits.items() if bits == 4})
        assert more.bits == ehap.plan_quantization(model).bits
    exempt = ehap.plan_quantization(
        model, target_bytes=target, scores=scores, bits={"st*": 8, "wide": 4}
    )
    assert exempt.bits["stem"] == 8 and exempt.bits["wide"] == 4
    everything = ehap.plan_quantization(model, target_bytes=largest, scores=scores)
    assert set(everything.bits.values()) == {8}


def test_what_cannot_be_met_says_how_far_it_goes(model, scores, tmp_path):
    smallest = file_bytes(model, ehap.plan_quantization(model, 4), tmp_path)
    with pytest.raises(ValueError, match=r"target_bytes must be at least [\d,]+, .* Received: 500"):
        ehap.plan_quantization(model, target_bytes=500, scores=scores)
    with pytest.raises(ValueError, match=rf"at least {smallest:,}, .* Remove more"):
        require_target_bytes(model, smallest - 1)
    require_target_bytes(model, smallest)
    with pytest.raises(ValueError, match=r"go together.*scores=None"):
        ehap.plan_quantization(model, target_bytes=500)
    magnitude = ehap.rank_filters(model, criterion="magnitude")
    with pytest.raises(ValueError, match='scores must have traces, as those of criterion="hess'):
        ehap.plan_quantization(model, target_bytes=500, scores=magnitude)


def test_the_choice_is_the_best_of_all():
    rng = np.random.default_rng(0)
    for _ in range(20):
        choices = [
            KernelChoice(str(n), np.sort(rng.exponential(size=2)), np.array([size, size / 2]))
            for n, size in enumerate(2.0 * rng.integers(1, 500, 6))
        ]
        file = int(sum(c.bytes[0] for c in choices)) + 300
        target = int(rng.integers(file // 2 + 150, file + 1))
        bits = bits_for_bytes(choices, file, target)

        def loss_and_bytes(places: tuple[int, ...], choices=choices) -> tuple[float, float]:
            pairs = list(zip(choices, places, strict=True))
            return sum(c.losses[p] for c, p in pairs), 300 + sum(c.bytes[p] for c, p in pairs)

        received = loss_and_bytes(tuple(int(bits[c.name] == 4) for c in choices))
        every = [loss_and_bytes(places) for places in itertools.product((0, 1), repeat=6)]
        assert received[1] <= target
        assert received[0] == pytest.approx(min(lo for lo, size in every if size <= target))


def test_the_loss_is_the_trace_times_the_rounding_error(model, scores):
    """By numpy: the rounding of one kernel, written out."""
    flat, configs, _ = rewritten(model, ehap.QuantizationPlan(()))
    choices = {c.name: c for c in kernel_choices(flat, configs, scores.trace)}
    assert set(choices) == {"stem", "wide", "late", "logits"}
    kernel = model.get_layer("wide").kernel.numpy().astype(np.float64)
    step = np.abs(kernel).max(axis=(0, 1, 2)) / 7.0
    error = np.square(kernel - step * np.rint(kernel / step)).sum(axis=(0, 1, 2))
    trace = np.maximum(scores.trace["wide"], 0.0) / (kernel.size / 32)
    assert choices["wide"].losses[1] == pytest.approx(float(trace @ error), rel=1e-3)
    assert choices["wide"].losses[0] < choices["wide"].losses[1] / 50
