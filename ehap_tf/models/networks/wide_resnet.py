"""Wide residual networks for CIFAR (Zagoruyko and Komodakis, arXiv 1605.07146), 6n + 4 layers."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from ehap_tf.models.networks.blocks import Blocks


def build_wide_resnet(
    depth: int,
    widening: int,
    num_classes: int,
    input_shape: tuple[int, int, int],
    seed: int,
    width: int = 1,
    name: str | None = None,
) -> tf_keras.Model:
    """Builds a WRN: three stages of n pre-activated blocks with 16k, 32k and 64k channels.

    Args:
        depth: 6n + 4.
        widening: k.
        num_classes: number of logits.
        input_shape: (height, width, channels).
        seed: fixes the initial weights.
        width: multiplies the channels of every layer, the stem's included.
        name: the model's name.
    """
    blocks = Blocks(seed)
    inputs = tf_keras.Input(input_shape, name="image")
    x = blocks.convolution(inputs, 16 * width, 3, 1, "stem_conv")
    for stage in range(3):
        for block in range((depth - 4) // 6):
            strides = 2 if stage > 0 and block == 0 else 1
            filters = 16 * widening * width * 2**stage
            x = _wide_block(blocks, x, filters, strides, f"stage{stage + 1}_block{block + 1}")
    x = blocks.normalized_relu(x, "head")
    return tf_keras.Model(inputs, blocks.logits(x, num_classes), name=name)


def _wide_block(blocks: Blocks, x: tf.Tensor, filters: int, strides: int, name: str) -> tf.Tensor:
    activated = blocks.normalized_relu(x, f"{name}_1")
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        shortcut = blocks.convolution(activated, filters, 1, strides, f"{name}_shortcut_conv")
    y = blocks.convolution(activated, filters, 3, strides, f"{name}_conv1")
    y = blocks.normalized_relu(y, f"{name}_2")
    y = blocks.convolution(y, filters, 3, 1, f"{name}_conv2")
    return tf_keras.layers.Add(name=f"{name}_add")([y, shortcut])
