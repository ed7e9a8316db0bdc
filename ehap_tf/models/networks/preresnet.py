"""Pre-activated bottleneck networks for CIFAR (He et al., arXiv 1603.05027), 9n + 2 layers."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from ehap_tf.models.networks.blocks import Blocks

EXPANSION = 4


def build_preresnet(
    depth: int,
    num_classes: int,
    input_shape: tuple[int, int, int],
    seed: int,
    width: int = 1,
    name: str | None = None,
) -> tf_keras.Model:
    """Builds a PreResNet as HAP has it: bottlenecks of 16, 32 and 64 channels, four times as wide
    outside.

    Args:
        depth: 9n + 2.
        num_classes: number of logits.
        input_shape: (height, width, channels).
        seed: fixes the initial weights.
        width: multiplies the channels of every layer.
        name: the model's name.
    """
    blocks = Blocks(seed)
    inputs = tf_keras.Input(input_shape, name="image")
    x = blocks.convolution(inputs, 16 * width, 3, 1, "stem_conv")
    for stage in range(3):
        for block in range((depth - 2) // 9):
            strides = 2 if stage > 0 and block == 0 else 1
            filters = 16 * width * 2**stage
            x = _bottleneck(blocks, x, filters, strides, f"stage{stage + 1}_block{block + 1}")
    x = blocks.normalized_relu(x, "head")
    return tf_keras.Model(inputs, blocks.logits(x, num_classes), name=name)


def _bottleneck(blocks: Blocks, x: tf.Tensor, filters: int, strides: int, name: str) -> tf.Tensor:
    shortcut, outside = x, EXPANSION * filters
    if strides > 1 or x.shape[-1] != outside:
        shortcut = blocks.convolution(x, outside, 1, strides, f"{name}_shortcut_conv")
    x = blocks.normalized_relu(x, f"{name}_1")
    x = blocks.convolution(x, filters, 1, 1, f"{name}_conv1")
    x = blocks.normalized_relu(x, f"{name}_2")
    x = blocks.convolution(x, filters, 3, strides, f"{name}_conv2")
    x = blocks.normalized_relu(x, f"{name}_3")
    x = blocks.convolution(x, outside, 1, 1, f"{name}_conv3")
    return tf_keras.layers.Add(name=f"{name}_add")([x, shortcut])
