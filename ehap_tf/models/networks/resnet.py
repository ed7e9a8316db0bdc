"""The residual networks for CIFAR of He et al. (arXiv 1512.03385), 6n + 2 layers."""

from __future__ import annotations

import tensorflow as tf
import tf_keras

from ehap_tf.models.networks.blocks import Blocks


def build_resnet(
    depth: int,
    num_classes: int,
    input_shape: tuple[int, int, int],
    seed: int,
    width: int = 1,
    padded_shortcut: bool = False,
    name: str | None = None,
) -> tf_keras.Model:
    """Builds a CIFAR ResNet: three stages of n basic blocks with 16, 32 and 64 channels.

    Args:
        depth: 6n + 2.
        num_classes: number of logits.
        input_shape: (height, width, channels).
        seed: fixes the initial weights.
        width: multiplies the channels of every stage.
        padded_shortcut: where a stage begins, the shortcut takes every second pixel and pads zero
            channels (the paper's option A) instead of a 1x1 convolution with batch normalisation
            (option B, as EHAP has it).
        name: the model's name.
    """
    blocks = Blocks(seed)
    inputs = tf_keras.Input(input_shape, name="image")
    x = blocks.convolution(inputs, 16 * width, 3, 1, "stem_conv")
    x = blocks.normalized_relu(x, "stem")
    for stage in range(3):
        for block in range((depth - 2) // 6):
            strides = 2 if stage > 0 and block == 0 else 1
            filters = 16 * width * 2**stage
            x = _basic_block(
                blocks, x, filters, strides, padded_shortcut, f"stage{stage + 1}_block{block + 1}"
            )
    return tf_keras.Model(inputs, blocks.logits(x, num_classes), name=name)


def _basic_block(
    blocks: Blocks, x: tf.Tensor, filters: int, strides: int, padded_shortcut: bool, name: str
) -> tf.Tensor:
    shortcut = x
    if strides > 1 or x.shape[-1] != filters:
        if padded_shortcut:
            shortcut = blocks.shift_channels(x, filters, strides, f"{name}_shortcut")
        else:
            shortcut = blocks.convolution(x, filters, 1, strides, f"{name}_shortcut_conv")
            shortcut = blocks.normalization(shortcut, f"{name}_shortcut_bn")
    x = blocks.convolution(x, filters, 3, strides, f"{name}_conv1")
    x = blocks.normalized_relu(x, f"{name}_1")
    x = blocks.convolution(x, filters, 3, 1, f"{name}_conv2")
    x = blocks.normalization(x, f"{name}_2_bn")
    x = tf_keras.layers.Add(name=f"{name}_add")([x, shortcut])
    return tf_keras.layers.ReLU(name=f"{name}_relu")(x)
