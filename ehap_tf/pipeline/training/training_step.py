"""One step of training: loss, gradient, weight decay, momentum, and the learning rate's curve."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from ehap_tf.models import Readout

TrainStep = Callable[[Any, Any], tuple[tf.Tensor, tf.Tensor]]


class WarmupCosine(tf_keras.optimizers.schedules.LearningRateSchedule):
    """Rises linearly to `peak` in `warmup_steps`, then falls along a cosine towards zero.

    A function of the step alone, so that a resumed training goes on along the same curve.

    Args:
        peak: the highest learning rate.
        total_steps: when zero is reached.
        warmup_steps: how long the rise takes; the first step already has peak / warmup_steps.
    """

    def __init__(self, peak: float, total_steps: int, warmup_steps: int = 0) -> None:
        self.peak = peak
        self.total_steps = total_steps
        self.warmup_steps = warmup_steps

    def __call__(self, step: Any) -> tf.Tensor:
        """The learning rate of step number `step`, counted from 0."""
        step = tf.cast(step, tf.float32)
        rise = (step + 1.0) / max(1, self.warmup_steps)
        fraction = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        fall = 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(fraction, 0.0, 1.0)))
        return self.peak * tf.where(step < self.warmup_steps, rise, fall)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            "peak": self.peak,
            "total_steps": self.total_steps,
            "warmup_steps": self.warmup_steps,
        }


def build_optimizer(
    model: tf_keras.Model, schedule: WarmupCosine, momentum: float, nesterov: bool
) -> Any:
    """SGD with its variables created; with dynamic loss scaling where the model is float16."""
    optimizer = tf_keras.optimizers.SGD(
        schedule, momentum=momentum, nesterov=nesterov, jit_compile=False
    )
    if any(layer.compute_dtype == "float16" for layer in model.submodules if _is_layer(layer)):
        optimizer = tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer


def is_kernel(variable: tf.Variable) -> bool:
    """Whether weight decay applies: kernels of any kind, but no bias, gamma, beta or range."""
    return bool(variable.name.split("/")[-1].split(":")[0].endswith("kernel"))


def build_step(
    model: tf_keras.Model,
    optimizer: Any,
    weight_decay: float,
    batch_size: int,
    strategy: tf.distribute.Strategy,
) -> TrainStep:
    """Compiles one training step.

    Minimises the mean cross-entropy of the batch, plus the losses that the model itself adds;
    `weight_decay * kernel` is added to the gradient of each kernel, as in PyTorch's SGD.

    Args:
        model: trained in place.
        optimizer: from `build_optimizer`.
        weight_decay: factor of the kernels in their gradients.
        batch_size: global batch size, over all replicas.
        strategy: under whose scope `model` and `optimizer` were made.

    Returns:
        A function of (images, labels) that takes the step and returns the summed loss of the
        batch's examples divided by `batch_size`, and the number of right answers, before the step.
    """
    variables = list(model.trainable_variables)
    readout = Readout.of(model)
    cross_entropies = readout.loss(tf_keras.losses.Reduction.NONE)
    scaled = isinstance(optimizer, tf_keras.mixed_precision.LossScaleOptimizer)
    replicas = strategy.num_replicas_in_sync

    def replica_step(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            outputs = tf.cast(model(images, training=True), tf.float32)
            losses = cross_entropies(readout.labels(labels), outputs)
            loss = tf.reduce_sum(losses) / batch_size
            objective = loss
            if model.losses:
                objective += tf.add_n([tf.cast(x, tf.float32) for x in model.losses]) / replicas
            if scaled:
                objective = optimizer.get_scaled_loss(objective)
        gradients = tape.gradient(objective, variables)
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        # Each replica adds its share: the optimizer sums the gradients over replicas.
        decay = np.float32(weight_decay / replicas)
        pairs = [
            (g + decay * tf.cast(v, g.dtype) if decay and is_kernel(v) else g, v)
            for g, v in zip(gradients, variables, strict=True)
            if g is not None
        ]
        optimizer.apply_gradients(pairs)
        right = _classes(readout, outputs) == tf.cast(labels, tf.int64)
        return loss, tf.math.count_nonzero(right)

    @tf.function
    def step(images: Any, labels: Any) -> tuple[tf.Tensor, tf.Tensor]:
        loss, right = strategy.run(replica_step, args=(images, labels))
        total = tf.distribute.ReduceOp.SUM
        return strategy.reduce(total, loss, axis=None), strategy.reduce(total, right, axis=None)

    return step


def _classes(readout: Readout, outputs: tf.Tensor) -> tf.Tensor:
    if readout.threshold is not None:
        return tf.cast(outputs[:, 0] > readout.threshold, tf.int64)
    return tf.argmax(outputs, axis=-1, output_type=tf.int64)


def _is_layer(module: Any) -> bool:
    return isinstance(module, tf_keras.layers.Layer)
