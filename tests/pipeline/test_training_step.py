from __future__ import annotations

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from ehap_tf.models import clone_with_policy
from ehap_tf.pipeline.training.training_step import (
    WarmupCosine,
    build_optimizer,
    build_step,
    is_kernel,
)
from ehap_tf.pruning import optimizer_variables
from ehap_tf.quantization import quantize
from ehap_tf.quantization.integer_rules.wrappers import unwrapped

layers = tf_keras.layers
BATCH = 8


def small_net(softmax: bool = False) -> tf_keras.Model:
    inputs = tf_keras.Input((6, 6, 2))
    x = layers.Conv2D(3, 3, kernel_initializer=tf_keras.initializers.HeNormal(seed=1), name="conv")(
        inputs
    )
    x = layers.Flatten()(layers.ReLU()(x))
    head = layers.Dense(
        4,
        activation="softmax" if softmax else None,
        kernel_initializer=tf_keras.initializers.HeNormal(seed=2),
        name="dense",
    )
    return tf_keras.Model(inputs, head(x))


def batch(seed: int = 0) -> tuple[tf.Tensor, tf.Tensor]:
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(BATCH, 6, 6, 2)).astype(np.float32)
    return tf.constant(images), tf.constant(generator.integers(0, 4, BATCH))


def test_the_learning_rate_rises_then_falls_along_a_cosine():
    schedule = WarmupCosine(0.4, total_steps=110, warmup_steps=10)
    rates = [float(schedule(step)) for step in range(111)]
    np.testing.assert_allclose(rates[:10], [0.04 * (k + 1) for k in range(10)], rtol=1e-5)
    expected = [0.2 * (1 + math.cos(math.pi * (k - 10) / 100)) for k in range(10, 111)]
    np.testing.assert_allclose(rates[10:], expected, atol=1e-6)
    assert WarmupCosine.from_config(schedule.get_config())(50) == schedule(50)


def test_without_warmup_the_first_step_has_the_peak():
    assert float(WarmupCosine(0.1, 10)(0)) == pytest.approx(0.1)


def test_steps_are_sgd_with_nesterov_momentum_and_decayed_kernels():
    """The oracle is PyTorch's rule written out: g += wd w; v = mu v + g; w -= lr (g + mu v)."""
    model, oracle = small_net(), small_net()
    rate, momentum, decay = 0.1, 0.9, 0.05
    schedule = WarmupCosine(rate, total_steps=10**9)
    optimizer = build_optimizer(model, schedule, momentum, nesterov=True)
    step = build_step(model, optimizer, decay, BATCH, tf.distribute.get_strategy())
    velocity = [tf.zeros_like(v) for v in oracle.trainable_variables]
    for number in range(4):
        images, labels = batch(number)
        with tf.GradientTape() as tape:
            logits = oracle(images, training=True)
            expected_loss = tf.reduce_mean(
                tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            )
        right = int(tf.math.count_nonzero(tf.argmax(logits, -1) == labels))
        gradients = tape.gradient(expected_loss, oracle.trainable_variables)
        for k, variable in enumerate(oracle.trainable_variables):
            gradient = gradients[k]
            if variable.shape.rank > 1:
                gradient += decay * variable
            velocity[k] = momentum * velocity[k] + gradient
            variable.assign_sub(rate * (gradient + momentum * velocity[k]))
        loss, count = step(images, labels)
        assert float(loss) == pytest.approx(float(expected_loss), rel=1e-5)
        assert int(count) == right
    for a, b in zip(model.get_weights(), oracle.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_softmax_output_trains_like_its_logits():
    logits, softmax = small_net(), small_net(softmax=True)
    for model in (logits, softmax):
        optimizer = build_optimizer(model, WarmupCosine(0.1, 10**9), 0.9, nesterov=True)
        step = build_step(model, optimizer, 0.0, BATCH, tf.distribute.get_strategy())
        for number in range(3):
            step(*batch(number))
    for a, b in zip(logits.get_weights(), softmax.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_quantized_softmax_output_trains_like_its_logits():
    logits, softmax = small_net(), small_net(softmax=True)
    trained = []
    for model in (logits, softmax):
        # Probabilities of 0 on the grid of the integer softmax.
        model.get_layer("dense").bias.assign([20.0, -20.0, 0.0, 0.0])
        trained.append(quantize(model, representative_data=(np.asarray(batch()[0]),)))
    for qat in trained:
        optimizer = build_optimizer(qat, WarmupCosine(0.1, 10**9), 0.9, nesterov=True)
        step = build_step(qat, optimizer, 0.0, BATCH, tf.distribute.get_strategy())
        for number in range(3):
            step(*batch(number))
    dense = [layer for qat in trained for layer in qat.layers if unwrapped(layer).name == "dense"]
    kernels = [layer.get_weights()[0] for layer in dense]
    np.testing.assert_allclose(*kernels, rtol=1e-4, atol=1e-6)


def test_only_kernels_decay():
    model = tf_keras.Sequential(
        [
            tf_keras.Input((8, 8, 3)),
            layers.Conv2D(4, 3),
            layers.DepthwiseConv2D(3),
            layers.BatchNormalization(),
            layers.PReLU(),
            layers.Flatten(),
            layers.Dense(3),
        ]
    )
    decayed = {v.name.split("/", 1)[1] for v in model.trainable_variables if is_kernel(v)}
    assert decayed == {"kernel:0", "depthwise_kernel:0"}
    assert sum(is_kernel(v) for v in model.variables) == 3


def test_losses_of_the_model_itself_count():
    model = small_net()
    kernel = model.get_layer("conv").kernel
    model.add_loss(lambda: 3.0 * tf.reduce_sum(kernel))
    plain = small_net()
    for trained in (model, plain):
        optimizer = build_optimizer(trained, WarmupCosine(0.1, 10**9), 0.0, nesterov=False)
        build_step(trained, optimizer, 0.0, BATCH, tf.distribute.get_strategy())(*batch())
    difference = plain.get_layer("conv").kernel.numpy() - kernel.numpy()
    np.testing.assert_allclose(difference, 0.3, rtol=1e-4)


def test_float16_trains_with_a_loss_scale_that_is_part_of_the_state():
    model = clone_with_policy(small_net(), "mixed_float16")
    optimizer = build_optimizer(model, WarmupCosine(0.1, 10**9), 0.9, nesterov=True)
    scale, counter = optimizer_variables(optimizer, listed_only=True)[-2:]
    assert float(scale) == 2.0**15
    step = build_step(model, optimizer, 0.0, BATCH, tf.distribute.get_strategy())
    losses = [float(step(*batch())[0]) for _ in range(30)]
    assert losses[-1] < 0.5 * losses[0]
    assert int(counter) > 0 or float(scale) != 2.0**15
